// Package azure tests what deploy/azure has, without Azure: the script against a stand-in for az, and that it, the Terraform
// configuration and the Bicep template give the same identity.
package azure

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const script = "../../deploy/azure/setup.sh"

// arguments of a whole setup; --issuer or --aks-cluster comes beside them.
var arguments = []string{"--organization", "example-org", "--project", "Fleet & Co", "--repository", "fleet",
	"--resource-group", "flux", "--location", "westeurope"}

const issuer = "https://westeurope.oic.prod-aks.azure.com/5e46c442-89f0-4452-b132-3336eaeec3fc/00000000-0000-0000-0000-000000000002/"

// steps of a whole setup, as the script calls them, and how many of them change what.
var steps = []string{
	"create   resource group flux",
	"create   managed identity flux-token-refresher",
	"create   federated credential flux-token-refresher for system:serviceaccount:flux-system:flux-token-refresher of " + issuer,
	"add      member of the organization example-org, licence Basic",
	"add      member of the group Readers of Fleet & Co",
	"create   group flux-token-refresher in Fleet & Co",
	"add      member of the group flux-token-refresher",
	"add      right of the group flux-token-refresher to read, contribute and create branches in fleet",
}

// everything is what is so after them.
var everything = []string{"resource group", "identity", "credential", "member", "reader", "group", "contributor", "right"}

const identityFound = "AZURE_CLIENT_ID=a9a6a563-c4c6-42cd-8bd6-90259e8f99f4\nAZURE_TENANT_ID=5e46c442-89f0-4452-b132-3336eaeec3fc\n"

// An azure is a stand-in for az, and the state that it keeps.
type azure struct {
	dir string
}

// newAzure gives one in which that is so.
func newAzure(t *testing.T, so ...string) azure {
	t.Helper()
	record, err := os.ReadFile("testdata/az.json")
	if err != nil {
		t.Fatal(err)
	}
	w := world{So: so}
	if err := json.Unmarshal(record, &w.Exchanges); err != nil {
		t.Fatal(err)
	}
	a := azure{dir: t.TempDir()}
	a.set(t, w)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(a.dir, "az")); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a azure) world(t *testing.T) world {
	t.Helper()
	w, err := readWorld(a.dir)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (a azure) set(t *testing.T, w world) {
	t.Helper()
	if err := w.write(a.dir); err != nil {
		t.Fatal(err)
	}
}

// failAt lets the change with that number, from 1, fail.
func (a azure) failAt(t *testing.T, change int) {
	t.Helper()
	w := a.world(t)
	w.FailAt = change
	a.set(t, w)
}

// setup runs the script with those arguments, and gives its exit code and what it wrote.
func (a azure) setup(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, "bash", append([]string{script}, args...)...)
	command.Env = append(os.Environ(), "PATH="+a.dir+string(os.PathListSeparator)+os.Getenv("PATH"), worldEnv+"="+a.dir,
		"GORACE=atexit_sleep_ms=0") // a second for each call of az otherwise, where the race detector is on
	var out, err bytes.Buffer
	command.Stdout, command.Stderr = &out, &err
	failed := command.Run()
	var exit *exec.ExitError
	if failed != nil && !errors.As(failed, &exit) || ctx.Err() != nil {
		t.Fatalf("setup.sh: %v\n%s", failed, err.String())
	}
	return command.ProcessState.ExitCode(), out.String(), err.String()
}

// succeed is setup, for a run that has to end well.
func (a azure) succeed(t *testing.T, args ...string) (stdout, stderr string) {
	t.Helper()
	code, stdout, stderr := a.setup(t, args...)
	if code != 0 {
		t.Fatalf("exit code %d\n%s", code, stderr)
	}
	return stdout, stderr
}

// done gives the lines of stderr that say of a change that it is made.
func done(stderr string) []string {
	var lines []string
	for line := range strings.Lines(stderr) {
		switch word, _, _ := strings.Cut(line, " "); word {
		case "create", "add", "update":
			lines = append(lines, strings.TrimSuffix(line, "\n"))
		}
	}
	return lines
}

