// Whether a token request is granted.

package azuretest

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

var tenantName = regexp.MustCompile(`^([0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+)$`)

// tenant refuses those that no application is in.
func (c *Config) tenant(id string) *refusal {
	if !tenantName.MatchString(id) {
		return &refusal{900023, fmt.Sprintf("Specified tenant identifier '%s' is neither a valid DNS name, nor a valid external domain.", id)}
	}
	if !slices.ContainsFunc(c.Applications, func(a Application) bool { return a.TenantID == id }) {
		return &refusal{90002, fmt.Sprintf("Tenant '%s' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud.", id)}
	}
	return nil
}

// check gives the application and the resource of a request, or refuses it.
func (c *Config) check(authority, tenant string, form url.Values, now time.Time) (Application, string, *refusal) {
	if refused := c.tenant(tenant); refused != nil {
		return Application{}, "", refused
	}
	if form.Get("grant_type") != "client_credentials" {
		return Application{}, "", &refusal{code: 70003}
	}
	client := form.Get("client_id")
	i := slices.IndexFunc(c.Applications, func(a Application) bool { return a.TenantID == tenant && a.ClientID == client })
	if i < 0 {
		return Application{}, "", &refusal{700016, fmt.Sprintf("Application with identifier '%s' was not found in the directory '%s'.", client, tenant)}
	}
	app := c.Applications[i]
	if app.Disabled {
		return Application{}, "", &refusal{7000112, fmt.Sprintf("Application '%s' is disabled.", client)}
	}
	if refused := app.proof(form, authority+tenant+"/oauth2/v2.0/token", now); refused != nil {
		return Application{}, "", refused
	}
	resource, refused := app.resource(form.Get("scope"))
	return app, resource, refused
}

// resourceScope leaves out OpenID's own scopes, which MSAL sends along and Entra ignores for applications.
func resourceScope(scope string) string {
	return strings.Join(slices.DeleteFunc(strings.Fields(scope), func(s string) bool {
		return s == "openid" || s == "offline_access" || s == "profile"
	}), " ")
}

func (a Application) resource(scope string) (string, *refusal) {
	scope = resourceScope(scope)
	if scope == "" || strings.Contains(scope, " ") {
		return "", &refusal{70011, fmt.Sprintf("The provided value for the input parameter 'scope' is not valid. The scope '%s' is not valid.", scope)}
	}
	resource, ok := strings.CutSuffix(scope, "/.default")
	if !ok {
		return "", &refusal{1002012, fmt.Sprintf("The provided value for scope %s is not valid. Client credential flows must have a scope value with /.default suffixed to the resource identifier (application ID URI).", scope)}
	}
	resources := a.Resources
	if len(resources) == 0 {
		resources = []string{AzureDevOps}
	}
	if !slices.Contains(resources, resource) {
		return "", &refusal{500011, fmt.Sprintf("The resource principal named %s was not found in the tenant named %s.", resource, a.TenantID)}
	}
	return resource, nil
}

// proof checks the client assertion, or the client secret. endpoint is where it was sent.
func (a Application) proof(form url.Values, endpoint string, now time.Time) *refusal {
	if assertion := form.Get("client_assertion"); assertion != "" {
		if form.Get("client_assertion_type") != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" {
			return &refusal{code: 7000218}
		}
		return a.assertion(assertion, endpoint, now)
	}
	secret := form.Get("client_secret")
	if secret == "" {
		return &refusal{code: 7000218}
	}
	for _, s := range a.Secrets {
		if subtle.ConstantTimeCompare([]byte(s.Value), []byte(secret)) == 1 {
			if !s.Expires.IsZero() && !now.Before(s.Expires) {
				return &refusal{7000222, fmt.Sprintf("The provided client secret keys for app '%s' are expired.", a.ClientID)}
			}
			return nil
		}
	}
	return &refusal{7000215, fmt.Sprintf("Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, for a secret added to app '%s'.", a.ClientID)}
}

