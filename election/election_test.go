package election_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.uber.org/goleak"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"flux-token-refresher/election"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// replica is one Run, and what its work saw.
type replica struct {
	name string
	link *link
	stop context.CancelCauseFunc
	done chan struct{} // closed when Run has returned
	err  error         // what it returned; read it after done
	log  bytes.Buffer  // likewise

	mu    sync.Mutex
	terms []term
}

type term struct {
	over  <-chan struct{}
	fresh func() bool
	began time.Time
}

// start starts a replica whose work waits for the end of its term and then, for linger, returns nothing.
func start(t *testing.T, a *api, name string, linger time.Duration) *replica {
	t.Helper()
	r := &replica{name: name, link: a.link(), done: make(chan struct{})}
	r.run(t, func(ctx context.Context, _ func() bool) error {
		<-ctx.Done()
		sleep(context.WithoutCancel(ctx), linger)
		return ctx.Err()
	})
	return r
}

func (r *replica) run(t *testing.T, work election.Lead) {
	t.Helper()
	ctx, stop := context.WithCancelCause(t.Context())
	r.stop = stop
	cfg := r.config(t)
	go func() {
		defer close(r.done)
		r.err = election.Run(ctx, cfg, r.record(work))
	}()
}

func (r *replica) config(t *testing.T) election.Config {
	t.Helper()
	return election.Config{
		Client:   r.link.client(t),
		Lease:    types.NamespacedName{Namespace: "ns", Name: "lease"},
		Identity: r.name,
		Logger:   slog.New(slog.NewTextHandler(&r.log, nil)),
	}
}

func (r *replica) record(work election.Lead) election.Lead {
	return func(ctx context.Context, fresh func() bool) error {
		r.mu.Lock()
		r.terms = append(r.terms, term{over: ctx.Done(), fresh: fresh, began: time.Now()})
		r.mu.Unlock()
		return work(ctx, fresh)
	}
}

// last gives the newest term, or the zero one.
func (r *replica) last() term {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.terms) == 0 {
		return term{}
	}
	return r.terms[len(r.terms)-1]
}

func (r *replica) leads() bool {
	last := r.last()
	select {
	case <-last.over:
		return false
	default:
		return last.over != nil
	}
}

// quit stops the replica and waits for it.
func (r *replica) quit(t *testing.T) {
	t.Helper()
	r.stop(nil)
	<-r.done
	if r.err != nil {
		t.Errorf("%s: Run returned %v, want nil after its context ended", r.name, r.err)
	}
}

// advance lets d of the bubble's time pass, and what it sets off come to rest.
func advance(t *testing.T, d time.Duration) {
	t.Helper()
	sleep(t.Context(), d)
	synctest.Wait()
}

func expect(t *testing.T, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestFirstReplicaLeadsAtOnceAndReleasesAfterItsWork(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		r := start(t, a, "a", 3*time.Second)
		synctest.Wait()
		expect(t, "leads", r.leads(), true)
		expect(t, "holder", a.holder(), "a")

		r.stop(nil)
		synctest.Wait()
		expect(t, "leads after its context ended", r.leads(), false)
		expect(t, "fresh after its context ended", r.last().fresh(), false)
		expect(t, "holder while the work winds up", a.holder(), "a")
		advance(t, 3*time.Second)
		r.quit(t)
		expect(t, "holder after the release", a.holder(), "")
		expect(t, "duration after the release", *a.read().Spec.LeaseDurationSeconds, int32(1))
	})
}

