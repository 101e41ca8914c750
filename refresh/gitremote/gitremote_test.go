// What is sent, to whom, and what becomes of the answers.

package gitremote_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"flux-token-refresher/refresh/gitremote"
)

func TestAnswers(t *testing.T) {
	t.Parallel()
	const (
		organization = "the organization does not know the identity"
		permission   = "give it read on the project and the repository"
		licence      = "the licence Stakeholder"
		location     = "the URL names a project or repository that is not there"
	)
	media := func(mediaType string) http.Header { return http.Header{"Content-Type": {mediaType}} }
	to := func(location string) http.Header { return http.Header{"Location": {location}} }
	html, nothing := media("text/html; charset=utf-8"), http.Header{}
	page := "<html><head><title>Azure DevOps Services | Sign In</title></head></html>"
	tests := map[string]struct {
		status  int
		header  http.Header
		body    string
		verdict gitremote.Verdict
		kind    gitremote.Kind
		says    string
	}{
		"refs":                       {200, media(advertisement), refs, gitremote.Accepted, "", ""},
		"refs, with parameters":      {200, media(advertisement + "; charset=utf-8"), refs, gitremote.Accepted, "", ""},
		"refs without a line feed":   {200, media(advertisement), "001d# service=git-upload-pack0000", gitremote.Accepted, "", ""},
		"refs of a large repository": {200, media(advertisement), refs + strings.Repeat("x", 1<<20), gitremote.Accepted, "", ""},

		"refs to push to":           {200, media(advertisement), "001f# service=git-receive-pack\n0000", gitremote.Silent, "", "answered 200 OK"},
		"refs that end too early":   {200, media(advertisement), refs[:20], gitremote.Silent, "", "answered 200 OK"},
		"refs that are none":        {200, media(advertisement), "hello", gitremote.Silent, "", "answered 200 OK"},
		"refs of another type":      {200, media("text/plain"), refs, gitremote.Silent, "", "answered 200 OK"},
		"refs with another status":  {203, media(advertisement), refs, gitremote.Silent, "", "answered 203 Non-Authoritative Information"},
		"nothing":                   {200, nothing, "", gitremote.Silent, "", "answered 200 OK"},
		"no content":                {204, nothing, "", gitremote.Silent, "", "answered 204 No Content"},
		"JSON":                      {200, media("application/json"), `{"message":"TF400813: x"}`, gitremote.Silent, "", "answered 200 OK"},
		"a media type that is none": {200, media(";;"), "hello", gitremote.Silent, "", "answered 200 OK"},

		"a sign-in page":                 {203, html, page, gitremote.Rejected, gitremote.Page, "answered 203 Non-Authoritative Information: most likely " + organization},
		"a sign-in page that is fine":    {200, html, page, gitremote.Rejected, gitremote.Page, "answered 200 OK: most likely " + organization},
		"a page without a type":          {203, media(""), page, gitremote.Rejected, gitremote.Page, organization},
		"a page said to be text":         {200, media("text/plain"), " \n<!DOCTYPE html>" + page, gitremote.Rejected, gitremote.Page, organization},
		"a page that knows why":          {203, html, "<html>VS30063: You are not authorized", gitremote.Rejected, gitremote.Page, "Information VS30063: most likely " + organization},
		"a redirect to sign in":          {302, to("/_signin?realm=dev.azure.com"), "", gitremote.Rejected, gitremote.SignIn, "answered 302 Found: most likely " + organization},
		"a redirect to sign in far away": {302, to("https://spsprodweu1.vssps.visualstudio.com/_signin?realm=dev.azure.com"), "", gitremote.Rejected, gitremote.SignIn, organization},
		"a redirect to Entra":            {302, to("https://login.microsoftonline.com/common/oauth2/authorize?x=1"), "", gitremote.Rejected, gitremote.SignIn, organization},
		"another redirect to sign in":    {307, to("https://login.example/org/_SignIn"), "", gitremote.Rejected, gitremote.SignIn, organization},

		"a redirect":                   {301, to("https://dev.azure.com/renamed/_git/x/info/refs?service=git-upload-pack"), "", gitremote.Silent, "", "answered 301 Moved Permanently"},
		"a redirect to an odd place":   {302, to("https://[::1"), "", gitremote.Silent, "", "answered 302 Found"},
		"a redirect to nowhere":        {302, nothing, "", gitremote.Silent, "", "answered 302 Found"},
		"a redirect that only says so": {302, to("/x?to=/_signin"), "", gitremote.Silent, "", "answered 302 Found"},

		"401":                      {401, nothing, "", gitremote.Rejected, gitremote.Unauthorized, "answered 401 Unauthorized: most likely " + organization},
		"401 TF400813":             {401, media("text/plain"), "TF400813: The user '' is not authorized to access this resource.", gitremote.Rejected, gitremote.Unauthorized, "answered 401 Unauthorized TF400813: most likely " + organization},
		"401 VS30063":              {401, html, "VS30063: You are not authorized to access https://dev.azure.com.", gitremote.Rejected, gitremote.Unauthorized, "VS30063: most likely " + organization},
		"401 of 90 kB":             {401, html, "<html>" + strings.Repeat("x", 20<<10) + "TF400813" + strings.Repeat("y", 70<<10), gitremote.Rejected, gitremote.Unauthorized, "TF400813: most likely " + organization},
		"401, told late":           {401, html, "<html>" + strings.Repeat("x", 80<<10) + "TF400813", gitremote.Rejected, gitremote.Unauthorized, "answered 401 Unauthorized: most likely " + organization},
		"401, told in a header":    {401, http.Header{"X-Tfs-Serviceerror": {"TF400813%3A%20The%20user"}}, "TF401019", gitremote.Rejected, gitremote.Unauthorized, "401 Unauthorized TF400813: "},
		"401 with an unknown code": {401, nothing, "TF999999: hm", gitremote.Rejected, gitremote.Unauthorized, "answered 401 Unauthorized: most likely " + organization},

		"403":          {403, nothing, "", gitremote.Rejected, gitremote.Forbidden, "answered 403 Forbidden: most likely the identity lacks permission: " + permission},
		"403 TF401027": {403, media("application/json"), `{"message":"TF401027: You need the Git 'GenericRead' permission"}`, gitremote.Rejected, gitremote.Forbidden, "TF401027: most likely the identity lacks permission: " + permission},
		"404":          {404, html, "<html>no such page", gitremote.Rejected, gitremote.NotFound, "answered 404 Not Found: most likely " + location},
		"404 TF401019": {404, media("application/json"), "\ufeff" + `{"message":"TF401019: The Git repository with name or identifier x does not exist"}`, gitremote.Rejected, gitremote.NotFound, "answered 404 Not Found TF401019: the repository is not there, or the identity may not see it: most likely it has " + licence},
		"403 TF401444": {403, nothing, "TF401444: Please sign-in at least once as x", gitremote.Rejected, gitremote.Forbidden, "TF401444: most likely " + organization},
		"403 VS403463": {403, nothing, "VS403463: The conditional access policy has failed", gitremote.Rejected, gitremote.Forbidden, "VS403463: a Conditional Access policy"},
		"403 TF400733": {403, nothing, "TF400733: The request has been canceled", gitremote.Silent, "", "answered 403 Forbidden TF400733, which says nothing of the token"},
		"404 TF200016": {404, nothing, "TF200016: The following project does not exist: x.", gitremote.Rejected, gitremote.NotFound, "TF200016: most likely " + location},
		"404 VS800075": {404, nothing, "VS800075: The project with id 'x' does not exist. TF401019", gitremote.Rejected, gitremote.NotFound, "VS800075: most likely " + location},

		"400":                        {400, nothing, "TF400813", gitremote.Silent, "", "answered 400 Bad Request"},
		"407":                        {407, nothing, "", gitremote.Silent, "", "answered 407 Proxy Authentication Required"},
		"429":                        {429, nothing, "", gitremote.Silent, "", "answered 429 Too Many Requests"},
		"500":                        {500, html, page, gitremote.Silent, "", "answered 500 Internal Server Error"},
		"503":                        {503, nothing, "TF400813", gitremote.Silent, "", "answered 503 Service Unavailable TF400813, which says nothing of the token"},
		"a status of somebody's own": {599, nothing, "", gitremote.Silent, "", "answered 599, which says nothing"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, echo := range []string{"", " you sent " + value} {
				header := test.header.Clone()
				if echo != "" {
					header.Set("X-Echo", echo)
				}
				s := newServer(t, respond(test.status, header, test.body+echo))
				got := s.remote(t).Ask(t.Context(), s.URL+"/org/project/_git/repo", token)
				if got.Verdict != test.verdict || got.Kind != test.kind || !strings.Contains(got.Why, test.says) || (got.Why == "") != (test.verdict == gitremote.Accepted) {
					t.Errorf("got %+v, want %s, %q, %q", got, test.verdict, test.kind, test.says)
				}
				if got.Why != "" && !strings.HasPrefix(got.Why, s.host()+" answered ") {
					t.Errorf("%q does not name the server", got.Why)
				}
				if shown := fmt.Sprintf("%#v", got); strings.Contains(shown, value[:10]) || strings.Contains(shown, "you sent") || strings.Contains(shown, "<") {
					t.Errorf("the server's own words: %s", shown)
				}
			}
		})
	}
}

