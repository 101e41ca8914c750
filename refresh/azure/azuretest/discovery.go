// OpenID discovery of a tenant.

package azuretest

import "net/http"

func (e *Entra) discovery(w http.ResponseWriter, r *http.Request) {
	tenant := r.PathValue("tenant")
	e.mu.Lock()
	refused := e.config.tenant(tenant)
	e.mu.Unlock()
	if refused != nil {
		refused.answer(e.url, r.Header.Get("client-request-id"), "").write(w)
		return
	}
	jsonAnswer(http.StatusOK, map[string]any{
		"issuer":                                e.url + tenant + "/v2.0",
		"authorization_endpoint":                e.url + tenant + "/oauth2/v2.0/authorize",
		"token_endpoint":                        e.url + tenant + "/oauth2/v2.0/token",
		"token_endpoint_auth_methods_supported": []string{"client_secret_post", "private_key_jwt", "client_secret_basic"},
		"response_types_supported":              []string{"code", "id_token", "code id_token", "id_token token"},
		"subject_types_supported":               []string{"pairwise"},
		"id_token_signing_alg_values_supported": []string{"RS256"},
	}).write(w)
}
