package main

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Both may be set by the linker (-X main.version=1.2.3), which is all that is known in an image: its build sees no repository.
var version, revision string

// build is what this binary was made of.
type build struct{ Version, Go, Revision string }

func versionOf() build {
	b := build{Version: version, Go: runtime.Version(), Revision: revision}
	if info, ok := debug.ReadBuildInfo(); ok {
		b.Version = cmp.Or(b.Version, info.Main.Version)
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				b.Revision = cmp.Or(b.Revision, s.Value)
			}
		}
	}
	b.Revision = cmp.Or(b.Revision, "unknown")
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
