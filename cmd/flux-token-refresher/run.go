package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"flux-token-refresher/election"
)

func runCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "The service: elect a leader, which keeps every target's token fresh",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			i, err := f.install(cmd.Context(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if err := i.run(cmd.Context()); err != nil {
				return failure{err}
			}
			return nil
		},
	}
}

// The shutdown's shares of 5 seconds in all: the workers stop at once, the Lease is given back (2 s at most, by election), HTTP is
// drained while the last Events are recorded (1 s at most, by the recorder), telemetry is flushed.
const (
	serverShare    = 500 * time.Millisecond
	telemetryShare = time.Second
)

// run serves until ctx ends or something fails, and shuts down in order: work, Lease, Events, HTTP, telemetry.
func (i *installation) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	defer within(ctx, telemetryShare, i.telemetry.Shutdown)

	log := i.telemetry.Logger()
	h := &health{metrics: i.telemetry.MetricsHandler()}
	listener, err := net.Listen("tcp", i.config.HealthAddress)
	if err != nil {
		return fmt.Errorf("health.address: %w", err)
	}
	server := h.server()
	background, stopRecording := context.WithCancel(context.WithoutCancel(ctx))
	var owned sync.WaitGroup
	owned.Go(func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			cancel(fmt.Errorf("serve %s: %w", i.config.HealthAddress, err))
		}
	})
	owned.Go(func() { _ = i.recorder.Run(background) })
	log.Info("serving", "address", listener.Addr().String(), "version", versionOf().Version, "targets", len(i.config.Targets))

	h.alive.Store(true)
	err = election.Run(ctx, i.election, func(ctx context.Context, fresh func() bool) error {
		defer h.term(ctx)()
		r, err := i.refresher(fresh)
		if err != nil {
			return err
		}
		return r.Run(ctx)
	})
	h.alive.Store(false)
	if cause := context.Cause(ctx); err == nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	log.Info("shutting down")

	stopRecording()
	within(ctx, serverShare, server.Shutdown)
	owned.Wait()
	return err
}

// within gives do its share of the shutdown, although ctx has ended.
func within(ctx context.Context, d time.Duration, do func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d)
	defer cancel()
	_ = do(ctx)
}