// TestRequest: what a server is asked for, as a Git client would.
func TestRequest(t *testing.T) {
	t.Parallel()
	tests := map[string]string{
		"https://HOST/org/project/_git/repo":                       "/org/project/_git/repo/info/refs",
		"https://HOST/org/project/_git/repo/":                      "/org/project/_git/repo/info/refs",
		"https://HOST/org/project/_git/repo.git":                   "/org/project/_git/repo.git/info/refs",
		"https://org@HOST/org/project/_git/repo":                   "/org/project/_git/repo/info/refs",
		"https://user:password@HOST/org/_git/repo?version=GB#path": "/org/_git/repo/info/refs",
		"https://dev.azure.com%40evil:x@HOST/org/_git/repo":        "/org/_git/repo/info/refs",
		"https://HOST/org/My%20Project/_git/%C3%A4%2Fb":            "/org/My%20Project/_git/%C3%A4%2Fb/info/refs",
		"https://HOST/org/My Project/_git/ä":                       "/org/My%20Project/_git/%C3%A4/info/refs",
		"https://HOST/a/../b/%2e%2e/c":                             "/a/../b/%2e%2e/c/info/refs",
		"https://HOST//elsewhere.example/x":                        "//elsewhere.example/x/info/refs",
		"HTTPS://HOST":                                             "/info/refs",
	}
	for url, want := range tests {
		t.Run(url, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, respond(http.StatusOK, http.Header{"Content-Type": {advertisement}}, refs))
			// The trace that the question belongs to does not travel along.
			ctx, span := sdktrace.NewTracerProvider().Tracer("test").Start(t.Context(), "token.verify")
			defer span.End()
			got := s.remote(t).Ask(ctx, strings.Replace(url, "HOST", s.host(), 1), token)
			if got != (gitremote.Answer{Verdict: gitremote.Accepted}) {
				t.Fatalf("got %+v, want accepted", got)
			}
			asked := s.requests()
			if len(asked) != 1 {
				t.Fatalf("%d requests, want one", len(asked))
			}
			r := asked[0]
			if r.Method != http.MethodGet || r.RequestURI != want+"?service=git-upload-pack" || r.Host != s.host() || r.ContentLength != 0 {
				t.Errorf("%s %s of %s with a body of %d bytes, want GET %s?service=git-upload-pack", r.Method, r.RequestURI, r.Host, r.ContentLength, want)
			}
			header := http.Header{
				"Authorization": {"Bearer " + value}, "User-Agent": {"git/1.0 (flux-token-refresher)"}, "Connection": {"close"},
			}
			if diff := cmp.Diff(header, r.Header); diff != "" {
				t.Errorf("header (-want +got)\n%s", diff)
			}
		})
	}
}

