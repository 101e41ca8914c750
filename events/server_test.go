package events_test

// What only shows on a connection: bodies that come slowly, or not.

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pipe is a listener with one connection, whose deadlines are those of the bubble.
type pipe struct {
	conns chan net.Conn
	done  chan struct{}
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

// serve gives a connection to the bench's own server, for the time of a test.
func (b *bench) serve(t *testing.T) net.Conn {
	client, server := net.Pipe()
	listener := &pipe{conns: make(chan net.Conn, 1), done: make(chan struct{})}
	listener.conns <- server
	s := &http.Server{Handler: b, ReadHeaderTimeout: time.Second}
	served := make(chan error, 1)
	go func() { served <- s.Serve(listener) }()
	t.Cleanup(func() {
		_ = client.Close()
		_ = s.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return client
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
				conn := b.serve(t)
				body := cloudEvent(nil)
				go func() {
					_, _ = fmt.Fprintf(conn, "POST /events HTTP/1.1\r\nHost: receiver\r\nContent-Type: application/json\r\nX-Signature: %s\r\nContent-Length: %d\r\n\r\n%s",
						macOf(fluxKey, body), len(body), body[:10])
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
