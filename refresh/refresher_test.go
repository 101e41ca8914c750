package refresh_test

// What a leader carries out of what was decided.

import (
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/refreshtest"
	"flux-token-refresher/refresh/secret"
)

// seeded gives the Secret that a row of docs/decisions.md describes; nil when it does not exist.
func (r row) seeded(t *testing.T) *corev1.Secret {
	t.Helper()
	s := good()
	set := func(key, value string) {
		switch at := when(time.Now(), value); {
		case value == "none":
			delete(s.Annotations, key)
		case at.IsZero():
			s.Annotations[key] = value
		default:
			s.Annotations[key] = at.UTC().Format(time.RFC3339)
		}
	}
	for key, value := range r.secret {
		switch key {
		case "good", "create", "about":
		case "exists":
			return nil
		case "immutable":
			s.Immutable = new(true)
		case "type":
			s.Type = corev1.SecretType(value)
		case "content":
			delete(s.Data, "bearerToken")
			if value == "other" {
				s.Data["bearerToken"] = []byte("somebody's")
			}
		case "request":
			s.Annotations[secret.Request] = "please"
			if about := r.secret["about"]; about != "" {
				hash := map[string]string{"current": current.Hash, "other": other.Hash}[about]
				s.Annotations[secret.RequestContext] = fmt.Sprintf(`{"request":"please","about":%q}`, hash)
			}
			if value == "handled" {
				s.Annotations[secret.HandledRequest] = refresh.Hash("please")
			}
		default:
			set("flux-token-refresher/"+key, value)
		}
	}
	return s
}

// TestDecisionsAreCarriedOut runs the rows of docs/decisions.md in which a leader starts with nothing, from the
// Secret to what is written to it.
func TestDecisionsAreCarriedOut(t *testing.T) {
	t.Parallel()
	for name, r := range decisions(t) {
		if len(r.knows) > 0 {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				target := target
				target.Create = r.secret["create"] == "yes"
				w := newWorld(target)
				before := r.seeded(t)
				if before != nil {
					if err := w.store.Create(t.Context(), "somebody", before); err != nil {
						t.Fatal(err)
					}
				}
				writes := len(w.store.Writes())
				w.lead(t)()

				made := w.store.Writes()[writes:]
				if len(r.writes) == 0 {
					if len(made) != 0 {
						t.Fatalf("%d writes, want none; the last: %v", len(made), made[len(made)-1].Secret.Annotations)
					}
					return
				}
				if len(made) != 1 {
					t.Fatalf("%d writes, want one", len(made))
				}
				got, want := made[0].Secret.Annotations, append(r.writes, "")[:2]
				if reason := got[secret.Reason]; want[0] != "-" && reason != want[0] {
					t.Errorf("reason %q, want %q", reason, want[0])
				}
				if outcome := got[secret.HandledOutcome]; outcome != want[1] {
					t.Errorf("handled-outcome %q, want %q", outcome, want[1])
				}
				if minted := len(w.source.Mints()); (minted == 1) != (r.action == refresh.Mint) {
					t.Errorf("%d mints for %q", minted, r.action)
				}
			})
		})
	}
}

func TestNotLeadingStartsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(many(3)...)
		var leads atomic.Bool
		w.Fresh = leads.Load
		defer w.lead(t)()
		time.Sleep(time.Minute)
		if mints, writes := w.source.Mints(), w.store.Writes(); len(mints) != 0 || len(writes) != 0 {
			t.Fatalf("%d mints and %d writes without the lease", len(mints), len(writes))
		}
		leads.Store(true)
		time.Sleep(2 * time.Second)
		if got := len(w.store.Writes()); got != 3 {
			t.Errorf("%d writes with the lease, want 3", got)
		}
	})
}

func TestNewLeaderMintsNothingThatIsGood(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(many(100)...)
		w.lead(t)()
		writes := len(w.store.Writes())
		for range 5 {
			w.source = &refreshtest.Source{}
			w.Source = w.source
			w.lead(t)()
			if mints := w.source.Mints(); len(mints) != 0 {
				t.Fatalf("a new leader made %d mints", len(mints))
			}
		}
		if got := len(w.store.Writes()); got != writes {
			t.Errorf("%d writes by new leaders, want none", got-writes)
		}
	})
}
