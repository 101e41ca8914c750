package secret

import (
	"context"
	"fmt"

	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"flux-token-refresher/refresh"
)

// Value reads one key of a Secret that is no target, such as the one with an application's client secret. Errors are *refresh.Error,
// or the context's.
func Value(ctx context.Context, client typedcorev1.SecretsGetter, name refresh.Name, key string) (string, error) {
	s, err := get(ctx, client, name)
	if err != nil {
		return "", err
	}
	if s == nil || len(s.Data[key]) == 0 {
		return "", &refresh.Error{Class: refresh.Misconfigured, Text: fmt.Sprintf("there is no Secret %s with the key %s", name, key)}
	}
	return string(s.Data[key]), nil
}
