// Package election elects one leader among the replicas that share a Lease.
//
// It is client-go's LeaderElector with what that lacks. A follower waits on a watch of the Lease, so that it takes over within
// milliseconds of a release. A leader stops at once when it sees another in its place. The work can ask, before each
// step that must not happen twice, whether its term is fresh. And a Lease is given back only after the work has
// returned, only when it was just read to be ours, and only in that version; client-go's own release can wipe a successor's.
//
// No Lease can stop a step that began in time and is slow: what the work writes is fenced by resourceVersions as well.
package election

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel/metric"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"

	"flux-token-refresher/internal/kube"
)

// releaseTimeout bounds giving back the Lease: a shutdown has 5 seconds in all.
const releaseTimeout = 2 * time.Second

// Lead is the work of one term. Its context ends when the term does: the Lease was not renewed for Config.RenewDeadline,
// somebody else was seen in it, or the context given to Run ended. Lead then returns soon: nobody campaigns before.
//
// fresh says whether a step may start now: the term has not ended, and the last renewal of the Lease began less than
// Config.RenewDeadline ago. It reads clocks only, so that it is right at once in a process that was stopped for a while, whatever the scheduler
// does next. The clock is Go's monotonic one, on Linux CLOCK_MONOTONIC: it counts on while a process is stopped, and stands
// still while the whole machine is suspended. After that, fresh can be wrong until the watch or the next renewal tells.
type Lead = func(ctx context.Context, fresh func() bool) error

// Run campaigns, leads, and campaigns again, until ctx ends, and then returns nil. lead runs once per term.
// When lead returns although its term has not ended, or fails with something other than the cancellation, Run returns what it
// returned. Before that, Run gives back the Lease. Other errors are of the Config.
func Run(ctx context.Context, cfg Config, lead Lead) error {
	e, leave, err := enter(ctx, cfg)
	if err != nil {
		return err
	}
	defer leave()
	for {
		led, err := e.campaign(ctx, true, lead)
		var ended *endedError
		switch {
		case led && !errors.As(err, &ended):
			return err
		case ctx.Err() != nil:
			return nil
		}
	}
}

// Once runs lead as Run does, in one term at most, and returns what lead returned, or an error when the term was lost. It waits for a
// Lease that nobody renews any more, but not for a leader that is alive: its identity is returned, and lead was
// not called. A leader shows that it is alive by renewing, so this takes up to its retryPeriod.
//
// It takes no metrics: a replica that will never lead again is not one whose leadership anybody can miss.
func Once(ctx context.Context, cfg Config, lead Lead) (leader string, err error) {
	cfg.MeterProvider = nil
	e, leave, err := enter(ctx, cfg)
	if err != nil {
		return "", err
	}
	defer leave()
	for {
		led, err := e.campaign(ctx, false, lead)
		var held heldError
		switch {
		case led:
			return "", err
		case ctx.Err() != nil:
			return "", context.Cause(ctx)
		case errors.As(err, &held):
			return held.holder, nil
		}
	}
}

// endedError says that a term ended before its work did.
type endedError struct{ cause error }

func (e *endedError) Error() string { return "leading has ended: " + e.cause.Error() }
func (e *endedError) Unwrap() error { return e.cause }

type election struct {
	cfg   Config
	watch *watcher
	// claimed says that the Lease may be ours: a write was tried, and even one that failed may have been carried out.
	claimed bool
	// leader and terms are token_refresher.leader (1 while lead runs, else 0) and token_refresher.leader.transitions (the terms
	// that this replica began, so that the sum over the replicas counts the changes of leader).
	leader metric.Int64Gauge
	terms  metric.Int64Counter
}

// enter starts to follow the Lease. leave gives it back, if it is ours, and stops following.
func enter(ctx context.Context, cfg Config) (e *election, leave func(), err error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, nil, fmt.Errorf("election: %w", err)
	}
	cfg.Logger = cfg.Logger.With("lease", cfg.Lease.String())
	e = &election{cfg: cfg, watch: newWatcher(cfg)}
	meter := cfg.MeterProvider.Meter("flux-token-refresher/election")
	e.leader, err = meter.Int64Gauge("token_refresher.leader",
		metric.WithDescription("1 on the replica that leads, 0 on the others."))
	if err != nil {
		return nil, nil, fmt.Errorf("election: %w", err)
	}
	e.terms, err = meter.Int64Counter("token_refresher.leader.transitions", metric.WithUnit("{term}"),
		metric.WithDescription("Terms of leadership that this replica began."))
	if err != nil {
		return nil, nil, fmt.Errorf("election: %w", err)
	}
	e.leader.Record(ctx, 0)
	e.terms.Add(ctx, 0)

	following, stop := context.WithCancel(context.WithoutCancel(ctx))
	var watching sync.WaitGroup
	watching.Go(func() { e.watch.run(following) })
	return e, func() {
		if e.claimed {
			if err := e.release(ctx); err != nil {
				cfg.Logger.Warn("cannot give back the Lease; the others wait until it runs out", "error", said(context.WithoutCancel(ctx), "give back", err))
			}
		}
		stop()
		watching.Wait()
	}, nil
}

