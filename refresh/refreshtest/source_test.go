package refreshtest_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/refreshtest"
)

func TestSourceInMemory(t *testing.T) {
	t.Parallel()
	key := refresh.MintKey{Identity: "repos", Scope: "scope"}
	token := func(t *testing.T, s *refreshtest.Source, notHash string) refresh.Token {
		t.Helper()
		got, err := s.Token(t.Context(), key, notHash)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	mints := func(t *testing.T, s *refreshtest.Source, want int) {
		t.Helper()
		if got := len(s.Mints()); got != want {
			t.Errorf("%d mints, want %d", got, want)
		}
	}

	for name, test := range map[string]func(*testing.T, *refreshtest.Source){
		"a held token is given while it lives and fits": func(t *testing.T, s *refreshtest.Source) {
			if _, ok := s.Held(key); ok {
				t.Error("a new Source holds a token")
			}
			first := token(t, s, "")
			if again := token(t, s, "another"); again != first {
				t.Errorf("got %v, want the held %v", again, first)
			}
			if other := token(t, s, first.Hash); other.Hash == first.Hash {
				t.Errorf("got %v, which was refused", other)
			}
			mints(t, s, 2)
			time.Sleep(time.Hour)
			token(t, s, "")
			mints(t, s, 3)
			s.Forget()
			token(t, s, "")
			mints(t, s, 4)
		},
		"concurrent callers share a mint": func(t *testing.T, s *refreshtest.Source) {
			s.Latency = time.Second
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() { token(t, s, "") })
			}
			wg.Wait()
			mints(t, s, 1)
		},
		"a caller that gives up takes nobody with it": func(t *testing.T, s *refreshtest.Source) {
			s.Latency = time.Second
			hurried, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			var wg sync.WaitGroup
			wg.Go(func() {
				if _, err := s.Token(hurried, key, ""); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got %v, want the context's error", err)
				}
			})
			synctest.Wait()
			wg.Go(func() { token(t, s, "") })
			wg.Wait()
			mints(t, s, 1)
		},
		"a sticky issuer insists on a token until its end": func(t *testing.T, s *refreshtest.Source) {
			s.Sticky, s.Lifetime = true, func(refresh.MintKey) time.Duration { return 24 * time.Hour }
			first := token(t, s, "")
			time.Sleep(23 * time.Hour)
			if same := token(t, s, first.Hash); same != first {
				t.Errorf("got %v, want the same %v", same, first)
			}
			s.Forget() // who takes over does not know when it was minted
			if same := token(t, s, ""); same.Hash != first.Hash || !same.Minted.Equal(time.Now()) {
				t.Errorf("got %v, minted at %s, want the same %v from now on", same, same.Minted, first)
			}
			time.Sleep(time.Hour)
			if next := token(t, s, ""); next.Hash == first.Hash {
				t.Errorf("got the expired %v", next)
			}
			mints(t, s, 4)
		},
		"a failed mint keeps what is held": func(t *testing.T, s *refreshtest.Source) {
			first := token(t, s, "")
			refused := &refresh.Error{Class: refresh.Misconfigured, Text: "refused"}
			s.Fail = func(refresh.MintKey) error { return refused }
			if _, err := s.Token(t.Context(), key, first.Hash); !errors.Is(err, refused) {
				t.Errorf("got %v, want %v", err, refused)
			}
			if held, ok := s.Held(key); !ok || held != first {
				t.Errorf("holds %v, want %v", held, first)
			}
			mints(t, s, 2)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { test(t, &refreshtest.Source{}) })
		})
	}
}
