package main

// What is around the product: a node with its images, Flux, Entra, Azure DevOps, and the cluster's part of workload identity.

import (
	"context"
	"fmt"
	"os"

	"flux-token-refresher/e2e/internal/toolchain"
	"flux-token-refresher/e2e/internal/image"
	"flux-token-refresher/e2e/internal/node"
	"path/filepath"
)

// prepare builds and downloads what needs the network.
func prepare(ctx context.Context) error {
	tools := append([]toolchain.Tool{toolchain.Etcd, toolchain.KubeAPIServer, toolchain.NotificationController, toolchain.SourceController}, toolchain.Node...)
	for _, tool := range tools {
		if _, err := tool.Build(ctx, os.Stderr); err != nil {
			return err
		}
	}
	return toolchain.DownloadModules(ctx)
}

func smoke(ctx context.Context, dir string) error {
	n, err := node.Start(ctx, node.Spec{Dir: dir, Progress: os.Stderr})
	if err != nil {
		return err
	}
	fmt.Println("node is up")
	b, err := image.New(filepath.Join(dir, "images"))
	if err != nil {
		return err
	}
	p, err := toolchain.Pause(ctx, dir)
	if err != nil {
		return err
	}
	if err := b.Program(ctx, node.PauseImage, p); err != nil {
		return err
	}
	a := filepath.Join(dir, "pause.tar")
	if err := b.Archive(ctx, node.PauseImage, a, false); err != nil {
		return err
	}
	fmt.Println(n.Import(ctx, a))
	<-ctx.Done()
	return n.Stop()
}
