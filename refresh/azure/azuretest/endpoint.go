// The endpoint of managed identities of a machine in Azure.

package azuretest

import (
	"crypto/subtle"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// EndpointConfig is what a machine has and how its endpoint behaves.
type EndpointConfig struct {
	// Address to listen on; 127.0.0.1 and a free port when empty. It cannot be changed later.
	Address string
	// Identities are assigned to the machine.
	Identities []ManagedIdentity
	// Header is what the App Service form wants as X-IDENTITY-HEADER.
	Header string
	// Latency passes before each answer, Outage is the answer while it is set, and Echo puts the header into
	// every answer, as for Config.
	Latency time.Duration
	Outage  *Answer
	Echo    bool
}

// ManagedIdentity is an application of Entra's that is assigned to a machine. The one without a ResourceID is its own
// (system-assigned).
type ManagedIdentity struct {
	ClientID, ResourceID string
}

// Endpoint hands out Entra's tokens without a proof, as IMDS does (GET /metadata/identity/oauth2/token) and App Service (GET
// /msi/token). It keeps a token and hands it out again until it has ended, or Renew. Its methods are safe for concurrent use.
//
// Answers follow "How to use managed identities for Azure resources on an Azure VM to acquire an access token", "How to use
// managed identities for App Service and Azure Functions" and, for the texts of 400, Azure/terraform-provider-azapi issue 669.
type Endpoint struct {
	server
	desk

	entra *Entra
	url   string

	config EndpointConfig       // guarded by mu, as is
	kept   map[[2]string]string // the token by client id and resource
}

// StartEndpoint serves until Close.
func (e *Entra) StartEndpoint(config EndpointConfig) (*Endpoint, error) {
	p := &Endpoint{entra: e, config: config, kept: map[[2]string]string{}, desk: desk{arrived: make(chan struct{})}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metadata/identity/oauth2/token", p.imds)
	mux.HandleFunc("GET /msi/token", p.appService)
	address, err := p.serve(config.Address, mux, nil)
	if err != nil {
		return nil, err
	}
	p.url = "http://" + address.String()
	return p, nil
}

// Address is where it listens, as host:port; IMDS's own is 169.254.169.254:80.
func (p *Endpoint) Address() string { return strings.TrimPrefix(p.url, "http://") }

// AppService is what IDENTITY_ENDPOINT names.
func (p *Endpoint) AppService() string { return p.url + "/msi/token" }

// Change alters how it behaves, from the next request on.
func (p *Endpoint) Change(change func(*EndpointConfig)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.config)
}

// Renew forgets the tokens that are kept, as happens some time before they end.
func (p *Endpoint) Renew() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.kept)
}

// form is what tells the two forms apart.
type form struct {
	version, resourceID string
	// refuse gives the answer to a request without the header that a form wants; nil where it is there.
	refuse func(EndpointConfig, http.Header) *Answer
	// wrong is the answer 400.
	wrong func(text string) Answer
	body  func(token string, issued *Issued) map[string]any
}

func (p *Endpoint) imds(w http.ResponseWriter, r *http.Request) {
	p.answer(w, r, form{
		version: "2018-02-01", resourceID: "msi_res_id",
		refuse: func(_ EndpointConfig, h http.Header) *Answer {
			if h.Get("Metadata") == "true" {
				return nil
			}
			refused := jsonAnswer(http.StatusBadRequest, map[string]any{"error": "bad_request_102", "error_description": "Required metadata header not specified"})
			return &refused
		},
		wrong: func(text string) Answer {
			return jsonAnswer(http.StatusBadRequest, map[string]any{"error": "invalid_request", "error_description": text})
		},
		body: func(token string, issued *Issued) map[string]any {
			left := strconv.Itoa(int(time.Until(issued.Expires).Seconds()))
			return map[string]any{
				"access_token": token, "client_id": issued.ClientID, "token_type": "Bearer", "resource": issued.Resource,
				"expires_in": left, "ext_expires_in": left, "expires_on": strconv.FormatInt(issued.Expires.Unix(), 10),
				"not_before": strconv.FormatInt(issued.Expires.Add(-issued.lifetime).Unix(), 10),
			}
		},
	})
}

