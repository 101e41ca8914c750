package main

import (
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker (-X main.version=1.2.3).
var version string

// build is what this binary was made of.
type build struct{ Version, Go, Revision string }

func versionOf() build {
	b := build{Version: version, Revision: "unknown"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	b.Go = info.GoVersion
	if b.Version == "" {
		b.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			b.Revision = s.Value
		}
	}
	return b
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := versionOf()
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "flux-token-refresher %s (revision %s, %s)\n", b.Version, b.Revision, b.Go)
			return err
		},
	}
}
