package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"flux-token-refresher/internal/config"
)

// TestDocumentedFilesLoad: what a user copies from the documentation is a configuration.
func TestDocumentedFilesLoad(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	defaults, err := config.Parse("config.yaml", []byte(smallest), in())
	if err != nil {
		t.Fatal(err)
	}
	examples := 0
	for _, page := range append(pages, "../../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, example := range yamlBlocks(string(text)) {
			if !strings.Contains(example, "apiVersion: flux-token-refresher") {
				continue
			}
			examples++
			c, err := config.Parse(page, []byte(example), in())
			if err != nil {
				t.Error(err)
				continue
			}
			// What is said to be the default is what a file gets that leaves it out.
			c.Events.Senders = nil // there is no default
			got := []any{c.Refresh, c.Verify, c.Events, c.Election, c.HealthAddress}
			want := []any{defaults.Refresh, defaults.Verify, defaults.Events, defaults.Election, defaults.HealthAddress}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: not the defaults (-are +said):\n%s", page, diff)
			}
		}
	}
	if examples < 6 {
		t.Errorf("found %d examples: are they still marked as yaml?", examples)
	}
}

// yamlBlocks gives each block that is marked as yaml, with as many empty lines before it as stand before it on its page, so
// that what is said of it has the page's lines.
func yamlBlocks(page string) []string {
	var blocks []string
	lines := strings.Split(page, "\n")
	for i := 0; i < len(lines); i++ {
		if lines[i] != "```yaml" {
			continue
		}
		block := strings.Repeat("\n", i+1)
		for i++; i < len(lines) && lines[i] != "```"; i++ {
			block += lines[i] + "\n"
		}
		blocks = append(blocks, block)
	}
	return blocks
}
