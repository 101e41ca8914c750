// Whose Secret an event is about.

package flux

import (
	"context"
	"log/slog"
	"strings"

	"k8s.io/client-go/rest"

	"flux-token-refresher/refresh"
)

// Rules of a Router that Classify does not give.
const (
	// RuleNamespace: the sender may not speak of that namespace.
	RuleNamespace = "namespace"
	// RuleKind: objects of that kind read no Secret.
	RuleKind = "kind"
	// RuleRequest: it is a request.
	RuleRequest = "request"
)

// RefreshRequested: somebody asks for a new token, whatever the reason.
const RefreshRequested Verdict = "refresh-requested"

// Router says what an event means, and which targets one concerns that is not Unrelated: only Secrets that the named object references in its
// own namespace. Nothing else of an event is used. Safe for concurrent use; every replica has one.
type Router struct {
	api     *API
	targets map[refresh.Name]bool
	// namespaces are those of the targets: there is nothing to be found, nor anything allowed, in another one.
	namespaces map[string]bool
	log        *slog.Logger
}

// NewRouter gives a Router for these targets.
func NewRouter(api *API, targets []refresh.Name, log *slog.Logger) *Router {
	r := &Router{api: api, targets: map[refresh.Name]bool{}, namespaces: map[string]bool{}, log: log}
	for _, t := range targets {
		r.targets[t] = true
		r.namespaces[t.Namespace] = true
	}
	return r
}

// Requested says what it means that a sender that may speak of some namespaces wants a refresh of the Secret subject ("namespace/name").
func (r *Router) Requested(subject string, may func(namespace string) bool) Classification {
	if namespace, _, _ := strings.Cut(subject, "/"); !may(namespace) {
		return Classification{Unrelated, RuleNamespace}
	}
	return Classification{RefreshRequested, RuleRequest}
}

// RequestedTargets gives the target that such a request concerns, if it is one.
func (r *Router) RequestedTargets(subject string) []refresh.Name {
	if name, err := refresh.ParseName(subject); err == nil && r.targets[name] {
		return []refresh.Name{name}
	}
	return nil
}

// Reported says what e means, of a sender that may speak of some namespaces.
func (r *Router) Reported(e Event, may func(namespace string) bool) Classification {
	o := e.InvolvedObject
	if !may(o.Namespace) {
		return Classification{Unrelated, RuleNamespace}
	}
	c := Classify(e)
	if c.Verdict != Unrelated && o.kind() == nil {
		return Classification{Unrelated, RuleKind}
	}
	return c
}

// ReportedTargets gives the targets that e concerns. It makes requests to the API server, two at the most beside discovery, and only in a namespace
// of a target. Errors are *refresh.Error (the API server did not answer: the event is to be sent again), or the context's.
func (r *Router) ReportedTargets(ctx context.Context, e Event) ([]refresh.Name, error) {
	o := e.InvolvedObject
	k := o.kind()
	if k == nil || !r.namespaces[o.Namespace] {
		return nil, nil
	}
	target, why, err := r.secretOf(ctx, key{k, o.Namespace, o.Name}, o.UID)
	if err != nil {
		return nil, err
	}
	if why != "" {
		r.log.DebugContext(ctx, "the event concerns no target", "kind", o.Kind, "namespace", o.Namespace, "name", o.Name, "why", why)
		return nil, nil
	}
	return []refresh.Name{target}, nil
}

// kind is nil for one whose objects read no Secret.
func (o Object) kind() *kind {
	group, _, _ := strings.Cut(o.APIVersion, "/")
	return kindOf(group, o.Kind)
}

// secretOf gives the target that an object references, or why there is none. An object of another uid than the event's is not the
// one that failed; should it fail as well, it says so itself.
func (r *Router) secretOf(ctx context.Context, at key, uid string) (target refresh.Name, why string, err error) {
	o, err := r.api.get(ctx, at)
	if err != nil {
		return target, "", err
	}
	if o == nil || uid != "" && uid != o.uid {
		return target, "the object is gone", nil
	}
	if source := at.kind.sourceOf(o); source != nil && rest.IsValidPathSegmentName(o.source.Name) == nil {
		if o, err = r.api.get(ctx, key{source, at.namespace, o.source.Name}); err != nil {
			return target, "", err
		}
	}
	if o == nil || o.secret == "" {
		return target, "the object references no Secret", nil
	}
	target = refresh.Name{Namespace: at.namespace, Name: o.secret}
	if !r.targets[target] {
		return target, "the object's Secret is no target", nil
	}
	return target, "", nil
}