func TestSetup(t *testing.T) {
	t.Parallel()
	for _, cluster := range [][]string{{"--issuer", issuer}, {"--aks-cluster", "cluster"}} {
		t.Run(cluster[0], func(t *testing.T) {
			t.Parallel()
			a := newAzure(t)
			args := append(slices.Clone(arguments), cluster...)
			stdout, stderr := a.succeed(t, args...)
			if diff := cmp.Diff(identityFound, stdout); diff != "" {
				t.Errorf("stdout (-want +got)\n%s", diff)
			}
			if diff := cmp.Diff(steps, done(stderr)); diff != "" {
				t.Errorf("done (-want +got)\n%s", diff)
			}
			next := "kubectl -n flux-system annotate --overwrite serviceaccount flux-token-refresher azure.workload.identity/client-id=a9a6a563-c4c6-42cd-8bd6-90259e8f99f4"
			if !strings.Contains(stderr, next) {
				t.Errorf("it does not say: %s\n%s", next, stderr)
			}
			first := a.world(t)
			if diff := cmp.Diff(everything, first.So); diff != "" {
				t.Errorf("so (-want +got)\n%s", diff)
			}

			// A second run says the same and changes nothing.
			stdout, stderr = a.succeed(t, args...)
			if diff := cmp.Diff(identityFound, stdout); diff != "" {
				t.Errorf("stdout of the second run (-want +got)\n%s", diff)
			}
			if second := a.world(t); len(second.Changes) != len(first.Changes) || len(done(stderr)) > 0 {
				t.Errorf("the second run changed something: %q\n%s", second.Changes[len(first.Changes):], stderr)
			}
		})
	}
}

// TestSetupOtherAccount: another ServiceAccount is most often a team's, which no Deployment of ours runs as, and which takes nothing from the
// environment of the pods.
func TestSetupOtherAccount(t *testing.T) {
	t.Parallel()
	a := newAzure(t)
	w := a.world(t)
	for i := range w.Exchanges {
		w.Exchanges[i].Call = strings.ReplaceAll(w.Exchanges[i].Call, ":flux-system:flux-token-refresher", ":team-a:repos")
	}
	a.set(t, w)
	_, stderr := a.succeed(t, append(slices.Clone(arguments), "--issuer", issuer, "--namespace", "team-a", "--service-account", "repos")...)
	next := "kubectl -n team-a annotate --overwrite serviceaccount repos azure.workload.identity/client-id=a9a6a563-c4c6-42cd-8bd6-90259e8f99f4" +
		" azure.workload.identity/tenant-id=5e46c442-89f0-4452-b132-3336eaeec3fc\n"
	if !strings.Contains(stderr, next) {
		t.Errorf("it does not say: %s\n%s", next, stderr)
	}
	for _, other := range []string{"rollout", "helm"} {
		if strings.Contains(stderr, other) {
			t.Errorf("it speaks of %s:\n%s", other, stderr)
		}
	}
}

// TestSetupReadOnly: without a repository nothing grants more than to read.
func TestSetupReadOnly(t *testing.T) {
	t.Parallel()
	a := newAzure(t)
	_, stderr := a.succeed(t, "--organization", "example-org", "--project", "Fleet & Co", "--resource-group", "flux",
		"--location", "westeurope", "--issuer", issuer)
	if diff := cmp.Diff(steps[:5], done(stderr)); diff != "" {
		t.Errorf("done (-want +got)\n%s", diff)
	}
}

// TestSetupDryRun: it changes nothing, and names exactly what a run would change then.
func TestSetupDryRun(t *testing.T) {
	t.Parallel()
	// What is so before it: nothing, ever more, and all.
	for n := range len(everything) + 1 {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			a := newAzure(t, everything[:n]...)
			args := append(slices.Clone(arguments), "--issuer", issuer)
			stdout, stderr := a.succeed(t, append(slices.Clone(args), "--dry-run")...)
			if stdout != "" {
				t.Errorf("stdout: %s", stdout)
			}
			if w := a.world(t); len(w.Changes) > 0 || !slices.Equal(w.So, everything[:n]) {
				t.Errorf("it changed %q", w.Changes)
			}
			var would []string
			for line := range strings.Lines(stderr) {
				if line, ok := strings.CutPrefix(line, "would "); ok {
					verb, step, _ := strings.Cut(strings.TrimSuffix(line, ":\n"), " ")
					would = append(would, fmt.Sprintf("%-8s %s", verb, step))
				}
			}
			if diff := cmp.Diff(steps[n:], would, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("would (-want +got)\n%s", diff)
			}
			_, stderr = a.succeed(t, args...)
			if diff := cmp.Diff(would, done(stderr)); diff != "" {
				t.Errorf("done after the dry run (-said +did)\n%s", diff)
			}
		})
	}
}

