package events

// Who comes in. Everybody who reaches the port may knock, so nothing that a stranger can do for nothing holds up a sender: what shows
// in the headers is decided before the body is read; bodies that are read at once are few, and where there are too many, the
// one that keeps us waiting for longest is cut off, and not the one that comes; connections likewise.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	// maxConnections are those on which nobody has proven anything: with 16 KiB of headers each, 2 MiB. Those with a request that is
	// proven come on top.
	maxConnections = 128
	// maxBodies are read at once: 4 MiB, and 10 MiB while their buffers grow (measured).
	maxBodies = 16
	// bodyTimeout is how long a body may take to arrive.
	bodyTimeout = 5 * time.Second
)

// admit finds out who sent a request, and takes its body. The checks are in the order of the answers that they give.
func (r *receiver) admit(w http.ResponseWriter, request *http.Request) (sender Sender, content []byte, err error) {
	if request.Method != http.MethodPost {
		return Sender{}, nil, refuse(notAllowed, "events are posted")
	}
	sender, vouched, unknown := vouchedFor(r.Senders, request)
	switch {
	case vouched:
		proven(request.Context())
	case !signable(r.Senders, request.Header):
		return Sender{}, nil, unknown
	}
	if content, err = r.read(w, request, vouched); err != nil {
		return sender, nil, err
	}
	if !vouched {
		if sender, err = signer(r.Senders, request.Header, content, unknown); err == nil {
			proven(request.Context())
		}
	}
	return sender, content, err
}

// read takes the body, bounded in size and time.
func (r *receiver) read(w http.ResponseWriter, request *http.Request, vouched bool) ([]byte, error) {
	if request.ContentLength > MaxSize {
		return nil, errTooLarge
	}
	if request.Body == http.NoBody {
		return nil, nil
	}
	connection := http.NewResponseController(w)
	// Every server of net/http has deadlines, and lifts them where the body ends.
	_ = connection.SetReadDeadline(time.Now().Add(bodyTimeout))
	b := r.bodies.begin(vouched, func() { _ = connection.SetReadDeadline(time.Now()) })
	if b == nil {
		return nil, refuse(cutOff, "too many bodies are on their way; try again")
	}
	var content bytes.Buffer
	content.Grow(int(max(request.ContentLength, 0)) + bytes.MinRead)
	_, err := content.ReadFrom(http.MaxBytesReader(w, request.Body, MaxSize))
	cut := r.bodies.end(b)
	if _, larger := errors.AsType[*http.MaxBytesError](err); larger {
		return nil, errTooLarge
	}
	switch {
	case cut: // even if it was whole: net/http ends what is done for a connection that cannot be read from any more
		return nil, refuse(cutOff, "too many bodies came at once, and this one took longest; try again")
	case err == nil:
		return content.Bytes(), nil
	}
	return nil, refuse(incomplete, fmt.Sprintf("the body did not arrive whole within %s", bodyTimeout))
}

var errTooLarge = refuse(tooLarge, fmt.Sprintf("a body may have %d bytes", MaxSize))

// bodies are those that are being read.
type bodies struct {
	mu sync.Mutex
	// underWay holds the ones that were begun first at its front; maxBodies at the most.
	underWay []*body
}

type body struct {
	// vouched: it is known whose it is, by a token or a certificate.
	vouched bool
	cut     func()
}

// begin makes room for one more, by cutting off the stranger's that has been under way for longest: the body of a sender who means it is there within
// milliseconds. Where there is none, it gives nil.
func (b *bodies) begin(vouched bool, cut func()) *body {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.underWay) == maxBodies {
		i := slices.IndexFunc(b.underWay, func(o *body) bool { return !o.vouched })
		if i < 0 {
			return nil
		}
		b.underWay[i].cut()
		b.underWay = slices.Delete(b.underWay, i, i+1)
	}
	begun := &body{vouched: vouched, cut: cut}
	b.underWay = append(b.underWay, begun)
	return begun
}

// end tells whether it was cut off. After it, cut is not called any more.
func (b *bodies) end(ended *body) (cut bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.Index(b.underWay, ended)
	if i >= 0 {
		b.underWay = slices.Delete(b.underWay, i, i+1)
	}
	return i < 0
}

// Guard bounds the connections of a server that serves Handler: where there are too many on which nobody has proven anything, the one
// that has been so for longest is closed. It speaks HTTP/1.1 alone, in which a connection has one request at a time.
func Guard(s *http.Server) {
	s.Protocols = new(http.Protocols)
	s.Protocols.SetHTTP1(true)
	c := &connections{}
	s.ConnState = func(connection net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew, http.StateIdle:
			c.wait(connection)
		case http.StateClosed, http.StateHijacked:
			c.forget(connection)
		}
	}
	s.ConnContext = func(ctx context.Context, connection net.Conn) context.Context {
		return context.WithValue(ctx, provenKey{}, func() { c.forget(connection) })
	}
}

// provenKey is that of a function in a request's context that takes its connection out of those that may be closed, until the request is answered.
type provenKey struct{}

func proven(ctx context.Context) {
	if forget, ok := ctx.Value(provenKey{}).(func()); ok {
		forget()
	}
}

// connections are those on which nobody has proven anything since they were opened, or since what was proven was answered.
type connections struct {
	mu sync.Mutex
	// waiting holds the ones that have waited longest at its front.
	waiting []net.Conn
}

func (c *connections) wait(connection net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.Contains(c.waiting, connection) {
		return // an answer without a proof makes it no younger
	}
	c.waiting = append(c.waiting, connection)
	if len(c.waiting) <= maxConnections {
		return
	}
	longest := c.waiting[0]
	c.waiting = slices.Delete(c.waiting, 0, 1)
	if encrypted, ok := longest.(interface{ NetConn() net.Conn }); ok {
		longest = encrypted.NetConn() // TLS would say goodbye, and wait until that is taken
	}
	_ = longest.Close()
}

func (c *connections) forget(connection net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remove(connection)
}

func (c *connections) remove(connection net.Conn) {
	if i := slices.Index(c.waiting, connection); i >= 0 {
		c.waiting = slices.Delete(c.waiting, i, i+1)
	}
}