func TestTakeover(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		// before is what happens while b follows a, who renewed its Lease this very moment.
		before func(t *testing.T, a *api, b *replica)
		// after is when b leads, counted from the end of before.
		after time.Duration
	}{
		"released: at once": {
			before: func(t *testing.T, a *api, _ *replica) { a.hold(t, "") },
		},
		"silent: after leaseDuration": {
			before: func(*testing.T, *api, *replica) {},
			after:  15 * time.Second,
		},
		"renewed: leaseDuration counts from the renewal": {
			before: func(t *testing.T, a *api, _ *replica) { advance(t, 14*time.Second); a.hold(t, "a") },
			after:  15 * time.Second,
		},
		"touched: that is no renewal": {
			before: func(t *testing.T, a *api, _ *replica) {
				advance(t, 5*time.Second)
				if _, err := a.change(func(lease *coordinationv1.Lease) (*coordinationv1.Lease, error) {
					lease.Annotations = map[string]string{"note": "touched"}
					return lease, nil
				}); err != nil {
					t.Fatal(err)
				}
			},
			after: 10 * time.Second,
		},
		"deleted under its holder: as if it were silent": {
			before: func(t *testing.T, a *api, _ *replica) { advance(t, 5*time.Second); a.delete(t) },
			after:  10 * time.Second,
		},
		"released, then deleted: at once": {
			before: func(t *testing.T, a *api, _ *replica) { a.hold(t, ""); a.delete(t) },
		},
		"the watch ended before the release: after the pause": {
			before: func(t *testing.T, a *api, b *replica) { b.link.cutStreams(); a.hold(t, "") },
			after:  75 * time.Millisecond,
		},
		"a half-open watch hides the release: after leaseDuration": {
			before: func(t *testing.T, a *api, b *replica) {
				b.link.set(func(l *link) { l.silent = true })
				a.hold(t, "")
				b.link.set(func(l *link) { l.before = func(*http.Request) { b.link.set(func(l *link) { l.silent = false }) } })
			},
			after: 15*time.Second + 75*time.Millisecond,
		},
		"a watch that is being opened hangs: after its deadline": {
			before: func(t *testing.T, a *api, b *replica) {
				b.link.set(func(l *link) {
					l.before = func(r *http.Request) {
						if r.URL.Query().Get("watch") != "" {
							b.link.set(func(l *link) { l.before = nil })
							<-r.Context().Done()
						}
					}
				})
				b.link.cutStreams()
				advance(t, 100*time.Millisecond)
				a.hold(t, "")
			},
			after: 5 * time.Second,
		},
		"an outage hides the release: after the pause": {
			before: func(t *testing.T, a *api, b *replica) {
				b.link.goDown()
				a.hold(t, "")
				advance(t, 10*time.Minute)
				b.link.set(func(l *link) { l.down = false })
			},
			after: 3 * time.Second,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				a := newAPI()
				a.hold(t, "a")
				b := start(t, a, "b", 0)
				synctest.Wait()
				expect(t, "leads beside a", b.leads(), false)
				test.before(t, a, b)
				told := time.Now()
				if test.after > 75*time.Millisecond {
					advance(t, test.after-3*time.Second-75*time.Millisecond)
					expect(t, "leads too early", b.leads(), false)
				}
				advance(t, time.Until(told.Add(test.after)))
				expect(t, "leads in time", b.leads(), true)
				b.quit(t)
			})
		})
	}
}

func TestHalfOpenWatchTakesNothingFromALivingLeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		leader := start(t, a, "a", 0)
		synctest.Wait()
		follower := start(t, a, "b", 0)
		synctest.Wait()
		follower.link.set(func(l *link) { l.silent = true })
		advance(t, 10*time.Minute)
		expect(t, "terms of the leader", len(leader.terms), 1)
		expect(t, "leader leads", leader.leads(), true)
		expect(t, "terms of the follower", len(follower.terms), 0)
		if n := follower.link.count(); n > 200 {
			t.Errorf("the follower made %d calls in ten minutes with a deaf watch, want a few per leaseDuration", n)
		}
		follower.quit(t)
		leader.quit(t)
	})
}

func TestFollowerDoesNotPoll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		leader := start(t, a, "a", 0)
		synctest.Wait()
		follower := start(t, a, "b", 0)
		advance(t, time.Hour)
		expect(t, "calls of a follower in an hour (one read, one watch)", follower.link.count(), 2)
		follower.link.cutStreams()
		advance(t, time.Minute)
		expect(t, "calls after the stream ended", follower.link.count(), 4)
		follower.quit(t)
		leader.quit(t)
		expect(t, "calls when it left", follower.link.count(), 4)
	})
}