// assertion matches a certificate of the application's own, else the federated credentials, then the signature, then the time.
func (a Application) assertion(assertion, endpoint string, now time.Time) *refusal {
	var claims jwt.RegisteredClaims
	parsed, _, err := jwt.NewParser().ParseUnverified(assertion, &claims)
	if err != nil {
		return &refusal{code: 50027}
	}
	if claims.Issuer == a.ClientID {
		return a.signed(assertion, parsed.Header["x5t#S256"], claims, endpoint, now)
	}
	fitting := a.Federated
	for _, step := range []struct {
		code  int
		what  string
		value string
		fits  func(FederatedCredential) bool
	}{
		{700211, "issuer", claims.Issuer, func(f FederatedCredential) bool { return f.Issuer == claims.Issuer }},
		{700213, "subject", claims.Subject, func(f FederatedCredential) bool { return f.Subject == claims.Subject }},
		{700212, "audience", strings.Join(claims.Audience, " "), func(f FederatedCredential) bool { return slices.Contains(claims.Audience, f.Audience) }},
	} {
		fitting = slices.DeleteFunc(slices.Clone(fitting), func(f FederatedCredential) bool { return !step.fits(f) })
		if len(fitting) == 0 {
			return &refusal{step.code, fmt.Sprintf("No matching federated identity record found for presented assertion %s '%s'. "+
				"Check your federated identity credential Subject, Audience and Issuer against the presented assertion.", step.what, step.value)}
		}
	}
	keys := jwt.VerificationKeySet{}
	for _, f := range fitting {
		for _, key := range f.Keys {
			keys.Keys = append(keys.Keys, key)
		}
	}
	parser := jwt.NewParser(jwt.WithValidMethods([]string{"RS256", "ES256"}), jwt.WithoutClaimsValidation())
	if _, err := parser.Parse(assertion, func(*jwt.Token) (any, error) { return keys, nil }); err != nil {
		return &refusal{code: 7000272}
	}
	return inTime(claims, now)
}

// signed matches the certificate by its SHA-256 thumbprint, which MSAL writes as padded standard base64.
func (a Application) signed(assertion string, thumbprint any, claims jwt.RegisteredClaims, endpoint string, now time.Time) *refusal {
	i := slices.IndexFunc(a.Certificates, func(c *x509.Certificate) bool {
		sum := sha256.Sum256(c.Raw)
		return thumbprint == base64.StdEncoding.EncodeToString(sum[:])
	})
	if i < 0 {
		return &refusal{700027, fmt.Sprintf("The certificate with identifier used to sign the client assertion is not registered on application. "+
			"[Reason - The key was not found., Please visit the Azure Portal, Graph Explorer or directly use MS Graph to see configured keys for app Id '%s'.]", a.ClientID)}
	}
	certificate := a.Certificates[i]
	if now.After(certificate.NotAfter) {
		return &refusal{700027, fmt.Sprintf("Client assertion failed signature validation. [Reason - The key used is expired., Found key 'Start=%s, End=%s'.]",
			certificate.NotBefore.UTC().Format(time.RFC3339), certificate.NotAfter.UTC().Format(time.RFC3339))}
	}
	parser := jwt.NewParser(jwt.WithValidMethods([]string{"PS256", "RS256"}), jwt.WithoutClaimsValidation())
	if _, err := parser.Parse(assertion, func(*jwt.Token) (any, error) { return certificate.PublicKey, nil }); err != nil {
		return &refusal{code: 700027}
	}
	if claims.Subject != a.ClientID || !slices.Contains(claims.Audience, endpoint) {
		return &refusal{700023, fmt.Sprintf("Client assertion audience claim does not match Realm issuer. Review the documentation. Expected: %s", endpoint)}
	}
	return inTime(claims, now)
}

func inTime(claims jwt.RegisteredClaims, now time.Time) *refusal {
	if claims.ExpiresAt == nil || !now.Before(claims.ExpiresAt.Time) || claims.NotBefore != nil && now.Before(claims.NotBefore.Time) {
		return &refusal{700024, fmt.Sprintf("Client assertion is not within its valid time range. Current time: %s, expiry time of assertion %s.",
			now.UTC().Format(time.RFC3339), claims.ExpiresAt)}
	}
	return nil
}
