package secret

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"flux-token-refresher/refresh"
)

// Value reads one key of a Secret that is no target, such as the one with an application's client secret. Errors are *refresh.Error,
// or the context's.
func Value(ctx context.Context, client typedcorev1.SecretsGetter, name refresh.Name, key string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s, err := client.Secrets(name.Namespace).Get(ctx, name.Name, metav1.GetOptions{})
	if err != nil {
		return "", failure(ctx, "read", err)
	}
	value := string(s.Data[key])
	if value == "" {
		return "", &refresh.Error{Class: refresh.Misconfigured, Text: fmt.Sprintf("Secret %s has no key %s", name, key)}
	}
	return value, nil
}
