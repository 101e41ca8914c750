package events_test

// What one request may make the receiver hold.

import (
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"flux-token-refresher/events"
)

// members are so many of a JSON object, each with a name of its own.
func members(n int) string {
	var all strings.Builder
	for i := range n {
		fmt.Fprintf(&all, `"x%d":1,`, i)
	}
	return all.String()
}

// TestBounds: the members of a body are not read for their own sake, however many fit into one. Not parallel: it looks at what the process
// allocates.
func TestBounds(t *testing.T) {
	fill := func(begin, member, end string) string {
		room := events.MaxSize - len(begin) - len(end)
		return begin + strings.TrimSuffix(strings.Repeat(member, room/len(member)), ",") + end
	}
	attributes := func(n int) string { return "{" + members(n) + cloudEvent(nil)[1:] }
	for _, test := range []struct {
		name   string
		body   string
		status int
		says   string
	}{
		{"as many attributes as may be", attributes(100 - 6), http.StatusAccepted, ""},
		{"one more", attributes(100 - 5), http.StatusBadRequest, "100 attributes"},
		{"an id as long as may be", cloudEvent(map[string]any{"id": strings.Repeat("i", 2048)}), http.StatusAccepted, ""},
		{"a longer id", cloudEvent(map[string]any{"id": strings.Repeat("i", 2049)}), http.StatusBadRequest, "2048 bytes"},
		{"a longer source", cloudEvent(map[string]any{"source": "/" + strings.Repeat("s", 2048)}), http.StatusBadRequest, "2048 bytes"},
		{"many attributes", attributes(20_000), http.StatusBadRequest, "100 attributes"},
		{"many attributes, in a batch", batchOf(attributes(20_000)), http.StatusBadRequest, "event 1: "},
		{"data with many members", `{"data":{` + members(20_000) + `"x":1},` + cloudEvent(nil)[1:], http.StatusAccepted, ""},
		{"an attribute that is an array", fill(`{"specversion":"1.0","a":[`, "0,", "]}"), http.StatusBadRequest, "an extension"},
		{"an attribute that is an object", fill(`{"specversion":"1.0","a":{"a":[`, "{},", "]}}"), http.StatusBadRequest, "an extension"},
		{"many events", fill("[", "{},", "]"), http.StatusRequestEntityTooLarge, "100 events"},
		{"many events, and no end", fill("[", "{},", ""), http.StatusRequestEntityTooLarge, "100 events"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t)
			r := newRequest(t.Context(), events.Path, test.body, signed(fluxKey))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			w := b.do(r)
			runtime.ReadMemStats(&after)
			wantStatus(t, w, test.status)
			if !strings.Contains(w.Body.String(), test.says) {
				t.Errorf("it says %s", w.Body)
			}
			// The place for the body takes 256 KiB of them.
			allocated := int64(after.TotalAlloc - before.TotalAlloc)
			t.Logf("%d KiB allocated", allocated>>10)
			if allocated > 2<<20 {
				t.Errorf("%d KiB were allocated", allocated>>10)
			}
		})
	}
}
