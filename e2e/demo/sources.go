package main

// The GitRepositories that read the Secret.

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"flux-token-refresher/e2e/internal/devops"
	"flux-token-refresher/e2e/internal/flux"
)

// source is one of them.
type source struct {
	*history[*unstructured.Unstructured]
	name       string
	repository *devops.Repository
}

// read lets Flux read with the Secret: it needs but to trust the server.
func (d *demo) read(ctx context.Context) error {
	before, minted := d.secret.last(d.good).object, d.installed.Entra.Requests()
	change, err := json.Marshal(map[string]any{"stringData": map[string]any{caKey: string(d.devops.CA())}})
	if err != nil {
		return err
	}
	d.command("kubectl -n flux-system patch secret flux-system --type=merge \\")
	d.more(`    -p '{"stringData":{"ca.crt":"…"}}'`)
	d.more("the CA of the emulated Azure DevOps; the key stays there, because it is not ours")
	if _, err := d.secrets().Patch(ctx, target, types.MergePatchType, change, metav1.PatchOptions{FieldManager: "kubectl-patch"}); err != nil {
		return err
	}
	if err := d.notify(ctx); err != nil {
		return err
	}
	began := time.Now()
	if d.source, err = d.create(ctx, "flux-system"); err != nil {
		return err
	}
	ready, err := d.source.await(ctx, 0, isReady)
	if err != nil {
		return err
	}
	for _, r := range d.devops.Requests(0) {
		if r.Refused != nil || r.TokenHash != hash(before) {
			return fmt.Errorf("source-controller did not read with token %s alone: %s", hash(before), r)
		}
	}
	d.measured(short(ready.seen.Sub(began)), "it is Ready, by token %s; requests to Entra: %d, as before", hash(before), minted)
	return d.stillAt(minted)
}

// create makes a GitRepository on a new repository.
func (d *demo) create(ctx context.Context, name string) (*source, error) {
	repository, err := d.devops.Create(ctx, "org", "project", name)
	if err != nil {
		return nil, err
	}
	client := d.flux.GitRepositories(namespace)
	s := &source{name: name, repository: repository}
	if s.history, err = follow[*unstructured.Unstructured](ctx, name, client.Watch); err != nil {
		return nil, err
	}
	d.closers = append(d.closers, s.close)
	d.did("GitRepository %s is created, on %s", name, strings.TrimPrefix(repository.URL, "https://"))
	_, err = client.Create(ctx, flux.GitRepository(name, repository.URL, target), metav1.CreateOptions{})
	return s, err
}

// reconcile asks source-controller to look at once, instead of when the interval of the source ends.
func (d *demo) reconcile(ctx context.Context, s *source) error {
	d.command("flux reconcile source git " + s.name)
	return d.flux.Request(ctx, namespace, s.name, rand.Text())
}

// refused has source-controller look, and gives how it was refused.
func (d *demo) refused(ctx context.Context, s *source) (devops.Request, error) {
	from := len(d.devops.Requests(0))
	if err := d.reconcile(ctx, s); err != nil {
		return devops.Request{}, err
	}
	found, err := d.devops.Wait(ctx, from, 1, func(r devops.Request) bool {
		return r.Refused != nil && strings.HasSuffix(s.repository.URL, r.Repository)
	})
	if err != nil {
		return devops.Request{}, err
	}
	return found[0], nil
}

func isReady(o *unstructured.Unstructured) bool {
	return flux.Ready(o).Status == metav1.ConditionTrue
}

func isFailed(o *unstructured.Unstructured) bool {
	return flux.Ready(o).Status == metav1.ConditionFalse
}

// recovered is of a source that is Ready after it was not, by states in their order.
func recovered() func(*unstructured.Unstructured) bool {
	failed := false
	return func(o *unstructured.Unstructured) bool {
		failed = failed || isFailed(o)
		return failed && isReady(o)
	}
}