// TestRedirects: none is followed, not to a host that may be asked either.
func TestRedirects(t *testing.T) {
	t.Parallel()
	for _, status := range []int{300, 301, 302, 303, 304, 305, 307, 308} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			t.Parallel()
			other := newServer(t, respond(http.StatusOK, http.Header{"Content-Type": {advertisement}}, refs))
			s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Location", other.URL+r.RequestURI)
				w.WriteHeader(status)
			})
			remote := newRemote(t, gitremote.Config{Hosts: []string{s.host(), other.host()}, CAFile: s.caFile(t)})
			if got := remote.Ask(t.Context(), s.URL+"/repo", token); got.Verdict != gitremote.Silent {
				t.Errorf("got %+v, want silent", got)
			}
			if len(s.requests()) != 1 || len(other.requests()) != 0 {
				t.Errorf("%d requests, and %d where they were sent on to", len(s.requests()), len(other.requests()))
			}
		})
	}
}

// TestSilence: whatever keeps an answer from coming is no verdict, and is over in time.
func TestSilence(t *testing.T) {
	t.Parallel()
	flush := func(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() }
	hang := func(r *http.Request) { <-r.Context().Done() }
	const late, broken = "did not answer in time", "broke the connection"
	tests := map[string]struct {
		answer http.HandlerFunc
		says   string
	}{
		"no answer": {func(_ http.ResponseWriter, r *http.Request) { hang(r) }, late},
		"an answer that stops in the middle of refs": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", advertisement)
			_, _ = io.WriteString(w, refs[:10])
			flush(w)
			hang(r)
		}, late},
		"an answer that breaks off in the middle of refs": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", advertisement)
			_, _ = io.WriteString(w, refs[:10])
			flush(w)
			panic(http.ErrAbortHandler)
		}, broken},
		"a connection that breaks": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, broken},
		"an endless header": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Long", strings.Repeat("x", 1<<20))
		}, broken},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, test.answer)
			ctx := t.Context()
			if test.says == late {
				ctx = hurry(t)
			}
			silent(ctx, t, s.remote(t), s.host(), test.says)
		})
	}
	t.Run("nobody shakes hands", func(t *testing.T) {
		t.Parallel()
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		host := listener.Addr().String()
		remote := newRemote(t, gitremote.Config{Hosts: []string{host}, Timeout: 100 * time.Millisecond})
		silent(t.Context(), t, remote, host, "did not answer in time")
	})
	t.Run("nobody listens", func(t *testing.T) {
		t.Parallel()
		s := newServer(t, respond(http.StatusOK, http.Header{}, ""))
		remote := s.remote(t)
		s.Close()
		silent(t.Context(), t, remote, s.host(), "or the proxy to it cannot be reached: connection refused")
	})
	t.Run("a server without TLS", func(t *testing.T) {
		t.Parallel()
		s := httptest.NewServer(respond(http.StatusOK, http.Header{"Content-Type": {advertisement}}, refs))
		defer s.Close()
		host := s.Listener.Addr().String()
		silent(t.Context(), t, newRemote(t, gitremote.Config{Hosts: []string{host}}), host, "broke the connection")
	})
}

