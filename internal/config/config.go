// Package config reads the configuration file. It finds everything that is wrong with a file at once, and says of each
// where it stands and what would be right. What it gives is complete: defaults are filled in, and what the
// environment of the pod adds is there.
package config

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure"
	"flux-token-refresher/refresh/gitremote"
)

// maxSize is the largest file that is read, in bytes; a ConfigMap cannot hold more.
const maxSize = 1 << 20

// maxProblems is how much is said at once about a file that is something else altogether.
const maxProblems = 100

// Config is what a file says, with defaults and environment filled in.
type Config struct {
	// Identities are who asks for tokens, in the order of the file. Those that ask Entra themselves have an AuthorityHost, with a
	// slash at its end.
	Identities []azure.Identity
	// Targets are the Secrets to keep fresh, in the order of the file.
	Targets []refresh.Target
	Refresh refresh.Policy
	// Verify says which Git servers a token may be shown to, to see whether they take it.
	Verify gitremote.Config
	// Events says who may send events, and where to.
	Events Events
	// Election says how the replicas agree on a leader.
	Election Election
	// HealthAddress is where /healthz, /readyz and /metrics are served, as host:port.
	HealthAddress string
	// PodName is POD_NAME; "" when it is not set.
	PodName string
}

// Events says who may send events, and where to.
type Events struct {
	// Address is where they are received, as host:port.
	Address string
	// TLSCertFile and TLSKeyFile name PEM files; "" is plain HTTP.
	TLSCertFile, TLSKeyFile string
	// ClientCAFile names the PEM file of who may issue the certificates of senders; "" where none has one.
	ClientCAFile string
	// Senders are in the order of the file. Where there is none, nothing listens.
	Senders []Sender
	// MaxAge is how old an event may be.
	MaxAge time.Duration
}

// Sender is somebody who may send events.
type Sender struct {
	Name string
	// One of HMACKeyFile and BearerTokenFile names the file with what the sender proves itself by, or ClientName is the DNS name or URI in
	// its certificate; the others are "".
	HMACKeyFile, BearerTokenFile, ClientName string
	// Namespaces are those whose objects it may speak of; "*" is all.
	Namespaces []string
}

// Election says how the replicas agree on a leader; the durations are those of client-go's leader election.
type Election struct {
	Lease                                     refresh.Name
	LeaseDuration, RenewDeadline, RetryPeriod time.Duration
}

// Error is everything that is wrong with a file (at most 100 things), in the order of its lines.
type Error struct {
	File     string
	Problems []Problem
}

// Problem is one thing that is wrong.
type Problem struct {
	// Line counts from 1. Of something that is missing it is the line of what it is missing from.
	Line int
	// Field is the path of the field (targets[0].secret), "" for the whole file.
	Field string
	// Text is what is wrong, and what would be right.
	Text string
}

// Error gives a line for each problem: file:line: field: what is wrong; what would be right.
func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		where := fmt.Sprintf("%s:%d: ", e.File, p.Line)
		if p.Field != "" {
			where += p.Field + ": "
		}
		lines[i] = where + p.Text
	}
	return strings.Join(lines, "\n")
}

// Load reads the file at path. env is the environment of the process (os.Getenv). It is nil where a file
// is looked at elsewhere than in its pod, on the way to a cluster: then what only the environment could say stays
// empty (with it, Target.ConfigHash is another), and is no error.
// An error is an *Error, unless the file cannot be read at all.
func Load(path string, env func(string) string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("the configuration cannot be read: %w", err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("the configuration cannot be read: %w", err)
	}
	return Parse(path, data, env)
}

// Parse is Load of a file that has been read already; name stands for it in errors.
func Parse(name string, data []byte, env func(string) string) (*Config, error) {
	var f file
	d, ok := decode(data, &f)
	var c *Config
	if ok {
		c = (&resolver{decoder: d, file: &f, env: env}).config()
	}
	if len(d.problems) == 0 {
		return c, nil
	}
	slices.SortFunc(d.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Field, b.Field), cmp.Compare(a.Text, b.Text))
	})
	return nil, &Error{File: name, Problems: d.problems}
}
