package refresh_test

import (
	"fmt"
	"testing"
	"time"

	"flux-token-refresher/refresh"
)

func TestRefreshAt(t *testing.T) {
	t.Parallel()
	defaults := refresh.Policy{LifetimeFraction: 0.75, Jitter: 0.1, MinValidity: 10 * time.Minute}
	steady := defaults
	steady.Jitter = 0
	for _, test := range []struct {
		name      string
		policy    refresh.Policy
		life      time.Duration
		refreshIn time.Duration
		earliest  time.Duration
		latest    time.Duration
	}{
		{"an hour, no jitter", steady, time.Hour, 0, 45 * time.Minute, 45 * time.Minute},
		{"an hour", defaults, time.Hour, 0, 40*time.Minute + 30*time.Second, 45 * time.Minute},
		{"90 minutes", steady, 90 * time.Minute, 0, 67*time.Minute + 30*time.Second, 67*time.Minute + 30*time.Second},
		{"24 hours", steady, 24 * time.Hour, 0, 18 * time.Hour, 18 * time.Hour},
		{"24 hours, refresh_in 12 hours", steady, 24 * time.Hour, 12 * time.Hour, 12 * time.Hour, 12 * time.Hour},
		{"refresh_in later than the fraction", steady, time.Hour, 55 * time.Minute, 45 * time.Minute, 45 * time.Minute},
		{"refresh_in in the past", steady, time.Hour, -time.Minute, 45 * time.Minute, 45 * time.Minute},
		{"minValidity binds", refresh.Policy{LifetimeFraction: 0.95, MinValidity: 10 * time.Minute}, time.Hour, 0, 50 * time.Minute, 50 * time.Minute},
		{"a quarter of a short life binds", refresh.Policy{LifetimeFraction: 0.95, MinValidity: 10 * time.Minute}, time.Minute, 0, 45 * time.Second, 45 * time.Second},
		{"a minute", steady, time.Minute, 0, 45 * time.Second, 45 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			spread := map[time.Time]bool{}
			for i := range 200 {
				var on time.Time
				if test.refreshIn != 0 {
					on = now.Add(test.refreshIn)
				}
				token := refresh.NewToken(fmt.Sprint(i), now, now.Add(test.life), on)
				at := test.policy.RefreshAt(token)
				if wait := at.Sub(now); wait < test.earliest || wait > test.latest {
					t.Fatalf("refresh after %s, want %s to %s", wait, test.earliest, test.latest)
				}
				if again := test.policy.RefreshAt(token); !again.Equal(at) {
					t.Fatalf("the same token gives %s and %s", at, again)
				}
				spread[at] = true
			}
			// 270 whole seconds lie between the two: by chance 200 tokens hit about 140 of them.
			if test.earliest != test.latest && len(spread) < 110 {
				t.Errorf("200 tokens are refreshed at %d different times", len(spread))
			}
		})
	}
}

func TestRefreshAtLeavesValidity(t *testing.T) {
	t.Parallel()
	for life := time.Minute; life <= 24*time.Hour; life += 7 * time.Minute {
		for _, fraction := range []float64{0.01, 0.5, 0.75, 0.99} {
			p := refresh.Policy{LifetimeFraction: fraction, Jitter: 0.5, MinValidity: 10 * time.Minute}
			token := refresh.NewToken(life.String(), now, now.Add(life), time.Time{})
			at := p.RefreshAt(token)
			if left, want := token.Expires.Sub(at), min(p.MinValidity, life/4); at.Before(now) || left < want {
				t.Fatalf("life %s, fraction %g: refreshed after %s with %s left, want %s left", life, fraction, at.Sub(now), left, want)
			}
		}
	}
}

func TestRetryDelay(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string
		err      refresh.Error
		failures int
		left     time.Duration
		u        float64
		want     time.Duration
	}{
		{"first", refresh.Error{Class: refresh.Unavailable}, 1, time.Hour, 0, time.Second},
		{"grows", refresh.Error{Class: refresh.Unavailable}, 4, time.Hour, 0, 8 * time.Second},
		{"with jitter", refresh.Error{Class: refresh.Unavailable}, 4, time.Hour, 0.5, 7200 * time.Millisecond},
		{"to a bound", refresh.Error{Class: refresh.Unavailable}, 1000, time.Hour, 0, 5 * time.Minute},
		{"within what is left", refresh.Error{Class: refresh.Unavailable}, 1000, 3 * time.Minute, 0, time.Minute},
		{"to a second", refresh.Error{Class: refresh.Unavailable}, 1000, time.Millisecond, 0, time.Second},
		{"nothing is left", refresh.Error{Class: refresh.Unavailable}, 1000, -time.Minute, 0, 30 * time.Second},
		{"nothing is left, as asked", refresh.Error{Class: refresh.Unavailable, RetryAfter: time.Minute}, 1000, -time.Minute, 0, time.Minute},
		{"nothing is left, asked for a day", refresh.Error{Class: refresh.Throttled, RetryAfter: 24 * time.Hour}, 1, -time.Minute, 0, 15 * time.Minute},
		{"nothing is left, misconfigured", refresh.Error{Class: refresh.Misconfigured}, 1000, -time.Minute, 0, 15 * time.Minute},
		{"as asked", refresh.Error{Class: refresh.Throttled, RetryAfter: time.Minute}, 1, time.Hour, 0.9, time.Minute},
		{"as asked, within what is left", refresh.Error{Class: refresh.Throttled, RetryAfter: time.Hour}, 1, 30 * time.Minute, 0, 10 * time.Minute},
		{"assertion", refresh.Error{Class: refresh.Assertion}, 1, time.Hour, 0, 5 * time.Second},
		{"misconfigured, rarely", refresh.Error{Class: refresh.Misconfigured}, 1, time.Hour, 0, time.Minute},
		{"misconfigured, at most", refresh.Error{Class: refresh.Misconfigured}, 9, 10 * time.Hour, 0, 15 * time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if got := refresh.RetryDelay(&test.err, test.failures, test.left, test.u); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func TestRepairDelayGrowsToAMinute(t *testing.T) {
	t.Parallel()
	want := []int{1, 2, 4, 8, 16, 32, 60, 60}
	for i, seconds := range want {
		if got := refresh.RepairDelay(i + 1); got != time.Duration(seconds)*time.Second {
			t.Errorf("after repair %d: %s, want %ds", i+1, got, seconds)
		}
	}
}

func TestUnchangedAt(t *testing.T) {
	t.Parallel()
	if got := refresh.UnchangedAt(now.Add(8*time.Hour), now).Sub(now); got != 4*time.Hour {
		t.Errorf("8 hours left: asked again after %s, want 4h", got)
	}
	if got := refresh.UnchangedAt(now.Add(10*time.Second), now).Sub(now); got != time.Minute {
		t.Errorf("10 seconds left: asked again after %s, want 1m", got)
	}
}
