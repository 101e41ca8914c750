package refresh_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/refreshtest"
	"flux-token-refresher/refresh/secret"
)

// TestDay runs a day of 200 targets on five identities with tokens of 60 to 90 minutes, while leaders change, people
// delete, overwrite and ask, and the issuer is away for minutes and once for hours. No Secret ever holds an expired
// token while the issuer answers.
func TestDay(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { day(t, rand.New(rand.NewPCG(seed, 0))) })
		})
	}
}

// An outage of the issuer, and how long after its end an expired token may take to go: longestDead and its mint.
type outage struct{ from, to time.Time }

const recovery = 35 * time.Second

func day(t *testing.T, random *rand.Rand) {
	const targets, identities = 200, 5
	start := time.Now()
	end := start.Add(24 * time.Hour)
	outages := []outage{
		{start.Add(5 * time.Hour), start.Add(5*time.Hour + 9*time.Minute)}, // shorter than minValidity: nobody may notice
		{start.Add(13 * time.Hour), start.Add(16 * time.Hour)},
	}
	away := func(at time.Time) bool {
		for _, o := range outages {
			if !at.Before(o.from) && at.Before(o.to) {
				return true
			}
		}
		return false
	}

	all := many(targets)
	for i := range all {
		all[i].Mint.Identity = fmt.Sprint("identity-", i%identities)
	}
	w := newWorld(all...)
	w.Policy.Jitter = 0.1
	fail := func(refresh.MintKey) error {
		if away(time.Now()) {
			return &refresh.Error{Class: refresh.Unavailable, Text: "away"}
		}
		return nil
	}
	var mints []refreshtest.Mint
	for leaders := 0; time.Now().Before(end); leaders++ {
		// A new leader is another process: it holds nothing.
		w.source = &refreshtest.Source{Fail: fail, Latency: 200 * time.Millisecond, Lifetime: func(key refresh.MintKey) time.Duration {
			// From the identity and the time, not from the order in which goroutines come.
			lifetime := rand.New(rand.NewPCG(uint64(key.Identity[len(key.Identity)-1]), uint64(time.Now().UnixNano())))
			return time.Hour + time.Duration(lifetime.Int64N(int64(30*time.Minute)))
		}}
		w.Source = w.source
		stop := w.lead(t)
		for term := time.Now().Add(time.Duration(random.Int64N(int64(3 * time.Hour)))); time.Now().Before(term) && time.Now().Before(end); {
			time.Sleep(time.Duration(random.Int64N(int64(4 * time.Minute))))
			name := all[random.IntN(targets)].Name
			if s, _ := w.store.Get(t.Context(), name); s == nil {
				continue
			}
			switch random.IntN(3) {
			case 0:
				_ = w.store.Delete(t.Context(), name)
			case 1:
				w.edit(t, name, func(s *corev1.Secret) { s.Data["bearerToken"] = []byte("theirs") })
			case 2:
				w.request(t, name, fmt.Sprint(random.Int()))
			}
		}
		if !time.Now().Before(end) {
			time.Sleep(2 * time.Minute) // what was done to the Secrets last is repaired
		}
		stop()
		mints = append(mints, w.source.Mints()...)
	}

	// What each Secret held, from write to write.
	type holding struct {
		since, expires time.Time
		ours           bool
	}
	held := map[refresh.Name]holding{}
	checked := 0
	check := func(name refresh.Name, until time.Time) {
		h, ok := held[name]
		if !ok || !h.ours || until.Before(h.expires) {
			return
		}
		for _, o := range outages {
			if !h.expires.Before(o.from) && !until.After(o.to.Add(recovery)) {
				return // it expired while the issuer was away, and went when it was back
			}
		}
		t.Errorf("%s held a token from %s that had expired %s before it was replaced at %s", name, h.since, until.Sub(h.expires), until)
	}
	for _, write := range w.store.Writes() {
		check(write.Name, write.At)
		checked++
		h := holding{since: write.At}
		if s := write.Secret; s != nil {
			h.ours = string(s.Data["bearerToken"]) != "theirs"
			h.expires, _ = time.Parse(time.RFC3339, s.Annotations[secret.ExpiresAt])
		}
		held[write.Name] = h
	}
	for _, target := range all {
		check(target.Name, time.Now())
		if !held[target.Name].ours {
			t.Errorf("%s was left as somebody made it", target.Name)
		}
	}
	ours, lines := 0, strings.Count(w.logs.String(), `"level":"INFO"`)
	for _, write := range w.store.Writes() {
		if write.Manager == secret.Actor {
			ours++
		}
	}
	if lines != ours {
		t.Errorf("%d lines at INFO about %d writes, want one for each, and nothing else", lines, ours)
	}
	t.Logf("%d writes, %d requests to the issuer", checked, len(mints))
}
