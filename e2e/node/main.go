// Command node runs the product as what it is: three Pods of an image on a Kubernetes node, beside Flux's controllers, with an emulated
// Entra and an emulated Azure DevOps. Everything is in namespaces of its own and gone at the end. It needs root on Linux, says what
// else is missing, and runs in the folder e2e:
//
//	go run ./node                  stays until Ctrl-C, and says how to look around
//	go test -tags node ./node      the tests
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flux-token-refresher/e2e/internal/flux"
	"flux-token-refresher/e2e/internal/node"
	"flux-token-refresher/e2e/internal/toolchain"
)

func main() {
	os.Exit(node.Run(prepare, func(dir string) int {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		if err := stay(ctx, dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}))
}

const look = `
The product runs on a node, until Ctrl-C, beside Flux and emulators of Entra (login.microsoftonline.com) and Azure DevOps (dev.azure.com).
All of it is in namespaces of its own. To look around, as root in another terminal:

  nsenter --target=%s --net --mount --pid env KUBECONFIG=%s PATH=%s:$PATH bash

  kubectl get pods -A -o wide
  kubectl -n flux-system describe secret flux-system
  kubectl -n flux-system get gitrepository,lease,pdb
  kubectl -n flux-system logs -l app.kubernetes.io/name=flux-token-refresher
`

// stay installs the product and a source that reads its Secret, and waits for Ctrl-C.
func stay(ctx context.Context, dir string) (err error) {
	w, err := start(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if err := w.install(ctx, &kustomize{world: w}); err != nil {
		return err
	}
	repository, err := w.devops.Create(ctx, "org", "project", "fleet")
	if err != nil {
		return err
	}
	source := flux.GitRepository("fleet", repository.URL, secretName)
	if _, err := w.GitRepositories(namespace).Create(ctx, source, metav1.CreateOptions{}); err != nil {
		return err
	}
	kubectl, err := toolchain.Kubectl.Build(ctx, os.Stderr)
	if err != nil {
		return err
	}
	bin := filepath.Join(dir, "kubectl")
	if err := errors.Join(os.Mkdir(bin, 0o755), os.Symlink(kubectl, filepath.Join(bin, "kubectl"))); err != nil {
		return err
	}
	fmt.Fprintf(os.Stdout, look, node.PID(), w.node.Kubeconfig, bin)
	<-ctx.Done()
	return nil
}