// campaign runs one elector: it waits for its turn and, if that comes, leads until the term ends. The error says how it
// went: what lead returned, or an endedError; without a term, why there was none.
func (e *election) campaign(ctx context.Context, patient bool, lead Lead) (led bool, err error) {
	running, end := context.WithCancelCause(ctx)
	t := &term{
		LeaseInterface: e.cfg.Client.Leases(e.cfg.Lease.Namespace),
		cfg:            e.cfg,
		watch:          e.watch,
		patient:        patient,
		end:            end,
	}
	done := make(chan error, 1)
	// What client-go says of each try, our own lines say once.
	quiet := klog.NewContext(running, logr.Discard())
	leaderelection.RunOrDie(quiet, leaderelection.LeaderElectionConfig{
		Lock:          e.lock(t),
		LeaseDuration: e.cfg.LeaseDuration,
		RenewDeadline: e.cfg.RenewDeadline,
		RetryPeriod:   e.cfg.RetryPeriod,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) { done <- e.work(running, t, lead) },
			OnStoppedLeading: func() {},
		},
	})
	end(errNotRenewed)
	e.claimed = e.claimed || t.from != nil
	cause := context.Cause(running)
	if !t.leading() {
		return false, cause
	}
	if ctx.Err() != nil || errors.Is(cause, errReturned) {
		e.cfg.Logger.Info("stopping to lead")
	} else {
		e.cfg.Logger.Warn("lost leadership", "reason", cause)
	}
	err = <-done
	e.leader.Record(ctx, 0)
	return true, err
}

// work runs lead for the term t, whose context is ctx.
func (e *election) work(ctx context.Context, t *term, lead Lead) error {
	e.cfg.Logger.Info("became leader")
	e.leader.Record(ctx, 1)
	e.terms.Add(ctx, 1)
	var guarding sync.WaitGroup
	guarding.Go(func() { t.guard(ctx) })
	err := lead(ctx, func() bool { return ctx.Err() == nil && t.fresh() })
	cause := context.Cause(ctx)
	t.end(errReturned)
	guarding.Wait()
	if cause != nil && (err == nil || errors.Is(err, context.Canceled) || errors.Is(err, cause)) {
		return &endedError{cause}
	}
	return err
}

// lock is client-go's own, on the Leases that client gives.
func (e *election) lock(client coordinationclient.LeasesGetter) *resourcelock.LeaseLock {
	return &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: e.cfg.Lease.Namespace, Name: e.cfg.Lease.Name},
		Client:     client,
		LockConfig: resourcelock.ResourceLockConfig{Identity: e.cfg.Identity},
	}
}

// said gives what may be logged of an error of client-go, which can quote what a server or a proxy in between answers; nil for none.
func said(ctx context.Context, verb string, err error) error {
	if err == nil {
		return nil
	}
	return kube.Object{Name: "the Lease", Rights: "get, watch and update on the Lease by name, and create on leases"}.Failure(ctx, verb, err)
}

// release empties the Lease if it is ours, in the version that said so. A conflict is read again: it can come from
// our own last renewal, which was under way when the term ended.
func (e *election) release(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	lock := e.lock(e.cfg.Client)
	for {
		record, _, err := lock.Get(ctx)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if record.HolderIdentity != e.cfg.Identity {
			return nil
		}
		now := metav1.Now()
		err = lock.Update(ctx, resourcelock.LeaderElectionRecord{
			LeaseDurationSeconds: 1, // what client-go writes for a Lease that is free; 0 is not valid
			AcquireTime:          now,
			RenewTime:            now,
			LeaderTransitions:    record.LeaderTransitions,
		})
		if !apierrors.IsConflict(err) {
			return err
		}
	}
}
