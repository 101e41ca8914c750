package events

// Who comes in. Everybody who reaches the port may knock, so nothing that a stranger can do for nothing holds up a sender: what shows
// in the headers is decided before the body is read; bodies that are held at once are few, and where there are too many, the
// one that keeps us waiting for longest is cut off, and not the one that comes; connections likewise. What is handled takes half of the places at
// the most, so that who comes while the Kubernetes API is slow can still say who they are.

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
	// proven and not answered come on top, which are as many as there are places and may wait.
	maxConnections = 128
	// maxPlaces are the requests whose bodies are held: 3 MiB.
	maxPlaces = 12
	// maxHandled are those of them that are being handled: another half a MiB each, at the worst (TestMemory).
	maxHandled = 6
	// maxWaiting are those who wait for a place.
	maxWaiting = 64
	// patience is how long a request waits for a place, and then for its turn.
	patience = time.Second
	// bodyTimeout is how long a body may take to arrive, answerTimeout how long an answer may take to be read.
	bodyTimeout   = 5 * time.Second
	answerTimeout = 5 * time.Second
)

// admit finds out who sent a request, and takes its body. Who has a place has to leave it, admitted or not.
// The checks are in the order of the answers that they give.
func (r *receiver) admit(w http.ResponseWriter, request *http.Request) (sender Sender, p *place, err error) {
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
	if request.ContentLength > MaxSize {
		return sender, nil, errTooLarge
	}
	if p, err = r.places.take(request.Context()); err != nil {
		return sender, nil, err
	}
	err = r.read(w, request, p, vouched)
	if err == nil && !vouched {
		if sender, err = signer(r.Senders, request.Header, p.body.Bytes(), unknown); err == nil {
			proven(request.Context())
		}
	}
	return sender, p, err
}

// read takes the body, bounded in size and time.
func (r *receiver) read(w http.ResponseWriter, request *http.Request, p *place, vouched bool) error {
	p.body.Reset()
	if request.Body == http.NoBody {
		return nil
	}
	connection := http.NewResponseController(w)
	// Every server of net/http has deadlines, and lifts them where the body ends.
	_ = connection.SetReadDeadline(time.Now().Add(bodyTimeout))
	if !vouched {
		r.places.reading(p, func() { _ = connection.SetReadDeadline(time.Now()) })
	}
	if request.ContentLength > 0 {
		p.body.Grow(int(request.ContentLength) + bytes.MinRead) // what ReadFrom wants, to see the end
	}
	_, err := p.body.ReadFrom(http.MaxBytesReader(w, request.Body, MaxSize))
	cut := !vouched && r.places.arrived(p)
	if _, larger := errors.AsType[*http.MaxBytesError](err); larger {
		return errTooLarge
	}
	switch {
	case cut: // even if it was whole: net/http ends what is done for a connection that cannot be read from any more
		return refuse(cutOff, "too many bodies came at once, and this one took longest; try again")
	case err != nil:
		return refuse(incomplete, fmt.Sprintf("the body did not arrive whole within %s", bodyTimeout))
	}
	return nil
}

var (
	errTooLarge = refuse(tooLarge, fmt.Sprintf("a body may have %d bytes", MaxSize))
	errTooMany  = refuse(tooMany, "too many requests at once; try again")
)

// places are for requests from before their body is read until they have been answered.
type places struct {
	mu sync.Mutex
	// taken is how many there are.
	taken int
	// free are places that were left: their memory is used again, so that what is sent makes no garbage, while the collector leaves it there.
	free sync.Pool
	// waiting are those for whom there was none; who came last is the first to get one, so that nobody can put a queue before a sender.
	waiting []chan *place
	// strangers are those whose body is on its way, and of whom only it will tell who they are; the longest at the front.
	strangers []*place
}

// place is where one request at a time has its body.
type place struct {
	body bytes.Buffer
	cut  func()
}

// take waits for a place. Where none is free, the stranger whose body has been on its way for longest has to go: the body of a sender who
// means it is there within milliseconds. Where too many wait, whoever has waited for longest has to go.
func (p *places) take(ctx context.Context) (*place, error) {
	taken, granted := p.ask()
	if taken != nil {
		return taken, nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case taken = <-granted:
	case <-ctx.Done():
		if !p.leaveQueue(granted) {
			taken = <-granted // just now
		}
	}
	if taken == nil {
		return nil, errTooMany
	}
	return taken, nil
}

// ask gives a place, or where there will be one; nil there is none.
func (p *places) ask() (taken *place, granted chan *place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken < maxPlaces {
		p.taken++
		if taken, _ = p.free.Get().(*place); taken == nil {
			taken = &place{}
		}
		return taken, nil
	}
	if len(p.waiting) == maxWaiting {
		p.waiting[0] <- nil
		p.waiting = slices.Delete(p.waiting, 0, 1)
	}
	granted = make(chan *place, 1)
	p.waiting = append(p.waiting, granted)
	if len(p.strangers) > 0 {
		p.strangers[0].cut()
		p.strangers = slices.Delete(p.strangers, 0, 1)
	}
	return nil, granted
}

// leaveQueue tells whether there was still nothing granted.
func (p *places) leaveQueue(granted chan *place) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.waiting, granted)
	if i >= 0 {
		p.waiting = slices.Delete(p.waiting, i, i+1)
	}
	return i >= 0
}

// leave takes nil for no place.
func (p *places) leave(left *place) {
	if left == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if last := len(p.waiting) - 1; last >= 0 {
		p.waiting[last] <- left
		p.waiting = p.waiting[:last]
		return
	}
	p.taken--
	p.free.Put(left)
}

// reading lets the body that a stranger sends be cut off.
func (p *places) reading(s *place, cut func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.cut = cut
	p.strangers = append(p.strangers, s)
}

// arrived ends that, and tells whether it was cut off.
func (p *places) arrived(s *place) (cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.cut = nil
	i := slices.Index(p.strangers, s)
	if i >= 0 {
		p.strangers = slices.Delete(p.strangers, i, i+1)
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
		return context.WithValue(ctx, guardedKey{}, guarded{c, connection})
	}
}

// guardedKey is that of a guarded connection in a request's context.
type guardedKey struct{}

type guarded struct {
	among      *connections
	connection net.Conn
}

// proven takes the connection of a request out of those that may be closed, until it is answered.
func proven(ctx context.Context) {
	if g, ok := ctx.Value(guardedKey{}).(guarded); ok {
		g.among.forget(g.connection)
	}
}

// answered puts it back before the answer goes out: who does not read it, or still sends what nobody wants, is nobody to wait for.
func answered(ctx context.Context) {
	if g, ok := ctx.Value(guardedKey{}).(guarded); ok {
		g.among.wait(g.connection)
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
	if i := slices.Index(c.waiting, connection); i >= 0 {
		c.waiting = slices.Delete(c.waiting, i, i+1)
	}
}
