// Tokens from az: a script stands for it, which does what a test has written down for its tenant.

package azure_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure/azuretest"
)

// az is found by its tenant, because PATH belongs to the whole process.
const az = `#!/bin/sh
arguments="$*"
while [ $# -gt 1 ]; do
  [ "$1" = --tenant ] && tenant=$2
  shift
done
. "$AZ_TEST_DIR/$tenant"
`

// installAz puts it first in PATH, and gives the folder to remove.
func installAz() (string, error) {
	dir, err := os.MkdirTemp("", "az-")
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "az"), []byte(az), 0o700); err != nil {
		return "", err
	}
	if err := os.Setenv("AZ_TEST_DIR", dir); err != nil {
		return "", err
	}
	return dir, os.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
}

// az says what az does for the bench's tenant: a piece of shell, which has $arguments.
func (b *bench) az(t testing.TB, script string) {
	t.Helper()
	write(t, filepath.Join(os.Getenv("AZ_TEST_DIR"), b.azTenant), script+"\n")
}

func answers(token string, expires time.Time) string {
	return fmt.Sprintf(`echo '{"accessToken": "%s", "expires_on": %d, "tokenType": "Bearer"}'`, token, expires.Unix())
}

func TestAzureCLI(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	end := time.Now().Add(time.Hour)
	want := "account get-access-token -o json --resource " + azuretest.AzureDevOps + " --tenant " + b.azTenant
	b.az(t, `[ "$arguments" = "`+want+`" ] || exit 1
`+answers("one", end))
	first := b.token(t, cli, "")
	if first.Reveal() != "one" || !first.Expires.Equal(end.Truncate(time.Second)) {
		t.Errorf("got %v", first)
	}
	// az keeps a token until five minutes before its end.
	if again := b.token(t, cli, first.Hash); again.Hash != first.Hash || !again.Minted.Equal(first.Minted) {
		t.Errorf("the same token again is %v, was %v", again, first)
	}
	b.az(t, answers("two", end))
	if second := b.token(t, cli, first.Hash); second.Reveal() != "two" {
		t.Errorf("got %v", second)
	}
}

func TestAzureCLIFails(t *testing.T) {
	t.Parallel()
	fails := func(text string) string { return "echo '" + text + "' >&2; exit 1" }
	for _, c := range []struct {
		name, script string
		class        refresh.Class
		code, says   string
	}{
		{"no login", fails("ERROR: Please run 'az login' to setup account."), refresh.Misconfigured, "", "az has no login that serves scope " + cli.Scope},
		{"login ended", fails("ERROR: AADSTS700082: The refresh token has expired due to inactivity. token=" + secret), refresh.Misconfigured, "AADSTS700082", "run az login --tenant "},
		{"Entra's outage", fails("ERROR: AADSTS90033: A transient error has occurred."), refresh.Unavailable, "AADSTS90033", "passing problem"},
		{"something else", fails("Traceback: " + secret), refresh.Misconfigured, "", "see what az account get-access-token says"},
		{"nothing", "exit 0", refresh.Misconfigured, "", "az gave no token"},
		{"no JSON", "echo " + secret, refresh.Misconfigured, "", "az gave no token"},
		{"no token", answers("", time.Now().Add(time.Hour)), refresh.Unavailable, "", "without a token"},
		{"a token that has ended", answers("token", time.Now().Add(-time.Hour)), refresh.Unavailable, "", "has ended already"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, nil)
			b.az(t, strings.ReplaceAll(c.script, "'az login'", `"az login"`))
			got := b.failure(t, cli)
			if got.Class != c.class || got.Code != c.code || !strings.Contains(got.Text, c.says) {
				t.Errorf("got %s %q: %s\nwant %s %q: …%s…", got.Class, got.Code, got.Text, c.class, c.code, c.says)
			}
			if strings.Contains(got.Text, secret) {
				t.Errorf("az's words: %s", got.Text)
			}
		})
	}
	t.Run("hangs", func(t *testing.T) {
		t.Parallel()
		b := newBench(t, func(b *bench) { b.config.Timeout = 300 * time.Millisecond })
		b.az(t, "exec sleep 2") // azidentity ends the shell that it started, and not what that has started
		if got := b.failure(t, cli); got.Class != refresh.Unavailable || !strings.HasSuffix(got.Text, "az did not answer within 300ms") {
			t.Errorf("%s: %s", got.Class, got.Text)
		}
	})
	t.Run("malformed tenant", func(t *testing.T) {
		t.Parallel()
		b := newBench(t, func(b *bench) { b.identity(cli).TenantID = "a; rm -rf /" })
		if got := b.failure(t, cli); got.Class != refresh.Misconfigured || !strings.HasSuffix(got.Text, "is malformed") {
			t.Errorf("%s: %s", got.Class, got.Text)
		}
	})
}

// TestNoAzureCLI is not parallel: PATH belongs to the process.
func TestNoAzureCLI(t *testing.T) {
	b := newBench(t, nil)
	t.Setenv("PATH", t.TempDir())
	if got := b.failure(t, cli); got.Class != refresh.Misconfigured || !strings.Contains(got.Text, "there is no az in PATH") {
		t.Errorf("%s: %s", got.Class, got.Text)
	}
}
