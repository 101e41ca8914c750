package refresh_test

// A thousand Secrets of one identity: one request to an emulated Entra for all of them, writes side by side, and a last good token that an
// outage does not take.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/metric/noop"
	nooptrace "go.opentelemetry.io/otel/trace/noop"
	corev1 "k8s.io/api/core/v1"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure"
	"flux-token-refresher/refresh/azure/azuretest"
	"flux-token-refresher/refresh/refreshtest"
	"flux-token-refresher/refresh/secret"
)

const thousand = 1000

// many gives targets that share a token.
func many(n int) []refresh.Target {
	targets := make([]refresh.Target, n)
	for i := range targets {
		targets[i] = target
		targets[i].Name.Name = fmt.Sprintf("secret-%d", i)
		targets[i].Create = true
	}
	return targets
}

// slowStore is a Store behind a network, which counts who writes at the same time.
type slowStore struct {
	refresh.Store
	latency time.Duration

	mu         sync.Mutex
	busy, most int
}

func (s *slowStore) Apply(ctx context.Context, target refresh.Target, o refresh.Observed, token refresh.Token, record refresh.Record) error {
	s.count(1)
	defer s.count(-1)
	select {
	case <-time.After(s.latency):
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.Store.Apply(ctx, target, o, token, record)
}

func (s *slowStore) count(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy += n
	s.most = max(s.most, s.busy)
}

func TestOneMintManySecrets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		targets := many(thousand)
		w := newWorld(targets...)
		w.source.Latency = time.Second
		store := &slowStore{Store: w.store, latency: time.Second}
		w.Store = store
		defer w.lead(t)()
		began := time.Now()
		for len(w.store.Writes()) < thousand {
			time.Sleep(time.Second)
		}
		took := time.Since(began)
		synctest.Wait()
		if got := len(w.source.Mints()); got != 1 {
			t.Fatalf("%d mints for %d Secrets of one identity, want 1", got, thousand)
		}
		// Eight writers, and one more worker for the one identity.
		if most := store.most; most != 9 || took > (thousand/9+3)*time.Second {
			t.Errorf("%d writes at the same time, %s in all, want 9 that never wait for one another", most, took)
		}

		// All are asked for a refresh at once: one token was revoked.
		store.latency = 0
		for _, target := range targets {
			w.request(t, target.Name, "revoked")
		}
		time.Sleep(2 * time.Second)
		if got := len(w.source.Mints()); got != 2 {
			t.Errorf("%d mints after a thousand requests about one token, want 2", got)
		}
		for _, target := range targets {
			s := w.secret(t, target.Name)
			if s.Annotations[secret.HandledOutcome] != string(refresh.Refreshed) || refresh.Hash(string(s.Data["bearerToken"])) != w.source.Mints()[1].Token.Hash {
				t.Fatalf("%s: %v", target.Name, s.Annotations)
			}
		}
	})
}

// heard is a Recorder that hands on the names of Secrets that an Event of a reason is about.
type heard struct {
	reason string
	names  chan refresh.Name
}

func (h heard) Event(name refresh.Name, _ string, _ bool, reason, _ string) {
	if reason == h.reason {
		h.names <- name
	}
}

// aThousand waits for as many names.
func aThousand(t *testing.T, what string, names <-chan refresh.Name) {
	t.Helper()
	const patience = time.Minute
	deadline := time.After(patience)
	for n := range thousand {
		select {
		case <-names:
		case <-deadline:
			t.Fatalf("%s: %d of %d Secrets after %s", what, n, thousand, patience)
		}
	}
}

// writtenStore is a Store that hands on the names of Secrets that a token was written to.
type writtenStore struct {
	refresh.Store
	names chan refresh.Name
}

func (s writtenStore) Apply(ctx context.Context, target refresh.Target, o refresh.Observed, token refresh.Token, record refresh.Record) error {
	err := s.Store.Apply(ctx, target, o, token, record)
	if err == nil {
		s.names <- target.Name
	}
	return err
}