// TestSetupStopped: whichever change fails, the run says which, and the next one makes what is missing and nothing else.
func TestSetupStopped(t *testing.T) {
	t.Parallel()
	for n, step := range steps {
		t.Run(fmt.Sprint(n+1), func(t *testing.T) {
			t.Parallel()
			a := newAzure(t)
			a.failAt(t, n+1)
			args := append(slices.Clone(arguments), "--issuer", issuer)
			code, stdout, stderr := a.setup(t, args...)
			if _, what, _ := strings.Cut(step, " "); code != 1 || stdout != "" || !strings.Contains(stderr, "stopped at: "+strings.TrimSpace(what)+".") {
				t.Errorf("exit code %d, stdout %q, stderr:\n%s", code, stdout, stderr)
			}
			if diff := cmp.Diff(steps[:n+1], done(stderr)); diff != "" {
				t.Errorf("begun (-want +got)\n%s", diff)
			}
			stdout, stderr = a.succeed(t, args...)
			if stdout != identityFound {
				t.Errorf("stdout %q", stdout)
			}
			if diff := cmp.Diff(steps[n:], done(stderr)); diff != "" {
				t.Errorf("done by the second run (-want +got)\n%s", diff)
			}
			if diff := cmp.Diff(everything, a.world(t).So); diff != "" {
				t.Errorf("so (-want +got)\n%s", diff)
			}
		})
	}
}

// TestSetupMends: what is there and differs is changed, and nothing else.
func TestSetupMends(t *testing.T) {
	t.Parallel()
	without := func(fact string) []string {
		return slices.DeleteFunc(slices.Clone(everything), func(so string) bool { return so == fact })
	}
	tests := map[string]struct {
		so   []string
		want string
	}{
		"a credential of another cluster": {
			so:   append(without("credential"), "credential of another cluster"),
			want: "update" + strings.TrimPrefix(steps[2], "create"),
		},
		"too small a licence": {
			so:   append(slices.Clone(everything), "Stakeholder"),
			want: "update" + strings.TrimPrefix(steps[3], "add   "),
		},
		"fewer rights": {
			so:   append(without("right"), "right to read alone"),
			want: steps[7],
		},
		"no reader": {
			so:   without("reader"),
			want: steps[4],
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAzure(t, test.so...)
			_, stderr := a.succeed(t, append(slices.Clone(arguments), "--issuer", issuer)...)
			if diff := cmp.Diff([]string{test.want}, done(stderr)); diff != "" {
				t.Errorf("done (-want +got)\n%s", diff)
			}
			so := a.world(t).So
			for _, fact := range everything {
				if !slices.Contains(so, fact) {
					t.Errorf("not so: %s", fact)
				}
			}
			if len(so) != len(everything) {
				t.Errorf("so: %q", so)
			}
		})
	}
}

// TestSetupRefused: what is asked wrongly is told before az is called at all.
func TestSetupRefused(t *testing.T) {
	t.Parallel()
	whole := append(slices.Clone(arguments), "--issuer", issuer)
	replaced := func(flag, value string) []string {
		args := slices.Clone(whole)
		if i := slices.Index(args, flag); i >= 0 {
			args[i+1] = value
			return args
		}
		return append(args, flag, value)
	}
	tests := map[string]struct {
		args []string
		want string
	}{
		"nothing":                   {nil, "usage: setup.sh"},
		"no cluster":                {arguments, "give --issuer or --aks-cluster"},
		"two clusters":              {append(slices.Clone(whole), "--aks-cluster", "cluster"), "give one"},
		"an unknown argument":       {append(slices.Clone(whole), "--dryrun"), "unknown argument '--dryrun'"},
		"a value left out":          {[]string{"--organization", "--project", "x"}, "--organization needs a value"},
		"the last value left out":   {[]string{"--organization"}, "--organization needs a value"},
		"a URL as organization":     {replaced("--organization", "https://dev.azure.com/example-org"), "is not the name of an organization"},
		"an issuer over http":       {replaced("--issuer", "http://issuer.example"), "is not an https URL"},
		"a quote in the identity":   {replaced("--identity", "x' || '"), "is not the name of a managed identity"},
		"too short an identity":     {replaced("--identity", "ab"), "is not the name of a managed identity"},
		"a subject as namespace":    {replaced("--namespace", "a:b"), "is not the name of a namespace"},
		"an account with a capital": {replaced("--service-account", "Flux"), "is not the name of a ServiceAccount"},
		"a slash in the group":      {replaced("--resource-group", "a/b"), "is not the name of a resource group"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAzure(t)
			code, stdout, stderr := a.setup(t, test.args...)
			if code != 2 || stdout != "" || !strings.Contains(stderr, test.want) || strings.Contains(stderr, "stopped at") {
				t.Errorf("exit code %d, stdout %q, want %q on stderr:\n%s", code, stdout, test.want, stderr)
			}
			if w := a.world(t); len(w.Calls) > 0 {
				t.Errorf("az was called: %q", w.Calls)
			}
		})
	}
}

