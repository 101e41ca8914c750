package election_test

// A Lease API for a bubble of testing/synctest, below client-go's real client: what kube-apiserver promises about resourceVersions,
// conflicts and watches, and what networks do to it. client-go's fake clientset knows neither resourceVersions
// nor conflicts. The same behaviour is tested with a real kube-apiserver in e2e.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
)

var leases = coordinationv1.Resource("leases")

// api holds one Lease.
type api struct {
	mu      sync.Mutex
	version int
	lease   *coordinationv1.Lease
	history []event // index i is version i+1
	grown   chan struct{}
}

type event struct {
	Type   watch.EventType       `json:"type"`
	Object *coordinationv1.Lease `json:"object"`
}

func newAPI() *api { return &api{grown: make(chan struct{})} }

func (a *api) read() *coordinationv1.Lease {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lease.DeepCopy()
}

func (a *api) holder() string {
	lease := a.read()
	if lease == nil || lease.Spec.HolderIdentity == nil {
		return ""
	}
	return *lease.Spec.HolderIdentity
}

// change writes what edit makes of the Lease (nil: there is none; returning nil deletes it).
func (a *api) change(edit func(*coordinationv1.Lease) (*coordinationv1.Lease, error)) (*coordinationv1.Lease, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.lease
	after, err := edit(before.DeepCopy())
	if err != nil {
		return nil, err
	}
	a.version++
	e := event{watch.Modified, after.DeepCopy()}
	switch {
	case after == nil:
		e = event{watch.Deleted, before.DeepCopy()}
	case before == nil:
		e.Type = watch.Added
	}
	e.Object.ResourceVersion = strconv.Itoa(a.version)
	e.Object.TypeMeta = metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"}
	a.history = append(a.history, e)
	a.lease = e.Object
	if after == nil {
		a.lease = nil
	}
	close(a.grown)
	a.grown = make(chan struct{})
	return e.Object.DeepCopy(), nil
}

// hold writes the Lease as a holder of 15 seconds would who pays no heed to anybody.
func (a *api) hold(t *testing.T, holder string) {
	t.Helper()
	if _, err := a.change(func(lease *coordinationv1.Lease) (*coordinationv1.Lease, error) {
		if lease == nil {
			lease = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "lease"}}
		}
		lease.Spec.HolderIdentity = &holder
		lease.Spec.LeaseDurationSeconds = new(int32(15))
		lease.Spec.RenewTime = &metav1.MicroTime{Time: time.Now()}
		return lease, nil
	}); err != nil {
		t.Fatal(err)
	}
}

func (a *api) delete(t *testing.T) {
	t.Helper()
	if _, err := a.change(func(*coordinationv1.Lease) (*coordinationv1.Lease, error) { return nil, nil }); err != nil {
		t.Fatal(err)
	}
}

// link is one replica's connection to the api. A nil hook does nothing.
type link struct {
	api *api

	mu       sync.Mutex
	requests int
	down     bool                      // every call fails, every stream ends
	hang     bool                      // every call waits until its context ends
	silent   bool                      // streams tell nothing, and do not end
	before   func(r *http.Request)     // runs before a call is carried out
	delay    func(r *http.Request)     // runs between carrying out and answering
	refuse   func(*http.Request) error // answers instead
	cut      chan struct{}             // closed to end the present streams
}

func (a *api) link() *link { return &link{api: a, cut: make(chan struct{})} }

func (l *link) set(change func(*link)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(l)
}

func (l *link) cutStreams() {
	l.set(func(l *link) { close(l.cut); l.cut = make(chan struct{}) })
}

func (l *link) goDown() {
	l.set(func(l *link) { l.down = true })
	l.cutStreams()
}

func (l *link) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.requests
}

