package cluster

// The API server's audit log, read from its stdout as it is written.

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Position is a place in the audit log.
type Position int

// Request is one request to the API server: answered, or, for a watch, begun.
type Request struct {
	Position        Position
	User, UserAgent string
	// Verb is the API's: get, list, watch, create, update, patch, delete. Server-side apply is a patch.
	Verb string
	// Group to Name are the object's; Name comes from a field selector metadata.name too.
	Group, Resource, Subresource, Namespace, Name string
	URI                                           string
	// Code is the HTTP status.
	Code               int
	Received, Answered time.Time
}

// String gives the request as a line for the message of a failed test.
func (r Request) String() string {
	return fmt.Sprintf("%s %s %s %s/%s %d (%s)", r.User, r.Verb, r.Resource, r.Namespace, r.Name, r.Code, r.URI)
}

// Audit is the audit log of a Cluster. Safe for concurrent use.
type Audit struct {
	admin *rest.Config

	mu       sync.Mutex
	requests []Request
	err      error         // what could not be read
	grown    chan struct{} // closed, and made anew, when requests or err change
}

func newAudit(admin *rest.Config) *Audit { return &Audit{admin: admin, grown: make(chan struct{})} }

// Mark gives the position after everything that was answered before the call.
func (a *Audit) Mark(ctx context.Context) (Position, error) {
	client, err := kubernetes.NewForConfig(a.admin)
	if err != nil {
		return 0, err
	}
	// The log is written in order: what was answered before this request stands before it.
	id := "audit-mark=" + rand.Text()
	if err := client.RESTClient().Get().RequestURI("/version?" + id).Do(ctx).Error(); err != nil {
		return 0, fmt.Errorf("mark the audit log: %w", err)
	}
	marks, err := a.Wait(ctx, 0, 1, func(r Request) bool { return strings.HasSuffix(r.URI, id) })
	if err != nil {
		return 0, err
	}
	return marks[0].Position, nil
}

// Between gives the matching requests from one position up to another, in the order in which they were answered.
func (a *Audit) Between(from, to Position, match func(Request) bool) []Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	return filter(a.requests[from:to], match)
}

// Wait gives the matching requests since a position as soon as there are n of them. When ctx ends first it gives those
// that there are, and an error.
func (a *Audit) Wait(ctx context.Context, from Position, n int, match func(Request) bool) ([]Request, error) {
	for {
		a.mu.Lock()
		found, grown, err := filter(a.requests[from:], match), a.grown, a.err
		a.mu.Unlock()
		if len(found) >= n || err != nil {
			return found, err
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return found, fmt.Errorf("audit log: %d of %d requests: %w", len(found), n, context.Cause(ctx))
		}
	}
}

func filter(requests []Request, match func(Request) bool) []Request {
	var found []Request
	for _, r := range requests {
		if match(r) {
			found = append(found, r)
		}
	}
	return found
}

// auditWriter reads what one API server writes.
type auditWriter struct {
	audit   *Audit
	partial []byte // of a line whose end was not yet written
}

// Write takes the next part of the log. It never fails, because that would end the API server; Audit keeps the error.
func (w *auditWriter) Write(p []byte) (int, error) {
	a := w.audit
	a.mu.Lock()
	defer a.mu.Unlock()
	w.partial = append(w.partial, p...)
	before := len(a.requests)
	for {
		line, rest, complete := bytes.Cut(w.partial, []byte("\n"))
		if !complete {
			break
		}
		w.partial = rest
		request, ok, err := decode(line)
		switch {
		case err != nil:
			a.err = err
		case ok:
			request.Position = Position(len(a.requests))
			a.requests = append(a.requests, request)
		}
	}
	if len(a.requests) > before || a.err != nil {
		close(a.grown)
		a.grown = make(chan struct{})
	}
	return len(p), nil
}

// decode reads one event of audit.k8s.io/v1. ok is false for the end of a watch, whose beginning counts.
func decode(line []byte) (r Request, ok bool, err error) {
	var event struct {
		Stage      string `json:"stage"`
		RequestURI string `json:"requestURI"`
		Verb       string `json:"verb"`
		UserAgent  string `json:"userAgent"`
		User       struct {
			Username string `json:"username"`
		} `json:"user"`
		ObjectRef struct {
			APIGroup    string `json:"apiGroup"`
			Resource    string `json:"resource"`
			Subresource string `json:"subresource"`
			Namespace   string `json:"namespace"`
			Name        string `json:"name"`
		} `json:"objectRef"`
		ResponseStatus struct {
			Code int `json:"code"`
		} `json:"responseStatus"`
		RequestReceivedTimestamp time.Time `json:"requestReceivedTimestamp"`
		StageTimestamp           time.Time `json:"stageTimestamp"`
	}
	if err := json.Unmarshal(line, &event); err != nil {
		return Request{}, false, fmt.Errorf("audit log: %w: %q", err, line)
	}
	// A watch that was granted is logged when it begins and when it ends; what was refused is logged once.
	if event.Verb == "watch" && event.Stage == "ResponseComplete" && event.ResponseStatus.Code == http.StatusOK {
		return Request{}, false, nil
	}
	return Request{
		User: event.User.Username, UserAgent: event.UserAgent, Verb: event.Verb,
		Group: event.ObjectRef.APIGroup, Resource: event.ObjectRef.Resource, Subresource: event.ObjectRef.Subresource,
		Namespace: event.ObjectRef.Namespace, Name: event.ObjectRef.Name,
		URI: event.RequestURI, Code: event.ResponseStatus.Code,
		Received: event.RequestReceivedTimestamp, Answered: event.StageTimestamp,
	}, true, nil
}
