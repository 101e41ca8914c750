// Entra's refusals: code, status, OAuth error and text.

package azuretest

import (
	"fmt"
	"net/http"
	"time"

	"github.com/google/uuid"
)

// refusal is one of Entra's errors, its text filled in.
type refusal struct {
	code int
	text string
}

// errorForm is the HTTP status and the OAuth error that a code comes with, and the text of a scripted one.
type errorForm struct {
	status int
	oauth  string
	text   string
}

var errorForms = map[int]errorForm{
	50027:   {400, "invalid_request", "JWT token is invalid or malformed."},
	50166:   {400, "invalid_request", "Request to External OIDC endpoint failed."},
	50196:   {400, "invalid_grant", "The server terminated an operation because it encountered a loop while processing a request."},
	53003:   {400, "invalid_grant", "Access has been blocked by Conditional Access policies. The access policy does not allow token issuance."},
	70003:   {400, "unsupported_grant_type", "The app requested an unsupported grant type."},
	70011:   {400, "invalid_scope", "The provided request must include a 'scope' input parameter that is valid."},
	70021:   {400, "invalid_request", "No matching federated identity record found for presented assertion."},
	90002:   {400, "invalid_request", "Tenant not found."},
	90006:   {400, "temporarily_unavailable", "The service is temporarily unavailable."},
	90012:   {400, "temporarily_unavailable", "The request has timed out."},
	90024:   {400, "temporarily_unavailable", "The request budget was exceeded."},
	90033:   {400, "temporarily_unavailable", "A transient error has occurred. Please try again."},
	90055:   {400, "temporarily_unavailable", "There are too many incoming requests."},
	90061:   {400, "invalid_request", "Request to External OIDC endpoint failed."},
	500011:  {400, "invalid_resource", "The resource principal was not found in the tenant."},
	501661:  {400, "invalid_request", "Request to External OIDC endpoint failed."},
	700016:  {400, "unauthorized_client", "Application was not found in the directory."},
	700023:  {401, "invalid_client", "Client assertion audience claim does not match Realm issuer."},
	700024:  {401, "invalid_client", "Client assertion is not within its valid time range."},
	700027:  {401, "invalid_client", "Client assertion failed signature validation."},
	700211:  {401, "invalid_client", "No matching federated identity record found for presented assertion issuer."},
	700212:  {401, "invalid_client", "No matching federated identity record found for presented assertion audience."},
	700213:  {401, "invalid_client", "No matching federated identity record found for presented assertion subject."},
	900023:  {400, "invalid_request", "Specified tenant identifier is neither a valid DNS name, nor a valid external domain."},
	1002012: {400, "invalid_scope", "The provided value for scope is not valid."},
	7000112: {400, "unauthorized_client", "Application is disabled."},
	7000215: {401, "invalid_client", "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID."},
	7000218: {401, "invalid_client", "The request body must contain the following parameter: 'client_assertion' or 'client_secret'."},
	7000222: {401, "invalid_client", "The provided client secret keys are expired."},
	7000229: {400, "unauthorized_client", "The client application is missing service principal in the tenant."},
	7000272: {401, "invalid_client", "The certificate used to sign the federated credential could not be found in the metadata of the identity provider."},
	7002138: {401, "invalid_client", "No matching federated identity record found for presented assertion subject."},
}

// answer renders the refusal as Entra does; echoed goes into the description.
func (r refusal) answer(authority, correlation, echoed string) Answer {
	form, listed := errorForms[r.code]
	if !listed {
		form = errorForm{http.StatusBadRequest, "invalid_request", "An error occurred."}
	}
	text := r.text
	if text == "" {
		text = form.text
	}
	if uuid.Validate(correlation) != nil {
		correlation = uuid.NewString()
	}
	trace, now := uuid.NewString(), time.Now().UTC().Format("2006-01-02 15:04:05Z")
	out := jsonAnswer(form.status, map[string]any{
		"error": form.oauth,
		"error_description": fmt.Sprintf("AADSTS%d: %s%s Trace ID: %s Correlation ID: %s Timestamp: %s",
			r.code, text, echoed, trace, correlation, now),
		"error_codes":    []int{r.code},
		"timestamp":      now,
		"trace_id":       trace,
		"correlation_id": correlation,
		"error_uri":      fmt.Sprintf("%serror?code=%d", authority, r.code),
	})
	out.Header.Set("X-Ms-Request-Id", trace)
	return out
}
