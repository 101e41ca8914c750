package refresh

import (
	"fmt"
	"strings"
)

// Name is the namespace and name of a Secret; it is the key of every queue and map here.
type Name struct{ Namespace, Name string }

// String gives "namespace/name".
func (n Name) String() string { return n.Namespace + "/" + n.Name }

// ParseName reads "namespace/name".
func ParseName(s string) (Name, error) {
	namespace, name, ok := strings.Cut(s, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return Name{}, fmt.Errorf("%q is not namespace/name", s)
	}
	return Name{Namespace: namespace, Name: name}, nil
}

// MintKey says which token a target holds. Targets with an equal key share one token: an identity's
// name stands for its tenant, client, credential and cloud.
type MintKey struct{ Identity, Scope string }

// String gives "identity scope".
func (k MintKey) String() string { return k.Identity + " " + k.Scope }

// Target is one Secret that is to hold a fresh token for ever.
type Target struct {
	Name Name
	Mint MintKey
	// ConfigHash is 16 hex digits over everything that decides what is written: the resolved tenant,
	// client, authority, scope, format, user name and template. Another hash on the Secret means it
	// was written for another configuration.
	ConfigHash string
	// Create allows a Secret that does not exist to be created, with these Labels.
	Create bool
	Labels map[string]string
	Format Format
	// Verify allows the token to be shown to the Git servers of the Secret's readers.
	Verify bool
}