func (p *Endpoint) appService(w http.ResponseWriter, r *http.Request) {
	p.answer(w, r, form{
		version: "2019-08-01", resourceID: "mi_res_id",
		refuse: func(c EndpointConfig, h http.Header) *Answer {
			if subtle.ConstantTimeCompare([]byte(c.Header), []byte(h.Get("X-Identity-Header"))) == 1 {
				return nil
			}
			return &Answer{Status: http.StatusUnauthorized, Header: http.Header{}}
		},
		wrong: func(text string) Answer {
			return jsonAnswer(http.StatusBadRequest, map[string]any{"statusCode": http.StatusBadRequest, "message": text, "correlationId": uuid.NewString()})
		},
		body: func(token string, issued *Issued) map[string]any {
			return map[string]any{
				"access_token": token, "client_id": strings.ToUpper(issued.ClientID), "token_type": "Bearer", "resource": issued.Resource,
				"expires_on": strconv.FormatInt(issued.Expires.Unix(), 10),
			}
		},
	})
}

func (p *Endpoint) answer(w http.ResponseWriter, r *http.Request, f form) {
	p.mu.Lock()
	scripted, config := p.arrive(), p.config
	p.mu.Unlock()
	if scripted == nil {
		scripted = config.Outage
	}
	if !wait(r, config.Latency, scripted != nil && scripted.Hang) {
		return
	}
	var out Answer
	switch {
	case scripted != nil && scripted.Code != 0:
		out = refusal{code: scripted.Code}.answer(p.entra.url, "", "")
	case scripted != nil:
		out = *scripted
		out.Header = out.Header.Clone()
	default:
		out = p.decide(f, config, r)
	}
	if config.Echo {
		if out.Header == nil {
			out.Header = http.Header{}
		}
		header := r.Header.Get("X-Identity-Header")
		if out.Status != http.StatusOK { // a token is in JSON
			out.Body += " You sent: " + header
		}
		out.Header.Set("X-Ms-Request-Id", header)
		out.Header.Set("X-Echo", header)
	}
	out.write(w)
}

// decide hands out a token or refuses.
func (p *Endpoint) decide(f form, config EndpointConfig, r *http.Request) Answer {
	query := r.URL.Query()
	if refused := f.refuse(config, r.Header); refused != nil {
		return *refused
	}
	if query.Get("api-version") != f.version || query.Get("resource") == "" {
		return f.wrong("The request is missing a required parameter, includes an invalid parameter value, or is otherwise malformed.")
	}
	identity, wrong := config.find(query, f.resourceID)
	if wrong != "" {
		return f.wrong(wrong)
	}
	token, issued, refused := p.token(identity.ClientID, query.Get("resource"))
	if refused != nil {
		return refused.answer(p.entra.url, "", "") // as Entra said it
	}
	return jsonAnswer(http.StatusOK, f.body(token, issued))
}

// find gives the identity that is asked for, or says why there is none.
func (c EndpointConfig) find(query url.Values, resourceID string) (ManagedIdentity, string) {
	client, resource := query.Get("client_id"), query.Get(resourceID)
	if client == "" && resource == "" {
		for _, identity := range c.Identities {
			if identity.ResourceID == "" {
				return identity, ""
			}
		}
		switch len(c.Identities) {
		case 0:
		case 1: // IMDS takes the only one there is
			return c.Identities[0], ""
		default:
			return ManagedIdentity{}, "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the token request"
		}
	}
	i := slices.IndexFunc(c.Identities, func(m ManagedIdentity) bool {
		return client != "" && m.ClientID == client || resource != "" && strings.EqualFold(m.ResourceID, resource)
	})
	if i < 0 {
		return ManagedIdentity{}, "Identity not found"
	}
	return c.Identities[i], ""
}

// token gives the one that is kept, or a new one.
func (p *Endpoint) token(clientID, resource string) (string, *Issued, *refusal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.entra.mu.Lock()
	defer p.entra.mu.Unlock()
	key := [2]string{clientID, resource}
	if issued := p.entra.issued[p.kept[key]]; issued != nil && time.Now().Before(issued.Expires.Truncate(time.Second)) { // as expires_on says
		return p.kept[key], issued, nil
	}
	i := slices.IndexFunc(p.entra.config.Applications, func(a Application) bool { return a.ClientID == clientID })
	if i < 0 {
		return "", nil, &refusal{code: 700016}
	}
	app := p.entra.config.Applications[i]
	if _, refused := app.resource(resource + "/.default"); refused != nil {
		return "", nil, refused
	}
	token, issued := p.entra.issue(app, resource)
	p.kept[key] = token
	return token, issued, nil
}
