package flux

// Sources, and what becomes of them.

import (
	"context"
	"encoding/json"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"flux-token-refresher/e2e/internal/await"
)

var gitRepositories = schema.GroupVersionResource{Group: "source.toolkit.fluxcd.io", Version: "v1", Resource: "gitrepositories"}

// GitRepository is one that reads main of a repository with a Secret of its namespace, and looks again after an hour if nobody asks it to.
func GitRepository(name, url, secret string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "source.toolkit.fluxcd.io/v1", "kind": "GitRepository",
		"metadata": map[string]any{"name": name},
		"spec": map[string]any{
			"url": url, "interval": "1h", "timeout": "20s",
			"ref":       map[string]any{"branch": "main"},
			"secretRef": map[string]any{"name": secret},
		},
	}}
}

// Sources are a cluster's, as its administrator sees them.
type Sources struct{ client dynamic.Interface }

// Request asks for a reconciliation of a GitRepository at once, as "flux reconcile" does. What it asks with stands in
// status.lastHandledReconcileAt when it is done.
func (s Sources) Request(ctx context.Context, namespace, name, with string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{"reconcile.fluxcd.io/requestedAt": with}}})
	if err != nil {
		return err
	}
	_, err = s.GitRepositories(namespace).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

// Handled tells with what the last finished reconciliation was asked for.
func Handled(object *unstructured.Unstructured) string {
	handled, _, _ := unstructured.NestedString(object.Object, "status", "lastHandledReconcileAt")
	return handled
}

// Revision gives that of the artifact, BRANCH@sha1:COMMIT. It and Handled are written just after Ready (measured).
func Revision(object *unstructured.Unstructured) string {
	revision, _, _ := unstructured.NestedString(object.Object, "status", "artifact", "revision")
	return revision
}

// GitRepositories gives the administrator's client for those of a namespace.
func (s Sources) GitRepositories(namespace string) dynamic.ResourceInterface {
	return s.client.Resource(gitRepositories).Namespace(namespace)
}

// AwaitGitRepository waits until a GitRepository is as match wants it.
func (s Sources) AwaitGitRepository(
	ctx context.Context, namespace, name string, match func(*unstructured.Unstructured) bool,
) (*unstructured.Unstructured, error) {
	return awaitObject(ctx, s.GitRepositories(namespace), name, match)
}

// Ready gives the condition of that type; the zero value where there is none.
func Ready(object *unstructured.Unstructured) metav1.Condition { return condition(object, "Ready") }

func condition(object *unstructured.Unstructured, kind string) metav1.Condition {
	if object == nil {
		return metav1.Condition{}
	}
	conditions, _, _ := unstructured.NestedSlice(object.Object, "status", "conditions")
	for _, c := range conditions {
		var read metav1.Condition
		fields, _ := c.(map[string]any)
		if runtime.DefaultUnstructuredConverter.FromUnstructured(fields, &read) == nil && read.Type == kind {
			return read
		}
	}
	return metav1.Condition{}
}

func isTrue(kind string) func(*unstructured.Unstructured) bool {
	return func(object *unstructured.Unstructured) bool {
		return condition(object, kind).Status == metav1.ConditionTrue
	}
}

func awaitObject(
	ctx context.Context, client dynamic.ResourceInterface, name string, match func(*unstructured.Unstructured) bool,
) (*unstructured.Unstructured, error) {
	return await.Object(ctx, &unstructured.Unstructured{}, name, match, await.Dynamic(client, name))
}
