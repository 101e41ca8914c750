package config_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"flux-token-refresher/internal/config"
)

// TestDocumentedFilesLoad: what a user copies from the documentation is a configuration, or a part of one. A yaml block that has kind: Config
// is a file; one whose first line is "# config.yaml" is what a reader adds to a file. Any other is something else's, and says what.
func TestDocumentedFilesLoad(t *testing.T) {
	t.Parallel()
	pages := pages(t)
	defaults, err := config.Parse("config.yaml", []byte(smallest), in())
	if err != nil {
		t.Fatal(err)
	}
	files, parts := 0, 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		configs := 0
		for _, block := range yamlBlocks(string(text)) {
			line, content := strings.Count(block, "\n"), strings.TrimLeft(block, "\n")
			line -= strings.Count(content, "\n")
			switch {
			case strings.Contains(content, "kind: Config\n"):
				configs++
			case strings.HasPrefix(content, "# config.yaml\n"):
				block = smallest + strings.TrimPrefix(block, strings.Repeat("\n", strings.Count(smallest, "\n")))
				parts++
			case strings.Contains(content, "kind: "), strings.HasPrefix(content, "# values.yaml\n"), strings.HasPrefix(content, "# kustomization.yaml\n"):
				continue
			default:
				t.Errorf("%s:%d: what is it? Write a whole file, or begin a part of one with # config.yaml", page, line+1)
				continue
			}
			c, err := config.Parse(page, []byte(block), in())
			if err != nil {
				t.Error(err)
				continue
			}
			// What is said to be the default is what a file gets that leaves it out.
			c.Events.Senders = nil // there is no default, nor of files
			c.Events.TLSCertFile, c.Events.TLSKeyFile, c.Events.ClientCAFile = "", "", ""
			got := []any{c.Refresh, c.Verify, c.Events, c.Election, c.HealthAddress}
			want := []any{defaults.Refresh, defaults.Verify, defaults.Events, defaults.Election, defaults.HealthAddress}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: not the defaults (-are +said):\n%s", page, diff)
			}
		}
		if shown := strings.Count(string(text), "apiVersion: flux-token-refresher"); shown != configs {
			t.Errorf("%s shows %d configurations, and %d of them in blocks marked as yaml", page, shown, configs)
		}
		files += configs
	}
	if files < 6 || parts < 2 {
		t.Errorf("found %d files and %d parts of files: are they still marked as yaml?", files, parts)
	}
}

// pages are those that a user reads.
func pages(t *testing.T) []string {
	t.Helper()
	var pages []string
	for _, folder := range []string{"../..", "../../docs"} {
		found, err := filepath.Glob(filepath.Join(folder, "*.md"))
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, found...)
	}
	return pages
}

// fence begins a block that is marked as yaml, in a list too.
var fence = regexp.MustCompile("^( *)```yaml$")

// yamlBlocks gives each block that is marked as yaml, without the indentation of a list and with as many empty lines before it as stand before
// it on its page, so that what is said of it has the page's lines.
func yamlBlocks(page string) []string {
	var blocks []string
	lines := strings.Split(page, "\n")
	for i := 0; i < len(lines); i++ {
		begin := fence.FindStringSubmatch(lines[i])
		if begin == nil {
			continue
		}
		indent := begin[1]
		block := strings.Repeat("\n", i+1)
		for i++; i < len(lines) && lines[i] != indent+"```"; i++ {
			block += strings.TrimPrefix(lines[i], indent) + "\n"
		}
		blocks = append(blocks, block)
	}
	return blocks
}
