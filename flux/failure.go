// Failures of the API server, in our own words.

package flux

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"flux-token-refresher/refresh"
)

// sanitized turns an error of client-go into a *refresh.Error, or the context's error when that ended: what an API server or a
// proxy in between answers can hold anything. verb and what say what was tried.
func sanitized(ctx context.Context, verb, what string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Code == 0 {
		return &refresh.Error{
			Class: refresh.Unavailable,
			Text:  fmt.Sprintf("%s %s: the API server cannot be reached, or did not answer within %s", verb, what, requestTimeout),
		}
	}
	code := int(status.Status().Code)
	e := &refresh.Error{Class: refresh.Misconfigured, Code: strconv.Itoa(code)}
	if seconds, ok := apierrors.SuggestsClientDelay(err); ok {
		e.RetryAfter = time.Duration(seconds) * time.Second
	}
	switch {
	case code == http.StatusUnauthorized:
		e.Text = "the API server does not know us: check the ServiceAccount's token"
	case code == http.StatusForbidden:
		e.Text = "not allowed: grant get, list, watch and patch on it (flux-token-refresher config rbac prints the Role), or look for an admission policy that denies it"
	case code == http.StatusTooManyRequests:
		e.Class, e.Text = refresh.Throttled, "the API server has too many requests"
	case code >= http.StatusInternalServerError:
		e.Class, e.Text = refresh.Unavailable, "the API server failed"
	default:
		e.Text = "the API server does not take the request"
	}
	e.Text = verb + " " + what + ": " + e.Text
	return e
}
