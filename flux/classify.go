// Classify: does an event of Flux tell that a token was rejected? What is read of a message, and how; rules.go has the rules.

package flux

import (
	"net/url"
	"regexp"
	"strings"
	"unicode/utf8"
)

// Verdict is what an event says of the token.
type Verdict string

const (
	// AuthFailure: the server rejected the credential, or there was none.
	AuthFailure Verdict = "auth-failure"
	// PossibleAuthFailure: this is how servers answer a rejected credential, among other things; ask the server.
	PossibleAuthFailure Verdict = "possible-auth-failure"
	// Unrelated: a new token would change nothing.
	Unrelated Verdict = "unrelated"
)

// Classification is a Verdict and the name of the rule that gave it.
type Classification struct {
	Verdict Verdict
	Rule    string
}

// Classify reads severity, kind, reason and the beginning of the message: the first rule that matches decides. It does not
// see names that a person chose (URLs, refs, what is quoted), and takes nothing from them but the host and the scheme.
func Classify(e Event) Classification {
	f := findings{severity: e.Severity, kind: e.InvolvedObject.Kind, reason: e.Reason}
	if r, ok := matching(unread, f); ok {
		return r
	}
	f.read(string(e.Message))
	if r, ok := matching(rules, f); ok {
		return r
	}
	return Classification{Unrelated, "no-sign"}
}

func matching(rules []rule, f findings) (Classification, bool) {
	for _, r := range rules {
		if r.matches(f) {
			return Classification{r.verdict, r.name}, true
		}
	}
	return Classification{}, false
}

// pattern is an expression, and words one of which is in whatever it matches: most messages have none, and words are found a
// hundred times faster.
type pattern struct {
	*regexp.Regexp
	words []string
}

func compile(expression string, words ...string) pattern {
	return pattern{regexp.MustCompile(expression), words}
}

func (p pattern) matches(s string) bool { return contains(s, p.words...) && p.MatchString(s) }

// find gives the first group that matched, and where it ends; "" when none did.
func (p pattern) find(s string) (group string, end int) {
	if !contains(s, p.words...) {
		return "", 0
	}
	at := p.FindStringSubmatchIndex(s)
	for i := 2; i < len(at); i += 2 {
		if at[i] < at[i+1] {
			return s[at[i]:at[i+1]], at[i+1]
		}
	}
	return "", 0
}

// prefix bounds what is read of a message, in bytes. Flux puts what a server answered at the end, behind prefixes and a URL
// or two; the answer itself can be 90 kB of HTML.
const prefix = 2048

// findings is what a message says, in lower case.
type findings struct {
	severity, kind, reason string
	// head is what Flux and its Git client say, with ~ in the place of each name; it ends where the words of the server begin.
	head string
	// text is head and the beginning of what the server said.
	text string
	// status is the HTTP status that the head names, "" when it names none.
	status string
	// answer is go-git's word for a 401, 403 or 404, when the head ends with one.
	answer string
	// redirect is where the server wanted to send the client.
	redirect string
	// azure, ssh: the message names a host of Azure DevOps, an SSH URL.
	azure, ssh bool
}

var (
	// go-git's ErrAuthenticationRequired, ErrAuthorizationFailed and ErrRepositoryNotFound stand for 401, 403 and 404, and since
	// 5.13 the body follows. An OCI registry's "UNAUTHORIZED: authentication required" reads the same.
	answers = compile(`(?:^|[:;,]\s*)(authentication required|authorization failed|repository not found)\b`,
		"authentication required", "authorization failed", "repository not found")

	// 1xx are no answers, and 128 is how git exits.
	statuses = compile(`\b(?:status(?: code)?|statuscode|http(?:/[\d.]+)?(?: (?:error|code|status))?|error|response(?: code)?)[:=]?\s*([2-5]\d\d)\b`+
		`|\b([2-5]\d\d)[):]? \(?(?:unauthorized|forbidden|not found|too many requests|proxy authentication required|`+
		`bad request|internal server error|bad gateway|service unavailable|gateway timeout)\b`,
		"status", "http", "error", "response", "unauthorized", "forbidden", "not found", "too many requests", "proxy authentication required",
		"bad request", "bad gateway", "service unavailable", "gateway timeout")

	// go-git says "http redirect: target "…"" since 5.18 and "http transport: redirect target "…"" in 6, Git "redirect: …". Where
	// net/http stops, the Location itself stands for the URL.
	redirects = compile(`\bredirects?:? (?:target |to |disabled to |on non-initial request to )?"?((?:https?://|/)[^"\s]*)`+
		`|\bget "([^"\s]+)": (?:http redirect: |http transport: [\w -]*redirect|stopped after \d+ redirects)`, "redirect")
)