// silent asks a host that gives no verdict.
func silent(ctx context.Context, t *testing.T, remote *gitremote.Remote, host, says string) {
	t.Helper()
	got := remote.Ask(ctx, "https://"+host+"/repo", token)
	if got.Verdict != gitremote.Silent || got.Kind != "" || !strings.Contains(got.Why, says) || !strings.Contains(got.Why, host) {
		t.Errorf("got %+v, want silence about %s: %q", got, host, says)
	}
}

// TestPagesHaveNoEnd: an answer is read as far as it says something, however long it is.
func TestPagesHaveNoEnd(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusOK, http.StatusUnauthorized} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			t.Parallel()
			s := newServer(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/html")
				w.WriteHeader(status)
				for { // until the connection is closed
					if _, err := io.WriteString(w, strings.Repeat("<p>", 1000)); err != nil {
						return
					}
				}
			})
			if got := s.remote(t).Ask(t.Context(), s.URL+"/repo", token); got.Verdict != gitremote.Rejected {
				t.Errorf("got %+v, want rejected", got)
			}
		})
	}
}

// TestBrokenPage: the status and the type of a page decide, although the page does not come.
func TestBrokenPage(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	if got := s.remote(t).Ask(t.Context(), s.URL+"/repo", token); got.Kind != gitremote.Page {
		t.Errorf("got %+v, want a page", got)
	}
}