// TestThousandSecretsAndEntra: the same with the source of tokens that the product has, against an emulated Entra over TLS.
func TestThousandSecretsAndEntra(t *testing.T) {
	t.Parallel()
	entra, source := federated(t)
	targets := many(thousand)
	memory := refreshtest.NewStore()
	for i := range targets {
		targets[i].Mint.Scope = azuretest.AzureDevOpsScope
		due := good()
		due.Name = targets[i].Name.Name
		due.Annotations[secret.RefreshAt] = due.Annotations[secret.RefreshedAt]
		if err := memory.Create(t.Context(), "somebody", due); err != nil {
			t.Fatal(err)
		}
	}
	failed := heard{"RefreshFailed", make(chan refresh.Name, 10*thousand)}
	written := make(chan refresh.Name, 10*thousand)
	r := &refresh.Refresher{
		Targets: targets, Policy: policy, Source: source, Store: writtenStore{memory, written}, Readers: &refreshtest.Readers{}, Recorder: failed,
		Logger: slog.New(slog.DiscardHandler), TracerProvider: nooptrace.NewTracerProvider(), MeterProvider: noop.NewMeterProvider(),
	}
	// all waits until each Secret was written once, holds a token of this Entra's, and all of them the same one.
	all := func() (token string) {
		t.Helper()
		aThousand(t, "written", written)
		for _, target := range targets {
			s, err := memory.Get(t.Context(), target.Name)
			if err != nil {
				t.Fatal(err)
			}
			held := string(s.Data["bearerToken"])
			if token == "" {
				token = held
			}
			if held != token {
				t.Fatalf("%s holds another token than the others", target.Name)
			}
		}
		if _, err := entra.Validate(token, azuretest.AzureDevOps); err != nil {
			t.Errorf("the token that they hold: %v", err)
		}
		return token
	}

	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	began := time.Now()
	go func() { ended <- r.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the term ended with %v", err)
		}
	}()
	first := all()
	t.Logf("%d Secrets that were due hold a new token after %s", thousand, time.Since(began).Round(time.Millisecond))
	if n := entra.Requests(); n != 1 {
		t.Errorf("%d requests to Entra, want 1", n)
	}

	// All at once again, while Entra is away: every Secret keeps what it has.
	away := azuretest.Broken(503)
	entra.Change(func(c *azuretest.Config) { c.Outage = &away })
	writes := len(memory.Writes())
	for _, target := range targets {
		if err := memory.Edit(t.Context(), "somebody", target.Name, func(s *corev1.Secret) { s.Annotations[secret.Request] = "now" }); err != nil {
			t.Fatal(err)
		}
	}
	aThousand(t, "failed", failed.names)
	tries := entra.Requests() - 1
	for _, write := range memory.Writes()[writes:] {
		if write.Manager == secret.Actor || string(write.Secret.Data["bearerToken"]) != first {
			t.Fatalf("%s was written during the outage, by %s", write.Name, write.Manager)
		}
	}
	if tries > 20 {
		t.Errorf("%d requests to Entra during the outage of a moment", tries)
	}
	began = time.Now()
	entra.Change(func(c *azuretest.Config) { c.Outage = nil })
	if second := all(); second == first {
		t.Error("after the outage they hold the old token")
	}
	t.Logf("told of %d failures after %d requests; all hold a new token %s after the outage", thousand, tries, time.Since(began).Round(time.Millisecond))
	if n := entra.Minted(entraClient, azuretest.AzureDevOpsScope); n != 2 {
		t.Errorf("%d tokens were issued in all, want 2", n)
	}
}

const entraClient = "3f1c2d90-0000-4000-8000-000000000002"

// federated starts an Entra, and gives a source of its tokens under the name and scope of the tests' target.
func federated(t *testing.T) (*azuretest.Entra, *azure.Source) {
	t.Helper()
	const tenant, account = "3f1c2d90-0000-4000-8000-000000000001", "system:serviceaccount:flux-system:flux-token-refresher"
	issuer, err := azuretest.NewIssuer("https://oidc.example/cluster")
	if err != nil {
		t.Fatal(err)
	}
	entra, err := azuretest.Start(azuretest.Config{Applications: []azuretest.Application{{
		TenantID: tenant, ClientID: entraClient, Federated: []azuretest.FederatedCredential{issuer.Federate(account)},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(entra.Close)
	dir := t.TempDir()
	caFile, tokenFile := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "token")
	if err := errors.Join(
		os.WriteFile(caFile, entra.CA(), 0o600),
		os.WriteFile(tokenFile, []byte(issuer.Token(account, azuretest.TokenExchange, time.Hour)), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	source, err := azure.New(azure.Config{Identities: []azure.Identity{{
		Name: target.Mint.Identity, Type: azure.WorkloadIdentity, TenantID: tenant, ClientID: entraClient,
		AuthorityHost: entra.URL(), CAFile: caFile, TokenFile: tokenFile,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return entra, source
}
