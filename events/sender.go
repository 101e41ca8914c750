package events

// Who sent a request: senders, their keys, and what proves them.

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// minKey is the length of a key at the least, in bytes: that of the hash (RFC 2104, section 3).
const minKey = 32

// Sender is somebody who may post events, and proves who it is in one of three ways. Two senders with the same
// namespaces are how a key is changed without a gap.
type Sender struct {
	Name string
	// HMACKey signs the body: X-Signature: sha256=<hex HMAC-SHA256>, as Flux's generic-hmac does. It covers nothing else.
	HMACKey Key
	// BearerToken is the token of Authorization: Bearer (RFC 6750, section 2.1). In the query, where logs would keep it, none is taken.
	BearerToken Key
	// ClientName is a DNS name or a URI in the subject alternative names of a client certificate that the server verified. The subject's
	// common name is no proof (RFC 9525, section 2). A wildcard in a certificate stands for itself. Letters of a DNS name are small.
	ClientName string
	// Namespaces are those whose objects the sender may speak of; "*" is all of them, and none is none.
	Namespaces []string
}

// Key gives a key of at least 32 bytes, which nobody changes, and is asked for each request. While it gives an error or less, its sender is told to come again.
type Key func() ([]byte, error)

// KeyFile is the key in a file, without the white space around it. The file is read once a second at the most, so a mounted Secret that
// changes needs no restart, and nobody who knocks has it read again and again.
func KeyFile(name string) Key {
	const every = time.Second
	var (
		mu   sync.Mutex
		key  []byte
		err  error
		read time.Time
	)
	return func() ([]byte, error) {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(read) >= every {
			var content []byte
			content, err = os.ReadFile(name)
			key, read = bytes.TrimSpace(content), time.Now()
		}
		return key, err
	}
}

// use gives a key of the sender.
func (s Sender) use(read Key) ([]byte, error) {
	key, err := read()
	if err == nil && len(key) < minKey {
		err = fmt.Errorf("it has %d bytes, at least %d are needed", len(key), minKey)
	}
	if err != nil {
		return nil, fmt.Errorf("the key of sender %q cannot be used: %w", s.Name, err)
	}
	return key, nil
}

func (s Sender) may(namespace string) bool {
	return slices.Contains(s.Namespaces, "*") || slices.Contains(s.Namespaces, namespace)
}

func validate(senders []Sender) error {
	if len(senders) == 0 {
		return errors.New("at least one sender is required")
	}
	names := map[string]bool{}
	clients := map[string]bool{}
	owners := map[[sha256.Size]byte]string{}
	for _, s := range senders {
		if s.Name == "" || names[s.Name] {
			return fmt.Errorf("each sender needs a name of its own, unlike %q", s.Name)
		}
		names[s.Name] = true
		key := s.HMACKey
		switch {
		case s.HMACKey != nil && s.BearerToken == nil && s.ClientName == "":
		case s.HMACKey == nil && s.BearerToken != nil && s.ClientName == "":
			key = s.BearerToken
		case s.HMACKey == nil && s.BearerToken == nil && s.ClientName != "":
			if clients[s.ClientName] {
				return fmt.Errorf("two senders have the client name %q: nobody could tell which of them it is", s.ClientName)
			}
			clients[s.ClientName] = true
			continue
		default:
			return fmt.Errorf("sender %q needs one of an HMAC key, a bearer token and a client name", s.Name)
		}
		content, err := s.use(key)
		if err != nil {
			return err
		}
		hash := sha256.Sum256(content)
		if owner, taken := owners[hash]; taken {
			return fmt.Errorf("senders %q and %q have the same key: nobody could tell which of them it is", owner, s.Name)
		}
		owners[hash] = s.Name
	}
	return nil
}

