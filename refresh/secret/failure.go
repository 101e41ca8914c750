package secret

import (
	"context"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"flux-token-refresher/internal/kube"
	"flux-token-refresher/refresh"
)

var theSecret = kube.Object{
	Name:   "the Secret",
	Rights: "list, watch and patch on the Secret by name",
	Means: map[int]string{
		http.StatusNotFound:            "the namespace does not exist",
		http.StatusUnprocessableEntity: "the API server finds the result invalid: look for an admission policy that denies it, for annotations of more than 256 KiB, and at the Secret's type",
	},
}

// failure is kube.Object.Failure, and refresh.ErrConflict where another version of the Secret is there by now.
func failure(ctx context.Context, verb string, err error) error {
	if ctx.Err() == nil && apierrors.IsConflict(err) {
		return refresh.ErrConflict
	}
	return theSecret.Failure(ctx, verb, err)
}
