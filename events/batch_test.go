package events_test

// Many events at once: what they ask for, and how long that takes.

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"flux-token-refresher/events"
)

// TestFullBatch: a hundred events about a hundred targets pass on an API that takes 300 ms for each call; 5 s is what they have.
func TestFullBatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		slow := func(ctx context.Context, calls int) error {
			select {
			case <-time.After(time.Duration(calls) * 300 * time.Millisecond):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		b := newBench(t)
		// The object and its source are read, and the Secret is read and written.
		b.router.before = func(ctx context.Context) error { return slow(ctx, 2) }
		b.requester.before = map[string]func(context.Context) error{}
		all := make([]string, 100)
		for i := range all {
			name := fmt.Sprint("apps/repository-", i)
			b.requester.before[name] = func(ctx context.Context) error { return slow(ctx, 2) }
			all[i] = cloudEvent(map[string]any{"id": fmt.Sprint(i), "subject": name})
		}
		began := time.Now()
		w := b.send(t, batchOf(all...), signed(fluxKey))
		took := time.Since(began)
		t.Logf("a hundred events about a hundred targets, 300 ms for each call: %s", took)
		wantStatus(t, w, http.StatusAccepted)
		// One after the other they would take two minutes.
		if took >= 5*time.Second {
			t.Error("that is too long")
		}
		if made := b.requester.made(); len(made) != 100 {
			t.Errorf("%d requests were made", len(made))
		}
	})
}

// TestBatchAboutOneTarget: of what a batch says of one Secret, the latest complaint is asked for, and the latest wish for another token; those before are
// answered by them.
func TestBatchAboutOneTarget(t *testing.T) {
	t.Parallel()
	now := time.Now().UTC()
	of := func(id, kind string, ago time.Duration) string {
		attributes := map[string]any{"id": id, "type": kind, "time": now.Add(-ago).Format(time.RFC3339)}
		if kind == events.TypeFlux {
			attributes["data"] = json.RawMessage(fluxEvent("repos", id, now))
		}
		return cloudEvent(attributes)
	}
	for _, test := range []struct {
		name string
		body string
		made []string // ids, in their order
		want []string // outcomes
	}{
		{"complaints", batchOf(of("1", events.TypeFlux, 3*time.Minute), of("2", events.TypeFlux, time.Minute), of("3", events.TypeFlux, 2*time.Minute)),
			[]string{"2"}, []string{"coalesced", "requested", "coalesced"}},
		{"of the same second", batchOf(of("1", events.TypeFlux, 0), of("2", events.TypeFlux, 0)), []string{"1"}, []string{"requested", "coalesced"}},
		{"complaints and wishes", batchOf(of("1", events.TypeFlux, 0), of("2", events.TypeRefreshRequested, 2*time.Minute), of("3", events.TypeRefreshRequested, time.Minute)),
			[]string{"3", "1"}, []string{"requested", "coalesced", "requested"}},
	} {
		b := newBench(t)
		w := b.send(t, test.body, signed(fluxKey))
		wantStatus(t, w, http.StatusAccepted)
		var answers []answer
		if err := json.Unmarshal(w.Body.Bytes(), &answers); err != nil {
			t.Fatal(err)
		}
		var made, outcomes []string
		for _, r := range b.requester.made() {
			made = append(made, r.ID)
		}
		for _, a := range answers {
			outcomes = append(outcomes, a.Outcome)
		}
		if diff := cmp.Diff(test.made, made) + cmp.Diff(test.want, outcomes); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", test.name, diff)
		}
	}
}

// TestBatchDoesNotDelay: a target whose Secret cannot be reached holds up no other of the same batch, and what was asked for stays.
func TestBatchDoesNotDelay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.requester.set("apps/hangs", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		body := batchOf(cloudEvent(map[string]any{"subject": "apps/hangs"}), cloudEvent(map[string]any{"id": "2"}))
		done := make(chan int, 1)
		go func() { done <- b.send(t, body, signed(fluxKey)).Code }()
		synctest.Wait()
		if made := b.requester.made(); len(made) != 1 || made[0].target != "apps/repos" {
			t.Errorf("asked for %v", made)
		}
		if status := <-done; status != http.StatusServiceUnavailable {
			t.Errorf("status %d", status)
		}
	})
}