func (l *link) client(t *testing.T) *coordinationclient.CoordinationV1Client {
	t.Helper()
	c, err := coordinationclient.NewForConfigAndClient(&rest.Config{
		Host: "http://api", QPS: -1, ContentConfig: rest.ContentConfig{ContentType: "application/json"},
	}, &http.Client{Transport: l})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// RoundTrip implements http.RoundTripper.
func (l *link) RoundTrip(r *http.Request) (*http.Response, error) {
	l.mu.Lock()
	l.requests++
	down, hang, before, delay, refuse := l.down, l.hang, l.before, l.delay, l.refuse
	l.mu.Unlock()
	if before != nil {
		before(r)
	}
	switch {
	case hang:
		<-r.Context().Done()
		return nil, r.Context().Err()
	case down:
		return nil, errors.New("connection refused")
	case refuse != nil:
		if err := refuse(r); err != nil {
			return answer(r, nil, err)
		}
	}
	if r.URL.Query().Get("watch") != "" {
		return l.watch(r)
	}
	lease, err := l.call(r)
	if delay != nil {
		delay(r)
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return answer(r, lease, err)
}

func (l *link) call(r *http.Request) (*coordinationv1.Lease, error) {
	if r.Method == http.MethodGet {
		if lease := l.api.read(); lease != nil {
			return lease, nil
		}
		return nil, apierrors.NewNotFound(leases, "lease")
	}
	var sent coordinationv1.Lease
	if err := json.NewDecoder(r.Body).Decode(&sent); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return l.api.change(func(lease *coordinationv1.Lease) (*coordinationv1.Lease, error) {
		switch {
		case r.Method == http.MethodPost && lease != nil:
			return nil, apierrors.NewAlreadyExists(leases, "lease")
		case r.Method == http.MethodPut && lease == nil:
			return nil, apierrors.NewNotFound(leases, "lease")
		case r.Method == http.MethodPut && sent.ResourceVersion != lease.ResourceVersion:
			return nil, apierrors.NewConflict(leases, "lease", errors.New("the object has been modified"))
		}
		return &sent, nil
	})
}

func (l *link) watch(r *http.Request) (*http.Response, error) {
	query := r.URL.Query()
	if query.Get("fieldSelector") != "metadata.name=lease" {
		return answer(r, nil, apierrors.NewForbidden(leases, "", errors.New("only the Lease itself")))
	}
	l.api.mu.Lock()
	next := len(l.api.history)
	if from := query.Get("resourceVersion"); from != "" {
		next, _ = strconv.Atoi(from)
	} else if l.api.lease != nil {
		next-- // begins with what is there
	}
	l.api.mu.Unlock()

	l.mu.Lock()
	cut := l.cut
	l.mu.Unlock()
	out, in := io.Pipe()
	go func() {
		for {
			l.api.mu.Lock()
			news, grown := l.api.history[next:], l.api.grown
			l.api.mu.Unlock()
			next += len(news)
			l.mu.Lock()
			silent := l.silent
			l.mu.Unlock()
			for _, e := range news {
				if silent {
					break
				}
				if err := json.NewEncoder(in).Encode(e); err != nil {
					return
				}
			}
			select {
			case <-grown:
			case <-cut:
				in.Close()
				return
			case <-r.Context().Done():
				in.CloseWithError(r.Context().Err())
				return
			}
		}
	}()
	return &http.Response{
		StatusCode: http.StatusOK, Request: r, Body: out,
		Header: http.Header{"Content-Type": {"application/json"}},
	}, nil
}

func answer(r *http.Request, lease *coordinationv1.Lease, err error) (*http.Response, error) {
	var body any = lease
	code := http.StatusOK
	if err != nil {
		var status apierrors.APIStatus
		if !errors.As(err, &status) {
			return nil, fmt.Errorf("a test returned something else than an API error: %w", err)
		}
		s := status.Status()
		s.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
		body, code = s, int(s.Code)
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: code, Request: r, Body: io.NopCloser(bytes.NewReader(raw)),
		Header: http.Header{"Content-Type": {"application/json"}},
	}, nil
}

// sleep waits for d of the bubble's time, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
