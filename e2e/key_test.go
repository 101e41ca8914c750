package e2e

// The key that Flux signs with, while it is changed as docs/events.md has it.

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"flux-token-refresher/e2e/internal/installation"
)

// TestKeyIsChanged: while two senders stand in the configuration, each event is taken: before the keys change places, when only Flux knows of it, and
// when the pods know it too.
func TestKeyIsChanged(t *testing.T) {
	t.Parallel()
	var file func(name string) string
	l := newLoop(t, controlPlane, fluxOf(t), newNamespace(t), func(_ *loop, spec *installation.Spec) {
		file = func(name string) string { return filepath.Join(spec.Dir, name) }
		next := fmt.Sprintf(`{name: flux-next, hmacKeyFile: %q, namespaces: ["*"]}`, file("next"))
		spec.Edit = func(config string) string {
			return strings.Replace(config, "senders: [", "senders: ["+next+", ", 1)
		}
	})
	old, key := l.sources.key, rand.Text()+rand.Text()
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(file(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("next", key)
	l.start(t, "")
	awaitSecret(t, l.Installation, credential, sound(l.Installation))
	for n, step := range []struct {
		sender string // who the event is from
		change func()
	}{
		{"flux", func() { l.sources.notify(t, l.events) }},
		{"flux-next", func() {
			l.sources.key = key
			l.sources.notify(t, l.events)
		}},
		{"flux", func() {
			write("hmac", key)
			write("next", old)
		}},
	} {
		step.change()
		seen := len(l.spans.Spans(isRequest))
		l.round(t, fmt.Sprintf("source-%d", n), true)
		for _, event := range l.spans.Spans(isRequest)[seen:] {
			if got := event.Attributes["event.sender"]; got != step.sender {
				t.Errorf("step %d: the event is from %s, want %s", n+1, got, step.sender)
			}
		}
	}
}
