package main

// Whether a Secret ever held a token that was no good.

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"flux-token-refresher/e2e/internal/await"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure/azuretest"
)

// guard watches the product's Secret: each state of it, and each moment at which a token ends.
type guard struct {
	tokens chan string // the hash of each one that was not there before
	dead   []string    // what was wrong, and when; to be read after stop
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// guard looks from now on until stop.
func (w *world) guard(ctx context.Context) (*guard, error) {
	ctx, cancel := context.WithCancel(ctx)
	// It lasts as long as kube-apiserver lets a watch: half an hour at the least.
	states, err := w.Client.CoreV1().Secrets(namespace).Watch(ctx, metav1.ListOptions{FieldSelector: await.Named(secretName).String()})
	if err != nil {
		cancel()
		return nil, err
	}
	g := &guard{tokens: make(chan string, 1000), cancel: cancel}
	g.done.Go(func() {
		defer states.Stop()
		g.look(ctx, states.ResultChan(), w.Entra)
	})
	return g, nil
}

func (g *guard) look(ctx context.Context, states <-chan watch.Event, entra *azuretest.Entra) {
	var end <-chan time.Time
	var last string
	for {
		select {
		case <-ctx.Done():
			return
		case <-end:
			g.dead = append(g.dead, "its token ended at "+time.Now().Format(time.TimeOnly))
			end = nil
		case e, open := <-states:
			secret, ok := e.Object.(*corev1.Secret)
			if !open || !ok || e.Type == watch.Deleted {
				g.dead = append(g.dead, fmt.Sprintf("%s: %v", e.Type, e.Object))
				return
			}
			token := string(secret.Data["bearerToken"])
			issued, err := entra.Validate(token, azuretest.AzureDevOps)
			if err != nil {
				g.dead = append(g.dead, fmt.Sprintf("version %s: %v", secret.ResourceVersion, err))
			}
			if hash := refresh.Hash(token); hash != last {
				last = hash
				g.tokens <- hash
			}
			end = time.After(time.Until(issued.Expires))
		}
	}
}

// stop gives what was wrong.
func (g *guard) stop() (dead []string) {
	g.cancel()
	g.done.Wait()
	return g.dead
}
