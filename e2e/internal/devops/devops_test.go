package devops_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"flux-token-refresher/e2e/internal/devops"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure/azuretest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const client = "3f1c2d90-0000-4000-8000-000000000002"

// TestGit does what Flux and people do, with git itself.
func TestGit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for scheme, header := range map[string]func(token string) []string{
		"Bearer": func(token string) []string { return []string{"-c", "http.extraHeader=Authorization: Bearer " + token} },
		// git asks without credentials first, and then takes those of the helper.
		"Basic": func(token string) []string {
			return []string{"-c", "credential.helper=!f() { echo username=any; echo password=" + token + "; }; f"}
		},
	} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			repository := w.create(t, scheme)
			token := w.token(t)
			clone := filepath.Join(t.TempDir(), "clone")
			git := func(args ...string) string {
				out, err := w.git(t, append(header(token), args...)...)
				if err != nil {
					t.Fatalf("git %s: %v\n%s", args[0], err, out)
				}
				return strings.TrimSpace(out)
			}
			git("clone", repository.URL, clone)
			head, err := repository.Head(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got := git("-C", clone, "rev-parse", "HEAD"); got != head {
				t.Errorf("cloned %s, want %s", got, head)
			}

			next, err := repository.Commit(t.Context(), map[string]string{"clusters/one.yaml": "one\n"})
			if err != nil {
				t.Fatal(err)
			}
			git("-C", clone, "pull", "--ff-only")
			if content, err := os.ReadFile(filepath.Join(clone, "clusters/one.yaml")); string(content) != "one\n" {
				t.Errorf("fetched %q, %v", content, err)
			}

			git("-C", clone, "-c", "user.name=e2e", "-c", "user.email=e2e@localhost", "commit", "--allow-empty", "-m", "pushed")
			git("-C", clone, "push", "origin", "main")
			pushed, err := repository.Head(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if pushed == next || pushed != git("-C", clone, "rev-parse", "HEAD") {
				t.Errorf("after the push main is %s", pushed)
			}

			for _, r := range w.server.Requests(0) {
				if !strings.HasPrefix(repository.URL, w.server.URL()+r.Repository) || r.Refused != nil {
					continue
				}
				if r.Scheme != scheme || r.TokenHash != refresh.Hash(token) || r.Status != http.StatusOK {
					t.Errorf("recorded %v", r)
				}
			}
		})
	}
}

// TestWhoIsRefused: each reason leads to the refusal that is set for it.
func TestWhoIsRefused(t *testing.T) {
	t.Parallel()
	const status = http.StatusTeapot // of the refusal
	for name, test := range map[string]struct {
		arrange func(t *testing.T, w *world, r *devops.Repository) (token string)
		want    error
		status  int
	}{
		"good": {
			arrange: func(t *testing.T, w *world, _ *devops.Repository) string { return w.token(t) },
			status:  http.StatusOK,
		},
		"no credentials": {
			arrange: func(*testing.T, *world, *devops.Repository) string { return "" },
			want:    devops.ErrAnonymous, status: http.StatusUnauthorized,
		},
		"nobody issued it": {
			arrange: func(*testing.T, *world, *devops.Repository) string { return "stale" },
			want:    azuretest.ErrUnknown, status: status,
		},
		"for another resource": {
			arrange: func(t *testing.T, w *world, _ *devops.Repository) string {
				return w.issue(t, "https://vault.azure.net")
			},
			want: azuretest.ErrAudience, status: status,
		},
		"revoked by Entra": {
			arrange: func(t *testing.T, w *world, _ *devops.Repository) string {
				token := w.token(t)
				w.entra.Revoke(token)
				return token
			},
			want: azuretest.ErrRevoked, status: status,
		},
		"revoked by Azure DevOps": {
			arrange: func(t *testing.T, w *world, _ *devops.Repository) string {
				token := w.token(t)
				w.server.Revoke(token)
				return token
			},
			want: devops.ErrRevoked, status: status,
		},
		"another token than the revoked": {
			arrange: func(t *testing.T, w *world, _ *devops.Repository) string {
				w.server.Revoke(w.token(t))
				return w.token(t)
			},
			status: http.StatusOK,
		},
		"an outsider": {
			arrange: func(t *testing.T, w *world, _ *devops.Repository) string {
				w.server.Change(func(c *devops.Config) { c.Outsiders = []string{client} })
				return w.token(t)
			},
			want: devops.ErrOutsider, status: status,
		},
		"no permission": {
			arrange: func(t *testing.T, w *world, r *devops.Repository) string {
				w.create(t, "other").Forbid(devops.NotFound())
				r.Forbid(devops.Forbidden())
				return w.token(t)
			},
			want: devops.ErrForbidden, status: http.StatusForbidden,
		},
		"permission regained": {
			arrange: func(t *testing.T, w *world, r *devops.Repository) string {
				r.Forbid(devops.Forbidden())
				r.Allow()
				return w.token(t)
			},
			status: http.StatusOK,
		},
		"outage": {
			arrange: func(t *testing.T, w *world, _ *devops.Repository) string {
				unavailable := devops.Unavailable()
				w.server.Change(func(c *devops.Config) { c.Outage = &unavailable })
				return w.token(t)
			},
			want: devops.ErrOutage, status: http.StatusServiceUnavailable,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.server.Change(func(c *devops.Config) { c.Refusal = devops.Answer{Status: status} })
			r := w.create(t, "repo")
			response := w.get(t, r.URL, test.arrange(t, w, r))
			if response.StatusCode != test.status {
				t.Errorf("status %d, want %d", response.StatusCode, test.status)
			}
			requests := w.server.Requests(0)
			if len(requests) != 1 || !errors.Is(requests[0].Refused, test.want) || requests[0].Status != test.status {
				t.Errorf("recorded %v, want one that was refused because %v", requests, test.want)
			}
		})
	}

	t.Run("no repository", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		response := w.get(t, w.server.URL()+"/org/project/_git/none", w.token(t))
		body, err := io.ReadAll(response.Body)
		if response.StatusCode != http.StatusNotFound || err != nil || !strings.HasPrefix(string(body), "TF401019:") {
			t.Errorf("got %d %q, %v", response.StatusCode, body, err)
		}
	})
}

