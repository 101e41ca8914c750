// What Entra's refusals mean, as data.

package azure

import (
	"flux-token-refresher/refresh"
)

// meaning is the class of a refusal and what a person can do about it. Words in braces are filled in by
// attempt.sentence.
type meaning struct {
	class  refresh.Class
	remedy string
}

const (
	federation = "application {client} has no federated credential that fits; it needs issuer {issuer}, subject {subject}, " +
		"audience {audience}, letter by letter; a new one takes some minutes to be known"
	issuerKeys = "Entra could not use the keys of the issuer {issuer}: its /.well-known/openid-configuration and the " +
		"jwks_uri in it must be reachable from the internet and hold the key that signs ServiceAccount tokens"
	outage = "Entra has a passing problem"
	busy   = "Entra takes no more requests for now"
)

// entraCodes are Entra's error_codes. Microsoft changes them at will ("Microsoft Entra authentication and
// authorization error codes"), so they refine the HTTP status and the OAuth error and replace neither. Where that list is silent:
// Azure/azure-workload-identity issues 605, 642, 1232 and its troubleshooting page, Azure/login issue 517.
var entraCodes = map[int]meaning{
	// The configuration.
	700016:  {refresh.Misconfigured, "application {client} is not in tenant {tenant}; correct clientID or tenantID"},
	7000229: {refresh.Misconfigured, "application {client} has no service principal in tenant {tenant}; create it (az ad sp create)"},
	7000112: {refresh.Misconfigured, "application {client} is disabled in tenant {tenant}; enable it"},
	90002:   {refresh.Misconfigured, "tenant {tenant} is not known to {authority}; correct tenantID or the cloud"},
	900023:  {refresh.Misconfigured, "tenant {tenant} is neither a GUID nor a domain name; correct tenantID"},
	70011:   {refresh.Misconfigured, "scope {scope} is not valid; it is a resource followed by /.default"},
	1002012: {refresh.Misconfigured, "scope {scope} is not valid; it is a resource followed by /.default"},
	500011:  {refresh.Misconfigured, "the resource of scope {scope} is not in tenant {tenant}; correct the scope or tenantID"},
	53003:   {refresh.Misconfigured, "a Conditional Access policy of tenant {tenant} blocks application {client}; exempt it, or its address"},

	// The federated credential.
	70021:   {refresh.Misconfigured, federation},
	700211:  {refresh.Misconfigured, federation},
	700212:  {refresh.Misconfigured, federation},
	700213:  {refresh.Misconfigured, federation},
	7002137: {refresh.Misconfigured, federation},
	7002138: {refresh.Misconfigured, federation},
	7000272: {refresh.Misconfigured, issuerKeys},
	50166:   {refresh.Unavailable, issuerKeys},
	501661:  {refresh.Unavailable, issuerKeys},
	90061:   {refresh.Unavailable, issuerKeys},
	700024: {refresh.Assertion, "the assertion holds from {notBefore} to {expires}, and Entra's clock does not agree; " +
		"compare the node's clock, and whether the kubelet renews the token file"},

	// The secret or the certificate.
	7000215: {refresh.Misconfigured, "the client secret of application {client}, in Secret {secret}, is wrong; it takes the secret's value, not its id"},
	7000222: {refresh.Misconfigured, "the client secret of application {client}, in Secret {secret}, has expired; create another one and put it there"},
	700027:  {refresh.Misconfigured, "application {client} does not know the key that signed the assertion"},

	// Entra itself.
	90006: {refresh.Unavailable, outage},
	90012: {refresh.Unavailable, outage},
	90024: {refresh.Unavailable, outage},
	90033: {refresh.Unavailable, outage},
	50196: {refresh.Throttled, busy},
	90055: {refresh.Throttled, busy},
}

// certificateCodes are those of entraCodes that a certificate lets say more.
var certificateCodes = map[int]meaning{
	700027: {refresh.Misconfigured, "application {client} does not take the certificate in Secret {secret}: {certificate}; " +
		"add it to the application, or put one there that the application has"},
}

// oauthErrors are the values of "error" (RFC 6749 section 5.2, and Entra's own), for codes that are not above.
var oauthErrors = map[string]meaning{
	"invalid_client":          {refresh.Misconfigured, "Entra does not accept the credential of application {client} in tenant {tenant}"},
	"unauthorized_client":     {refresh.Misconfigured, "application {client} may not ask for tokens in tenant {tenant}"},
	"access_denied":           {refresh.Misconfigured, "application {client} may not ask for tokens in tenant {tenant}"},
	"invalid_scope":           {refresh.Misconfigured, "Entra does not accept scope {scope}"},
	"invalid_resource":        {refresh.Misconfigured, "Entra does not accept scope {scope}"},
	"invalid_tenant":          {refresh.Misconfigured, "Entra does not accept tenant {tenant}"},
	"invalid_request":         {refresh.Misconfigured, "Entra does not accept the request for application {client} in tenant {tenant}"},
	"invalid_grant":           {refresh.Misconfigured, "Entra does not accept the credential of application {client} in tenant {tenant}"},
	"temporarily_unavailable": {refresh.Unavailable, outage},
	"server_error":            {refresh.Unavailable, outage},
}
