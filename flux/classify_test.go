// What the rules make of real messages, of each answer of each server through each client, and of what only looks alike.

package flux_test

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"flux-token-refresher/flux"
)

const (
	certain   = flux.AuthFailure
	possible  = flux.PossibleAuthFailure
	unrelated = flux.Unrelated
)

func failure(kind, reason, message string) flux.Event {
	return flux.Event{
		InvolvedObject: flux.Object{Kind: kind, Namespace: "flux-system", Name: "flux-system"},
		Severity:       "error", Message: flux.Message(message), Reason: reason,
	}
}

func git(message string) flux.Event { return failure("GitRepository", "GitOperationFailed", message) }

// lines decodes a file of JSON lines in testdata.
func lines[T any](t testing.TB, name string) []T {
	t.Helper()
	file, err := os.Open(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var all []T
	s := bufio.NewScanner(file)
	for s.Scan() {
		var row T
		if err := json.Unmarshal(s.Bytes(), &row); err != nil {
			t.Fatalf("%s:%d: %v", name, len(all)+1, err)
		}
		all = append(all, row)
	}
	if s.Err() != nil || len(all) == 0 {
		t.Fatalf("%s: %d lines: %v", name, len(all), s.Err())
	}
	return all
}

// labelled is a message of which it is known whether a credential was rejected or missing.
type labelled struct {
	Message     string `json:"message"`
	AuthFailure bool   `json:"auth_failure"`
	Ambiguous   bool   `json:"ambiguous"` // text alone cannot settle it
	Reason      string `json:"reason"`
	Kind        string `json:"kind"`
}

func TestLabelled(t *testing.T) {
	t.Parallel()
	for i, row := range lines[labelled](t, "messages.jsonl") {
		want := unrelated
		switch {
		case row.Ambiguous:
			want = possible
		case row.AuthFailure:
			want = certain
		}
		if got := flux.Classify(failure(row.Kind, row.Reason, row.Message)); got.Verdict != want {
			t.Errorf("line %d: %s by rule %s, want %s: %s", i+1, got.Verdict, got.Rule, want, row.Message)
		}
	}
}

// Messages as people posted them, some shortened, and as the sources of Flux and its libraries make them.
func TestCollected(t *testing.T) {
	t.Parallel()
	type collected struct {
		Message, Reason, Kind string
		Verdict               flux.Verdict
	}
	for i, row := range lines[collected](t, "collected.jsonl") {
		if got := flux.Classify(failure(row.Kind, row.Reason, row.Message)); got.Verdict != row.Verdict {
			t.Errorf("line %d: %s by rule %s, want %s: %s", i+1, got.Verdict, got.Rule, row.Verdict, row.Message)
		}
	}
}

// remotes are URLs as Flux quotes them. Each would decide by itself, were it read.
var remotes = []string{
	"https://dev.azure.com/contoso/platform/_git/fleet",
	"https://contoso.visualstudio.com/DefaultCollection/platform/_git/fleet",
	"https://gitlab.example.com/ops/authentication-required.git",
	"https://git.example.com/401/unauthorized",
	"https://dev.azure.com/contoso/My Project/_git/it's an authentication required: no",
	"https://git.example.com/x509:/dial tcp/timeout",
	"https://git.example.com/TF400813/invalid pkt-len found",
	"https://user:p'w\"@git.example.com/_signin",
}

// answers are go-git's words for what a server answered; %s is the remote.
var answers = []struct {
	name, text string
	want       flux.Verdict
}{
	{"401", "authentication required", certain},
	{"401 before 1.0", "authentication required.", certain},
	{"401, no body", "authentication required: ", certain},
	{"401, Azure DevOps", "authentication required: TF400813: The user '' is not authorized to access this resource.", certain},
	{"401, HTML", "authentication required: <!DOCTYPE html><html><body>404 not found, repository not found: timeout</body></html>", certain},
	{"401, limits", "authentication required: rate limit", certain},
	{"401, v6", "authentication required: unexpected requesting \"%s/info/refs?service=git-upload-pack\" status code: 401", certain},
	{"sign-in, v5.18", `http redirect: target "/_signin" does not end with /info/refs`, certain},
	{"sign-in of an organization", `http redirect: target "/contoso/_signin" does not end with /info/refs`, certain},
	{"sign-in, v6", `authentication required: redirect to "/_signin"`, certain},
	{"sign-in loops", `Get "/_signin": http redirect: too many redirects`, certain},
	{"sign-in loops elsewhere", `Get "https://spsprodweu1.vssps.visualstudio.com/_signin?realm=dev.azure.com&reply_to=x": http redirect: too many redirects`, certain},
	{"sign-in at Entra", `Get "https://login.microsoftonline.com/common/oauth2/authorize?client_id=x": http redirect: too many redirects`, certain},
	{"sign-in at GitLab", `http redirect: target "/users/sign_in" does not end with /info/refs`, certain},
	{"401, Git", "remote: Unauthorized\nfatal: Authentication failed for '%s'", certain},
	{"no credential, Git", "fatal: could not read Username for '%s': terminal prompts disabled", certain},
	{"401, curl", "fatal: unable to access '%s': The requested URL returned error: 401", certain},
	{"401, libgit2", "unexpected http status code: 401", certain},
	{"replays, libgit2", "too many redirects or authentication replays", certain},
	{"no credential, libgit2", "remote authentication required but no callback set", certain},
	{"expired PAT", "authorization failed: Access Denied: The Personal Access Token used has expired.", certain},
	{"unknown user", "authorization failed: TF400813: The user 'aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa' is not authorized to access this resource.", certain},
	{"403", "authorization failed", possible},
	{"403, Azure DevOps", "authorization failed: TF401027: You need the Git 'GenericContribute' permission to perform this action.", possible},
	{"403, HTML", "authorization failed: <html>401 Unauthorized, authentication required: timeout</html>", possible},
	{"403, GitHub", "remote: Permission to contoso/unauthorized.git denied to bot.\nfatal: unable to access '%s': The requested URL returned error: 403", possible},
	{"403, GitLab", "remote: You are not allowed to push code to this project.", possible},
	{"403, Bitbucket", "remote: Your credentials lack one or more required privilege scopes.", possible},
	{"404", "repository not found", possible},
	{"404, Azure DevOps", "repository not found: TF401019: The Git repository with name or identifier authentication required does not exist or you do not have permissions for the operation you are attempting.", possible},
	{"404, GitLab", "repository not found: The project you were looking for could not be found or you don't have permission to view it.", possible},
	{"404, Git", "fatal: repository '%s' not found", possible},
	{"HTML", "invalid pkt-len found", possible},
	{"nothing", "empty input", possible},
	{"moved", `http redirect: target "/elsewhere/fleet" does not end with /info/refs`, possible},
	{"429", `unexpected client error: unexpected requesting "%s/info/refs?service=git-upload-pack" status code: 429`, unrelated},
	{"403, limits", "authorization failed: You have exceeded a secondary rate limit.", unrelated},
	{"403, delayed", "authorization failed: TF400733: The request has been canceled: Request was blocked due to exceeding usage of resource 'Concurrency'.", unrelated},
	{"400", `unexpected client error: unexpected requesting "%s/git-upload-pack" status code: 400`, unrelated},
	{"503", `unexpected client error: unexpected requesting "%s/info/refs?service=git-upload-pack" status code: 503`, unrelated},
	{"407", `Get "%s/info/refs?service=git-upload-pack": Proxy Authentication Required`, unrelated},
	{"407, libgit2", "proxy authentication required but no callback set", unrelated},
	{"timeout", `Get "%s/info/refs?service=git-upload-pack": context deadline exceeded (Client.Timeout exceeded while awaiting headers)`, unrelated},
	{"DNS", `Get "%s/info/refs?service=git-upload-pack": dial tcp: lookup authentication-required.example.com on 10.0.0.10:53: no such host`, unrelated},
	{"TLS", `Get "%s/info/refs?service=git-upload-pack": tls: failed to verify certificate: x509: certificate has expired or is not yet valid`, unrelated},
	{"reset", `Post "%s/git-upload-pack": read tcp 10.0.1.181:45594->10.2.0.1:443: read: connection reset by peer`, unrelated},
	{"truncated", "unexpected EOF", unrelated},
	{"branch", `couldn't find remote ref "refs/heads/authentication required"`, unrelated},
	{"branch policy", "command error on refs/heads/unauthorized: TF402455: Pushes to this branch are not permitted", unrelated},
	{"protected", "remote: GitLab: You are not allowed to push code to protected branches on this project.", unrelated},
	{"hook", "command error on refs/heads/401: pre-receive hook declined", unrelated},
	{"object", "object not found", unrelated},
	{"empty", "remote repository is empty", unrelated},
	{"both keys", "basic auth and bearer token cannot be set at the same time", unrelated},
	{"nothing said", "", unrelated},
}

// Every answer means the same, whichever controller ran into it on the way to which repository.
func TestAnswers(t *testing.T) {
	t.Parallel()
	for _, a := range answers {
		for _, remote := range remotes {
			for _, p := range []struct{ kind, text string }{
				{"GitRepository", "failed to checkout and determine revision: unable to list remote for '%s': "},
				{"GitRepository", "failed to checkout and determine revision: unable to clone '%s': "},
				{"GitRepository", "unable to clone '%s', error: "},
				{"ImageUpdateAutomation", "failed to checkout source: unable to clone '%s': "},
				{"ImageUpdateAutomation", "failed to update source: failed to push to remote: "},
				{"", ""},
			} {
				message := strings.ReplaceAll(p.text+a.text, "%s", remote)
				if got := flux.Classify(failure(p.kind, "GitOperationFailed", message)); got.Verdict != a.want {
					t.Errorf("%s: %s by rule %s, want %s: %s", a.name, got.Verdict, got.Rule, a.want, message)
				}
			}
		}
	}
}

// Where the host makes the difference: Azure DevOps shows its page to sign in to those whose token it does not take.
func TestHost(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		remote string
		want   flux.Verdict
	}{
		{"https://dev.azure.com/contoso/platform/_git/fleet", certain},
		{"https://contoso@dev.azure.com:443/contoso/platform/_git/fleet", certain},
		{"https://contoso.VisualStudio.com/platform/_git/fleet", certain},
		{"https://git.example.com/fleet", possible},
		{"https://dev.azure.com@git.example.com/fleet", possible},
		{"https://dev.azure.com.example.com/fleet", possible},
		{"https://git.example.com/dev.azure.com/contoso.visualstudio.com", possible},
	} {
		for _, tail := range []string{
			"unexpected http status code: 203",
			`unexpected client error: unexpected requesting "` + c.remote + `/info/refs?service=git-upload-pack" status code: 302`,
			"<!DOCTYPE html><html><head><title>Sign in</title>",
		} {
			if got := flux.Classify(git("unable to clone '" + c.remote + "': " + tail)); got.Verdict != c.want {
				t.Errorf("%s by rule %s, want %s: %s: %s", got.Verdict, got.Rule, c.want, c.remote, tail)
			}
		}
	}
}

