package main

// once --event: what a job does about the event that it was started with.

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"flux-token-refresher/events"
	"flux-token-refresher/refresh"
)

// read gives what a file holds, "-" being stdin, and no more than one byte beyond what events.Handle takes.
func read(ctx context.Context, name string, stdin io.Reader) ([]byte, error) {
	from := stdin
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		from = file
	}
	type result struct {
		content []byte
		err     error
	}
	done := make(chan result, 1)
	// Nothing can interrupt a read of a terminal or a pipe; one that is still under way ends with the process.
	go func() {
		content, err := io.ReadAll(io.LimitReader(from, events.MaxSize+1))
		done <- result{content, err}
	}()
	select {
	case r := <-done:
		return r.content, r.err
	case <-ctx.Done():
		return nil, failure{fmt.Errorf("read %s: %w", name, context.Cause(ctx))}
	}
}

// answer has the event ask for refreshes, and sees to it that they are made: here, or by who leads. That may be another job, whose term
// is over before it sees the request: then this one leads after it.
func (i *installation) answer(ctx context.Context, content []byte) error {
	targets, err := i.ask(ctx, content)
	if err != nil || len(targets) == 0 {
		return err
	}
	for {
		leader, err := i.leadOnce(ctx)
		if leader == "" || i.answered(ctx, targets) {
			return err
		}
	}
}

// ask takes the event, and gives the targets that it concerns.
func (i *installation) ask(ctx context.Context, content []byte) (map[refresh.Name]refresh.Target, error) {
	answers, err := events.Handle(ctx, i.events(), i.router(), requester{i}, content)
	if err != nil {
		return nil, err
	}
	targets := map[refresh.Name]refresh.Target{}
	for _, a := range answers {
		if len(a.Targets) == 0 {
			i.telemetry.Logger().Info("the event concerns no target: nothing is done", "verdict", string(a.Verdict), "rule", a.Rule)
		}
		for _, target := range a.Targets {
			name, err := refresh.ParseName(target)
			if err != nil {
				return nil, err
			}
			targets[name] = i.target(name)
		}
	}
	return targets, nil
}

// answered waits until no target has an open request, for as long as a leader can be gone without anybody's notice, and tells
// whether that came.
func (i *installation) answered(ctx context.Context, targets map[refresh.Name]refresh.Target) bool {
	ctx, cancel := context.WithTimeout(ctx, i.election.LeaseDuration)
	defer cancel()
	var waiting sync.WaitGroup
	for _, target := range targets {
		waiting.Go(func() {
			watching, stop := context.WithCancel(ctx)
			defer stop()
			_ = i.store.Watch(watching, target, func(o refresh.Observed) {
				if o.Exists && !o.Request.Open() {
					stop()
				}
			})
		})
	}
	waiting.Wait()
	return ctx.Err() == nil
}
