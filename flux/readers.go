// Trying a token on the readers of a Secret, and waking those that fail.

package flux

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"flux-token-refresher/refresh"
)

// parallel bounds how many requests are made at the same time for one target.
const parallel = 8

// Try implements refresh.Readers. It waits until all GitRepositories of the namespace are known: a reader that is overlooked would
// let a token pass that it cannot use. Suspended ones are asked as well, because they will read the Secret again.
func (s *Sources) Try(ctx context.Context, target refresh.Target, token refresh.Token, enough bool) (refresh.Trial, error) {
	if !target.Verify {
		return refresh.Trial{}, nil
	}
	repositories := map[string][]string{} // URL → names
	for _, k := range kinds {
		if !k.git {
			continue
		}
		if err := s.await(ctx, place{k, target.Name.Namespace}); err != nil {
			return refresh.Trial{}, err
		}
		s.mu.Lock()
		for _, o := range s.readers(target.Name) {
			if o.kind == k {
				repositories[o.url] = append(repositories[o.url], o.key().String())
			}
		}
		s.mu.Unlock()
	}

	var mu sync.Mutex
	var trial refresh.Trial
	refusals, silences := map[string][]string{}, map[string][]string{} // Why → names
	asking, stop := context.WithCancel(ctx)
	defer stop()
	var group errgroup.Group
	group.SetLimit(parallel)
	for url, names := range repositories {
		group.Go(func() error {
			answer := s.Ask(asking, url, token)
			mu.Lock()
			defer mu.Unlock()
			if errors.Is(asking.Err(), context.Canceled) {
				return nil // nobody asks any more
			}
			trial.Accepted += answer.Accepted
			trial.Rejected += answer.Rejected
			trial.Silent += answer.Silent
			switch {
			case answer.Rejected > 0:
				refusals[answer.Why] = append(refusals[answer.Why], names...)
			case answer.Silent > 0:
				silences[answer.Why] = append(silences[answer.Why], names...)
			}
			if enough && answer.Accepted > 0 {
				stop()
			}
			return nil
		})
	}
	_ = group.Wait()
	if errors.Is(ctx.Err(), context.Canceled) {
		return refresh.Trial{}, ctx.Err()
	}
	trial.Why = cmp.Or(why(refusals), why(silences))
	return trial, nil
}

// why gives the reason that most readers share, and some of their names: one sentence is what an Event has room for.
func why(answers map[string][]string) string {
	reasons := slices.SortedFunc(maps.Keys(answers), func(a, b string) int {
		return cmp.Or(cmp.Compare(len(answers[b]), len(answers[a])), strings.Compare(a, b))
	})
	if len(reasons) == 0 {
		return ""
	}
	names := slices.Sorted(slices.Values(answers[reasons[0]]))
	if len(names) > 3 {
		names = append(names[:3], "…")
	}
	return strings.Join(names, ", ") + ": " + reasons[0]
}

// await waits until all objects of a place are known.
func (s *Sources) await(ctx context.Context, at place) error {
	bounded, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	what := at.kind.name + " objects in " + at.namespace
	for {
		s.mu.Lock()
		shelf, missing, changed := *s.shelves[at], s.missing[at.kind], s.changed
		s.mu.Unlock()
		switch {
		case shelf.synced || missing:
			return nil
		case shelf.refused:
			return &refresh.Error{Class: refresh.Misconfigured, Code: "403",
				Text: "not allowed to watch " + what + ", so that the readers of the Secret are not known (flux-token-refresher config rbac prints the Role)"}
		}
		select {
		case <-changed:
		case <-bounded.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return &refresh.Error{Class: refresh.Unavailable,
				Text: "the " + what + " were not listed within " + syncTimeout.String() + ", so that the readers of the Secret are not known"}
		}
	}
}

// Wake implements refresh.Readers. Readers whose failure is seen only later are woken then, when it is from before. The number is
// of those that were woken, also beside an error.
func (s *Sources) Wake(ctx context.Context, target refresh.Target) (int, error) {
	now := time.Now()
	var failing []key
	s.mu.Lock()
	s.woken[target.Name] = now
	for _, o := range s.readers(target.Name) {
		if o.unready && !o.suspended {
			failing = append(failing, o.key())
		}
	}
	s.mu.Unlock()

	var n atomic.Int64
	var group errgroup.Group
	group.SetLimit(parallel)
	for _, k := range failing {
		group.Go(func() error {
			ok, err := s.API.wake(ctx, k, now)
			if ok {
				n.Add(1)
			}
			if err != nil {
				s.queue.AddAfter(k, grace)
			}
			return err
		})
	}
	err := group.Wait()
	return int(n.Load()), err
}
