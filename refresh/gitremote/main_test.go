// The bench: Git servers on loopback, and a proxy that is the only way to everywhere else.

package gitremote_test

import (
	"bufio"
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/gitremote"
)

const value = "eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiI0OTliODRhYyJ9.c2lnbmF0dXJlLW9mLXRoZS10b2tlbg"

var token = newToken(value)

func newToken(v string) refresh.Token {
	return refresh.NewToken(v, time.Time{}, time.Now().Add(time.Hour), time.Time{})
}

// refs is what a Git server answers to a token that it takes.
const refs = "001e# service=git-upload-pack\n0000003fdeadbeefdeadbeefdeadbeefdeadbeefdeadbeef refs/heads/main\n0000"

const advertisement = "application/x-git-upload-pack-advertisement"

// way is the proxy of this process, which net/http takes from the environment once.
var way = &proxy{}

func TestMain(m *testing.M) {
	stop, err := way.start()
	if err != nil {
		panic(err)
	}
	code := m.Run()
	stop()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// proxy notes who was to be reached, and reaches backend instead; it refuses, with a status, where that is set or there is no
// backend. A test that looks at it is not parallel.
type proxy struct {
	mu      sync.Mutex
	asked   []*http.Request
	backend string
	refuse  int
}

// set says what becomes of those who come.
func (p *proxy) set(backend string, refuse int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.backend, p.refuse = backend, refuse
}

func (p *proxy) start() (stop func(), err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	for name, v := range map[string]string{
		"HTTPS_PROXY": "http://" + listener.Addr().String(), "HTTP_PROXY": "http://" + listener.Addr().String(),
		"NO_PROXY": "", "no_proxy": "",
	} {
		if err := os.Setenv(name, v); err != nil {
			return nil, err
		}
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { p.serve(conn) })
		}
	})
	return func() { _ = listener.Close(); serving.Wait() }, nil
}

func (p *proxy) serve(conn net.Conn) {
	defer conn.Close()
	from := bufio.NewReader(conn)
	request, err := http.ReadRequest(from)
	if err != nil {
		return
	}
	p.mu.Lock()
	p.asked = append(p.asked, request)
	backend, refuse := p.backend, p.refuse
	p.mu.Unlock()
	if backend == "" {
		refuse = http.StatusBadGateway
	}
	if refuse != 0 {
		fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\n\r\n", refuse, http.StatusText(refuse))
		return
	}
	to, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", backend)
	if err != nil {
		return
	}
	defer to.Close()
	_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(to, from); _ = to.Close() })
	both.Go(func() { _, _ = io.Copy(conn, to); _ = conn.Close() })
	both.Wait()
}

// take gives who was to be reached since the last time, as "METHOD host:port".
func (p *proxy) take(t *testing.T) []string {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, r := range p.asked {
		out = append(out, r.Method+" "+r.Host)
		if r.Header.Get("Authorization") != "" {
			t.Errorf("the proxy was shown the token: %s %s", r.Method, r.Host)
		}
	}
	p.asked = nil
	return out
}

// server is a Git server that notes what it was asked.
type server struct {
	*httptest.Server
	mu    sync.Mutex
	asked []*http.Request
}

func newServer(t *testing.T, answer http.HandlerFunc) *server {
	t.Helper()
	s := &server{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.asked = append(s.asked, r)
		s.mu.Unlock()
		answer(w, r)
	}))
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // of connections that were given up
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *server) host() string { return s.Listener.Addr().String() }

func (s *server) requests() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// caFile holds what a client has to trust.
func (s *server) caFile(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.crt")
	content := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// remote may ask s.
func (s *server) remote(t *testing.T) *gitremote.Remote {
	t.Helper()
	return newRemote(t, gitremote.Config{Hosts: []string{s.host()}, CAFile: s.caFile(t)})
}

func newRemote(t testing.TB, config gitremote.Config) *gitremote.Remote {
	t.Helper()
	r, err := gitremote.New(config)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// hurry is a deadline for what is expected to last until one.
func hurry(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func respond(status int, header http.Header, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		maps.Copy(w.Header(), header)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}