func TestOutageIsSaidOnceAndNotHammered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		a.hold(t, "a")
		b := start(t, a, "b", 0)
		synctest.Wait()
		b.link.goDown()
		before := b.link.count()
		advance(t, 10*time.Minute)
		if n := b.link.count() - before; n < 100 || n > 600 {
			t.Errorf("%d calls in ten minutes without an API, want one each retryPeriod to follow, and one to take over", n)
		}
		b.link.set(func(l *link) { l.down = false })
		advance(t, 5*time.Second)
		expect(t, "leads in place of the silent a", b.leads(), true)
		b.quit(t)
		said := messages(&b.log)
		slices.Sort(said)
		expect(t, "log lines", said, []string{
			"another replica leads", "became leader", "cannot follow the Lease", "stopping to lead", "the Lease can be followed again",
		})
	})
}

// messages gives the messages of a log, in order.
func messages(log *bytes.Buffer) []string {
	var all []string
	for line := range strings.Lines(log.String()) {
		_, msg, _ := strings.Cut(line, "msg=")
		if strings.HasPrefix(msg, `"`) {
			msg, _, _ = strings.Cut(msg[1:], `"`)
		} else {
			msg, _, _ = strings.Cut(msg, " ")
		}
		all = append(all, msg)
	}
	return all
}

func TestLostRaceCostsNoTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		a.hold(t, "a")
		b := start(t, a, "b", 0)
		synctest.Wait()
		// When b reaches for the Lease, c is faster, and gives it back right away.
		b.link.set(func(l *link) {
			l.before = func(r *http.Request) {
				if r.Method == http.MethodPut {
					a.hold(t, "c")
					b.link.set(func(l *link) { l.before = nil })
				}
			}
		})
		a.hold(t, "")
		advance(t, 100*time.Millisecond)
		expect(t, "holder", a.holder(), "c")
		expect(t, "b leads beside c", b.leads(), false)
		a.hold(t, "")
		synctest.Wait()
		expect(t, "b leads after c", b.leads(), true)
		b.quit(t)
	})
}

func TestLostRaceBehindADeafWatchIsNotHammered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		a.hold(t, "a")
		b := start(t, a, "b", 0)
		synctest.Wait()
		b.link.set(func(l *link) {
			l.before = func(r *http.Request) {
				if r.Method == http.MethodPut {
					b.link.set(func(l *link) { l.before, l.silent = nil, true })
					a.hold(t, "c")
				}
			}
		})
		before := b.link.count()
		a.hold(t, "")
		advance(t, 14*time.Second)
		expect(t, "calls until leaseDuration has passed (the write that lost)", b.link.count()-before, 1)
		a.hold(t, "")
		advance(t, 2*time.Second)
		expect(t, "b leads once it asks", b.leads(), true)
		b.quit(t)
	})
}

func TestThreeReplicasOneLeads(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		all := map[string]*replica{}
		for _, name := range []string{"a", "b", "c"} {
			all[name] = start(t, a, name, 0)
		}
		for len(all) > 0 {
			advance(t, time.Minute)
			leading := 0
			for _, r := range all {
				if r.leads() {
					leading++
				}
			}
			expect(t, "leaders", leading, 1)
			leader := all[a.holder()]
			if leader == nil {
				t.Fatalf("%q holds the Lease", a.holder())
			}
			delete(all, leader.name)
			leader.quit(t)
			synctest.Wait()
			if len(all) > 0 && a.holder() == "" {
				t.Error("nobody took over at once")
			}
		}
	})
}

func TestLeaderThatCannotRenewStops(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		b := start(t, a, "b", 0)
		c := start(t, a, "c", 0)
		synctest.Wait()
		if !b.leads() {
			b, c = c, b
		}
		renewed := time.Now()
		b.link.goDown()
		term := b.last()
		advance(t, 10*time.Second-1)
		expect(t, "fresh just before renewDeadline", term.fresh(), true)
		advance(t, 1)
		expect(t, "fresh at renewDeadline", term.fresh(), false)
		expect(t, "leads at renewDeadline", b.leads(), false)
		expect(t, "leads too early", c.leads(), false)
		advance(t, 5*time.Second)
		expect(t, "c took over after leaseDuration", c.last().began, renewed.Add(15*time.Second))

		// Back again, the old leader follows, and leaves the successor's Lease alone when it leaves.
		b.link.set(func(l *link) { l.down = false })
		advance(t, time.Minute)
		expect(t, "terms of the old leader", len(b.terms), 1)
		b.quit(t)
		expect(t, "holder after the old leader left", a.holder(), c.name)
		expect(t, "c still leads", c.leads(), true)
		c.quit(t)
	})
}

func TestLeaderComesBackWhenNobodyTookOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		b := start(t, a, "b", 0)
		synctest.Wait()
		b.link.goDown()
		advance(t, 10*time.Minute)
		expect(t, "leads without an API", b.leads(), false)
		b.link.set(func(l *link) { l.down = false })
		advance(t, 5*time.Second)
		expect(t, "leads again", b.leads(), true)
		expect(t, "transitions", *a.read().Spec.LeaseTransitions, int32(0))
		b.quit(t)
	})
}

func TestFreshCountsFromWhenTheRenewalBegan(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		b := start(t, a, "b", 0)
		// The write that wins is carried out at once, and answered 4 seconds later; no other is answered.
		b.link.set(func(l *link) {
			l.delay = func(r *http.Request) {
				if r.Method != http.MethodGet {
					sleep(r.Context(), 4*time.Second)
					b.link.set(func(l *link) { l.hang = true })
				}
			}
		})
		began := time.Now()
		advance(t, 4*time.Second)
		expect(t, "leads", b.leads(), true)
		term := b.last()
		advance(t, time.Until(began.Add(10*time.Second-1)))
		expect(t, "fresh just before", term.fresh(), true)
		advance(t, 1)
		expect(t, "fresh 10s after the write began", term.fresh(), false)
		expect(t, "leads", b.leads(), false)
		b.link.set(func(l *link) { l.hang = false })
		b.quit(t)
	})
}

func TestOneHangingRenewalLosesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		b := start(t, a, "b", 0)
		advance(t, time.Second)
		b.link.set(func(l *link) { l.hang = true })
		advance(t, 4*time.Second) // a renewal is under way; it will time out
		b.link.set(func(l *link) { l.hang = false })
		advance(t, time.Minute)
		expect(t, "terms", len(b.terms), 1)
		expect(t, "leads", b.leads(), true)
		b.quit(t)
	})
}

func TestLeaderStopsWhenAnotherIsSeen(t *testing.T) {
	t.Parallel()
	for name, holder := range map[string]string{"another holder": "c", "an empty Lease": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				a := newAPI()
				b := start(t, a, "b", 30*time.Second)
				advance(t, time.Second)
				a.hold(t, holder)
				synctest.Wait()
				expect(t, "leads", b.leads(), false)
				expect(t, "fresh", b.last().fresh(), false)
				advance(t, 29*time.Second)
				expect(t, "terms while the work winds up", len(b.terms), 1)
				expect(t, "holder while the work winds up", a.holder(), holder)
				b.quit(t)
				expect(t, "holder in the end", a.holder(), holder)
			})
		})
	}
}

func TestDeletedLeaseIsCreatedAgainByItsHolder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		leader := start(t, a, "a", 0)
		synctest.Wait()
		follower := start(t, a, "b", 0)
		synctest.Wait()
		a.delete(t)
		advance(t, 2*time.Second)
		expect(t, "holder", a.holder(), "a")
		advance(t, time.Minute)
		expect(t, "terms of the leader", len(leader.terms), 1)
		expect(t, "leads", leader.leads(), true)
		expect(t, "terms of the follower", len(follower.terms), 0)
		leader.quit(t)
		synctest.Wait()
		expect(t, "the follower leads", follower.leads(), true)
		follower.quit(t)
	})
}

func TestReleaseLosesToASuccessor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		b := start(t, a, "b", 0)
		synctest.Wait()
		b.stop(nil)
		// The release has read the Lease as b's own; before it writes, c takes it.
		b.link.set(func(l *link) {
			l.before = func(r *http.Request) {
				if r.Method == http.MethodPut {
					a.hold(t, "c")
				}
			}
		})
		b.quit(t)
		expect(t, "holder", a.holder(), "c")
	})
}

func TestReleaseGivesUpInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		b := start(t, a, "b", 0)
		synctest.Wait()
		b.link.set(func(l *link) { l.hang = true })
		stopped := time.Now()
		b.quit(t)
		expect(t, "time to leave", time.Since(stopped), 2*time.Second)
		expect(t, "holder", a.holder(), "b")
	})
}