// TestDown: what a client sees of a server that does not answer, and that the test sees the client.
func TestDown(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.create(t, "repo")
	token := w.token(t)

	hang := devops.Hang()
	w.server.Change(func(c *devops.Config) { c.Outage = &hang })
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := w.send(ctx, r.URL, token)
		left <- err
	}()
	if _, err := w.server.Wait(t.Context(), 0, 1, func(r devops.Request) bool { return r.Status == 0 }); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("a server that hangs answered: %v", err)
	}
	w.server.Change(func(c *devops.Config) { c.Outage = nil })

	if err := w.server.Network.Cut(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.send(t.Context(), r.URL, token); err == nil {
		t.Error("a server that is down answered")
	}
	if err := w.server.Network.Heal(); err != nil {
		t.Fatal(err)
	}
	if response := w.get(t, r.URL, token); response.StatusCode != http.StatusOK {
		t.Errorf("after it came back: %s", response.Status)
	}
}

type world struct {
	entra  *azuretest.Entra
	server *devops.Server
	http   *http.Client
	caFile string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	entra, err := azuretest.Start(azuretest.Config{Applications: []azuretest.Application{{TenantID: "tenant", ClientID: client}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(entra.Close)
	server, err := devops.Start(devops.Config{Entra: entra})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(server.CA())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	t.Cleanup(transport.CloseIdleConnections)
	w := &world{
		entra: entra, server: server, caFile: filepath.Join(t.TempDir(), "ca.crt"),
		http: &http.Client{Transport: transport, Timeout: time.Minute},
	}
	if err := os.WriteFile(w.caFile, server.CA(), 0o600); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) create(t *testing.T, name string) *devops.Repository {
	t.Helper()
	r, err := w.server.Create(t.Context(), "org", "project", name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (w *world) token(t *testing.T) string { t.Helper(); return w.issue(t, azuretest.AzureDevOps) }

func (w *world) issue(t *testing.T, resource string) string {
	t.Helper()
	token, err := w.entra.Issue(client, resource)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// get asks for the repository's references, as the first request of a clone does.
func (w *world) get(t *testing.T, url, token string) *http.Response {
	t.Helper()
	response, err := w.send(t.Context(), url, token)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = response.Body.Close() })
	return response
}

func (w *world) send(ctx context.Context, url, token string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/info/refs?service=git-upload-pack", nil)
	if err != nil {
		return nil, err
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	return w.http.Do(request)
}

func (w *world) git(t *testing.T, args ...string) (string, error) {
	t.Helper()
	command := exec.CommandContext(t.Context(), "git", args...)
	command.Env = []string{
		"PATH=" + os.Getenv("PATH"), "GIT_CONFIG_GLOBAL=" + os.DevNull, "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0",
		"GIT_SSL_CAINFO=" + w.caFile,
	}
	out, err := command.CombinedOutput()
	return string(out), err
}
