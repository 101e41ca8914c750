// Command demo shows the product at work, live: three replicas of it on a real control plane keep a token of an emulated Entra
// fresh, whatever is done to its Secret and to their leader; and when an emulated Azure DevOps refuses the token, a real Flux
// gets another one. It ends with exit code 1 when anything that it claims did not happen. It runs in the folder e2e:
//
//	go run ./demo            about two and a half minutes, once the tools are built
//	KEEP=1 go run ./demo     leaves everything running until Ctrl-C
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/toolchain"
)

const introduction = `
flux-token-refresher, live

  Three replicas keep a Microsoft Entra token fresh in the Secret flux-system/flux-system, which
  Flux reads to pull from Azure DevOps. When Azure DevOps refuses the token, Flux says so, and gets
  another one.

  Real      etcd and kube-apiserver; Flux's source-controller and notification-controller, with
            their own rights; the product, as three processes with the ServiceAccount, the
            rights and the admission policy of deploy/kustomize/events; deploy/flux
  Emulated  Entra, and the Git server of Azure DevOps that takes its tokens
  Changed   tokens live 60 to 70 seconds instead of 60 to 90 minutes, and the cool-down is 0.5 s
            instead of 30 s; there is no node, so events go to a pod's address, not to a Service

  Tokens are shown by their hash only. Ctrl-C ends everything.

`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Stdout, os.Getenv("KEEP") != "")
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case err == nil:
	case interrupted:
		fmt.Fprintln(os.Stdout, "\nInterrupted; everything that ran here has ended.")
		os.Exit(1)
	default:
		fmt.Fprintln(os.Stdout, "\nFAILED:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, keep bool) (err error) {
	if _, err := io.WriteString(out, introduction); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "flux-token-refresher-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	binaries, product, err := build(ctx, out, dir)
	if err != nil {
		return err
	}
	d := newDemo(out)
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.start(ctx, binaries, product, dir); err != nil {
		return err
	}
	if err := d.tell(ctx); err != nil {
		if ctx.Err() == nil {
			d.showLogs()
		}
		return err
	}
	if err := d.report(ctx); err != nil || !keep {
		return err
	}
	return d.keep(ctx, dir)
}

// build gives the programs that run here. What is in the user's cache folder, or in Go's, takes no time.
func build(ctx context.Context, out io.Writer, dir string) (binaries cluster.Binaries, product string, err error) {
	if binaries.Etcd, err = toolchain.Etcd.Build(ctx, out); err != nil {
		return binaries, "", err
	}
	if binaries.KubeAPIServer, err = toolchain.KubeAPIServer.Build(ctx, out); err != nil {
		return binaries, "", err
	}
	// These start by name, once they are built.
	for _, tool := range []toolchain.Tool{toolchain.SourceController, toolchain.NotificationController} {
		if _, err = tool.Build(ctx, out); err != nil {
			return binaries, "", err
		}
	}
	product, err = toolchain.Product(ctx, dir, false)
	return binaries, product, err
}
