package config_test

// Whatever the bytes, an error that can be read.

import (
	"errors"
	"strings"
	"testing"

	"flux-token-refresher/internal/config"
)

func FuzzParse(f *testing.F) {
	for _, file := range []string{
		smallest, full, "", "---\n---\n", "- a", "{", "a: *a", "&a [*a]", "<<: {a: b}", "? [a]\n: b",
		with(lastLine, lastLine+"    format: template\n    template: {a: \"{{ range . }}\"}\n"),
		smallest + "events: {senders: [{name: a, namespaces: [~]}], tls: {certFile: 1}}\n",
		smallest + "targets: []\nrefresh: [{}]\nelection: {leaseDuration: 9999999h}\n",
	} {
		f.Add([]byte(file))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := config.Parse("config.yaml", data, in())
		if err == nil {
			for _, target := range c.Targets {
				if len(target.ConfigHash) != 16 || len(target.Format.Keys()) == 0 {
					t.Errorf("half a target: %+v", target)
				}
			}
			return
		}
		var all *config.Error
		if !errors.As(err, &all) || len(all.Problems) == 0 {
			t.Fatalf("an error that says nothing: %#v", err)
		}
		for _, p := range all.Problems {
			if p.Line < 1 || p.Text == "" || strings.ContainsAny(p.Field+p.Text, "\n\r") {
				t.Errorf("a problem that cannot be shown: %#v", p)
			}
		}
	})
}
