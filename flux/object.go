// What we keep of one of Flux's objects.

package flux

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"flux-token-refresher/refresh"
)

// requestedAt is the annotation at whose change Flux's controllers reconcile at once; they repeat it in
// status.lastHandledReconcileAt.
const requestedAt = "reconcile.fluxcd.io/requestedAt"

// object is one of Flux's objects, without what we have no use for: a message of a condition alone can have 20 kB.
type object struct {
	kind                 *kind
	namespace, name, uid string
	// secret is spec.secretRef.name, source spec.sourceRef; either can be missing.
	secret string
	source reference
	// url is spec.url, for the kinds whose servers can be asked.
	url       string
	suspended bool
	// woken is requestedAt; zero when it is missing or is no time.
	woken time.Time
	// unready tells that the condition Ready is there, and is not True.
	unready bool
	// failure is what the condition Ready says of it.
	failure failure
}

// reference names an object; of a Secret there is the name alone.
type reference struct {
	Kind      string `json:"kind"`
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

// failure is a Ready condition that is False, of the generation of the object that is there. The zero failure is none.
type failure struct {
	Classification
	// since is when it was last seen to fail.
	since time.Time
	// id is another one when it fails anew.
	id string
}

// key is the object's place in maps and queues.
type key struct {
	kind            *kind
	namespace, name string
}

func (o *object) key() key { return key{o.kind, o.namespace, o.name} }

func (k key) String() string { return k.kind.name + " " + k.namespace + "/" + k.name }

// objectOf reads an object of kind k. The CRDs' schemas hold the types of what is read; something else references nothing.
func objectOf(k *kind, u *unstructured.Unstructured) *object {
	o := &object{kind: k, namespace: u.GetNamespace(), name: u.GetName(), uid: string(u.GetUID())}
	o.woken = timeOf(u.GetAnnotations()[requestedAt])
	var content struct {
		Spec struct {
			SecretRef reference `json:"secretRef"`
			SourceRef reference `json:"sourceRef"`
			URL       string    `json:"url"`
			Suspend   bool      `json:"suspend"`
		} `json:"spec"`
		Status struct {
			Conditions             []metav1.Condition `json:"conditions"`
			LastHandledReconcileAt string             `json:"lastHandledReconcileAt"`
		} `json:"status"`
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &content); err != nil {
		return o
	}
	o.secret, o.source, o.suspended = content.Spec.SecretRef.Name, content.Spec.SourceRef, content.Spec.Suspend
	if k.git {
		o.url = content.Spec.URL
	}
	for _, c := range content.Status.Conditions {
		if c.Type != "Ready" {
			continue
		}
		o.unready = c.Status != metav1.ConditionTrue
		if c.Status == metav1.ConditionFalse && (c.ObservedGeneration == 0 || c.ObservedGeneration == u.GetGeneration()) {
			o.failure = o.failureOf(u, c, timeOf(content.Status.LastHandledReconcileAt))
		}
	}
	return o
}

// failureOf reads a Ready condition that is False. Its lastTransitionTime stays as it is when the object fails again with the same
// reason and message, so what was handled last counts as well: the object was tried after that, and still fails.
func (o *object) failureOf(u *unstructured.Unstructured, c metav1.Condition, handled time.Time) failure {
	f := failure{since: c.LastTransitionTime.Time}
	f.Classification = Classify(Event{
		InvolvedObject: Object{APIVersion: u.GetAPIVersion(), Kind: o.kind.name, Namespace: o.namespace, Name: o.name},
		Timestamp:      f.since, Reason: c.Reason, Message: Message(c.Message),
	})
	if handled.After(f.since) && !handled.After(time.Now()) {
		f.since = handled
	}
	f.id = refresh.Hash(fmt.Sprintf("%s %d %s %s %s", o.uid, c.ObservedGeneration, f.since.UTC().Format(time.RFC3339Nano), c.Reason, c.Message))
	return f
}

// timeOf reads a value of requestedAt, by Flux's convention a time; zero for anything else.
func timeOf(value string) time.Time {
	t, _ := time.Parse(time.RFC3339Nano, value) // the zero time on an error
	return t
}