// Registries, Helm repositories and buckets have their own words. Their 404 is a wrong name.
func TestRegistries(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		tail string
		want flux.Verdict
	}{
		{"GET https://registry.example.com/v2/401/manifests/latest: UNAUTHORIZED: authentication required; [map[Action:pull Class: Name:app Type:repository]]", certain},
		{"GET https://registry.example.com/v2/: UNAUTHORIZED: authentication required, visit https://aka.ms/acr/authorization for more information.", certain},
		{"GET https://quay.io/v2/auth?scope=x: UNAUTHORIZED: Could not find robot with specified username", certain},
		{"GET https://harbor.example.com/v2/app: UNAUTHORIZED: unauthorized to access repository: app, action: pull", certain},
		{"unexpected status code 401 Unauthorized: Not Authorized", certain},
		{"failed to authorize: failed to fetch oauth token: unexpected status from POST request to https://registry.example.com/oauth2/token: 401 Unauthorized", certain},
		{`GET "https://registry.example.com/v2/app/tags/list": response status code 401: unauthorized: authentication required`, certain},
		{"failed to fetch https://charts.example.com/index.yaml : 401 Unauthorized", certain},
		{"denied: Your authorization token has expired. Reauthenticate and try again.", certain},
		{"DENIED: Unauthenticated request. Unauthenticated requests do not have permission \"artifactregistry.repositories.downloadArtifacts\"", certain},
		{"The AWS Access Key Id you provided does not exist in our records.", certain},
		{"googleapi: Error 401: Invalid Credentials, authError", certain},
		{"RESPONSE 403: 403 Server failed to authenticate the request. Make sure the value of Authorization header is formed correctly", certain},
		{"GET https://ghcr.io/token?scope=x: DENIED: denied", possible},
		{"denied: requested access to the resource is denied", possible},
		{"failed to fetch https://charts.example.com/index.yaml : 403 Forbidden", possible},
		{"Access Denied.", possible},
		{"GET https://registry.example.com/v2/app/manifests/unauthorized: MANIFEST_UNKNOWN: manifest unknown", unrelated},
		{"GET https://registry.example.com/v2/app/manifests/v1: NAME_UNKNOWN: repository not found", unrelated},
		{"failed to fetch https://charts.example.com/index.yaml : 404 Not Found", unrelated},
		{"no 'unauthorized' chart with version matching '1.0.401' found", unrelated},
		{"TOOMANYREQUESTS: You have reached your unauthenticated pull rate limit. You may increase the limit by authenticating", unrelated},
		{"failed to fetch https://charts.example.com/index.yaml : 503 Service Unavailable", unrelated},
	} {
		for kind, head := range map[string]string{
			"OCIRepository":   "failed to determine artifact digest: ",
			"HelmRepository":  "failed to fetch Helm repository index: failed to cache index to temporary file: ",
			"HelmChart":       "failed to authenticate with the Helm repository: chart pull error: ",
			"Bucket":          "failed to confirm existence of 'authentication-required' bucket: ",
			"ImageRepository": "scan failed: ",
		} {
			if got := flux.Classify(failure(kind, "AuthenticationFailed", head+c.tail)); got.Verdict != c.want {
				t.Errorf("%s by rule %s, want %s: %s%s", got.Verdict, got.Rule, c.want, head, c.tail)
			}
		}
	}
}

