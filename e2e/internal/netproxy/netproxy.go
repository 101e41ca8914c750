// Package netproxy is a TCP proxy whose network can be cut, hung and healed.
package netproxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"

	"flux-token-refresher/e2e/internal/loopback"
)

// Proxy forwards connections to its target. Safe for concurrent use.
type Proxy struct {
	address, target netip.AddrPort

	mu   sync.Mutex
	line *line         // nil while cut
	gate chan struct{} // closed while bytes flow
}

// line is a listener with the connections that came through it.
type line struct {
	listener *net.TCPListener
	drop     context.CancelFunc
	work     sync.WaitGroup
}

// Start starts a proxy to target, an address IP:PORT, at a free port of loopback. The caller must Close it.
func Start(target string) (*Proxy, error) {
	free, err := loopback.Address()
	if err != nil {
		return nil, err
	}
	return StartAt(free, target)
}

// StartAt is Start at an address IP:PORT of one's own.
func StartAt(at, target string) (*Proxy, error) {
	to, err := netip.ParseAddrPort(target)
	if err != nil {
		return nil, err
	}
	address, err := netip.ParseAddrPort(at)
	if err != nil {
		return nil, err
	}
	p := &Proxy{address: address, target: to, gate: make(chan struct{})}
	close(p.gate)
	return p, p.Heal()
}

// Address is the proxy's own host:port.
func (p *Proxy) Address() string { return p.address.String() }

// Cut drops all connections and refuses new ones, as a host does whose server is down.
func (p *Proxy) Cut() error {
	p.mu.Lock()
	cut := p.line
	p.line = nil
	p.mu.Unlock()
	if cut == nil {
		return nil
	}
	err := cut.listener.Close()
	cut.drop()
	cut.work.Wait()
	return err
}

// Hang keeps all connections and takes new ones, and lets nothing through either way, as a network that loses
// each packet. What was sent meanwhile arrives once it is healed.
func (p *Proxy) Hang() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.gate:
		p.gate = make(chan struct{})
	default: // it hangs already
	}
}

// Heal ends a Cut and a Hang. The address stays the same.
func (p *Proxy) Heal() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.gate:
	default:
		close(p.gate)
	}
	if p.line != nil {
		return nil
	}
	listener, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(p.address))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.line = &line{listener: listener, drop: cancel}
	l := p.line
	l.work.Go(func() { p.accept(ctx, l) })
	return nil
}

// Close ends the proxy and returns when its connections are closed.
func (p *Proxy) Close() error { return p.Cut() }

func (p *Proxy) accept(ctx context.Context, l *line) {
	for {
		client, err := l.listener.AcceptTCP()
		if err != nil {
			return // closed
		}
		l.work.Go(func() { p.forward(ctx, client) })
	}
}

func (p *Proxy) forward(ctx context.Context, client *net.TCPConn) {
	defer client.Close()
	stop := context.AfterFunc(ctx, func() { _ = client.Close() })
	defer stop()
	if !p.pass(ctx) {
		return
	}
	server, err := new(net.Dialer).DialTCP(ctx, "tcp", netip.AddrPort{}, p.target)
	if err != nil {
		return
	}
	defer server.Close()
	stopServer := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stopServer()

	var answers sync.WaitGroup
	answers.Go(func() { p.pump(ctx, client, server) })
	p.pump(ctx, server, client)
	answers.Wait()
}

// pump copies until the source ends, which it hands on, or one side breaks, which ends both.
func (p *Proxy) pump(ctx context.Context, to, from *net.TCPConn) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if !p.pass(ctx) {
				return
			}
			if _, err := to.Write(buffer[:n]); err != nil {
				_ = from.Close()
				return
			}
		}
		if errors.Is(err, io.EOF) {
			_ = to.CloseWrite()
			return
		}
		if err != nil {
			_ = to.Close()
			return
		}
	}
}

// pass waits while the network hangs; false when the connection was dropped meanwhile.
func (p *Proxy) pass(ctx context.Context) bool {
	p.mu.Lock()
	gate := p.gate
	p.mu.Unlock()
	select {
	case <-gate:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
