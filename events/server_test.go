package events_test

// What only shows on a connection: who holds it, and bodies that come slowly, or not.

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"flux-token-refresher/events"
)

// pipe is a listener within the process, whose deadlines are those of the bubble.
type pipe struct {
	conns chan net.Conn
	done  chan struct{}
	// open is how many connections the server has not closed.
	open atomic.Int32
}

func (p *pipe) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipe) Close() error   { close(p.done); return nil }
func (p *pipe) Addr() net.Addr { return &net.UnixAddr{} }

// dial opens a connection.
func (p *pipe) dial(t *testing.T) net.Conn {
	client, server := net.Pipe()
	t.Cleanup(func() { _ = client.Close() })
	p.open.Add(1)
	p.conns <- &counting{Conn: server, open: &p.open}
	return client
}

// counting is a connection of a pipe.
type counting struct {
	net.Conn
	open *atomic.Int32
	once sync.Once
}

func (c *counting) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

// serve is the bench's server for the time of a test, with the bounds that the product's has.
func (b *bench) serve(t *testing.T) *pipe {
	listener := &pipe{conns: make(chan net.Conn), done: make(chan struct{})}
	s := &http.Server{Handler: b, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute}
	events.Guard(s)
	served := make(chan error, 1)
	go func() { served <- s.Serve(listener) }()
	t.Cleanup(func() {
		_ = s.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return listener
}

// post sends a signed event on a new connection, and gives the answer and how long it took.
func (p *pipe) post(t *testing.T, body string) (response *http.Response, took time.Duration) {
	t.Helper()
	began := time.Now()
	conn := p.dial(t)
	go func() { _, _ = io.WriteString(conn, head(macOf(fluxKey, body), len(body))+body) }()
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	return response, time.Since(began)
}

// head is what stands before a body.
func head(signature string, length int) string {
	return fmt.Sprintf("POST /events HTTP/1.1\r\nHost: receiver\r\nContent-Type: application/json\r\nX-Signature: %s\r\nContent-Length: %d\r\n\r\n", signature, length)
}

// TestStrangers: whatever those do who know no key, and however many they are, an event that is signed is answered at once.
func TestStrangers(t *testing.T) {
	t.Parallel()
	const strangers = 300
	bogus := head(macOf("a-key-that-nobody-has-0123456789-abcd", ""), 200)
	for name, do := range map[string]func(context.Context, net.Conn){
		"say nothing":                      func(context.Context, net.Conn) {},
		"begin with the headers":           write("POST /events HTTP/1.1\r\nHost: "),
		"send headers without a proof":     write(strings.Replace(bogus, "X-Signature", "X-Other", 1)),
		"send headers with a wrong token":  write(strings.Replace(bogus, "X-Signature: ", "Authorization: Bearer ", 1)),
		"send headers with a signature":    write(bogus),
		"send a body slowly":               slowly(bogus),
		"send the half of a large body":    write(head(macOf(otherKey, ""), 256<<10) + strings.Repeat(" ", 128<<10)),
		"send chunks that never end":       write(strings.Replace(bogus, "Content-Length: 200", "Transfer-Encoding: chunked", 1) + "1\r\n \r\n"),
		"send requests that are refused":   write(strings.Repeat(head("sha256=00", 0), 10)),
		"shake hands":                      write(strings.Repeat("OPTIONS /events HTTP/1.1\r\nHost: receiver\r\n\r\n", 10)),
		"shake hands with a body":          write("OPTIONS /events HTTP/1.1\r\nHost: receiver\r\nContent-Length: 100\r\n\r\n"),
		"ask for what is not there slowly": write("POST / HTTP/1.1\r\nHost: receiver\r\nContent-Length: 100\r\n\r\n"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				server := b.serve(t)
				for range strangers {
					conn := server.dial(t)
					go do(t.Context(), conn)
					go func() { _, _ = io.Copy(io.Discard, conn) }()
				}
				synctest.Wait()
				// 128 that proved nothing, and those that are on their way out.
				if open := server.open.Load(); open > 128 {
					t.Errorf("%d connections are open", open)
				}
				for n := range 3 {
					response, took := server.post(t, fluxEvent(fmt.Sprint("repos-", n), "authentication required", time.Now()))
					if response.StatusCode != http.StatusAccepted || took != 0 {
						t.Errorf("an event that is signed: %s after %s", response.Status, took)
					}
				}
				if made := b.requester.made(); len(made) != 3 {
					t.Errorf("%d requests were made", len(made))
				}
			})
		})
	}
}

