package refresh

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/template"
	"time"
)

// Format is the shape in which a tool reads a token from a Secret: which keys, and what stands in them.
type Format struct {
	keys   []string
	bare   string // the key that holds the token and nothing else; "" when there is none
	render func(Token) (map[string][]byte, error)
}

// BearerToken is what Flux reads: the key bearerToken, without a newline (source-controller does not trim).
func BearerToken() Format {
	return Format{keys: []string{"bearerToken"}, bare: "bearerToken", render: func(t Token) (map[string][]byte, error) {
		return map[string][]byte{"bearerToken": []byte(t.Reveal())}, nil
	}}
}

// BasicAuth writes the keys username and password. Azure DevOps takes a token as the password of any user
// name that is not empty.
func BasicAuth(username string) Format {
	return Format{keys: []string{"password", "username"}, bare: "password", render: func(t Token) (map[string][]byte, error) {
		return map[string][]byte{"username": []byte(username), "password": []byte(t.Reveal())}, nil
	}}
}

// Template writes each key from a Go template (text/template, missingkey=error) over .Token, a string,
// and .ExpiresAt, RFC 3339 in UTC. A template that does not parse, fails or renders to nothing is an error that names the key and
// never holds what a key would hold; so is one that does it for the token in hand alone, from Format.Render. No key that uses .Token is an
// error, too.
func Template(sources map[string]string) (Format, error) {
	if len(sources) == 0 {
		return Format{}, errors.New("no keys: name at least one key and its template")
	}
	f := Format{keys: slices.Sorted(maps.Keys(sources))}
	templates := make(map[string]*template.Template, len(sources))
	for _, key := range f.keys {
		t, err := template.New(key).Option("missingkey=error").Parse(sources[key])
		if err != nil {
			return Format{}, fmt.Errorf("key %q: %w", key, err)
		}
		templates[key] = t
	}
	f.render = func(t Token) (map[string][]byte, error) {
		data := map[string]string{"Token": t.Reveal(), "ExpiresAt": t.Expires.UTC().Format(time.RFC3339)}
		out := make(map[string][]byte, len(templates))
		for _, key := range f.keys {
			var b strings.Builder
			if err := templates[key].Execute(&b, data); err != nil {
				// What text/template says can quote its data; only the key may travel.
				return nil, fmt.Errorf("template of key %q failed", key)
			}
			if b.Len() == 0 {
				return nil, fmt.Errorf("template of key %q renders to nothing", key)
			}
			out[key] = []byte(b.String())
		}
		return out, nil
	}
	const probe = "probe-of-the-template"
	rendered, err := f.render(NewToken(probe, time.Time{}, time.Time{}, time.Time{}))
	if err != nil {
		return Format{}, err
	}
	uses := false
	for _, value := range rendered {
		uses = uses || strings.Contains(string(value), probe)
	}
	if !uses {
		return Format{}, errors.New("no key uses {{ .Token }}")
	}
	return f, nil
}

// Keys are the keys of the Secret that this format owns, sorted.
func (f Format) Keys() []string { return f.keys }

// Value gives the token that stands in the keys, or "" where there is none or the format does not show it.
func (f Format) Value(data map[string][]byte) string {
	if f.bare == "" {
		return ""
	}
	return string(data[f.bare])
}

// Render gives the content of each key.
func (f Format) Render(t Token) (map[string][]byte, error) { return f.render(t) }

// ContentHash names what stands in the keys of a format: the first 16 hex digits of SHA-256 over each
// key and value, in the order of the keys, each preceded by its length. It is "" when a key is
// missing or empty.
func (f Format) ContentHash(data map[string][]byte) string {
	h := sha256.New()
	for _, key := range f.keys {
		value := data[key]
		if len(value) == 0 {
			return ""
		}
		writeSized(h, []byte(key))
		writeSized(h, value)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}
