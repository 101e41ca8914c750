// Whom a token may be shown to.

package gitremote

import (
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// httpsPort is the port of an https URL that names none (RFC 9110 section 4.2.2).
const httpsPort = "443"

// hostname is a DNS name of the preferred syntax (RFC 1123 section 2.1), without a dot at its end. All else that could be taken for
// one of these names, by rules of IDNA or of a resolver, is none.
var hostname = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)

// host is an entry of Config.Hosts.
type host struct {
	// name is in lower case. When anyLabel, exactly one label stands before it.
	name     string
	anyLabel bool
	port     string
}

// ValidHost tells whether pattern is a host as Config.Hosts has it: a name (git.example.com), or a name of at least two labels
// behind a first label of any content (*.example.com), and a port where that is not 443 (git.example.com:8443).
func ValidHost(pattern string) bool {
	_, ok := parseHost(pattern)
	return ok
}

func parseHost(pattern string) (h host, ok bool) {
	h.port = httpsPort
	if name, port, named := strings.Cut(pattern, ":"); named {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return host{}, false
		}
		pattern, h.port = name, strconv.FormatUint(n, 10)
	}
	h.name, h.anyLabel = strings.CutPrefix(pattern, "*.")
	if !hostname.MatchString(h.name) || h.anyLabel && !strings.Contains(h.name, ".") {
		return host{}, false
	}
	h.name = strings.ToLower(h.name)
	return h, true
}

func (h host) matches(name, port string) bool {
	if h.anyLabel {
		_, name, _ = strings.Cut(name, ".")
	}
	return name == h.name && port == h.port
}

// address is where a repository is.
type address struct {
	// host is the name that was allowed, in lower case, with the port where that is not 443.
	host string
	// path is percent-encoded, and ends in no slash.
	path string
}

const notAURL = "the repository's URL cannot be read"

// address says of a repository's URL where to ask, or why nobody is asked. The reason says nothing of the URL, which could hold a
// password.
func (r *Remote) address(repository string) (to address, why string) {
	u, err := url.Parse(repository)
	switch {
	case err != nil:
		return address{}, notAURL
	case u.Scheme != "https":
		return address{}, "the repository's URL is not https"
	case !hostname.MatchString(u.Hostname()):
		return address{}, "the repository's URL has no plain host name"
	}
	name, port := strings.ToLower(u.Hostname()), u.Port()
	if port == "" {
		port = httpsPort
	}
	for _, h := range r.hosts {
		if !h.matches(name, port) {
			continue
		}
		if port != httpsPort {
			name = net.JoinHostPort(name, port)
		}
		return address{host: name, path: strings.TrimRight(u.EscapedPath(), "/")}, ""
	}
	return address{}, "the repository's host is not in verifyHosts"
}

// infoRefs is the URL of the first request of a fetch.
func (a address) infoRefs() string {
	return "https://" + a.host + a.path + "/info/refs?service=git-upload-pack"
}
