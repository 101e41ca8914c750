package main

// What Pods wrote, those too that are gone: with a Pod the kubelet deletes its log.

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"flux-token-refresher/e2e/internal/installation"
)

// logs are those of the product's Pods, and how their containers ended.
type logs struct {
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu  sync.Mutex
	all map[string]*bytes.Buffer // by Pod
}

// logs follows the Pods that there are, and all that come, until stop.
func (w *world) logs(ctx context.Context) (*logs, error) {
	ctx, cancel := context.WithCancel(ctx)
	pods := w.Client.CoreV1().Pods(namespace)
	states, err := pods.Watch(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + installation.Account})
	if err != nil {
		cancel()
		return nil, err
	}
	l := &logs{cancel: cancel, all: map[string]*bytes.Buffer{}}
	l.done.Go(func() {
		defer states.Stop()
		for e := range states.ResultChan() {
			pod, ok := e.Object.(*corev1.Pod)
			if !ok {
				return
			}
			if e.Type == watch.Deleted {
				l.write(pod.Name, fmt.Appendf(nil, "deleted; its container: %+v\n", pod.Status.ContainerStatuses))
				continue
			}
			if pod.Status.Phase == corev1.PodRunning && l.write(pod.Name, nil) {
				l.done.Go(func() {
					log, err := pods.GetLogs(pod.Name, &corev1.PodLogOptions{Follow: true}).Stream(ctx)
					if err != nil {
						l.write(pod.Name, fmt.Appendf(nil, "no log: %v\n", err))
						return
					}
					defer func() { _ = log.Close() }()
					_, _ = io.Copy(writer{l, pod.Name}, log) // until its end, or ctx's
				})
			}
		}
	})
	return l, nil
}

// write adds to the log of a Pod; first says that there was none.
func (l *logs) write(pod string, text []byte) (first bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	log := l.all[pod]
	if first = log == nil; first {
		log = &bytes.Buffer{}
		l.all[pod] = log
	}
	log.Write(text)
	return first
}

type writer struct {
	*logs
	pod string
}

func (w writer) Write(p []byte) (int, error) {
	w.write(w.pod, p)
	return len(p), nil
}

// stop gives the logs, one Pod after the other.
func (l *logs) stop() string {
	l.cancel()
	l.done.Wait()
	var out bytes.Buffer
	for _, pod := range slices.Sorted(maps.Keys(l.all)) {
		fmt.Fprintf(&out, "%s wrote:\n%s", pod, l.all[pod])
	}
	return out.String()
}
