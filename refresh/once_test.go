package refresh_test

// One pass over all targets.

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"flux-token-refresher/refresh"
)

func TestOnce(t *testing.T) {
	t.Parallel()
	bad := many(1)[0]
	bad.Mint.Identity = "bad"
	bad.Name.Name = "bad"
	missing := target
	missing.Name.Name = "missing"
	for name, test := range map[string]struct {
		targets []refresh.Target
		within  time.Duration
		mints   int
		errors  []string
	}{
		"good":             {[]refresh.Target{target}, 0, 0, nil},
		"soon due":         {[]refresh.Target{target}, 20 * time.Minute, 1, nil},
		"always due":       {[]refresh.Target{target}, 48 * time.Hour, 1, nil},
		"created":          {many(20), 0, 1, nil},
		"one fails":        {append(many(20), bad), 0, 2, []string{"Secret flux-system/bad: no such application"}},
		"one is missing":   {[]refresh.Target{target, missing}, 0, 0, []string{"Secret flux-system/missing: the Secret does not exist"}},
		"several failures": {[]refresh.Target{bad, missing}, 0, 1, []string{"bad", "missing"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(test.targets...)
				w.Policy.Within = test.within
				w.fail(func(key refresh.MintKey) error {
					if key.Identity == "bad" {
						return &refresh.Error{Class: refresh.Misconfigured, Text: "no such application"}
					}
					return nil
				})
				if err := w.store.Create(t.Context(), "somebody", good()); err != nil {
					t.Fatal(err)
				}
				err := w.Once(t.Context())
				if (err == nil) != (test.errors == nil) {
					t.Fatalf("error %v, want %v", err, test.errors)
				}
				for _, want := range test.errors {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("error %q, want %q in it", err, want)
					}
				}
				if got := len(w.source.Mints()); got != test.mints {
					t.Errorf("%d mints, want %d", got, test.mints)
				}
			})
		})
	}
}

func TestOnceEndsWithItsTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(many(1)...)
		w.Fresh = func() bool { return false }
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := w.Once(ctx); err == nil || !strings.Contains(err.Error(), "flux-system/secret-0") {
			t.Errorf("error %v, want the target that was not refreshed", err)
		}
	})
}