func write(what string) func(context.Context, net.Conn) {
	return func(_ context.Context, conn net.Conn) { _, _ = io.WriteString(conn, what) }
}

// slowly sends a byte a second after what begins.
func slowly(begin string) func(context.Context, net.Conn) {
	return func(ctx context.Context, conn net.Conn) {
		for _, err := io.WriteString(conn, begin); err == nil; _, err = io.WriteString(conn, " ") {
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return
			}
		}
	}
}

// TestStrangersLater: a request that is being handled is not given up for strangers, nor the connection that it came on.
func TestStrangersLater(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		server := b.serve(t)
		b.requester.set("apps/repos", func(context.Context) error {
			for range 300 {
				conn := server.dial(t)
				go func() { _, _ = io.Copy(io.Discard, conn) }()
			}
			time.Sleep(4 * time.Second)
			return nil
		})
		if response, took := server.post(t, cloudEvent(nil)); response.StatusCode != http.StatusAccepted || took != 4*time.Second {
			t.Errorf("%s after %s", response.Status, took)
		}
	})
}

// TestStrangersWhileTheAPIIsSlow: who comes while as many requests are being handled as may be says at once who they are, whatever strangers do, and
// has the next turn.
func TestStrangersWhileTheAPIIsSlow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		server := b.serve(t)
		leave := b.occupy(t)
		var strangers sync.WaitGroup
		strangers.Go(func() {
			for range 400 {
				conn := server.dial(t)
				go write(head(macOf(otherKey, ""), 100))(t.Context(), conn)
				go func() { _, _ = io.Copy(io.Discard, conn) }()
				time.Sleep(2 * time.Millisecond)
			}
		})
		time.Sleep(100 * time.Millisecond)
		time.AfterFunc(500*time.Millisecond, leave)
		response, took := server.post(t, cloudEvent(nil))
		if response.StatusCode != http.StatusAccepted || took != 500*time.Millisecond {
			t.Errorf("%s after %s", response.Status, took)
		}
		strangers.Wait()
	})
}

// TestSlowToken: neither bodies of a sender that is known by its headers are given up for others', nor their connections, however many they are.
func TestSlowToken(t *testing.T) {
	t.Parallel()
	for _, bodies := range []int{1, 12} {
		synctest.Test(t, func(t *testing.T) {
			server := newBench(t).serve(t)
			body := cloudEvent(nil)
			known := strings.Replace(head(tokenKey, len(body)), "X-Signature: ", "Authorization: Bearer ", 1)
			var slow []net.Conn
			for range bodies {
				conn := server.dial(t)
				if _, err := io.WriteString(conn, known+body[:10]); err != nil {
					t.Fatal(err)
				}
				slow = append(slow, conn)
			}
			synctest.Wait()
			for range 200 {
				stranger := server.dial(t)
				go write(head(macOf(otherKey, ""), 100))(t.Context(), stranger)
				go func() { _, _ = io.Copy(io.Discard, stranger) }()
			}
			synctest.Wait()
			for _, conn := range slow {
				go func() { _, _ = io.WriteString(conn, body[10:]) }()
				response, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil || response.StatusCode != http.StatusAccepted {
					t.Errorf("of %d: %v, %v", bodies, response, err)
				}
			}
		})
	}
}

// TestHandshakesHoldNoPlace: whoever asks and asks, and proves nothing, makes nobody else the one who has waited for longest.
func TestHandshakesHoldNoPlace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := newBench(t).serve(t)
		var strangers []net.Conn
		for range 127 {
			conn := server.dial(t)
			go func() { _, _ = io.Copy(io.Discard, conn) }()
			strangers = append(strangers, conn)
		}
		synctest.Wait()
		sender := server.dial(t) // which takes its time, for its handshake of TLS
		synctest.Wait()
		for _, conn := range strangers {
			if _, err := io.WriteString(conn, "OPTIONS /events HTTP/1.1\r\nHost: receiver\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		server.dial(t)
		synctest.Wait()
		body := cloudEvent(nil)
		go func() { _, _ = io.WriteString(sender, head(macOf(fluxKey, body), len(body))+body) }()
		response, err := http.ReadResponse(bufio.NewReader(sender), nil)
		if err != nil || response.StatusCode != http.StatusAccepted {
			t.Errorf("%v, %v", response, err)
		}
	})
}

