package refresh_test

// Secrets that somebody changed, and writes that fail.

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/refreshtest"
	"flux-token-refresher/refresh/secret"
)

func TestRepairsDoNotMint(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		created := target
		created.Create, created.Labels = true, map[string]string{"team": "a"}
		w := newWorld(created)
		defer w.lead(t)()
		token := string(w.secret(t, target.Name).Data["bearerToken"])
		written := w.secret(t, target.Name).Annotations[secret.RefreshedAt]

		for _, harm := range []func(){
			func() { _ = w.store.Delete(t.Context(), target.Name) },
			func() {
				w.edit(t, target.Name, func(s *corev1.Secret) { s.Data["bearerToken"] = []byte("overwritten") })
			},
			func() { w.edit(t, target.Name, func(s *corev1.Secret) { delete(s.Data, "bearerToken") }) },
			func() { w.edit(t, target.Name, func(s *corev1.Secret) { s.Annotations[secret.ConfigHash] = "x" }) },
		} {
			time.Sleep(2 * time.Minute) // fake; longer than repairs are paced
			harm()
			synctest.Wait()
			if got := string(w.secret(t, target.Name).Data["bearerToken"]); got != token {
				t.Errorf("the Secret holds %q, want the held token", got)
			}
			// The token may have failed before it was repaired; an event that tells so late still concerns it.
			if got := w.secret(t, target.Name).Annotations[secret.RefreshedAt]; got != written {
				t.Errorf("refreshed-at is %s after a repair, want %s", got, written)
			}
		}
		if got := len(w.source.Mints()); got != 1 {
			t.Errorf("%d mints for a creation and four repairs, want 1", got)
		}
	})
}

// TestNewLeaderRepairsWithTheSameToken: it does not know when the token was minted, and the Secret does. An event about a failure from before
// the repair is about this token all the same.
func TestNewLeaderRepairsWithTheSameToken(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		harm func(*corev1.Secret)
		kept bool
	}{
		"a key is missing":        {func(s *corev1.Secret) { delete(s.Data, "bearerToken") }, true},
		"a key is overwritten":    {func(s *corev1.Secret) { s.Data["bearerToken"] = []byte("theirs") }, true},
		"another configuration":   {func(s *corev1.Secret) { s.Annotations[secret.ConfigHash] = "another" }, true},
		"refresh-at is missing":   {func(s *corev1.Secret) { delete(s.Annotations, secret.RefreshAt) }, true},
		"refreshed-at is missing": {func(s *corev1.Secret) { delete(s.Annotations, secret.RefreshedAt) }, false},
		"refreshed-at lies ahead": {annotate(secret.RefreshedAt, time.Hour), false},
		"refreshed-at is too old": {annotate(secret.RefreshedAt, -48*time.Hour), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(many(1)...)
				name := w.Targets[0].Name
				w.source.Sticky = true
				w.source.Lifetime = func(refresh.MintKey) time.Duration { return 24 * time.Hour }
				time.Sleep(456 * time.Millisecond)
				w.lead(t)()
				first := w.secret(t, name)
				time.Sleep(time.Hour)
				w.edit(t, name, test.harm)
				w.source.Forget()
				defer w.lead(t)()
				repaired := w.secret(t, name)
				if repaired.Annotations[secret.TokenHash] != first.Annotations[secret.TokenHash] || string(repaired.Data["bearerToken"]) != string(first.Data["bearerToken"]) {
					t.Fatalf("it holds another token: %v", repaired.Annotations)
				}
				want := time.Now().UTC().Format(time.RFC3339)
				if test.kept {
					want = first.Annotations[secret.RefreshedAt]
				}
				if got := repaired.Annotations[secret.RefreshedAt]; got != want {
					t.Errorf("refreshed-at is %s, want %s", got, want)
				}
				writes := len(w.store.Writes())
				time.Sleep(10 * time.Minute)
				if n := len(w.store.Writes()) - writes; n != 0 {
					t.Errorf("%d more writes", n)
				}
			})
		})
	}
}

func TestContention(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(target)
		if err := w.store.Create(t.Context(), "somebody", good()); err != nil {
			t.Fatal(err)
		}
		defer w.lead(t)()
		before := len(w.store.Writes())
		// Somebody overwrites the key once a second for ten minutes.
		for range 600 {
			w.edit(t, target.Name, func(s *corev1.Secret) { s.Data["bearerToken"] = []byte("theirs") })
			time.Sleep(time.Second)
		}
		ours := 0
		for _, write := range w.store.Writes()[before:] {
			if write.Manager == secret.Actor {
				ours++
			}
		}
		// 1+2+4+8+16+32 s are six repairs, then one a minute.
		if ours < 12 || ours > 17 {
			t.Errorf("%d repairs in ten minutes, want about 15", ours)
		}
		if mints := len(w.source.Mints()); mints > 2 {
			t.Errorf("%d mints, want one for the first repair of this term and at most one at the token's time", mints)
		}
		told := w.recorder.Events()
		if len(told) == 0 || told[0].Reason != "Contended" || !told[0].Warning || !strings.Contains(told[0].Note, "somebody") {
			t.Errorf("events %v, want Contended naming the field manager", told)
		}
		time.Sleep(2 * time.Minute)
		if got := string(w.secret(t, target.Name).Data["bearerToken"]); got == "theirs" {
			t.Error("it was not repaired after they stopped")
		}
	})
}