// TestSetupHelp: what --help lists is what is taken.
func TestSetupHelp(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := newAzure(t).setup(t, "--help")
	flags := regexp.MustCompile(`(?m)^  (--[a-z-]+)`).FindAllStringSubmatch(stdout, -1)
	if code != 0 || stderr != "" || len(flags) != 12 {
		t.Fatalf("exit code %d, %d flags, stderr %q", code, len(flags), stderr)
	}
	for _, flag := range flags[:11] { // the last one is --dry-run
		if _, _, stderr := newAzure(t).setup(t, flag[1]); !strings.Contains(stderr, flag[1]+" needs a value") {
			t.Errorf("%s is not taken: %s", flag[1], stderr)
		}
	}
}

// TestSetupFails: what is found wrong ends the run with what to do.
func TestSetupFails(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		so      []string
		args    []string
		code    int
		want    string
		changes int
	}{
		"a cluster without issuer": {
			so:   []string{"cluster without issuer"},
			args: append(slices.Clone(arguments), "--aks-cluster", "cluster"),
			code: 1,
			want: "az aks update --name cluster --resource-group flux --enable-oidc-issuer --enable-workload-identity",
		},
		"a project that is not there": {
			args: []string{"--organization", "example-org", "--project", "Elsewhere", "--resource-group", "flux", "--issuer", issuer},
			code: 1,
			want: "TF200016",
		},
		"a resource group that is not there, and nowhere to create it": {
			args: []string{"--organization", "example-org", "--project", "Fleet & Co", "--resource-group", "flux", "--issuer", issuer},
			code: 2,
			want: "give --location",
		},
		"refused with a 200": {
			so:      []string{"identity unknown to Azure DevOps"},
			args:    append(slices.Clone(arguments), "--issuer", issuer),
			code:    1,
			want:    "Azure DevOps refused: VS860016",
			changes: 3,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAzure(t, test.so...)
			code, stdout, stderr := a.setup(t, test.args...)
			if code != test.code || stdout != "" || !strings.Contains(stderr, test.want) {
				t.Errorf("exit code %d, want %d; stdout %q; want %q on stderr:\n%s", code, test.code, stdout, test.want, stderr)
			}
			if w := a.world(t); len(w.Changes) != test.changes {
				t.Errorf("changed %q, want %d changes", w.Changes, test.changes)
			}
		})
	}
}

// TestDocumentedSetup: what docs/azure.md has of the script is a dry run, and without --dry-run the setup.
func TestDocumentedSetup(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/azure.md")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(page), "\\\n", "")
	begin := strings.Index(text, "deploy/azure/setup.sh --organization")
	if begin < 0 {
		t.Fatal("docs/azure.md does not call the script")
	}
	line, _, _ := strings.Cut(text[begin:], "\n")
	var args []string
	for _, word := range strings.Fields(line)[1:] {
		if value, ok := map[string]string{
			"ORG": "example-org", "PROJECT": "Fleet & Co", "REPOSITORY": "fleet", "GROUP": "flux", "LOCATION": "westeurope", "CLUSTER": "cluster",
		}[word]; ok {
			word = value
		}
		args = append(args, word)
	}
	dryRun := slices.Index(args, "--dry-run")
	if dryRun < 0 {
		t.Fatalf("it is no dry run: %q", args)
	}
	a := newAzure(t)
	a.succeed(t, args...)
	if w := a.world(t); len(w.Changes) > 0 {
		t.Errorf("it changed %q", w.Changes)
	}
	if stdout, _ := a.succeed(t, slices.Delete(args, dryRun, dryRun+1)...); stdout != identityFound {
		t.Errorf("stdout %q", stdout)
	}
}