// TestRefusedMaySend: who is refused before its body was read can send the rest of it, and so reads the answer; then the connection ends.
func TestRefusedMaySend(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]string{
		"of a connection that could go on":      "",
		"that says it is the connection's last": "Connection: close\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const body = 100 << 10
				conn := newBench(t).serve(t).dial(t)
				sent := make(chan error, 1)
				go func() {
					_, err := io.WriteString(conn, strings.Replace(head("", body), "X-Signature", end+"X-Other", 1))
					for range 4 {
						time.Sleep(time.Second)
						if err == nil {
							_, err = io.WriteString(conn, strings.Repeat(" ", body/4))
						}
					}
					sent <- err
				}()
				reader, began := bufio.NewReader(conn), time.Now()
				response, err := http.ReadResponse(reader, nil)
				if err != nil || response.StatusCode != http.StatusUnauthorized {
					t.Fatalf("%v, %v", response, err)
				}
				if _, err := io.Copy(io.Discard, response.Body); err != nil || time.Since(began) > 0 {
					t.Errorf("the answer was there after %s: %v", time.Since(began), err)
				}
				if _, err := reader.ReadByte(); !errors.Is(err, io.EOF) {
					t.Errorf("the connection ends with %v", err)
				}
				if err := <-sent; err != nil {
					t.Errorf("its body could not be sent: %v", err)
				}
			})
		})
	}
}

// TestCutOff: who is cut off is told to come again.
func TestCutOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		server := b.serve(t)
		var first net.Conn
		for range 13 { // 12 bodies are read at once
			conn := server.dial(t)
			if first == nil {
				first = conn
			}
			go write(head(macOf(otherKey, ""), 100))(t.Context(), conn)
			synctest.Wait()
		}
		response, err := http.ReadResponse(bufio.NewReader(first), nil)
		if err != nil || response.StatusCode != http.StatusTooManyRequests || response.Header.Get("Retry-After") != "1" || !response.Close {
			t.Errorf("%v, %v", response, err)
		}
		if counts := b.counts(t); counts["none other none cut-off"] != 1 || len(counts) != 1 {
			t.Errorf("counted %v", counts)
		}
	})
}

// TestCutOffAtItsEnd: a body that was whole when it was cut off is not handled either, because its connection has ended with it, and with that what
// is done for it.
func TestCutOffAtItsEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		body := fluxEvent("repos", "", time.Now())
		ended := make(chan struct{})
		var others sync.WaitGroup
		request := newRequest(t.Context(), events.Path, body, signed(fluxKey))
		request.Body = io.NopCloser(io.MultiReader(strings.NewReader(body), reading(func() {
			for range 12 { // as many as are read at once
				other := newRequest(t.Context(), events.Path, "", signed(fluxKey))
				other.Body = io.NopCloser(reading(func() { <-ended }))
				others.Go(func() { b.do(other) })
			}
			synctest.Wait()
		})))
		wantStatus(t, b.do(request), http.StatusTooManyRequests)
		if seen := b.router.seen(); seen != 0 {
			t.Errorf("%d events are being handled", seen)
		}
		close(ended)
		others.Wait()
	})
}

// reading is a Reader that does something and is at its end.
type reading func()

func (r reading) Read([]byte) (int, error) {
	r()
	return 0, io.EOF
}

