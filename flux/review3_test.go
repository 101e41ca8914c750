package flux_test

// Bugs that a review found: each test fails as long as its bug is there.

import (
	"testing"
	"testing/synctest"
	"time"

	"flux-token-refresher/flux"
)

// The leader before wrote a new token and died before it told the readers. The next one's request is coalesced, because the failure is older
// than the token; the reader is woken all the same, and not left to source-controller's 15 minutes.
func TestReview3NewTermWakesWhoFailedWithTheTokenBefore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := installed()
		s.put("GitRepository", "apps", "repo", all(reads("target"), fails(time.Now())))
		pass(10 * time.Second) // the token is written, the leader dies
		w := lead(t, s)
		pass(time.Minute)
		if names, _ := s.woken(); len(names) != 1 {
			t.Errorf("woken %q a minute into the next term, after %d asks", names, len(w.requested()))
		}
		w.end()
	})
}

// One ask for a failure is not enough: it may have ended without another token (Failed while the identity was misconfigured, StillValid
// while one of two servers still took the token, coalesced because clocks differ). The words, and so the condition, stay the same.
func TestReview3NetAsksAgainWhileTheObjectKeepsFailing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := installed()
		w := lead(t, s)
		s.put("GitRepository", "apps", "repo", all(reads("target"), fails(time.Now())))
		pass(time.Hour)
		if asks := w.requested(); len(asks) < 2 {
			t.Errorf("an object that fails for an hour was asked for %d times", len(asks))
		}
		w.end()
	})
}

// The reason why a server gives no answer (its certificate, DNS, a firewall) reaches whoever asks.
func TestReview3TrySaysWhyAServerIsSilent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := installed()
		s.put("GitRepository", "apps", "repo", func(o object) {
			o["spec"] = object{"url": "https://git.example.com/silent", "secretRef": object{"name": "target"}}
		})
		w := lead(t, s)
		trial, err := w.Try(t.Context(), target, token(), false)
		if err != nil || trial.Silent != 1 || trial.Why == "" {
			t.Errorf("%+v, %v; want why it is silent", trial, err)
		}
		w.end()
	})
}

// The same refusals in other words than the labelled ones: statuses as clients spell them, and what Git hosts and object stores say.
func TestReview3OtherWordsForARejectedCredential(t *testing.T) {
	t.Parallel()
	const clone = "failed to checkout and determine revision: unable to clone 'https://git.example.com/ops/fleet.git': "
	for _, tail := range []string{
		"server responded with HTTP/2 401",
		"HTTP code 401",
		"401 (Unauthorized)",
		"error: 401",
		"bad response code: 401",
		"clone failed\nUnauthorized\n",
		"The requested resource requires user authentication: https://dev.azure.com/contoso",
		"remote: Failed to authenticate user",
		"The security token included in the request is expired",
		"The security token included in the request is invalid.",
	} {
		if got := flux.Classify(git(clone + tail)); got.Verdict != certain {
			t.Errorf("%s by rule %s, want %s: %q", got.Verdict, got.Rule, certain, tail)
		}
	}
	if got := flux.Classify(git(clone + "remote: Write access to repository not granted.")); got.Verdict != possible {
		t.Errorf("%s by rule %s, want %s: GitHub's 403", got.Verdict, got.Rule, possible)
	}
}

// A project's name may end in an apostrophe, which is not the end of the URL that Flux quotes.
func TestReview3ApostropheAtTheEndOfAProject(t *testing.T) {
	t.Parallel()
	for _, remote := range []string{
		"https://dev.azure.com/contoso/Owners'%20Tools/_git/fleet",
		"https://dev.azure.com/contoso/Owners'/_git/fleet",
		"https://dev.azure.com/contoso/Owners' Tools/_git/fleet",
	} {
		got := flux.Classify(git("failed to checkout and determine revision: unable to list remote for '" + remote +
			"': authentication required: TF400813: The user 'aaaaaaaa-aaaa' is not authorized to access this resource."))
		if got.Verdict != certain {
			t.Errorf("%s by rule %s, want %s: %s", got.Verdict, got.Rule, certain, remote)
		}
	}
}
