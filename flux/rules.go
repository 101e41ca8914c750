// The rules of Classify, in the order in which they are tried. What looks like a rejected token and is not comes first, then what is
// certain, then what only the server can settle.

package flux

import (
	"slices"
	"strings"
)

type rule struct {
	name    string
	verdict Verdict
	matches func(findings) bool
}

// ruleURLUser: spec.url names a user, as the URLs do that Azure DevOps' clone button gives (https://org@dev.azure.com/…), and Flux
// takes none beside a bearer token.
const ruleURLUser = "url-user"

// unread are the rules that need no message.
var unread = []rule{
	// Every failure has severity error. It is not demanded, so that a Ready condition can be classified too.
	{"severity", Unrelated, func(f findings) bool { return f.severity == "info" || f.severity == "trace" }},

	// A Kustomization or a HelmRelease reads what a source has fetched; what it cannot fetch is an artifact.
	{"kind", Unrelated, func(f findings) bool { return f.kind != "" && !slices.ContainsFunc(kinds, named(f.kind)) }},

	// Stalled until somebody changes the object (source-controller api/v1, fluxcd/pkg apis/meta).
	{"reason", Unrelated, func(f findings) bool { return slices.Contains(stalled, f.reason) }},
}

var rules = []rule{
	// The Secret of the object is not there: "failed to get secret 'ns/n': … secrets "n" not found" (GitRepository), "failed to
	// get authentication secret" (HelmRepository), "failed to get auth secret" (image-automation-controller), "failed to configure
	// authentication options: secrets "n" not found" (image-reflector-controller), "auth secret error" (before 1.0).
	{"secret-missing", AuthFailure, func(f findings) bool {
		return contains(f.head, "secret ~ not found", "secrets ~ not found") && contains(f.head, "failed to get secret", "failed to get auth secret",
			"failed to get authentication secret", "authentication options: secret", "auth secret error: secret")
	}},

	// Other Secrets (certificates, proxies, signatures), and Secrets that the API server did not give: no token of ours in it.
	{"secret-unreadable", Unrelated, func(f findings) bool { return otherSecret.matches(f.head) }},

	{ruleURLUser, Unrelated, heads("basic auth and bearer token cannot be set at the same time")},

	// The Secret does not fit the object. Its own watch puts back what we wrote; the rest is for people.
	{"secret-malformed", Unrelated, heads("failed to configure authentication options", " auth option",
		" auth method", "cannot be sent over http", "url cannot contain credentials", " secret data", "no auth config for", "github app data",
		"ssh identity key is encrypted")},

	// spec.provider: the controller's own identity at a cloud failed, and no Secret was read. "AWS authentication failed: …"
	// comes with reason AuthenticationFailed and any status.
	{"provider-identity", Unrelated, heads("aws authentication failed", "aadsts", "failed to get credential", "defaultazurecredential",
		"workloadidentitycredential", "managedidentitycredential", "assumerolewithwebidentity", "service account annotation", "feature gate")},

	// net/http's text of a 407, and libgit2's.
	{"proxy", Unrelated, func(f findings) bool {
		return f.status == "407" || contains(f.head, "proxy authentication required", "proxyconnect")
	}},

	// A deploy key failed, and a key is no token; go-git says "repository not found" for a key without access, too.
	{"ssh", Unrelated, func(f findings) bool {
		return f.ssh || contains(f.head, "ssh: ", "ssh could not", "ssh agent", "ssh session", "knownhosts: ", "public key authentication", "(publickey",
			"host key")
	}},

	// What Azure DevOps says of a credential that it does not know or that has ended, wherever it says it.
	{"azure-devops-credential", AuthFailure, texts("tf400813", "vs30063", "tf30063", "personal access token used has expired")},

	// A redirect to a page for people: Azure DevOps' answer to most bad tokens (go-git #2200).
	{"sign-in-redirect", AuthFailure, findings.signIn},

	// 401 with go-git of any version, with OCI registries, and with libgit2 ("remote authentication required but no callback
	// set", and "replays" when it has tried).
	{"authentication-required", AuthFailure, heads("authentication required", "requires user authentication", "too many redirects or authentication replays")},

	// Too many requests, with whatever status; a registry then speaks of "authenticating" and "unauthenticated". TF400733 is Azure
	// DevOps' delay of a heavy user.
	{"rate-limit", Unrelated, func(f findings) bool {
		return f.status == "429" || contains(f.text, "rate limit", "rate-limit", "too many requests", "toomanyrequests", "tf400733")
	}},

	// Nobody answered, or nobody that could be trusted. HelmChart calls TLS errors "failed to authenticate with the Helm
	// repository", with reason AuthenticationFailed.
	{"network", Unrelated, heads("dial tcp", "no such host", "server misbehaving", "timeout", "timed out", "deadline exceeded", "context canceled",
		"connection refused", "connection reset", "network is unreachable", "no route to host", "broken pipe", "unexpected eof", ": eof",
		"tls: ", "x509: ", "unknown certificate authority", "server gave http response")},

	// The words of Git hosts, registries and object stores for a credential that is wrong or has ended.
	{"credential-rejected", AuthFailure, func(f findings) bool {
		return expired.matches(f.text) || contains(f.text, "http basic: access denied", "invalid username or password", "invalid username or token",
			"incorrect username or password", "bad credentials", "invalid credentials", "invalid token", "invalid access token",
			"password authentication was removed", "password authentication is not supported", "could not read username for", "could not read password for",
			"invalidaccesskeyid", "access key id you provided does not exist", "signaturedoesnotmatch", "request signature we calculated does not match",
			"security token included in the request is", "invalidauthenticationinfo", "failed to authenticate the request", "failed to authenticate user", "no basic auth credentials")
	}},

	{"status-401", AuthFailure, func(f findings) bool { return f.status == "401" }},

	// Azure DevOps' page to sign in, where Git's protocol was expected, for a client that tells of it: 203, 302, HTML.
	{"azure-devops-page", AuthFailure, func(f findings) bool {
		return f.azure && f.answer == "" && (f.status == "203" || f.status == "302" || f.status == "" && contains(f.head, html...))
	}},

	{"unauthorized", AuthFailure, func(f findings) bool { return unauthorized.matches(f.head) }},

	// 403: a token without the permission, or one of nobody. GitLab and GitHub answer 401 to a bad token, Azure DevOps and registries not
	// always.
	{"forbidden", PossibleAuthFailure, func(f findings) bool {
		return f.answer == "authorization failed" || f.status == "403" || denied.matches(f.head) ||
			contains(f.head, "not have permission", "you need the git ", "code to this project", "code from this project", "required privilege scopes",
				"not authorized to ", "access to repository not granted", "insufficient_scope", "tf401027", "tf401444", "vs403463")
	}},

	// 404 hides what the token may not see: TF401019, GitHub's and GitLab's private repositories. Registries and Helm
	// repositories answer 401 or 403 to that; their 404 is a wrong name.
	{"not-found", PossibleAuthFailure, func(f findings) bool {
		return git(f) && (f.answer == "repository not found" || f.status == "404" ||
			contains(f.head, "tf401019", "tf200016", "vs800075", "could not be found or you", "does not exist or you", "may not have access to this repository",
				"repository ~ not found", "remote: not found"))
	}},

	// HTML or nothing where Git's protocol was expected: a page to sign in, or of a proxy, with a status of 2xx.
	{"not-git", PossibleAuthFailure, func(f findings) bool {
		return git(f) && (contains(f.head, "invalid pkt-len found", "empty input", "invalid content-type", "is this a git repository?") || contains(f.head, html...))
	}},

	// Somewhere else, as single sign-on likes to do; or the repository has moved.
	{"redirect", PossibleAuthFailure, func(f findings) bool {
		return git(f) && (f.redirect != "" || strings.HasPrefix(f.status, "3") || f.status == "203")
	}},
}

