// The token endpoint: order of events of one request.

package azuretest

import (
	"net/http"
	"net/url"
	"time"
)

// token answers as scripted, else as Entra would.
func (e *Entra) token(w http.ResponseWriter, r *http.Request) {
	err := r.ParseForm()
	e.mu.Lock()
	scripted, config := e.arrive(), e.config
	for _, proof := range []string{"client_assertion", "client_secret"} {
		if value := r.PostForm.Get(proof); value != "" {
			e.proofs[value] = true
		}
	}
	e.mu.Unlock()
	if err != nil {
		http.Error(w, "not a form", http.StatusBadRequest)
		return
	}
	if scripted == nil {
		scripted = config.Outage
	}
	if config.Gate != nil {
		select {
		case <-config.Gate:
		case <-r.Context().Done():
			return
		}
	}
	if !wait(r, config.Latency, scripted != nil && scripted.Hang) {
		return
	}
	e.respond(r.PathValue("tenant"), r.PostForm, r.Header.Get("client-request-id"), scripted, config.Echo).write(w)
}

func (e *Entra) respond(tenant string, form url.Values, correlation string, scripted *Answer, echo bool) Answer {
	echoed := ""
	if echo {
		echoed = " You sent: " + form.Encode() + " " + form.Get("client_assertion") + form.Get("client_secret")
	}
	var answer Answer
	switch {
	case scripted != nil && scripted.Code != 0:
		answer = refusal{code: scripted.Code}.answer(e.url, correlation, echoed)
	case scripted != nil:
		answer = *scripted
		answer.Header = answer.Header.Clone()
		answer.Body += echoed
	default:
		answer = e.decide(tenant, form, correlation, echoed)
	}
	if echo {
		if answer.Header == nil {
			answer.Header = http.Header{}
		}
		answer.Header.Set("X-Ms-Request-Id", form.Get("client_assertion")+form.Get("client_secret"))
		answer.Header.Set("X-Echo", form.Encode())
	}
	return answer
}

// decide issues a token or refuses.
func (e *Entra) decide(tenant string, form url.Values, correlation, echoed string) Answer {
	e.mu.Lock()
	defer e.mu.Unlock()
	app, resource, refused := e.config.check(e.url, tenant, form, time.Now())
	if refused != nil {
		return refused.answer(e.url, correlation, echoed)
	}
	token, issued := e.issue(app, resource)
	body := map[string]any{
		"token_type":     "Bearer",
		"access_token":   token,
		"expires_in":     int(issued.lifetime.Seconds()),
		"ext_expires_in": int(issued.lifetime.Seconds()),
	}
	if e.config.RefreshIn > 0 {
		body["refresh_in"] = int(e.config.RefreshIn.Seconds())
	}
	if echoed != "" {
		body["echo"] = echoed
	}
	return jsonAnswer(http.StatusOK, body)
}
