// Command node runs the product as what it is: three Pods of an image on a Kubernetes node, beside Flux's controllers, with an emulated
// Entra and an emulated Azure DevOps. Everything is in namespaces of its own and gone at the end. It needs root on Linux, says what
// else is missing, and runs in the folder e2e:
//
//	go run ./node                  stays until Ctrl-C, and says how to look around
//	go test -tags node ./node      the tests
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"flux-token-refresher/e2e/internal/node"
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
The product runs on a node, until Ctrl-C. Its network is a world of its own; to enter it:

  nsenter --target=%[1]d --net --mount --pid --wdns=$PWD env KUBECONFIG=%[2]s %[3]s

  kubectl get pods -A -o wide
  kubectl -n flux-system describe secret flux-system
  kubectl -n flux-system get gitrepository,lease,pdb
  kubectl -n flux-system logs -l app.kubernetes.io/name=flux-token-refresher
`

// stay installs the product and waits for Ctrl-C.
func stay(ctx context.Context, dir string) error {
	return smoke(ctx, dir)
}
