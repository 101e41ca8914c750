package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"

	"flux-token-refresher/telemetry"
)

// The exit codes.
const (
	done   = 0
	failed = 1
	misuse = 2 // wrong usage or configuration
)

// failure is an error of the work itself; every other error that reaches execute is one of usage or configuration.
type failure struct{ error }

func (f failure) Unwrap() error { return f.error }

// flags are those of every subcommand.
type flags struct {
	config, kubeconfig  string
	logFormat, logLevel string
}

// execute runs the command line until it is done or ctx ends, and gives the exit code.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	f := &flags{}
	root := &cobra.Command{
		Use:           "flux-token-refresher",
		Short:         "Keeps short-lived Microsoft Entra tokens alive in the Secrets that Flux and its neighbours read",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	persistent := root.PersistentFlags()
	persistent.StringVar(&f.config, "config", "/etc/flux-token-refresher/config.yaml", "configuration file")
	persistent.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig file (default: $KUBECONFIG, ~/.kube/config, or the pod's own account)")
	persistent.StringVar(&f.logFormat, "log-format", string(telemetry.JSON), "text or json")
	persistent.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	root.AddCommand(runCommand(f), onceCommand(f), configCommand(f), versionCommand())
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)

	err := root.ExecuteContext(ctx)
	var fail failure
	switch {
	case err == nil:
		return done
	case errors.As(err, &fail):
		fmt.Fprintln(stderr, "flux-token-refresher:", err)
		return failed
	default:
		fmt.Fprintln(stderr, "flux-token-refresher:", err)
		return misuse
	}
}

// logging reads the two flags of the log.
func (f *flags) logging() (telemetry.LogFormat, slog.Level, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.logLevel)); err != nil {
		return "", 0, fmt.Errorf("--log-level %q: use debug, info, warn or error", f.logLevel)
	}
	switch format := telemetry.LogFormat(f.logFormat); format {
	case telemetry.JSON, telemetry.Text:
		return format, level, nil
	default:
		return "", 0, fmt.Errorf("--log-format %q: use text or json", f.logFormat)
	}
}
