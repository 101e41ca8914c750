package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"flux-token-refresher/refresh"
)

// Object is what requests are about.
type Object struct {
	// Name is how a sentence calls it: "the Secret".
	Name string
	// Rights are what a Role has to grant: "list, watch and patch on the Secret by name".
	Rights string
	// Means says for an HTTP status what it means of this object, where the general word for it says too little.
	Means map[int]string
}

// Failure turns an error of client-go into a *refresh.Error that may be shown, or into the context's error when that ended. The sentence is
// ours, because what an API server, a webhook or a proxy in between answers can hold anything, the content of a Secret included. verb
// is what was tried.
func (o Object) Failure(ctx context.Context, verb string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	e := o.answer(err)
	e.Text = verb + " " + o.Name + ": " + e.Text
	return e
}

func (o Object) answer(err error) *refresh.Error {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Code == 0 {
		return &refresh.Error{
			Class: refresh.Unavailable,
			Text:  fmt.Sprintf("the API server cannot be reached, or did not answer within %s", RequestTimeout),
		}
	}
	code := int(status.Status().Code)
	e := &refresh.Error{Class: refresh.Misconfigured, Code: strconv.Itoa(code)}
	if seconds, ok := apierrors.SuggestsClientDelay(err); ok {
		e.RetryAfter = time.Duration(seconds) * time.Second
	}
	switch means, ok := o.Means[code]; {
	case ok:
		e.Text = means
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		e.Class, e.Text = refresh.Unavailable, "the namespace is being deleted"
	case code == http.StatusUnauthorized:
		e.Text = "the API server does not know us: check the ServiceAccount's token"
	case code == http.StatusForbidden:
		e.Text = "not allowed: grant " + o.Rights + " (flux-token-refresher config rbac prints the Role), or look for an admission policy that denies it"
	case code == http.StatusTooManyRequests:
		e.Class, e.Text = refresh.Throttled, "the API server has too many requests"
	case code >= http.StatusInternalServerError:
		e.Class, e.Text = refresh.Unavailable, "the API server failed"
	default:
		e.Text = "the API server does not take the request"
	}
	return e
}
