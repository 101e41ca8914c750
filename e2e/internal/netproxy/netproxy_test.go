package netproxy_test

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"flux-token-refresher/e2e/internal/netproxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestForwardsBothWaysAndHandsOnTheEnd(t *testing.T) {
	t.Parallel()
	conn := dial(t, start(t))
	say(t, conn, "hello")
	hear(t, conn, "hello")
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(conn); err != nil || len(rest) > 0 {
		t.Errorf("got %q, %v, want the end", rest, err)
	}
}

func TestCutDropsAndRefusesUntilHealed(t *testing.T) {
	t.Parallel()
	proxy := start(t)
	conn := dial(t, proxy)
	say(t, conn, "before")
	hear(t, conn, "before")
	if err := proxy.Cut(); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection was not dropped: %v", err)
	}
	if _, err := new(net.Dialer).DialContext(t.Context(), "tcp", proxy.Address()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, want that a new connection is refused", err)
	}
	if err := proxy.Heal(); err != nil {
		t.Fatal(err)
	}
	conn = dial(t, proxy)
	say(t, conn, "after")
	hear(t, conn, "after")
}

func TestHangHoldsEverythingUntilHealed(t *testing.T) {
	t.Parallel()
	proxy := start(t)
	old := dial(t, proxy)
	say(t, old, "before")
	hear(t, old, "before")
	proxy.Hang()
	fresh := dial(t, proxy)
	for _, conn := range []*net.TCPConn{old, fresh} {
		say(t, conn, "held")
		silent(t, conn)
	}
	if err := proxy.Heal(); err != nil {
		t.Fatal(err)
	}
	for _, conn := range []*net.TCPConn{old, fresh} {
		hear(t, conn, "held")
	}
}

func TestCutEndsAHang(t *testing.T) {
	t.Parallel()
	proxy := start(t)
	proxy.Hang()
	conn := dial(t, proxy)
	say(t, conn, "held")
	if err := proxy.Cut(); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection was not dropped: %v", err)
	}
}

// start starts a proxy in front of a server that sends everything back.
func start(t *testing.T) *netproxy.Proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	proxy, err := netproxy.Start(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(proxy.Close(), listener.Close()); err != nil {
			t.Error(err)
		}
		<-served
	})
	return proxy
}

func dial(t *testing.T, proxy *netproxy.Proxy) *net.TCPConn {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", proxy.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

func say(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
}

func hear(t *testing.T, conn net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Fatalf("got %q, %v, want %q", got, err, want)
	}
}

// silent tells whether nothing comes back for 50 ms, in which an echo takes one.
func silent(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %d bytes, %v, want silence", n, err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
}
