// Command tools builds the named tools, or all that "make test" runs, and prints where each one is.
//
//	go run ./tools [NAME]...
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"flux-token-refresher/e2e/internal/toolchain"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, os.Args[1:]); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		os.Exit(1) //nolint:gocritic // the deferred stop only undoes the signal handling of a process that ends here
	}
}

func run(ctx context.Context, out io.Writer, names []string) error {
	tools := map[string]toolchain.Tool{}
	needed := []toolchain.Tool{
		toolchain.Etcd, toolchain.KubeAPIServer, toolchain.Kubectl, toolchain.SourceController, toolchain.NotificationController,
		toolchain.Jaeger, toolchain.Promtool, toolchain.Prometheus,
	}
	for _, tool := range slices.Concat(needed, toolchain.Node, []toolchain.Tool{toolchain.GolangCILint}) {
		tools[tool.Name] = tool
	}
	if len(names) == 0 {
		for _, tool := range needed {
			names = append(names, tool.Name)
		}
	}
	for _, name := range names {
		tool, ok := tools[name]
		if !ok {
			return fmt.Errorf("%q is not a tool of e2e/tools", name)
		}
		path, err := tool.Build(ctx, os.Stderr)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(out, path); err != nil {
			return err
		}
	}
	return nil
}
