package main

// The story: what is done, what has to come of it, and by when.

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"flux-token-refresher/refresh/secret"
)

// calm lies between two parts, for whoever reads along. It is more than the second or two that the product itself leaves
// between repairs of one Secret.
const calm = 3 * time.Second

func (d *demo) tell(ctx context.Context) error {
	chapters := []struct {
		title string
		// room is what must be left until the timer's next refresh, so that it does not fall into the chapter.
		room, within time.Duration
		run          func(context.Context) error
	}{
		{"The first token", 0, 30 * time.Second, d.first},
		{"Somebody deletes the Secret", 5 * time.Second, 20 * time.Second, d.deleted},
		{"Somebody writes another token into it", 5 * time.Second, 20 * time.Second, d.overwritten},
		{"Flux reads it", 10 * time.Second, 40 * time.Second, d.read},
		{"A refresh by the timer", 0, 90 * time.Second, d.timer},
		{"The token is revoked at Azure DevOps", 15 * time.Second, 90 * time.Second, d.revoked},
		{"A source beside it may not read its repository", 15 * time.Second, 40 * time.Second, d.forbidden},
		{"It is revoked again, while notification-controller is down", 25 * time.Second, 100 * time.Second, d.unreported},
		{"Somebody asks for a new token", 5 * time.Second, 20 * time.Second, d.requested},
		{"The leader is stopped (SIGTERM), as by a rolling update", 10 * time.Second, 30 * time.Second, d.stopped},
		{"The leader is killed (SIGKILL), as by a node that dies", 25 * time.Second, 60 * time.Second, d.killed},
		{"And the timer goes on, with the last replica", 0, 90 * time.Second, d.timer},
	}
	for n, c := range chapters {
		if n > 0 {
			if err := pause(ctx, calm); err != nil {
				return err
			}
		}
		d.chapter(c.title)
		if err := d.makeRoom(ctx, c.room); err != nil {
			return fmt.Errorf("%s: %w", c.title, err)
		}
		bounded, cancel := context.WithTimeoutCause(ctx, c.within, fmt.Errorf("not within %s", c.within))
		err := c.run(bounded)
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w", c.title, err)
		}
	}
	return nil
}

// makeRoom returns when that much time is left until the timer's next refresh, after it where need be.
func (d *demo) makeRoom(ctx context.Context, room time.Duration) error {
	if room == 0 {
		return nil
	}
	due := moment(d.secret.last(d.good).object, secret.RefreshAt)
	if time.Until(due) >= room {
		return nil
	}
	d.did("the timer's next refresh is due in %s, and would fall into this: it comes first", left(due, time.Now()))
	ctx, cancel := context.WithTimeoutCause(ctx, room+10*time.Second, fmt.Errorf("no refresh until %s after its time", 10*time.Second))
	defer cancel()
	_, err := d.secret.await(ctx, 0, func(s *corev1.Secret) bool { return d.good(s) && moment(s, secret.RefreshAt).After(due) })
	return err
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