func TestWorkThatReturnsEndsRun(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for name, test := range map[string]struct {
		work election.Lead
		want error
	}{
		"done":      {func(context.Context, func() bool) error { return nil }, nil},
		"failed":    {func(context.Context, func() bool) error { return broken }, broken},
		"cancelled": {func(context.Context, func() bool) error { return context.Canceled }, context.Canceled},
		"failed after the end": {func(ctx context.Context, _ func() bool) error {
			<-ctx.Done()
			return broken
		}, broken},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				a := newAPI()
				b := &replica{name: "b", link: a.link(), done: make(chan struct{})}
				b.run(t, test.work)
				synctest.Wait()
				b.stop(nil)
				<-b.done
				if !errors.Is(b.err, test.want) {
					t.Errorf("Run returned %v, want %v", b.err, test.want)
				}
				expect(t, "holder", a.holder(), "")
			})
		})
	}
}

func TestOnce(t *testing.T) {
	t.Parallel()
	once := func(t *testing.T, a *api, work election.Lead) (leader string, after time.Duration, terms int, err error) {
		t.Helper()
		r := &replica{name: "b", link: a.link()}
		began := time.Now()
		leader, err = election.Once(t.Context(), r.config(t), r.record(work))
		return leader, time.Since(began), len(r.terms), err
	}
	work := func(context.Context, func() bool) error { return nil }
	t.Run("no metrics", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			r := &replica{name: "b", link: newAPI().link()}
			cfg := r.config(t)
			reader := metric.NewManualReader()
			cfg.MeterProvider = metric.NewMeterProvider(metric.WithReader(reader))
			_, err := election.Once(t.Context(), cfg, r.record(work))
			expect(t, "error", err, nil)
			expect(t, "terms", len(r.terms), 1)
			var all metricdata.ResourceMetrics
			expect(t, "error of the reader", reader.Collect(t.Context(), &all), nil)
			expect(t, "scopes with metrics", len(all.ScopeMetrics), 0)
		})
	})
	t.Run("nobody leads", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			a := newAPI()
			leader, after, terms, err := once(t, a, work)
			expect(t, "leader", leader, "")
			expect(t, "error", err, nil)
			expect(t, "terms", terms, 1)
			expect(t, "after", after, time.Duration(0))
			expect(t, "holder", a.holder(), "")
		})
	})
	t.Run("somebody alive leads", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			a := newAPI()
			living := start(t, a, "a", 0)
			advance(t, time.Second)
			leader, after, terms, err := once(t, a, work)
			expect(t, "leader", leader, "a")
			expect(t, "error", err, nil)
			expect(t, "terms", terms, 0)
			expect(t, "after", after, time.Second)
			living.quit(t)
		})
	})
	t.Run("the leader is dead", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			a := newAPI()
			a.hold(t, "a")
			leader, after, terms, err := once(t, a, work)
			expect(t, "leader", leader, "")
			expect(t, "error", err, nil)
			expect(t, "terms", terms, 1)
			expect(t, "after", after, 15*time.Second)
		})
	})
	t.Run("the term is lost", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			a := newAPI()
			_, _, terms, err := once(t, a, func(ctx context.Context, _ func() bool) error {
				a.hold(t, "c")
				<-ctx.Done()
				return ctx.Err()
			})
			if err == nil || !strings.Contains(err.Error(), "held by c") {
				t.Errorf("error %v, want one that names who took over", err)
			}
			expect(t, "terms", terms, 1)
			expect(t, "holder", a.holder(), "c")
		})
	})
	t.Run("its context ends first", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			a := newAPI()
			a.hold(t, "a")
			r := &replica{name: "b", link: a.link()}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := election.Once(ctx, r.config(t), work)
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v, want the context's", err)
			}
		})
	})
}

func TestRefusedWriteIsSaidOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		b := &replica{name: "b", link: a.link(), done: make(chan struct{})}
		b.link.set(func(l *link) {
			l.refuse = func(r *http.Request) error {
				if r.Method == http.MethodPost {
					return apierrors.NewForbidden(leases, "lease", errors.New("no right to create it"))
				}
				return nil
			}
		})
		b.run(t, func(ctx context.Context, _ func() bool) error { <-ctx.Done(); return nil })
		advance(t, 10*time.Minute)
		if n := b.link.count(); n > 400 {
			t.Errorf("%d calls in ten minutes, want one each retryPeriod or so", n)
		}
		b.quit(t)
		expect(t, "log lines", messages(&b.log), []string{"cannot write the Lease"})
		if log := b.log.String(); strings.Contains(log, "no right to create it") || !strings.Contains(log, "config rbac") {
			t.Errorf("the log has the server's words, or not the remedy:\n%s", log)
		}
	})
}

