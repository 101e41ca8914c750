package secret

import (
	"fmt"
	"maps"
	"time"

	"k8s.io/apimachinery/pkg/types"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"

	"flux-token-refresher/refresh"
)

// Desired is the one apply configuration that puts a token into the observed Secret. It is always everything that
// we own: with server-side apply, whatever a field manager leaves out is deleted if it owned it. It is fenced:
//
//   - an observed Secret by resourceVersion and uid. A stale resourceVersion alone would create a Secret that was
//     deleted meanwhile (measured);
//   - an absent one by resourceVersion "1" without a uid, which only creates (measured).
//
// The type is left to the API server's default, Opaque, which it cannot be changed from.
func Desired(target refresh.Target, observed refresh.Observed, token refresh.Token, record refresh.Record) (*applycorev1.SecretApplyConfiguration, error) {
	data, err := target.Format.Render(token)
	if err != nil {
		return nil, fmt.Errorf("render the content: %w", err)
	}
	handled := record.Handled
	if handled == (refresh.Handled{}) {
		handled = observed.Handled
	}
	annotations := map[string]string{
		ExpiresAt:   stamp(token.Expires),
		RefreshAt:   stamp(record.RefreshAt),
		RefreshedAt: stamp(record.RefreshedAt),
		Reason:      string(record.Reason),
		TokenHash:   token.Hash,
		ContentHash: target.Format.ContentHash(data),
		ConfigHash:  target.ConfigHash,
	}
	maps.Copy(annotations, Settled(handled, time.Time{}))
	desired := applycorev1.Secret(target.Name.Name, target.Name.Namespace).WithAnnotations(annotations).WithData(data)
	if observed.Exists {
		desired.WithResourceVersion(observed.Version).WithUID(types.UID(observed.UID))
	} else {
		desired.WithResourceVersion("1")
	}
	if !observed.Exists || observed.Created {
		desired.WithLabels(target.Labels).WithLabels(map[string]string{ManagedByLabel: Actor})
	}
	return desired, nil
}

// Settled is the annotations of a request that was handled; a zero refreshAt is left out.
func Settled(handled refresh.Handled, refreshAt time.Time) map[string]string {
	annotations := map[string]string{}
	if handled != (refresh.Handled{}) {
		annotations[HandledRequest], annotations[HandledOutcome] = handled.Request, string(handled.Outcome)
	}
	if !refreshAt.IsZero() {
		annotations[RefreshAt] = stamp(refreshAt)
	}
	return annotations
}

// stamp writes a time as the annotations hold it, cut to whole seconds.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
