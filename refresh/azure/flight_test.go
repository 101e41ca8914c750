// Who waits for a mint, on a fake clock: the reading of the secret stands for all that can take long.

package azure_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure"
)

// gate is a secret that is read when the test says so.
type gate struct {
	opened chan struct{}
	reads  int
	ended  error // of the context, when the reading was given up
}

var errGate = &refresh.Error{Class: refresh.Misconfigured, Text: "opened"}

func gateOpened(err error) bool {
	failure, ok := errors.AsType[*refresh.Error](err)
	return ok && failure.Text == "identity gated: opened"
}

var gated = refresh.MintKey{Identity: "gated", Scope: "any/.default"}

func (g *gate) read(ctx context.Context) error {
	g.reads++
	select {
	case <-g.opened:
		return errGate
	case <-ctx.Done():
		g.ended = ctx.Err()
		return ctx.Err()
	}
}

func newGate(t *testing.T) (*azure.Source, *gate) {
	t.Helper()
	g := &gate{opened: make(chan struct{})}
	source, err := azure.New(azure.Config{Identities: []azure.Identity{{
		Name: "gated", Type: azure.ClientSecret, TenantID: tenant, ClientID: client,
		CredentialSecret: refresh.Name{Namespace: "tokens", Name: "gate"},
	}}, Cluster: &cluster{during: g.read}})
	if err != nil {
		t.Fatal(err)
	}
	return source, g
}

func ask(ctx context.Context, source *azure.Source) <-chan error {
	result := make(chan error, 1)
	go func() {
		_, err := source.Token(ctx, gated, "")
		result <- err
	}()
	return result
}

func TestCallersShareAFailure(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		source, g := newGate(t)
		var results []<-chan error
		for range 20 {
			results = append(results, ask(t.Context(), source))
		}
		synctest.Wait()
		close(g.opened)
		for _, result := range results {
			if err := <-result; !gateOpened(err) {
				t.Errorf("got %v", err)
			}
		}
		if g.reads != 1 {
			t.Errorf("%d mints", g.reads)
		}
		if err := <-ask(t.Context(), source); !gateOpened(err) || g.reads != 2 {
			t.Errorf("a failure was kept: %v after %d mints", err, g.reads)
		}
	})
}

func TestWhoStartedAMintMayLeave(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		source, g := newGate(t)
		ctx, leave := context.WithCancel(t.Context())
		first := ask(ctx, source)
		synctest.Wait()
		second := ask(t.Context(), source)
		synctest.Wait()
		leave()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("who left got %v", err)
		}
		synctest.Wait()
		close(g.opened)
		if err := <-second; !gateOpened(err) {
			t.Errorf("who stayed got %v", err)
		}
		if g.reads != 1 {
			t.Errorf("%d mints", g.reads)
		}
	})
}

func TestLastToLeaveEndsTheMint(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		source, g := newGate(t)
		ctx, leave := context.WithCancel(t.Context())
		first, second := ask(ctx, source), ask(ctx, source)
		synctest.Wait()
		leave()
		for _, result := range []<-chan error{first, second} {
			if err := <-result; !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		}
		if !errors.Is(g.ended, context.Canceled) || g.reads != 1 {
			t.Errorf("the mint ended with %v, after %d reads", g.ended, g.reads)
		}
	})
}

func TestNoMintStartsAfterTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		source, g := newGate(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := <-ask(ctx, source); !errors.Is(err, context.Canceled) || g.reads != 0 {
			t.Errorf("%v after %d mints", err, g.reads)
		}
	})
}

func TestDefaultDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		source, g := newGate(t)
		started := time.Now()
		var failure *refresh.Error
		if err := <-ask(t.Context(), source); !errors.As(err, &failure) || failure.Class != refresh.Unavailable {
			t.Errorf("got %v", err)
		}
		if took := time.Since(started); took != azure.DefaultTimeout || !errors.Is(g.ended, context.DeadlineExceeded) {
			t.Errorf("ended with %v after %s", g.ended, took)
		}
	})
}