// The rules that need no text, and that each rule gives its name.
func TestRules(t *testing.T) {
	t.Parallel()
	const rejected = "unable to clone 'https://git.example.com/fleet': authentication required"
	for _, c := range []struct {
		event flux.Event
		want  flux.Classification
	}{
		{git(rejected), flux.Classification{Verdict: certain, Rule: "authentication-required"}},
		{flux.Event{Message: rejected}, flux.Classification{Verdict: certain, Rule: "authentication-required"}},
		{flux.Event{Message: rejected, Severity: "info"}, flux.Classification{Verdict: unrelated, Rule: "severity"}},
		{flux.Event{Message: rejected, Severity: "trace"}, flux.Classification{Verdict: unrelated, Rule: "severity"}},
		{failure("Kustomization", "BuildFailed", rejected), flux.Classification{Verdict: unrelated, Rule: "kind"}},
		{failure("HelmRelease", "", rejected), flux.Classification{Verdict: unrelated, Rule: "kind"}},
		{failure("GitRepository", "FeatureGateDisabled", rejected), flux.Classification{Verdict: unrelated, Rule: "reason"}},
		{git("failed to get secret 'a/b': failed to get secret 'a/b': secrets \"b\" not found"), flux.Classification{Verdict: certain, Rule: "secret-missing"}},
		{git("failed to get proxy secret 'a/b': secrets \"b\" not found"), flux.Classification{Verdict: unrelated, Rule: "secret-unreadable"}},
		{git("failed to configure authentication options: authentication required"), flux.Classification{Verdict: unrelated, Rule: "secret-malformed"}},
		{git("unable to clone 'ssh://git@ssh.dev.azure.com/v3/a/b/c': repository not found"), flux.Classification{Verdict: unrelated, Rule: "ssh"}},
		{git("worktree contains unstaged changes"), flux.Classification{Verdict: unrelated, Rule: "no-sign"}},
	} {
		if got := flux.Classify(c.event); got != c.want {
			t.Errorf("%+v: %v, want %v", c.event, got, c.want)
		}
	}
}

