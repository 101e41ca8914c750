package e2e

// What the packages that know nothing of each other have in common.

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"flux-token-refresher/events"
	"flux-token-refresher/flux"
)

// TestWordsOfEvents: events and flux mean the same.
func TestWordsOfEvents(t *testing.T) {
	t.Parallel()
	ours := []string{flux.EventType, string(flux.AuthFailure), string(flux.PossibleAuthFailure), string(flux.Unrelated), string(flux.RefreshRequested)}
	theirs := []string{
		events.TypeFlux, string(events.AuthFailure), string(events.PossibleAuthFailure), string(events.Unrelated), string(events.RefreshRequested),
	}
	if diff := cmp.Diff(theirs, ours); diff != "" {
		t.Errorf("events (-) and flux (+):\n%s", diff)
	}
}