var stalled = []string{
	"FeatureGateDisabled", "InvalidProviderConfiguration", "InvalidSTSConfiguration", "URLInvalid", "InvalidURL", "InvalidPath",
	"InsecureConnectionsDisallowed", "UnsupportedConnectionType",
}

var html = []string{"<!doctype html", "<html"}

// Words that are common in sentences count only where a sentence begins.
var (
	otherSecret  = compile(`(?:failed to get|could not find) (?:[\w-]+ ){0,3}secret\b|public keys secret error|is forbidden: user\b`, "secret", "is forbidden: user")
	expired      = compile(`\b(?:token|credentials?) (?:has |have |is |are |was )?(?:been )?(?:expired|revoked)\b|\bexpired ?(?:access )?token\b`, "expired", "revoked")
	unauthorized = compile(`(?m)(?:^|[:;,.]\s*)(?:fatal: )?(?:unauthorized|unauthenticated|not authorized|authentication failed|authentication is required)(?:$|[:;,.\s])`,
		"unauthorized", "unauthenticated", "not authorized", "authentication failed", "authentication is required")
	denied = compile(`(?:^|[:;,]\s*)(?:access )?(?:forbidden|denied)(?:$|[:;,.\s])|\bpermission to \S+ denied\b`, "forbidden", "denied")
)

// named matches the rows of a kind. The group does not matter here: it decides whose Secret is meant, which the Router asks.
func named(name string) func(*kind) bool { return func(k *kind) bool { return k.name == name } }

// git tells that the object pulls with Git, as far as the event says.
func git(f findings) bool {
	return f.kind == "" || f.kind == "GitRepository" || f.kind == "ImageUpdateAutomation"
}

// heads matches what Flux and its client say, texts what the server says, too.
func heads(phrases ...string) func(findings) bool {
	return func(f findings) bool { return contains(f.head, phrases...) }
}

func texts(phrases ...string) func(findings) bool {
	return func(f findings) bool { return contains(f.text, phrases...) }
}

func contains(s string, phrases ...string) bool {
	return slices.ContainsFunc(phrases, func(phrase string) bool { return strings.Contains(s, phrase) })
}
