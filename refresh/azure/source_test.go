// What a Source holds, mints and shares.

package azure_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure/azuretest"
)

func TestNewStartsEmpty(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	if token, ok := b.source.Held(workload); ok || !token.IsZero() {
		t.Errorf("holds %v before anything was asked", token)
	}
	if b.Requests() != 0 {
		t.Errorf("%d requests before anything was asked", b.Requests())
	}
}

func TestTokenIsHeldUntilItIsUnwanted(t *testing.T) {
	t.Parallel()
	for _, key := range byProof {
		t.Run(key.Identity, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, nil)
			before := time.Now()
			first := b.token(t, key, "")
			if first.Minted.Before(before) || first.Minted.After(time.Now()) {
				t.Errorf("minted at %s, asked for at %s", first.Minted, before)
			}
			if life := first.Expires.Sub(first.Minted); life < 59*time.Minute || life > 91*time.Minute {
				t.Errorf("lives for %s", life)
			}
			if !first.RefreshOn.IsZero() {
				t.Errorf("Entra did not say refresh_in, RefreshOn is %s", first.RefreshOn)
			}
			if _, err := b.Validate(first.Reveal(), azuretest.AzureDevOps); err != nil {
				t.Error(err)
			}

			if again := b.token(t, key, ""); again.Hash != first.Hash {
				t.Error("a token that is alive was not given again")
			}
			if again := b.token(t, key, "0123456789abcdef"); again.Hash != first.Hash {
				t.Error("a token that is alive and not the unwanted one was not given again")
			}
			if b.Requests() != 1 {
				t.Fatalf("%d requests for one token", b.Requests())
			}

			// At once, with an hour to live: azidentity itself would answer from its cache.
			second := b.token(t, key, first.Hash)
			if second.Hash == first.Hash || b.Requests() != 2 {
				t.Fatalf("no new token: %d requests", b.Requests())
			}
			if held, ok := b.source.Held(key); !ok || held.Hash != second.Hash {
				t.Errorf("holds %v, not the newest", held)
			}
			// Who complains of the first one is served with the second.
			if got := b.token(t, key, first.Hash); got.Hash != second.Hash || b.Requests() != 2 {
				t.Errorf("a second mint for the same complaint")
			}
		})
	}
}

func TestKeysDoNotShare(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	vault := refresh.MintKey{Identity: "workload", Scope: "https://vault.azure.net/.default"}
	seen := map[string]refresh.MintKey{}
	for _, key := range append(byProof, vault) {
		seen[b.token(t, key, "").Hash] = key
	}
	if len(seen) != 5 || b.Minted(client, vault.Scope) != 1 || b.Minted(client, workload.Scope) != 4 {
		t.Errorf("%d tokens for 5 keys", len(seen))
	}
}

func TestExpiredTokenIsHeldButNotGiven(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.Change(func(c *azuretest.Config) { c.MinLifetime, c.MaxLifetime = time.Second, time.Second })
	first := b.token(t, workload, "")
	end := time.NewTimer(time.Until(first.Expires))
	defer end.Stop()
	<-end.C
	if held, ok := b.source.Held(workload); !ok || held.Hash != first.Hash {
		t.Errorf("does not hold it any more: %v", held)
	}
	if second := b.token(t, workload, ""); second.Hash == first.Hash {
		t.Error("a token that has expired was given")
	}
}

func TestIssuerMayInsistOnTheSameToken(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	first := b.token(t, workload, "")
	b.Next(tokenAnswer(t, map[string]any{"access_token": first.Reveal(), "expires_in": 3600}))
	again := b.token(t, workload, first.Hash)
	if again.Hash != first.Hash || b.Requests() != 2 {
		t.Errorf("got %v after %d requests", again, b.Requests())
	}
	if !again.Minted.Equal(first.Minted) || !again.Expires.Equal(first.Expires) {
		t.Errorf("its time began anew: %v", again)
	}
}

