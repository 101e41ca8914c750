package election

// What stands in the Lease, by a watch: all that a replica knows of the others.

import (
	"context"
	"log/slog"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
)

// sighting is one state of the Lease as it was seen here. It does not change once it is published.
type sighting struct {
	// lease is nil when there is none.
	lease *coordinationv1.Lease
	// version is the newest resourceVersion that was seen, also of a Lease that was deleted; "" when there never was one.
	version string
	// holder is who may be leading. Deleting a Lease does not stop its holder, which creates it again with its next
	// renewal: so the holder stays, and so does until.
	holder string
	// until is when the holder's time is up unless it renews, by the local monotonic clock, so that clocks that disagree do no
	// harm. The zero time: nobody holds the Lease, or this replica does.
	until time.Time
	// again is set when a write that built on this sighting was refused: another is under way. That takes moments;
	// again is when to look for oneself if it never comes.
	again time.Time
	// alive says that the holder was seen writing, not only its name seen standing there.
	alive bool
}

// watcher follows the Lease for as long as run runs. Everybody else reads it.
type watcher struct {
	leases   coordinationclient.LeaseInterface
	name     string
	identity string
	timeout  time.Duration // of one call, and of opening a watch
	longest  time.Duration // the longest pause between two attempts
	log      *slog.Logger

	mu      sync.Mutex
	seen    *sighting     // nil until the first answer
	leader  string        // the holder that was last spoken of in the log
	changed chan struct{} // closed, and replaced, whenever seen changes
	restart func()        // ends the present stream
}

func newWatcher(cfg Config) *watcher {
	return &watcher{
		leases:   cfg.Client.Leases(cfg.Lease.Namespace),
		name:     cfg.Lease.Name,
		identity: cfg.Identity,
		timeout:  cfg.callTimeout(),
		longest:  cfg.RetryPeriod,
		log:      cfg.Logger,
		changed:  make(chan struct{}),
		restart:  func() {},
	}
}

// now gives the last sighting, nil when there is none yet, and a channel that is closed when it is no longer the last.
func (w *watcher) now() (*sighting, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen, w.changed
}

// publish makes s the last sighting. The caller holds mu.
func (w *watcher) publish(s *sighting) {
	if s != nil && s.holder != w.leader {
		w.leader = s.holder
		if s.holder != "" && s.holder != w.identity {
			w.log.Info("another replica leads", "leader", s.holder)
		}
	}
	w.seen = s
	close(w.changed)
	w.changed = make(chan struct{})
}

// saw takes in a Lease that the API server showed. One that is not newer than what is known changes nothing.
func (w *watcher) saw(lease *coordinationv1.Lease) {
	w.mu.Lock()
	defer w.mu.Unlock()
	old := w.seen
	if old != nil {
		order, err := resourceversion.CompareResourceVersion(lease.ResourceVersion, old.version)
		if err == nil && (order < 0 || order == 0 && old.lease != nil) {
			return
		}
	}
	// A copy: client-go's LeaseLock writes into the Lease that it was given.
	s := &sighting{lease: lease.DeepCopy(), version: lease.ResourceVersion}
	if lease.Spec.HolderIdentity != nil {
		s.holder = *lease.Spec.HolderIdentity
	}
	switch {
	case s.holder == "" || s.holder == w.identity:
	case old != nil && old.lease != nil && equality.Semantic.DeepEqual(old.lease.Spec, lease.Spec):
		// Somebody touched the metadata; that is no renewal.
		s.until, s.alive = old.until, old.alive
	default:
		var promised time.Duration
		if lease.Spec.LeaseDurationSeconds != nil {
			promised = time.Duration(*lease.Spec.LeaseDurationSeconds) * time.Second
		}
		s.until, s.alive = time.Now().Add(promised), old != nil
	}
	w.publish(s)
}

// gone takes in that there is no Lease. version is that of the deletion, "" where it is not known.
func (w *watcher) gone(version string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := sighting{}
	if w.seen != nil {
		s = *w.seen
	}
	s.lease, s.again = nil, time.Time{}
	if version != "" {
		s.version = version
	}
	w.publish(&s)
}

// beaten takes in that a write that built on s was refused. After patience it may be tried again.
func (w *watcher) beaten(s *sighting, patience time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.seen != s {
		return
	}
	waiting := *s
	waiting.again = time.Now().Add(patience)
	w.publish(&waiting)
}

// stands asks the API server whether the Lease is still as it was seen in s. When it is not, the watch is not
// telling (a half-open connection): it is opened anew, and what was seen is forgotten.
func (w *watcher) stands(ctx context.Context, s *sighting) (bool, error) {
	lease, err := w.get(ctx)
	switch {
	case apierrors.IsNotFound(err) && s.lease == nil:
		return true, nil
	case err == nil && s.lease != nil && lease.ResourceVersion == s.version:
		return true, nil
	case err != nil && !apierrors.IsNotFound(err):
		return false, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.seen == s {
		w.publish(nil)
		w.restart()
	}
	return false, nil
}

func (w *watcher) get(ctx context.Context) (*coordinationv1.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	return w.leases.Get(ctx, w.name, metav1.GetOptions{})
}

// run follows the Lease until ctx ends. A stream that ends, as each does after some minutes, is opened anew after a short
// pause, which grows while streams do not last.
func (w *watcher) run(ctx context.Context) {
	first := wait.Backoff{Duration: 50 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 10, Cap: w.longest}
	pause, blind := first, false
	for {
		began, opened := time.Now(), false
		err := w.stream(ctx, func() {
			opened = true
			if blind {
				w.log.Info("the Lease can be followed again")
			}
		})
		switch {
		case ctx.Err() != nil:
			return
		case !opened && !blind:
			w.log.Warn("cannot follow the Lease", "error", said(ctx, "follow", err))
		default:
			w.log.Debug("the watch of the Lease ended", "error", said(ctx, "follow", err))
		}
		blind = !opened
		if time.Since(began) > w.longest {
			pause = first
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause.Step()):
		}
	}
}

// stream reads the Lease, then what happens to it, until the stream ends; it calls opened when there is a stream. An expired
// resourceVersion, like any other end of a stream, is mended by reading anew.
func (w *watcher) stream(ctx context.Context, opened func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w.mu.Lock()
	w.restart = cancel
	w.mu.Unlock()

	// Without a Lease, the watch starts without a version: then it begins with whatever was created since.
	from := ""
	switch lease, err := w.get(ctx); {
	case err == nil:
		from = lease.ResourceVersion
		w.saw(lease)
	case apierrors.IsNotFound(err):
		w.gone("")
	default:
		return err
	}

	opening := time.AfterFunc(w.timeout, cancel)
	events, err := w.leases.Watch(ctx, metav1.ListOptions{
		FieldSelector:   fields.OneTermEqualSelector(metav1.ObjectNameField, w.name).String(),
		ResourceVersion: from,
	})
	opening.Stop()
	if err != nil {
		return err
	}
	opened()
	defer func() {
		events.Stop()
		for range events.ResultChan() { // until its goroutine has ended
		}
	}()
	for event := range events.ResultChan() {
		lease, ok := event.Object.(*coordinationv1.Lease)
		switch {
		case !ok:
			return apierrors.FromObject(event.Object)
		case event.Type == watch.Deleted:
			w.gone(lease.ResourceVersion)
		default:
			w.saw(lease)
		}
	}
	return nil
}
