package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"flux-token-refresher/election"
	"flux-token-refresher/events"
	"flux-token-refresher/refresh"
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
	servers, err := i.servers(h)
	if err != nil {
		return err
	}
	background, stopRecording := context.WithCancel(context.WithoutCancel(ctx))
	var owned sync.WaitGroup
	for _, s := range servers {
		owned.Go(func() {
			if err := s.serve(); err != nil {
				cancel(err)
			}
		})
	}
	owned.Go(func() { _ = i.recorder.Run(background) })

	h.alive.Store(true)
	err = election.Run(ctx, i.election, func(ctx context.Context, fresh func() bool) error {
		defer h.term(ctx)()
		return i.lead(ctx, fresh, (*refresh.Refresher).Run)
	})
	h.alive.Store(false)
	if cause := context.Cause(ctx); err == nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	log.Info("shutting down")

	stopRecording()
	within(ctx, serverShare, func(ctx context.Context) error {
		var draining errgroup.Group
		for _, s := range servers {
			draining.Go(func() error { return s.Shutdown(ctx) })
		}
		return draining.Wait()
	})
	for _, s := range servers {
		_ = s.Close() // who was not done in time
	}
	owned.Wait()
	return err
}

// servers opens the health port and, where somebody may send events, the port for those.
func (i *installation) servers(h *health) ([]*server, error) {
	log := i.telemetry.Logger()
	health, err := listen("health", i.config.HealthAddress, h.handler(), log)
	if err != nil {
		return nil, err
	}
	log.Info("serving", "address", health.listener.Addr().String(), "version", versionOf().Version, "targets", len(i.config.Targets))
	c := i.config.Events
	if len(c.Senders) == 0 {
		return []*server{health}, nil
	}
	receiving, err := i.receiving()
	if err != nil {
		return nil, errors.Join(err, health.listener.Close())
	}
	log.Info("receiving events", "address", receiving.listener.Addr().String(), "senders", len(c.Senders))
	return []*server{health, receiving}, nil
}

// receiving opens the port for events.
func (i *installation) receiving() (*server, error) {
	log, c := i.telemetry.Logger(), i.config.Events
	handler, err := i.receiver()
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	var encrypted *tls.Config
	if c.TLSCertFile != "" {
		files := events.TLSFiles{Certificate: c.TLSCertFile, Key: c.TLSKeyFile, ClientCA: c.ClientCAFile}
		if encrypted, err = events.ServerTLS(files, log); err != nil {
			return nil, fmt.Errorf("events.tls: %w", err)
		}
	}
	s, err := listen("events", c.Address, handler, log)
	if err != nil {
		return nil, err
	}
	s.TLSConfig = encrypted
	events.Guard(s.Server)
	return s, nil
}

// within gives do its share of the shutdown, although ctx has ended.
func within(ctx context.Context, d time.Duration, do func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d)
	defer cancel()
	_ = do(ctx)
}