func TestSlowBodies(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		pause  time.Duration // in the middle of the body
		work   time.Duration // of the API
		status int
		after  time.Duration
	}{
		{"never", time.Hour, 0, http.StatusBadRequest, 5 * time.Second},
		// The body's deadline must not end the work on it.
		{"in time", 4 * time.Second, 3 * time.Second, http.StatusAccepted, 7 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.requester.set("apps/repos", func(ctx context.Context) error {
					select {
					case <-time.After(test.work):
						return nil
					case <-ctx.Done():
						return ctx.Err()
					}
				})
				began := time.Now()
				conn := b.serve(t).dial(t)
				body := cloudEvent(nil)
				go func() {
					_, _ = io.WriteString(conn, head(macOf(fluxKey, body), len(body))+body[:10])
					select {
					case <-time.After(test.pause):
					case <-t.Context().Done():
					}
					_, _ = io.WriteString(conn, body[10:])
				}()
				response, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Fatal(err)
				}
				answer, _ := io.ReadAll(response.Body)
				if response.StatusCode != test.status || time.Since(began) != test.after {
					t.Errorf("status %d after %s, want %d after %s: %s", response.StatusCode, time.Since(began), test.status, test.after, answer)
				}
			})
		})
	}
}

// TestNoBody: where there is nothing to wait for, net/http already watches the connection while the event is handled: a deadline for the body would
// end that.
func TestNoBody(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := newRequest(t.Context(), events.Path, "", append(binaryEvent("ce-id", "1"), bearer(tokenKey))...)
	r.Body = http.NoBody
	w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
	b.ServeHTTP(w, r)
	wantStatus(t, w.ResponseRecorder, http.StatusAccepted)
	if len(w.set) > 0 {
		t.Errorf("deadlines were set: %v", w.set)
	}
}

// deadlines records those for reading.
type deadlines struct {
	*httptest.ResponseRecorder
	set []time.Time
}

func (d *deadlines) SetReadDeadline(at time.Time) error {
	d.set = append(d.set, at)
	return nil
}

// TestUnreadBodies: of a request that nobody can have sent, not a byte of the body is read.
func TestUnreadBodies(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		length int64
		proof  with
		status int
	}{
		{"no proof", -1, func(*http.Request, string) {}, http.StatusUnauthorized},
		{"a wrong token", -1, bearer(otherKey), http.StatusUnauthorized},
		{"half a signature", -1, header("X-Signature", "sha256=00"), http.StatusUnauthorized},
		{"a signature and ce-* headers", -1, func(r *http.Request, body string) {
			signed(fluxKey)(r, body)
			r.Header.Set("Ce-Id", "1")
		}, http.StatusUnauthorized},
		{"a length that is too large", 256<<10 + 1, signed(fluxKey), http.StatusRequestEntityTooLarge},
		{"a method that is none", -1, method(http.MethodPut), http.StatusMethodNotAllowed},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			body := &counted{Reader: strings.NewReader(cloudEvent(nil))}
			r := newRequest(t.Context(), "/events", "", test.proof)
			r.Body, r.ContentLength = io.NopCloser(body), test.length
			w := b.do(r)
			wantStatus(t, w, test.status)
			if body.n > 0 || w.Header().Get("Connection") != "close" {
				t.Errorf("%d bytes were read, and the connection is to %q", body.n, w.Header().Get("Connection"))
			}
		})
	}
	b := newBench(t, func(c *events.Config) {
		c.Senders = []events.Sender{{Name: "broker", BearerToken: static(tokenKey), Namespaces: []string{"*"}}}
	})
	body := &counted{Reader: strings.NewReader(cloudEvent(nil))}
	r := newRequest(t.Context(), "/events", "", signed(fluxKey))
	r.Body, r.ContentLength = io.NopCloser(body), -1
	if wantStatus(t, b.do(r), http.StatusUnauthorized); body.n > 0 {
		t.Error("a body was read for its signature, where nobody signs")
	}
}

// TestLargeBodies: no more is read than may be, whatever the length that is announced.
func TestLargeBodies(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	endless := &counted{Reader: strings.NewReader(strings.Repeat(" ", 1<<20))}
	r := newRequest(t.Context(), "/events", "", signed(fluxKey))
	r.Body, r.ContentLength = io.NopCloser(endless), -1
	wantStatus(t, b.do(r), http.StatusRequestEntityTooLarge)
	if endless.n > 300<<10 {
		t.Errorf("%d bytes were read", endless.n)
	}
}

type counted struct {
	io.Reader
	n int
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += n
	return n, err
}
