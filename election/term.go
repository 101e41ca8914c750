package election

// One attempt to lead and, if it succeeds, the time of leading: what client-go's elector lacks is added here, beneath its lock.

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
)

var (
	// errBeaten ends an attempt at which another replica was faster.
	errBeaten = errors.New("another replica was faster")
	// errNotRenewed ends a term because of Config.RenewDeadline.
	errNotRenewed = errors.New("the Lease could not be renewed in time")
	// errReturned ends a term because its work is done.
	errReturned = errors.New("the work has ended")
)

// heldError ends an attempt that was not to wait, or a term that another replica, or nobody, has taken over.
type heldError struct{ holder string }

func (e heldError) Error() string {
	if e.holder == "" {
		return "the Lease was emptied by somebody else"
	}
	return "the Lease is held by " + e.holder
}

// term is the Leases API that client-go's LeaseLock is given. To a follower, Get answers when the Lease can be taken, and not
// before; every write is timed; and a lost race ends the attempt, because client-go would sleep
// up to 2.2 retryPeriods before the next.
type term struct {
	coordinationclient.LeaseInterface

	cfg   Config
	watch *watcher
	// patient says to wait for a leader that is alive.
	patient bool
	// end ends the term's context, and with it the elector and the work.
	end context.CancelCauseFunc
	// from is the sighting that the attempt builds on. Only the elector's goroutine touches it, and failure.
	from *sighting
	// failure is why the last write failed; nil after a success.
	failure error

	mu sync.Mutex
	// acquired and renewed are when the first and the last successful write began, by the monotonic clock; zero before.
	acquired, renewed time.Time
}

// Leases implements coordinationclient.LeasesGetter.
func (t *term) Leases(string) coordinationclient.LeaseInterface { return t }

func (t *term) times() (acquired, renewed time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.acquired, t.renewed
}

func (t *term) leading() bool {
	acquired, _ := t.times()
	return !acquired.IsZero()
}

// Get gives a follower the Lease once it can be taken, with an empty holder: client-go took the time before it called, and would
// otherwise wait for a second leaseDuration. Its Update is fenced by the resourceVersion. A leader gets it at once, as it is.
func (t *term) Get(ctx context.Context, name string, _ metav1.GetOptions) (*coordinationv1.Lease, error) {
	if t.leading() {
		lease, err := t.watch.get(ctx)
		if err != nil {
			return nil, err
		}
		t.watch.saw(lease)
		return lease, nil
	}
	s, err := t.free(ctx)
	if err != nil {
		return nil, err
	}
	t.from = s
	if s.lease == nil {
		return nil, apierrors.NewNotFound(coordinationv1.Resource("leases"), name)
	}
	lease := s.lease.DeepCopy()
	if s.holder != t.cfg.Identity {
		lease.Spec.HolderIdentity = new(string)
	}
	return lease, nil
}

// free waits until nobody holds the Lease, or its holder's time is up.
func (t *term) free(ctx context.Context) (*sighting, error) {
	for {
		s, changed := t.watch.now()
		var expired <-chan time.Time
		switch {
		case s == nil:
		case s.until.IsZero() && s.again.IsZero():
			return s, nil
		case s.alive && !t.patient:
			err := heldError{s.holder}
			t.end(err)
			return nil, err
		default:
			left := max(time.Until(s.until), time.Until(s.again))
			if left <= 0 {
				stands, err := t.watch.stands(ctx, s)
				if stands {
					return s, nil
				}
				if err == nil {
					continue
				}
				// Not back to client-go, which would sleep: the watch may be the first to get through.
				left = wait.Jitter(t.cfg.RetryPeriod, 0.2)
			}
			expired = time.After(left)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-changed:
		case <-expired:
		}
	}
}

// Create implements coordinationclient.LeaseInterface.
func (t *term) Create(ctx context.Context, lease *coordinationv1.Lease, opts metav1.CreateOptions) (*coordinationv1.Lease, error) {
	return t.write(ctx, lease, func(ctx context.Context) (*coordinationv1.Lease, error) {
		return t.LeaseInterface.Create(ctx, lease, opts)
	})
}

// Update implements coordinationclient.LeaseInterface.
func (t *term) Update(ctx context.Context, lease *coordinationv1.Lease, opts metav1.UpdateOptions) (*coordinationv1.Lease, error) {
	return t.write(ctx, lease, func(ctx context.Context) (*coordinationv1.Lease, error) {
		return t.LeaseInterface.Update(ctx, lease, opts)
	})
}

// write sends the Lease with the times of this moment, where client-go's are from before Get began to wait, and remembers the
// moment if it succeeds: the promise to the others counts from no later than that.
func (t *term) write(
	ctx context.Context, lease *coordinationv1.Lease, send func(context.Context) (*coordinationv1.Lease, error),
) (*coordinationv1.Lease, error) {
	began := time.Now()
	acquired, _ := t.times()
	if !acquired.IsZero() && !t.fresh() {
		// A process that was stopped for a while: its term is over, and must not come alive again.
		err := fmt.Errorf("%w (%s)", errNotRenewed, t.cfg.RenewDeadline)
		t.end(err)
		return nil, err
	}
	if acquired.IsZero() {
		acquired = began
	}
	lease.Spec.AcquireTime, lease.Spec.RenewTime = &metav1.MicroTime{Time: acquired}, &metav1.MicroTime{Time: began}

	call, cancel := context.WithTimeout(ctx, t.cfg.callTimeout())
	defer cancel()
	written, err := send(call)
	if err != nil {
		t.failed(ctx, err)
		return nil, err
	}
	t.mu.Lock()
	t.acquired, t.renewed = acquired, began
	t.mu.Unlock()
	t.failure = nil
	t.watch.saw(written)
	return written, nil
}

func (t *term) failed(ctx context.Context, err error) {
	switch raced := apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err); {
	case ctx.Err() != nil:
	case raced && t.leading():
		// Somebody touched or deleted the Lease: client-go reads it and tries again.
	case raced:
		t.watch.beaten(t.from, t.cfg.LeaseDuration)
		t.end(errBeaten)
	case t.failure == nil:
		t.cfg.Logger.Warn("cannot write the Lease", "error", said(ctx, "write", err))
		t.failure = err
	}
}

// fresh says that the last renewal began less than RenewDeadline ago.
func (t *term) fresh() bool {
	_, renewed := t.times()
	return time.Since(renewed) < t.cfg.RenewDeadline
}

// guard ends the term as soon as somebody else is seen in the Lease, or its last renewal is too old. It returns when ctx ends.
func (t *term) guard(ctx context.Context) {
	for ctx.Err() == nil {
		s, changed := t.watch.now()
		if s != nil && s.holder != t.cfg.Identity {
			t.end(heldError{s.holder})
			return
		}
		if !t.fresh() {
			t.end(fmt.Errorf("%w (%s)", errNotRenewed, t.cfg.RenewDeadline))
			return
		}
		_, renewed := t.times()
		select {
		case <-ctx.Done():
		case <-changed:
		case <-time.After(time.Until(renewed.Add(t.cfg.RenewDeadline))):
		}
	}
}
