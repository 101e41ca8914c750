package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"flux-token-refresher/election"
	"flux-token-refresher/events"
	"flux-token-refresher/refresh"
)

func onceCommand(f *flags) *cobra.Command {
	var soon, timeout time.Duration
	var event string
	cmd := &cobra.Command{
		Use:   "once",
		Short: "Refresh what is due, then exit: for a CronJob, a pipeline, a bootstrap, a job that an event starts",
		Long: `Refresh what is due, then exit: for a CronJob, a pipeline, a bootstrap.

It leads while it works. Where a leader is at work already, that one does all there is to do, and once exits 0.

With --event it handles an event first, as POST /events does: a CloudEvent in the JSON format, or what Flux posts. What the event asks
for is written to the Secrets that it concerns, and refreshed here, or by the leader; where it concerns none, nothing else is done.
Nobody proves who sent the event: whoever may start the job may ask for refreshes. Exit 2 says that the event is wrong, and that
another try is useless.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if soon < 0 || timeout <= 0 {
				return fmt.Errorf("--within must not be negative, and --timeout must be positive")
			}
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), timeout, fmt.Errorf("gave up after %s (--timeout)", timeout))
			defer cancel()
			work := (*installation).refreshDue
			if cmd.Flags().Changed("event") {
				content, err := read(ctx, event, cmd.InOrStdin())
				if err != nil {
					return fmt.Errorf("--event: %w", err)
				}
				work = func(i *installation, ctx context.Context) error { return i.answer(ctx, content) }
			}
			i, err := f.install(cmd.Context(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			i.config.Refresh.Within = soon
			switch err := i.once(ctx, work); {
			case errors.Is(err, events.ErrInvalid):
				return fmt.Errorf("--event %s: %w", event, err)
			case err != nil:
				return failure{err}
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&soon, "within", 0, "refresh also what comes due within this time")
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "give up after this time")
	cmd.Flags().StringVar(&event, "event", "", "handle the event in this file first; - is stdin")
	return cmd
}

// once does work with all that it needs around it.
func (i *installation) once(ctx context.Context, work func(*installation, context.Context) error) error {
	background, stopRecording := context.WithCancel(context.WithoutCancel(ctx))
	var owned sync.WaitGroup
	owned.Go(func() { _ = i.recorder.Run(background) })

	err := work(i, ctx)
	stopRecording()
	owned.Wait()
	within(ctx, telemetryShare, i.telemetry.Shutdown)
	return err
}

// refreshDue refreshes what is due, where nobody leads.
func (i *installation) refreshDue(ctx context.Context) error {
	_, err := i.leadOnce(ctx)
	return err
}

// leadOnce refreshes what is due, or gives who leads.
func (i *installation) leadOnce(ctx context.Context) (leader string, err error) {
	leader, err = election.Once(ctx, i.election, func(ctx context.Context, fresh func() bool) error {
		return i.lead(ctx, fresh, (*refresh.Refresher).Once)
	})
	if leader != "" {
		i.telemetry.Logger().Info("a leader is at work already", "leader", leader)
	}
	return leader, err
}
