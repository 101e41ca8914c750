// Package flux runs Flux's source-controller and notification-controller in a test cluster: real ones, as processes on
// loopback, with the CustomResourceDefinitions and the rights of their own versions. They watch all namespaces.
package flux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/dynamic"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/loopback"
	"flux-token-refresher/e2e/internal/toolchain"
)

// Namespace is that of the controllers and of their ServiceAccounts, source-controller and notification-controller.
const Namespace = "flux-system"

// Flux is the two controllers. A test that stops or pauses one starts a Cluster and a Flux of its own.
type Flux struct {
	Sources

	Source, Notification *Controller
}

// Spec says where and how to run Flux.
type Spec struct {
	// Cluster is where nobody has installed it yet.
	Cluster *cluster.Cluster
	// Dir takes the controllers' files.
	Dir string
	// RateLimit is for how long notification-controller drops an event that repeats another; Flux's default (five minutes) when zero.
	RateLimit time.Duration
	// Progress is told what has to be built first, and for how long that takes.
	Progress io.Writer
}

// Start installs both controllers, starts them, and returns when they are ready. The caller must Stop them.
func Start(ctx context.Context, spec Spec) (*Flux, error) {
	client, err := dynamic.NewForConfig(spec.Cluster.Config())
	if err != nil {
		return nil, err
	}
	var addresses [7]string
	for i := range addresses {
		if addresses[i], err = loopback.Address(); err != nil {
			return nil, err
		}
	}
	events, artifacts := addresses[0], filepath.Join(spec.Dir, "artifacts")
	if err := os.MkdirAll(artifacts, 0o700); err != nil {
		return nil, err
	}
	f := &Flux{
		Sources: Sources{client},
		Notification: &Controller{
			tool: toolchain.NotificationController, dir: spec.Dir, worker: "Alert",
			args: []string{
				"--enable-leader-election=false",
				"--events-addr=" + events, "--receiverAddr=" + addresses[1],
				"--health-addr=" + addresses[2], "--metrics-addr=" + addresses[3],
			},
		},
		Source: &Controller{
			tool: toolchain.SourceController, dir: spec.Dir, worker: "GitRepository",
			args: []string{
				"--enable-leader-election=false",
				"--events-addr=http://" + events + "/",
				"--health-addr=" + addresses[4], "--metrics-addr=" + addresses[5],
				"--storage-path=" + artifacts, "--storage-addr=" + addresses[6], "--storage-adv-addr=" + addresses[6],
				// A source whose server hangs occupies a worker for its timeout: the others go on.
				"--concurrent=10",
			},
		},
	}
	if spec.RateLimit != 0 {
		f.Notification.args = append(f.Notification.args, "--rate-limit-interval="+spec.RateLimit.String())
	}
	both := []*Controller{f.Notification, f.Source} // the one that sends last
	for _, controller := range both {
		if err := controller.install(ctx, spec); err != nil {
			return nil, fmt.Errorf("install %s: %w", controller.tool.Name, err)
		}
	}
	for _, controller := range both {
		if err := controller.Start(ctx); err != nil {
			return nil, errors.Join(err, f.Stop(ctx))
		}
	}
	return f, nil
}

// Stop ends both and returns when they have ended.
func (f *Flux) Stop(ctx context.Context) error {
	return errors.Join(f.Source.Stop(ctx), f.Notification.Stop(ctx))
}