func TestExpiredWatchIsReadAnew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		a.hold(t, "a")
		b := &replica{name: "b", link: a.link(), done: make(chan struct{})}
		refusals := 3
		b.link.set(func(l *link) {
			l.refuse = func(r *http.Request) error {
				if r.URL.Query().Get("watch") != "" && refusals > 0 {
					refusals--
					return apierrors.NewResourceExpired("too old resource version")
				}
				return nil
			}
		})
		b.run(t, func(ctx context.Context, _ func() bool) error { <-ctx.Done(); return nil })
		advance(t, time.Second)
		a.hold(t, "")
		synctest.Wait()
		expect(t, "leads", b.leads(), true)
		b.quit(t)
	})
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		a.hold(t, "a")
		reader := metric.NewManualReader()
		meters := metric.NewMeterProvider(metric.WithReader(reader))
		defer func() {
			if err := meters.Shutdown(context.WithoutCancel(t.Context())); err != nil {
				t.Error(err)
			}
		}()
		b := &replica{name: "b", link: a.link(), done: make(chan struct{})}
		cfg := b.config(t)
		cfg.MeterProvider = meters
		cfg.Logger = slog.New(slog.DiscardHandler)
		ctx, stop := context.WithCancel(t.Context())
		go func() {
			defer close(b.done)
			b.err = election.Run(ctx, cfg, func(ctx context.Context, _ func() bool) error { <-ctx.Done(); return nil })
		}()
		read := func() (got [2]int64) {
			t.Helper()
			synctest.Wait()
			var all metricdata.ResourceMetrics
			if err := reader.Collect(t.Context(), &all); err != nil {
				t.Fatal(err)
			}
			for _, scope := range all.ScopeMetrics {
				for _, m := range scope.Metrics {
					switch data := m.Data.(type) {
					case metricdata.Gauge[int64]:
						expect(t, "the gauge's name", m.Name, "token_refresher.leader")
						got[0] = data.DataPoints[0].Value
					case metricdata.Sum[int64]:
						expect(t, "the counter's name", m.Name, "token_refresher.leader.transitions")
						got[1] = data.DataPoints[0].Value
					}
				}
			}
			return got
		}
		expect(t, "leader, terms while following", read(), [2]int64{0, 0})
		a.hold(t, "")
		expect(t, "leader, terms while leading", read(), [2]int64{1, 1})
		a.hold(t, "c")
		expect(t, "leader, terms after c took over", read(), [2]int64{0, 1})
		a.hold(t, "")
		expect(t, "leader, terms while leading again", read(), [2]int64{1, 2})
		stop()
		<-b.done
		expect(t, "leader, terms in the end", read(), [2]int64{0, 2})
	})
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(*election.Config)
		want   string
	}{
		"no client":                     {func(c *election.Config) { c.Client = nil }, "client is required"},
		"no lease":                      {func(c *election.Config) { c.Lease.Name = "" }, "namespace and a name"},
		"no identity":                   {func(c *election.Config) { c.Identity = "" }, "identity is required"},
		"part of a second":              {func(c *election.Config) { c.LeaseDuration = 15500 * time.Millisecond }, "whole seconds"},
		"renewDeadline too long":        {func(c *election.Config) { c.RenewDeadline = 15 * time.Second }, "leaseDuration (15s) must be longer than renewDeadline (15s)"},
		"retryPeriod too long":          {func(c *election.Config) { c.RetryPeriod = 9 * time.Second }, "renewDeadline (10s) must be longer than 1.2 times retryPeriod (9s)"},
		"retryPeriod is less than zero": {func(c *election.Config) { c.RetryPeriod = -1 }, "retryPeriod must be longer than 0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &replica{name: "b", link: newAPI().link()}
			cfg := r.config(t)
			test.change(&cfg)
			err := election.Run(t.Context(), cfg, func(context.Context, func() bool) error { return nil })
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one that says %q", err, test.want)
			}
		})
	}
}
