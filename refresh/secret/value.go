package secret

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"flux-token-refresher/internal/kube"
	"flux-token-refresher/refresh"
)

// Values reads keys of one version of a Secret that is no target, such as the one with an application's client secret, in their
// order. Errors are *refresh.Error, or the context's.
func Values(ctx context.Context, client typedcorev1.SecretsGetter, name refresh.Name, keys ...string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, kube.RequestTimeout)
	defer cancel()
	live, err := client.Secrets(name.Namespace).Get(ctx, name.Name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, kube.Object{Name: "the Secret " + name.String(), Rights: "get on it by name"}.Failure(ctx, "read", err)
	}
	values := make([]string, len(keys))
	for i, key := range keys {
		if err != nil || len(live.Data[key]) == 0 {
			return nil, &refresh.Error{Class: refresh.Misconfigured, Text: fmt.Sprintf("there is no Secret %s with the key %s", name, key)}
		}
		values[i] = string(live.Data[key])
	}
	return values, nil
}
