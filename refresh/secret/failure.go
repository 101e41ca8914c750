package secret

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

// failure turns an error of client-go into one that may be shown: the sentence is ours, because what an API server, a
// webhook or a proxy in between answers can hold anything, the content of a Secret included. verb is what was tried.
func failure(ctx context.Context, verb string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Code == 0 {
		return &refresh.Error{
			Class: refresh.Unavailable,
			Text:  fmt.Sprintf("%s the Secret: the API server cannot be reached, or did not answer within %s", verb, requestTimeout),
		}
	}
	code := int(status.Status().Code)
	e := &refresh.Error{Class: refresh.Misconfigured, Code: strconv.Itoa(code)}
	if seconds, ok := apierrors.SuggestsClientDelay(err); ok {
		e.RetryAfter = time.Duration(seconds) * time.Second
	}
	switch {
	case code == http.StatusConflict:
		return refresh.ErrConflict
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		e.Class, e.Text = refresh.Unavailable, "the namespace is being deleted"
	case code == http.StatusUnauthorized:
		e.Text = "the API server does not know us: check the ServiceAccount's token"
	case code == http.StatusForbidden:
		e.Text = "not allowed: grant list, watch and patch on the Secret by name (flux-token-refresher config rbac prints the Role), or look for an admission policy that denies it"
	case code == http.StatusNotFound:
		e.Text = "the namespace does not exist"
	case code == http.StatusUnprocessableEntity:
		e.Text = "the API server finds the result invalid: look for an admission policy that denies it, for annotations of more than 256 KiB, and at the Secret's type"
	case code == http.StatusTooManyRequests:
		e.Class, e.Text = refresh.Throttled, "the API server has too many requests"
	case code >= http.StatusInternalServerError:
		e.Class, e.Text = refresh.Unavailable, "the API server failed"
	default:
		e.Text = "the API server does not take the request"
	}
	e.Text = verb + " the Secret: " + e.Text
	return e
}