// TestRareOverwritesAreRepairedAtOnce: a kustomization with the key in Git comes back every ten minutes.
func TestRareOverwritesAreRepairedAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(target)
		w.source.Lifetime = func(refresh.MintKey) time.Duration { return 24 * time.Hour }
		if err := w.store.Create(t.Context(), "somebody", good()); err != nil {
			t.Fatal(err)
		}
		defer w.lead(t)()
		for i := range 20 {
			w.edit(t, target.Name, func(s *corev1.Secret) { s.Data["bearerToken"] = []byte("theirs") })
			synctest.Wait()
			if got := string(w.secret(t, target.Name).Data["bearerToken"]); got == "theirs" {
				t.Fatalf("overwrite %d was not repaired at once", i+1)
			}
			time.Sleep(10 * time.Minute)
		}
		// The first was repaired with a new token, as this term held none; the next two are nobody's habit yet.
		if told := w.recorder.Events(); len(told) != 17 {
			t.Errorf("%d Contended events for 20 overwrites, want 17", len(told))
		}
	})
}

func TestConflictKeepsTheToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(target)
		if err := w.store.Create(t.Context(), "somebody", good()); err != nil {
			t.Fatal(err)
		}
		w.store.Fail(refreshtest.Times(3, refresh.ErrConflict))
		defer w.lead(t)()
		w.request(t, target.Name, "1")
		time.Sleep(10 * time.Second)
		if got := w.secret(t, target.Name).Annotations[secret.HandledOutcome]; got != "Refreshed" {
			t.Errorf("handled-outcome %q", got)
		}
		if got := len(w.source.Mints()); got != 1 {
			t.Errorf("%d mints for three conflicts, want 1", got)
		}
		if got := w.series(t)["token_refresher.refreshes{namespace=flux-system,outcome=Conflicted,reason=RefreshRequested,secret=flux-system}"]; got != 3 {
			t.Errorf("%g conflicts counted, want 3", got)
		}
	})
}

func TestAPIOutageKeepsTheToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(target)
		if err := w.store.Create(t.Context(), "somebody", good()); err != nil {
			t.Fatal(err)
		}
		w.store.Fail(func(refresh.Name) error { return refreshtest.Unavailable() })
		defer w.lead(t)()
		time.Sleep(16 * time.Minute) // a minute after the refresh was due
		w.store.Fail(nil)
		time.Sleep(2 * time.Minute) // longer than the longest delay by then
		if got := refresh.Hash(string(w.secret(t, target.Name).Data["bearerToken"])); len(w.source.Mints()) != 1 || got != w.source.Mints()[0].Token.Hash {
			t.Errorf("%d mints; the Secret holds %s, want the one token that was minted during the outage", len(w.source.Mints()), got)
		}
	})
}

// TestTemplateFailsForAToken: what was fine for the probe when the configuration was loaded may not be for a token. The Secret stays as it
// is, the Event names the key alone, and no token after token is minted for it.
func TestTemplateFailsForAToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		format, err := refresh.Template(map[string]string{"bearerToken": "{{ .Token }}", "url": `{{ if gt (len .Token) 30 }}{{ index .Token 9999 }}{{ end }}x`})
		if err != nil {
			t.Fatal(err)
		}
		target := target
		target.Format, target.ConfigHash = format, "another"
		w := newWorld(target)
		if err := w.store.Create(t.Context(), "somebody", good()); err != nil {
			t.Fatal(err)
		}
		before := w.secret(t, target.Name)
		defer w.lead(t)()
		time.Sleep(25 * time.Minute) // the token that stands there lives for 30
		if after := w.secret(t, target.Name); after.ResourceVersion != before.ResourceVersion {
			t.Errorf("the Secret was changed: %v", after.Annotations)
		}
		told := w.recorder.Events()
		if want := `render the content: template of key "url" failed`; len(told) != 1 || told[0].Reason != "RefreshFailed" || told[0].Note != want {
			t.Errorf("events %v, want one RefreshFailed: %s", told, want)
		}
		if n := len(w.source.Mints()); n != 1 {
			t.Errorf("%d mints, want one", n)
		}
		for _, mint := range w.source.Mints() {
			if strings.Contains(w.logs.String(), mint.Token.Reveal()) {
				t.Error("the token is in the logs")
			}
		}
	})
}