func (f *findings) read(message string) {
	if len(message) > prefix {
		end := prefix
		for end > prefix-utf8.UTFMax && !utf8.RuneStart(message[end]) {
			end--
		}
		message = message[:end]
	}
	message = strings.ToLower(message)

	for before, after, ok := strings.Cut(message, "://"); ok; before, after, ok = strings.Cut(after, "://") {
		host := after
		if end := strings.IndexAny(after, " \t\n\f\r/'\"?#"); end >= 0 {
			host = after[:end]
		}
		host = host[strings.LastIndexByte(host, '@')+1:]
		host, _, _ = strings.Cut(host, ":")
		scheme := before[strings.LastIndexFunc(before, notOfScheme)+1:]
		f.ssh = f.ssh || scheme == "ssh"
		f.azure = f.azure || host == "dev.azure.com" || strings.HasSuffix(host, ".visualstudio.com")
	}
	f.redirect, _ = redirects.find(message)
	f.text = withoutNames(message)
	f.head = f.text
	if answer, end := answers.find(f.text); answer != "" {
		f.answer, f.head = answer, f.text[:end]
	}
	f.status, _ = statuses.find(f.head)
}

// notOfScheme is what no scheme of a URL holds (RFC 3986, section 3.1).
func notOfScheme(r rune) bool {
	return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '+' && r != '-' && r != '.'
}

// signIn tells that a server sent the client to a page where people sign in: /_signin of Azure DevOps, and the like
// elsewhere.
func (f findings) signIn() bool {
	u, err := url.Parse(f.redirect)
	if f.redirect == "" || err != nil {
		return false
	}
	switch u.Path[strings.LastIndexByte(u.Path, '/')+1:] {
	case "_signin", "signin", "sign_in", "sign-in", "login":
		return true
	}
	return u.Host == "login.microsoftonline.com"
}

// link gives the URL or the ref that s begins with, up to white space; "" when there is none. It is called for each word, so it is no
// expression.
func link(s string) string {
	scheme := strings.IndexFunc(s, notOfScheme)
	isURL := scheme > 0 && 'a' <= s[0] && s[0] <= 'z' && strings.HasPrefix(s[scheme:], "://")
	if !isURL && !strings.HasPrefix(s, "refs/") {
		return ""
	}
	if end := strings.IndexAny(s, " \t\n\f\r"); end >= 0 {
		return s[:end]
	}
	return s
}

// withoutNames puts ~ in the place of what is quoted, of URLs and of refs. A quotation mark inside a word is an apostrophe, and
// one without its partner stands for itself.
func withoutNames(s string) string {
	var b strings.Builder
	b.Grow(len(s))
	for s != "" {
		size := quotation(s)
		if size == 0 {
			size = len(strings.TrimRight(link(s), `'")]}>:;,.`))
		}
		if size > 0 {
			b.WriteByte('~')
			s = s[size:]
			continue
		}
		size = max(wordLen(s), 1)
		b.WriteString(s[:size])
		s = s[size:]
	}
	return b.String()
}

// wordLen gives the length of the word that s begins with, apostrophes inside included.
func wordLen(s string) int {
	for i := range len(s) {
		inside := s[i] == '\'' && i > 0 && i+1 < len(s) && letter(s[i+1])
		if !letter(s[i]) && !inside {
			return i
		}
	}
	return len(s)
}

func letter(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '_' || c >= utf8.RuneSelf
}

// quotation gives the length of the quotation that s begins with, marks included; 0 when there is none. It ends at the first
// mark of its kind that no letter follows. A URL may hold apostrophes, also at a word's end, which Flux's own marks are not: after those
// comes punctuation.
func quotation(s string) int {
	mark := s[0]
	if mark != '\'' && mark != '"' {
		return 0
	}
	if mark == '\'' && (strings.HasPrefix(s[1:], "http://") || strings.HasPrefix(s[1:], "https://")) {
		line, _, _ := strings.Cut(s, "\n")
		for i := len("'http://"); i+1 < len(line); i++ {
			if line[i] == mark && strings.IndexByte(":;,.)", line[i+1]) >= 0 {
				return i + 1
			}
		}
	}
	for i := 1; i < len(s); i++ {
		if s[i] == mark && s[i-1] != '\\' && (i+1 == len(s) || !letter(s[i+1])) {
			return i + 1
		}
	}
	return 0
}
