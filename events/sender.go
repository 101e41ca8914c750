package events

// Who sent a request: senders, their keys, and what proves them.

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
)

// minKey is the length of a key at the least, in bytes: that of the hash (RFC 2104, section 3).
const minKey = 32

// Sender is somebody who may post events, and proves who it is with one of the two keys. Two senders with the same
// namespaces are how a key is changed without a gap.
type Sender struct {
	Name string
	// HMACKey signs the body: X-Signature: sha256=<hex HMAC-SHA256>, as Flux's generic-hmac does. It covers nothing else.
	HMACKey Key
	// BearerToken is the token of Authorization: Bearer (RFC 6750, section 2.1). In the query, where logs would keep it, none is taken.
	BearerToken Key
	// Namespaces are those whose objects the sender may speak of; "*" is all of them, and none is none.
	Namespaces []string
}

// Key gives a key of at least 32 bytes, for each request anew. While it gives an error or less, its sender is told to come again.
type Key func() ([]byte, error)

// KeyFile is the key in a file, without the white space around it. It is read each time, so a mounted Secret that changes needs no
// restart.
func KeyFile(name string) Key {
	return func() ([]byte, error) {
		data, err := os.ReadFile(name)
		return bytes.TrimSpace(data), err
	}
}

func (s Sender) key() ([]byte, error) {
	read := s.HMACKey
	if read == nil {
		read = s.BearerToken
	}
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
	return slices.Contains(s.Namespaces, "*") || namespace != "" && slices.Contains(s.Namespaces, namespace)
}

func validate(senders []Sender) error {
	if len(senders) == 0 {
		return errors.New("at least one sender is required")
	}
	names := map[string]bool{}
	owners := map[[sha256.Size]byte]string{}
	for _, s := range senders {
		if s.Name == "" || names[s.Name] {
			return fmt.Errorf("each sender needs a name of its own, unlike %q", s.Name)
		}
		names[s.Name] = true
		if (s.HMACKey == nil) == (s.BearerToken == nil) {
			return fmt.Errorf("sender %q needs either an HMAC key or a bearer token", s.Name)
		}
		key, err := s.key()
		if err != nil {
			return err
		}
		hash := sha256.Sum256(key)
		if owner, taken := owners[hash]; taken {
			return fmt.Errorf("senders %q and %q have the same key: nobody could tell which of them it is", owner, s.Name)
		}
		owners[hash] = s.Name
	}
	return nil
}

// authenticate finds the sender that proved itself. wholeRequest says that it vouches for the headers too, and not
// for the body alone. Every sender is tried, whoever matched, so that the time that it takes tells nothing.
// Where nobody matched while a key could not be used, nobody knows: that is errKeys, and retried.
func authenticate(senders []Sender, header http.Header, body []byte) (sender Sender, wholeRequest bool, err error) {
	signature, token := signatureOf(header), tokenOf(header)
	var bySignature, byToken *Sender
	var broken error
	for i := range senders {
		s := &senders[i]
		key, err := s.key()
		switch {
		case err != nil:
			broken = errors.Join(broken, err)
		case s.HMACKey != nil:
			mac := hmac.New(sha256.New, key)
			mac.Write(body)
			if equal(mac.Sum(nil), signature) {
				bySignature = s
			}
		default:
			if equal(key, token) {
				byToken = s
			}
		}
	}
	switch {
	case byToken != nil:
		return *byToken, true, nil
	case hasAttributes(header):
		return Sender{}, false, refuse(unauthenticated, "ce-* headers need a bearer token: a signature covers the body only")
	case bySignature != nil:
		return *bySignature, false, nil
	case broken != nil:
		return Sender{}, false, refuse(unavailable, "the key of a sender cannot be used; try again").because(broken)
	}
	return Sender{}, false, refuse(unauthenticated, "no sender that is known here: it takes X-Signature: sha256=<HMAC of the body>, or Authorization: Bearer")
}

// equal compares hashes, so that not even the length of a key shows in the time.
func equal(a, b []byte) bool {
	ha, hb := sha256.Sum256(a), sha256.Sum256(b)
	return subtle.ConstantTimeCompare(ha[:], hb[:]) == 1
}

// signatureOf and tokenOf give nil, which equals no key and no HMAC, when there is none, or when it is not clear which.
func signatureOf(header http.Header) []byte {
	given, ok := strings.CutPrefix(only(header, "X-Signature"), "sha256=")
	if !ok {
		return nil
	}
	signature, err := hex.DecodeString(given)
	if err != nil {
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

// only gives the value of a header that is there once.
func only(header http.Header, name string) string {
	if values := header.Values(name); len(values) == 1 {
		return values[0]
	}
	return ""
}
