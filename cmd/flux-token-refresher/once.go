package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"flux-token-refresher/election"
	"flux-token-refresher/refresh"
)

func onceCommand(f *flags) *cobra.Command {
	var soon, timeout time.Duration
	cmd := &cobra.Command{
		Use:   "once",
		Short: "Refresh what is due, then exit: for a CronJob, a pipeline, a bootstrap",
		Long: `Refresh what is due, then exit: for a CronJob, a pipeline, a bootstrap.

It leads while it works. Where a leader is at work already, that one does all there is to do, and once exits 0.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if soon < 0 || timeout <= 0 {
				return fmt.Errorf("--within must not be negative, and --timeout must be positive")
			}
			i, err := f.install(cmd.Context(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			i.config.Refresh.Within = soon
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), timeout, fmt.Errorf("gave up after %s (--timeout)", timeout))
			defer cancel()
			if err := i.once(ctx); err != nil {
				return failure{err}
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&soon, "within", 0, "refresh also what comes due within this time")
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "give up after this time")
	return cmd
}

func (i *installation) once(ctx context.Context) error {
	background, stopRecording := context.WithCancel(context.WithoutCancel(ctx))
	var owned sync.WaitGroup
	owned.Go(func() { _ = i.recorder.Run(background) })

	leader, err := election.Once(ctx, i.election, func(ctx context.Context, fresh func() bool) error {
		return i.lead(ctx, fresh, (*refresh.Refresher).Once)
	})
	if leader != "" {
		i.telemetry.Logger().Info("a leader is at work already", "leader", leader)
	}
	stopRecording()
	owned.Wait()
	within(ctx, telemetryShare, i.telemetry.Shutdown)
	return err
}
