package election

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	"k8s.io/apimachinery/pkg/types"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection"
)

// The durations that stand for a zero value in Config: client-go's own.
const (
	DefaultLeaseDuration = 15 * time.Second
	DefaultRenewDeadline = 10 * time.Second
	DefaultRetryPeriod   = 2 * time.Second
)

// Config says what a replica campaigns for, and as whom. Client, Lease and Identity are required.
type Config struct {
	// Client reaches the Lease; usually a clientset's CoordinationV1(). It has no timeout of its own, which would cut the watch
	// (every other call here carries a deadline), and shares no client-side rate limit with the work, which would delay renewals.
	// It may get, watch and update the Lease by its name, and create Leases.
	Client coordinationclient.LeasesGetter
	// Lease names the object that all replicas compete for.
	Lease types.NamespacedName
	// Identity is this replica's, and no other process' ever: a pod's name and something random.
	Identity string
	// LeaseDuration is how long the others wait for a leader that is silent; whole seconds, because the Lease stores no less.
	LeaseDuration time.Duration
	// RenewDeadline is how old the last renewal may be while work still starts. What lies between it and
	// LeaseDuration is the time that work already started has to end before another replica leads.
	RenewDeadline time.Duration
	// RetryPeriod is the time from one renewal to the next.
	RetryPeriod time.Duration
	// Logger says who leads, once per change; nil is slog's default.
	Logger *slog.Logger
	// MeterProvider takes token_refresher.leader and token_refresher.leader.transitions of Run; nil takes none.
	MeterProvider metric.MeterProvider
}

// withDefaults fills in what was left zero.
func (c Config) withDefaults() Config {
	if c.LeaseDuration == 0 {
		c.LeaseDuration = DefaultLeaseDuration
	}
	if c.RenewDeadline == 0 {
		c.RenewDeadline = DefaultRenewDeadline
	}
	if c.RetryPeriod == 0 {
		c.RetryPeriod = DefaultRetryPeriod
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.MeterProvider == nil {
		c.MeterProvider = noop.NewMeterProvider()
	}
	return c
}

// validate holds client-go's rules, in the words of our fields, and two of our own: an identity and whole seconds.
func (c Config) validate() error {
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Client == nil {
		complain("a client is required")
	}
	if c.Lease.Namespace == "" || c.Lease.Name == "" {
		complain("the lease needs a namespace and a name, not %q", c.Lease)
	}
	if c.Identity == "" {
		complain("an identity is required")
	}
	if c.LeaseDuration < time.Second || c.LeaseDuration%time.Second != 0 {
		complain("leaseDuration must be whole seconds, at least 1s, not %s", c.LeaseDuration)
	}
	if c.LeaseDuration <= c.RenewDeadline {
		complain("leaseDuration (%s) must be longer than renewDeadline (%s)", c.LeaseDuration, c.RenewDeadline)
	}
	if c.RetryPeriod <= 0 {
		complain("retryPeriod must be longer than 0, not %s", c.RetryPeriod)
	}
	if c.RenewDeadline <= time.Duration(leaderelection.JitterFactor*float64(c.RetryPeriod)) {
		complain("renewDeadline (%s) must be longer than %.1f times retryPeriod (%s)",
			c.RenewDeadline, leaderelection.JitterFactor, c.RetryPeriod)
	}
	return errors.Join(errs...)
}

// callTimeout bounds one call, so that one that hangs leaves time for a second within RenewDeadline; client-go's heuristic.
func (c Config) callTimeout() time.Duration {
	return max(time.Second, c.RenewDeadline/2)
}
