// Whose Secret an event is about.

package flux

import (
	"context"
	"log/slog"
	"strings"

	"k8s.io/client-go/rest"

	"flux-token-refresher/refresh"
)

// Rules of a Route that Classify does not give.
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

// Router says what an event means and which targets it concerns: only Secrets that the named object references in its own
// namespace. Nothing else of an event is used. Safe for concurrent use; every replica has one.
type Router struct {
	api     *API
	targets map[refresh.Name]bool
	// namespaces are those of the targets: there is nothing to be found, nor anything allowed, in another one.
	namespaces map[string]bool
	log        *slog.Logger
}

// Route is what an event means, and the targets that it concerns.
type Route struct {
	Classification
	Targets []refresh.Name
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

func ignored(rule string) Route {
	return Route{Classification: Classification{Verdict: Unrelated, Rule: rule}}
}

// Requested says what it means that a sender that may speak of some namespaces wants a refresh of the target Secret subject
// ("namespace/name").
func (r *Router) Requested(subject string, may func(namespace string) bool) Route {
	namespace, _, _ := strings.Cut(subject, "/")
	if !may(namespace) {
		return ignored(RuleNamespace)
	}
	route := Route{Classification: Classification{Verdict: RefreshRequested, Rule: RuleRequest}}
	if name, err := refresh.ParseName(subject); err == nil && r.targets[name] {
		route.Targets = []refresh.Name{name}
	}
	return route
}

// Reported says what e means, of a sender that may speak of some namespaces. Only an event that can be about a failed authentication
// makes requests to the API server, two at the most beside discovery, and only in a namespace of a target. Errors are *refresh.Error (the
// API server did not answer: the event is to be sent again), or the context's.
func (r *Router) Reported(ctx context.Context, e Event, may func(namespace string) bool) (Route, error) {
	o := e.InvolvedObject
	if !may(o.Namespace) {
		return ignored(RuleNamespace), nil
	}
	route := Route{Classification: Classify(e)}
	if route.Verdict == Unrelated {
		return route, nil
	}
	group, _, _ := strings.Cut(o.APIVersion, "/")
	k := kindOf(group, o.Kind)
	if k == nil {
		return ignored(RuleKind), nil
	}
	if !r.namespaces[o.Namespace] {
		return route, nil
	}
	target, why, err := r.secretOf(ctx, key{k, o.Namespace, o.Name}, o.UID)
	if err != nil {
		return Route{}, err
	}
	if why != "" {
		r.log.DebugContext(ctx, "the event concerns no target", "kind", o.Kind, "namespace", o.Namespace, "name", o.Name, "why", why)
		return route, nil
	}
	route.Targets = []refresh.Name{target}
	return route, nil
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
