package rbac_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"

	"flux-token-refresher/internal/rbac"
)

// TestDocumentedRights: the table of docs/security.md has each rule that a configuration with one of everything needs, and no other.
func TestDocumentedRights(t *testing.T) {
	t.Parallel()
	names := map[string][]string{
		"each target":                 {"a-target", "created"},
		"targets with `create: true`": {"created"},
		"each `credentialSecret`":     {"credential"},
		"each `serviceAccount`":       {"account"},
		"the Lease":                   {"lease"},
		"any":                         nil,
	}
	c := parse(t, `
identities:
  - {name: id, type: clientSecret, credentialSecret: tokens/credential}
  - {name: account, type: workloadIdentity, serviceAccount: tokens/account}
targets: [{secret: tokens/a-target, identity: id}, {secret: tokens/created, identity: id, create: true}]
election: {lease: tokens/lease}`)
	var want []string
	for _, object := range rbac.Objects(c, account) {
		if role, ok := object.(*rbacv1.Role); ok {
			for _, r := range role.Rules {
				want = append(want, fmt.Sprint(r.APIGroups, r.Resources, r.Verbs, r.ResourceNames))
			}
		}
	}

	page, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	code := regexp.MustCompile("`([^`]+)`")
	words := func(cell string) []string {
		var out []string
		for _, word := range code.FindAllStringSubmatch(cell, -1) {
			out = append(out, word[1])
		}
		return out
	}
	var got []string
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(line, " | ")
		if !strings.HasPrefix(line, "| `") || len(cells) != 5 {
			continue
		}
		resources, group, grouped := strings.Cut(strings.TrimPrefix(cells[0], "| "), " of ")
		groups := []string{""}
		if grouped {
			groups = words(group)
		}
		limit, known := names[cells[2]]
		if !known {
			t.Errorf("names that nothing is known of: %s", cells[2])
		}
		got = append(got, fmt.Sprint(groups, words(resources), words(cells[1]), limit))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the table (-granted +documented)\n%s", diff)
	}
}