func TestLifetimes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name                string
		answer              map[string]any
		lifetime, refreshIn time.Duration
		unusable            bool
	}{
		{name: "one minute", answer: map[string]any{"expires_in": 60}, lifetime: time.Minute},
		{name: "a day with refresh_in", answer: map[string]any{"expires_in": 86399, "refresh_in": 43199}, lifetime: 86399 * time.Second, refreshIn: 43199 * time.Second},
		{name: "numbers as text", answer: map[string]any{"expires_in": "3599"}, lifetime: 3599 * time.Second},
		{name: "ended already", answer: map[string]any{"expires_in": -5}, unusable: true},
		{name: "no end", answer: map[string]any{}, unusable: true},
		{name: "no token", answer: map[string]any{"access_token": "", "expires_in": 60}, unusable: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, nil)
			if _, set := c.answer["access_token"]; !set {
				c.answer["access_token"] = "a-token"
			}
			b.Next(tokenAnswer(t, c.answer))
			if c.unusable {
				if got := b.failure(t, workload); got.Class != refresh.Unavailable {
					t.Errorf("%s: %s", got.Class, got.Text)
				}
				if _, held := b.source.Held(workload); held {
					t.Error("holds it")
				}
				return
			}
			token := b.token(t, workload, "")
			// The lifetime counts from the answer, which comes some time after the request was sent.
			near := func(got, want time.Duration) bool { return got >= want && got < want+20*time.Second }
			if got := token.Expires.Sub(token.Minted); !near(got, c.lifetime) {
				t.Errorf("lives for %s, want %s", got, c.lifetime)
			}
			if c.refreshIn == 0 {
				if !token.RefreshOn.IsZero() {
					t.Errorf("RefreshOn %s", token.RefreshOn)
				}
			} else if got := token.RefreshOn.Sub(token.Minted); !near(got, c.refreshIn) {
				t.Errorf("to be refreshed in %s, want %s", got, c.refreshIn)
			}
		})
	}
}

func tokenAnswer(t *testing.T, body map[string]any) azuretest.Answer {
	t.Helper()
	body["token_type"] = "Bearer"
	content, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	return azuretest.Answer{Status: 200, Body: string(content)}
}

func TestHundredCallersShareOneRequest(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	revoked := b.token(t, workload, "")
	b.Change(func(c *azuretest.Config) { c.Latency = 100 * time.Millisecond })
	hashes := make(chan string, 100)
	var callers sync.WaitGroup
	for range cap(hashes) {
		callers.Go(func() {
			token, err := b.source.Token(deadline(t), workload, revoked.Hash)
			if err != nil {
				t.Error(err)
			}
			hashes <- token.Hash
		})
	}
	callers.Wait()
	close(hashes)
	seen := map[string]bool{}
	for hash := range hashes {
		seen[hash] = true
	}
	if len(seen) != 1 || seen[revoked.Hash] || b.Requests() != 2 {
		t.Errorf("%d tokens after %d requests", len(seen), b.Requests()-1)
	}
}

func TestMintEndsWhenNobodyWaits(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.Next(azuretest.Hang())
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error, 2)
	for range 2 {
		go func() { _, err := b.source.Token(ctx, workload, ""); left <- err }()
	}
	if err := b.Await(deadline(t), 1); err != nil {
		t.Fatal(err)
	}
	leave()
	for range 2 {
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
	// The mint that was given up is nobody's any more: who comes now gets one of their own.
	b.token(t, workload, "")
	if b.Requests() != 2 {
		t.Errorf("%d requests", b.Requests())
	}
}

func TestWhatIsHeldIsGivenAfterTheEnd(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	held := b.token(t, workload, "")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := b.source.Token(ctx, workload, ""); err != nil || got.Hash != held.Hash {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestDeadline(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(b *bench) { b.config.Timeout = 300 * time.Millisecond })
	b.Next(azuretest.Hang())
	got := b.failure(t, workload)
	if got.Class != refresh.Unavailable || !strings.Contains(got.Text, "did not answer within 300ms") {
		t.Errorf("%s: %s", got.Class, got.Text)
	}
	b.cluster.during = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	for key, what := range map[refresh.MintKey]string{
		bySecret: "Secret tokens/secret", byCertificate: "Secret tokens/certificate", account: "ServiceAccount team-a/repos",
	} {
		if got := b.failure(t, key); got.Class != refresh.Unavailable || !strings.HasSuffix(got.Text, what+" could not be read in time") {
			t.Errorf("%s: %s", got.Class, got.Text)
		}
	}
}