// vouchedFor finds the sender that a token proves, or else a client certificate: it vouches for the headers too, and not for the body
// alone. Where it finds none, unknown is what to answer unless there is a signature. Every key is tried, whichever matched, so that
// the time that it takes tells nothing.
func vouchedFor(senders []Sender, request *http.Request) (sender Sender, ok bool, unknown error) {
	token, names := tokenOf(request.Header), namesOf(request.TLS)
	var byToken, byName *Sender
	var broken error
	for i := range senders {
		s := &senders[i]
		if byName == nil && s.ClientName != "" && slices.Contains(names, s.ClientName) {
			byName = s
		}
		if s.BearerToken == nil || token == nil {
			continue
		}
		key, err := s.use(s.BearerToken)
		if err != nil {
			broken = errors.Join(broken, err)
		} else if equal(key, token) {
			byToken = s
		}
	}
	switch {
	case byToken != nil:
		return *byToken, true, nil
	case byName != nil:
		return *byName, true, nil
	case broken != nil:
		return Sender{}, false, errKeys.because(broken)
	case hasAttributes(request.Header):
		return Sender{}, false, refuse(unauthenticated, "ce-* headers need a bearer token or a client certificate: a signature covers the body only")
	}
	return Sender{}, false, refuse(unauthenticated,
		"no sender that is known here: it takes X-Signature: sha256=<HMAC of the body>, Authorization: Bearer, or a client certificate")
}

// signable tells whether the body can prove who sent it. With ce-* headers it cannot: it is the same under any.
func signable(senders []Sender, header http.Header) bool {
	return signatureOf(header) != nil && !hasAttributes(header) && slices.ContainsFunc(senders, func(s Sender) bool { return s.HMACKey != nil })
}

// signer finds the sender that signed the body. Where nobody did, the answer is unknown; but where a key could not be used, nobody knows, and the
// sender is told to come again.
func signer(senders []Sender, header http.Header, body []byte, unknown error) (Sender, error) {
	signature := signatureOf(header)
	var found *Sender
	var broken error
	for i := range senders {
		s := &senders[i]
		if s.HMACKey == nil {
			continue
		}
		key, err := s.use(s.HMACKey)
		if err != nil {
			broken = errors.Join(broken, err)
			continue
		}
		mac := hmac.New(sha256.New, key)
		mac.Write(body)
		if equal(mac.Sum(nil), signature) {
			found = s
		}
	}
	switch {
	case found != nil:
		return *found, nil
	case broken != nil:
		return Sender{}, errKeys.because(broken)
	}
	return Sender{}, unknown
}

var errKeys = refuse(unavailable, "the key of a sender cannot be used; try again")

// equal compares hashes, so that not even the length of a key shows in the time.
func equal(a, b []byte) bool {
	ha, hb := sha256.Sum256(a), sha256.Sum256(b)
	return subtle.ConstantTimeCompare(ha[:], hb[:]) == 1
}

// signatureOf and tokenOf give nil when there is none, or when it is not clear which.
func signatureOf(header http.Header) []byte {
	given, ok := strings.CutPrefix(only(header, "X-Signature"), "sha256=")
	if !ok {
		return nil
	}
	signature, err := hex.DecodeString(given)
	if err != nil || len(signature) != sha256.Size {
		return nil
	}
	return signature
}

func tokenOf(header http.Header) []byte {
	scheme, token, ok := strings.Cut(only(header, "Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return nil
	}
	return []byte(strings.TrimSpace(token))
}

// namesOf gives the names in a client certificate that was verified.
func namesOf(connection *tls.ConnectionState) []string {
	if connection == nil || len(connection.VerifiedChains) == 0 {
		return nil
	}
	certificate := connection.PeerCertificates[0]
	var names []string
	for _, name := range certificate.DNSNames {
		names = append(names, strings.ToLower(name))
	}
	for _, uri := range certificate.URIs {
		names = append(names, uri.String())
	}
	return names
}

// coversHeaders tells whether what proves the sender covers more than the body.
func (s Sender) coversHeaders() bool { return s.HMACKey == nil }

// only gives the value of a header that is there once.
func only(header http.Header, name string) string {
	if values := header.Values(name); len(values) == 1 {
		return values[0]
	}
	return ""
}