// Flux's words stand at the beginning, what a server sends can be 90 kB: nothing behind the first 2 KiB counts, wherever they end.
func TestPrefix(t *testing.T) {
	t.Parallel()
	const limit = 2048
	for _, a := range answers {
		head := "unable to clone 'https://git.example.com/fleet': " + strings.ReplaceAll(a.text, "%s", "https://git.example.com/fleet") + " "
		for _, filler := range []string{"é", "🙂"} {
			full := head + strings.Repeat(filler, (limit-len(head))/len(filler)+1)
			want := flux.Classify(git(full))
			for _, behind := range []string{": authentication required", ": TF400813", ": dial tcp", "' "} {
				if got := flux.Classify(git(full + behind)); got != want {
					t.Fatalf("%s, %q, then %q: %v, want %v", a.name, filler, behind, got, want)
				}
			}
		}
	}
	if got := flux.Classify(git(strings.Repeat("prefix: ", limit/8) + "authentication required")); got.Verdict != unrelated {
		t.Errorf("behind the limit: %v", got)
	}
}

func FuzzClassify(f *testing.F) {
	for _, row := range lines[labelled](f, "messages.jsonl") {
		f.Add("GitRepository", row.Reason, row.Message, "")
	}
	for _, a := range answers {
		f.Add("HelmChart", "AuthenticationFailed", "unable to clone '%s': "+a.text, a.text)
	}
	f.Fuzz(func(t *testing.T, kind, reason, message, behind string) {
		got := flux.Classify(failure(kind, reason, message))
		if got.Rule == "" || got.Verdict != certain && got.Verdict != possible && got.Verdict != unrelated {
			t.Errorf("%q: %+v", message, got)
		}
		if len(message) < 2048 || !utf8.ValidString(message) {
			return
		}
		if longer := flux.Classify(failure(kind, reason, message+behind)); longer != got {
			t.Errorf("%q, then %q: %v, then %v", message, behind, got, longer)
		}
	})
}

// A usual message, and the longest that can be made of quotation marks.
func BenchmarkClassify(b *testing.B) {
	const head = "failed to checkout and determine revision: unable to clone 'https://dev.azure.com/contoso/platform/_git/fleet': "
	for name, tail := range map[string]string{"usual": "object not found", "worst": strings.Repeat(" 'a", 30_000)} {
		b.Run(name, func(b *testing.B) {
			e := git(head + tail)
			for b.Loop() {
				flux.Classify(e)
			}
		})
	}
}

// The same refusals in other words than the labelled ones: statuses as clients spell them, and what Git hosts and object stores say.
func TestOtherWordsForARejectedCredential(t *testing.T) {
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
func TestApostropheAtTheEndOfAProject(t *testing.T) {
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
