package events_test

// How much the receiver holds, whatever is sent.

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestMemory: neither strangers nor senders make the service hold much, however much is sent. Not parallel: it looks at the heap of the process.
func TestMemory(t *testing.T) {
	heap := func() int64 {
		runtime.GC()
		runtime.GC() // what pools hold goes with the second
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	grown := func(t *testing.T, what string, send func(*testing.T, *bench, *pipe)) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t)
			server := b.serve(t)
			before := heap()
			send(t, b, server)
			synctest.Wait()
			grown := heap() - before
			t.Logf("%s: %d KiB", what, grown>>10)
			if grown > 10<<20 {
				t.Errorf("the heap has grown by %d MiB", grown>>20)
			}
		})
	}
	// send sends what is one for all, because the other ends of the pipes are in this process.
	send := func(t *testing.T, server *pipe, request []byte) {
		conn := server.dial(t)
		go func() { _, _ = conn.Write(request) }()
		go func() { _, _ = io.Copy(io.Discard, conn) }()
	}
	grown(t, "200 bodies of 255 KiB of strangers", func(t *testing.T, _ *bench, server *pipe) {
		request := []byte(head(macOf(otherKey, ""), 256<<10) + strings.Repeat(" ", 255<<10))
		for range 200 {
			send(t, server, request)
		}
	})
	for what, one := range map[string]func() string{
		"as much data":    func() string { return cloudEvent(map[string]any{"data": strings.Repeat("a", 255<<10/100-200)}) },
		"as many members": func() string { return "{" + members(20-6) + cloudEvent(nil)[1:] },
		"as long an id":   func() string { return cloudEvent(map[string]any{"id": strings.Repeat("i", 2048)}) },
	} {
		grown(t, "40 batches of a sender, of which 6 are handled, with "+what+" as may be", func(t *testing.T, b *bench, server *pipe) {
			b.requester.set("apps/repos", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
			body := batchOf(slices.Repeat([]string{one()}, 100)...)
			request := []byte(head(macOf(fluxKey, body), len(body)) + body)
			for range 40 {
				send(t, server, request)
			}
			synctest.Wait()
			if seen := b.router.seen(); seen != 6*100 {
				t.Errorf("%d events are being handled", seen)
			}
		})
	}
	grown(t, "1000 requests with a token, and no body", func(t *testing.T, _ *bench, server *pipe) {
		known := strings.Replace(head(tokenKey, 100), "X-Signature: ", "X-More: "+strings.Repeat("m", 14<<10)+"\r\nAuthorization: Bearer ", 1)
		for range 1000 {
			conn := server.dial(t)
			go write(known)(t.Context(), conn)
			go func() { _, _ = io.Copy(io.Discard, conn) }()
		}
		synctest.Wait()
		if open := server.open.Load(); open > 128+12+64 { // with those who wait for a place
			t.Errorf("%d connections are open", open)
		}
		time.Sleep(2 * time.Second) // no body is late, and no place to be waited for any more
		if open := server.open.Load(); open > 128+12 {
			t.Errorf("%d connections are open", open)
		}
		time.Sleep(time.Minute)
		server.places(t)
	})
	for what, many := range map[string]int{"events": 1, "batches": 100} {
		grown(t, "300 "+what+", whose answers nobody reads", func(t *testing.T, _ *bench, server *pipe) {
			body := cloudEvent(map[string]any{"id": strings.Repeat("i", 2048), "type": "com.example.other"})
			if many > 1 {
				body = batchOf(slices.Repeat([]string{body}, many)...)
			}
			request := []byte(head(macOf(fluxKey, body), len(body)) + body)
			for range 300 {
				conn := server.dial(t)
				go func() { _, _ = conn.Write(request) }()
			}
			synctest.Wait()
			if open := server.open.Load(); open > 128+12+64 {
				t.Errorf("%d connections are open", open)
			}
			time.Sleep(10 * time.Second) // those of 12 and of 64 are given up, in turns
			server.places(t)
		})
	}
}

// places sees to it that there are all: as many bodies as there may be are held at once, and then each is answered at once.
func (p *pipe) places(t *testing.T) {
	t.Helper()
	began, body := time.Now(), cloudEvent(map[string]any{"type": "com.example.other"})
	var conns []net.Conn
	for range 12 {
		conn := p.dial(t)
		if _, err := io.WriteString(conn, strings.Replace(head(tokenKey, len(body)), "X-Signature: ", "Authorization: Bearer ", 1)+body[:10]); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	synctest.Wait()
	for _, conn := range conns {
		go func() { _, _ = io.WriteString(conn, body[10:]) }()
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || response.StatusCode != http.StatusAccepted || time.Since(began) > 0 {
			t.Fatalf("%v, %v after %s", response, err, time.Since(began))
		}
	}
}