func TestCAFile(t *testing.T) {
	t.Parallel()
	s := newServer(t, respond(http.StatusOK, http.Header{"Content-Type": {advertisement}}, refs))
	good := s.caFile(t)
	missing := filepath.Join(t.TempDir(), "ca.crt")
	none := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(none, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, says := range map[string]string{
		"":      "the certificate of " + s.host() + " is not trusted; name its CA in verifyCAFile",
		missing: "verifyCAFile cannot be read: open " + missing,
		none:    "verifyCAFile " + none + " holds no certificate (PEM)",
	} {
		remote := newRemote(t, gitremote.Config{Hosts: []string{s.host()}, CAFile: file})
		if got := remote.Ask(t.Context(), s.URL, token); got.Verdict != gitremote.Silent || !strings.Contains(got.Why, says) {
			t.Errorf("got %+v, want silence: %s", got, says)
		}
	}
	if n := len(s.requests()); n > 0 {
		t.Errorf("%d requests were sent to a server that was not trusted", n)
	}

	remote := newRemote(t, gitremote.Config{Hosts: []string{s.host()}, CAFile: missing})
	if err := os.Link(good, missing); err != nil {
		t.Fatal(err)
	}
	if got := remote.Ask(t.Context(), s.URL, token); got.Verdict != gitremote.Accepted {
		t.Errorf("after the file was written: %+v, want accepted", got)
	}
}

func TestMalformedTokens(t *testing.T) {
	t.Parallel()
	s := newServer(t, respond(http.StatusOK, http.Header{"Content-Type": {advertisement}}, refs))
	remote := s.remote(t)
	for _, v := range []string{"", " ", value + "\n", "a b", "a\r\nX-Evil: 1", "ä", "\x00", "=", "a=b"} {
		got := remote.Ask(t.Context(), s.URL, newToken(v))
		want := gitremote.Answer{Verdict: gitremote.Rejected, Kind: gitremote.Malformed, Why: "what is there is no bearer token, and was not sent"}
		if got != want {
			t.Errorf("%q: got %+v, want %+v", v, got, want)
		}
	}
	if n := len(s.requests()); n > 0 {
		t.Errorf("%d requests were sent", n)
	}
}

// azure is what may be asked by default.
var azure = []string{"dev.azure.com", "*.visualstudio.com"}

// TestHosts: who is reached for which URL; "" is nobody. Not parallel, as it looks at the proxy.
func TestHosts(t *testing.T) {
	own := []string{"*.git.Example.org:8443", "git.example.org", "10.0.0.1:444", "kelvin.example"}
	tests := []struct {
		hosts []string
		url   string
		want  string
	}{
		{azure, "https://dev.azure.com/org/project/_git/repo", "dev.azure.com:443"},
		{azure, "https://DEV.Azure.COM/org", "dev.azure.com:443"},
		{azure, "https://dev.azure.com:443/org", "dev.azure.com:443"},
		{azure, "https://dev.azure.com:/org", "dev.azure.com:443"},
		{azure, "https://org@dev.azure.com/org", "dev.azure.com:443"},
		{azure, "https://evil.example@dev.azure.com/org", "dev.azure.com:443"},
		{azure, "https://org.visualstudio.com/x", "org.visualstudio.com:443"},
		{azure, "https://xn--bcher-kva.visualstudio.com/x", "xn--bcher-kva.visualstudio.com:443"},

		{azure, "http://dev.azure.com/org", ""},
		{azure, "ssh://git@dev.azure.com/org", ""},
		{azure, "git@ssh.dev.azure.com:v3/org/project/repo", ""},
		{azure, "git://dev.azure.com/org", ""},
		{azure, "file:///dev.azure.com/org", ""},
		{azure, "//dev.azure.com/org", ""},
		{azure, "dev.azure.com/org", ""},
		{azure, "https:dev.azure.com/org", ""},
		{azure, "https:///dev.azure.com/org", ""},
		{azure, "", ""},
		{azure, "https://", ""},
		{azure, "https://:443/", ""},
		{azure, "https://dev.azure.com:8443/org", ""},
		{azure, "https://dev.azure.com:0443/org", ""},
		{azure, "https://dev.azure.com:99999/org", ""},
		{azure, "https://dev.azure.com:https/org", ""},
		{azure, "https://dev.azure.com./org", ""},
		{azure, "https://.dev.azure.com/org", ""},
		{azure, "https://x.dev.azure.com/org", ""},
		{azure, "https://devXazure.com/org", ""},
		{azure, "https://dev.azure.com.evil.example/org", ""},
		{azure, "https://evil-dev.azure.com/org", ""},
		{azure, "https://dev.azure.com@evil.example/org", ""},
		{azure, "https://dev.azure.com:443@evil.example/org", ""},
		{azure, "https://dev.azure.com%2f@evil.example/org", ""},
		{azure, "https://evil.example/https://dev.azure.com/org", ""},
		{azure, "https://evil.example?@dev.azure.com/", ""},
		{azure, "https://evil.example#@dev.azure.com/", ""},
		{azure, `https://evil.example\@dev.azure.com/`, ""},
		{azure, `https://dev.azure.com\@evil.example/`, ""},
		{azure, "https://dev.azure.com%00.evil.example/", ""},
		{azure, "https://dev.azure.com\t/", ""},
		{azure, " https://dev.azure.com/", ""},
		{azure, "https://dev.azure.com\n/", ""},
		{azure, "https://dev。azure。com/", ""},
		{azure, "https://dev.azur\uff45.com/", ""}, // a fullwidth e, which IDNA maps to e
		{azure, "https://dev.azure%2ecom/", ""},
		{azure, "https://[dev.azure.com]/", ""},
		{azure, "https://[::1]/", ""},
		{azure, "https://*.visualstudio.com/x", ""},
		{azure, "https://visualstudio.com/x", ""},
		{azure, "https://.visualstudio.com/x", ""},
		{azure, "https://a.b.visualstudio.com/x", ""},
		{azure, "https://evilvisualstudio.com/x", ""},
		{azure, "https://a.visualstudio.com.evil.example/x", ""},
		{azure, "https://org_.visualstudio.com/x", ""},
		{azure, "https://-.visualstudio.com/x", ""},
		{azure, "https://bücher.visualstudio.com/x", ""},
		{azure, "https://127.0.0.1/", ""},
		{nil, "https://dev.azure.com/org", ""},

		{own, "https://a.GIT.example.org:8443/", "a.git.example.org:8443"},
		{own, "https://a.git.example.org/", ""},
		{own, "https://git.example.org:8443/", ""},
		{own, "https://git.example.org/", "git.example.org:443"},
		{own, "https://10.0.0.1:444/", "10.0.0.1:444"},
		{own, "https://10.1:444/", ""},
		{own, "https://0x0a000001:444/", ""},
		{own, "https://\u212aelvin.example/", ""}, // KELVIN SIGN, which is k in lower case
	}
	way.take(t)
	for _, test := range tests {
		var want []string
		if test.want != "" {
			want = []string{"CONNECT " + test.want}
		}
		got := newRemote(t, gitremote.Config{Hosts: test.hosts}).Ask(t.Context(), test.url, token)
		if diff := cmp.Diff(want, way.take(t)); diff != "" {
			t.Errorf("%q: reached (-want +got)\n%s", test.url, diff)
		}
		if (got.Verdict == gitremote.NotAllowed) != (test.want == "") || got.Verdict == gitremote.Accepted || got.Why == "" {
			t.Errorf("%q: got %+v, to be asked: %q", test.url, got, test.want)
		}
	}
}

// TestNotAllowed: it says why, and nothing of the URL, which could hold a password.
func TestNotAllowed(t *testing.T) {
	t.Parallel()
	remote := newRemote(t, gitremote.Config{Hosts: azure})
	for url, why := range map[string]string{
		"https://user:hunter2@git.example/": "the repository's host is not in verifyHosts",
		"http://user:hunter2@dev.azure.com": "the repository's URL is not https",
		"ssh://hunter2@dev.azure.com":       "the repository's URL is not https",
		"https://hunter2:x%zz@":             "the repository's URL cannot be read",
		"https://user:hun/ter2@git.example": "the repository's URL cannot be read",
		"https://hunter2_":                  "the repository's URL has no plain host name",
	} {
		want := gitremote.Answer{Verdict: gitremote.NotAllowed, Why: why}
		if got := remote.Ask(t.Context(), url, token); got != want {
			t.Errorf("%q: got %+v, want %+v", url, got, want)
		}
	}
}

// TestProxy: the token goes through a proxy of the environment, which does not see it. Not parallel, as it changes the
// proxy.
func TestProxy(t *testing.T) {
	s := newServer(t, respond(http.StatusOK, http.Header{"Content-Type": {advertisement}}, refs))
	remote := newRemote(t, gitremote.Config{Hosts: []string{"*.example.com"}, CAFile: s.caFile(t)})
	way.take(t)
	way.set(s.host(), 0)
	defer way.set("", 0)
	if got := remote.Ask(t.Context(), "https://git.example.com/repo", token); got.Verdict != gitremote.Accepted {
		t.Errorf("got %+v, want accepted", got)
	}
	if diff := cmp.Diff([]string{"CONNECT git.example.com:443"}, way.take(t)); diff != "" {
		t.Errorf("reached (-want +got)\n%s", diff)
	}
	if asked := s.requests(); len(asked) != 1 || asked[0].Host != "git.example.com" || asked[0].Header.Get("Authorization") != "Bearer "+value {
		t.Errorf("the server was asked %v", asked)
	}
	// A certificate of somebody else, in between: the token is not sent.
	elsewhere := newRemote(t, gitremote.Config{Hosts: []string{"git.not-example.com"}, CAFile: s.caFile(t)})
	silent(t.Context(), t, elsewhere, "git.not-example.com", "is not trusted")
	for _, status := range []int{401, 403, 407, 502} {
		way.set(s.host(), status)
		silent(t.Context(), t, remote, "git.example.com", "or the proxy to it broke the connection")
	}
	if n := len(s.requests()); n != 1 {
		t.Errorf("%d requests, want one", n)
	}
}

func TestValidHost(t *testing.T) {
	t.Parallel()
	for pattern, want := range map[string]bool{
		"dev.azure.com": true, "*.visualstudio.com": true, "DEV.azure.com": true, "localhost": true, "127.0.0.1:8443": true,
		"git.example.com:8443": true, "*.git.example.com:1": true, "a-b.example": true, "xn--bcher-kva.example": true,

		"": false, "*": false, "*.": false, "*.com": false, "*.*.example.com": false, "a.*.example.com": false, "a*.example.com": false,
		"dev.azure.com.": false, ".azure.com": false, "dev..azure.com": false, "-a.example": false, "a_b.example": false,
		"https://dev.azure.com": false, "dev.azure.com/": false, "user@dev.azure.com": false, "dev.azure.com\t": false,
		"dev.azure.com:": false, "dev.azure.com:0": false, "dev.azure.com:65536": false, "dev.azure.com:https": false, "dev.azure.com:1:2": false,
		"bücher.example": false, "[::1]": false, "::1": false, "dev.azure.com\n": false, strings.Repeat("a", 64) + ".example": false,
	} {
		if got := gitremote.ValidHost(pattern); got != want {
			t.Errorf("ValidHost(%q) = %t", pattern, got)
		}
		if _, err := gitremote.New(gitremote.Config{Hosts: []string{pattern}}); (err == nil) != want {
			t.Errorf("New of %q: %v", pattern, err)
		}
	}
}

// FuzzHosts: whatever the URL, nobody is reached but whom the defaults allow, and an Answer that says that nobody was
// asked is true.
func FuzzHosts(f *testing.F) {
	for _, url := range []string{
		"https://dev.azure.com/org/project/_git/repo", "https://org@dev.azure.com/", "https://dev.azure.com@evil/x", "https://a.visualstudio.com:443",
		"https://dev.azure.com%2eevil/", "https://dev。azure.com/", "https://[::1]:443/", "https://dev.azure.com:443:1/", "https://a.b@c@dev.azure.com?#",
		"\x00", "https://ſ.visualstudio.com", "https://dev.azure.com/%", "https://xn--.visualstudio.com/", "https://dev.azure.com/\x7f",
	} {
		f.Add(url)
	}
	remote := newRemote(f, gitremote.Config{Hosts: azure})
	allowed := regexp.MustCompile(`^CONNECT (dev\.azure\.com|[a-z0-9-]+\.visualstudio\.com):443$`)
	f.Fuzz(func(t *testing.T, url string) {
		way.take(t)
		got := remote.Ask(t.Context(), url, token)
		reached := way.take(t)
		switch {
		case got.Verdict == gitremote.NotAllowed && len(reached) > 0:
			t.Errorf("%q: reached %v, and said that nobody was asked", url, reached)
		case got.Verdict != gitremote.NotAllowed && (len(reached) != 1 || !allowed.MatchString(reached[0])):
			t.Errorf("%q: reached %v", url, reached)
		}
	})
}
