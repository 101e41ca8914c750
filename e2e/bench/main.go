// Command bench measures how many signed events a replica takes, against the least that any receiver of such events does: a bare
// net/http handler that reads the body and checks its HMAC. Both are processes of their own, asked in turns in one run by the same
// clients; what counts is the ratio. The events are of the kind that most are: they say nothing of a token. It runs in the folder e2e:
//
//	go run ./bench
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/e2e/internal/process"
	"flux-token-refresher/e2e/internal/toolchain"
)

const (
	clients = 8
	rounds  = 11
	round   = 2 * time.Second
	patient = time.Minute // bounds what has to happen before
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	if len(os.Args) == 3 && os.Args[1] == "bare" {
		err = bare(ctx, os.Stderr, os.Args[2])
	} else {
		err = run(ctx, os.Stdout)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "flux-token-refresher-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	key := filepath.Join(dir, "key")
	if err := os.WriteFile(key, secret, 0o600); err != nil {
		return err
	}
	starting, cancel := context.WithTimeout(ctx, patient)
	defer cancel()
	floor, stop, err := startBare(starting, key)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	product, stop, err := startProduct(ctx, out, dir, key)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()

	sides := []*side{{name: "bare", address: floor}, {name: "flux-token-refresher", address: product}}
	requests := events()
	for n := range rounds + 1 { // the first warms up
		for i := range sides {
			s := sides[(n+i)%len(sides)]
			m, err := load(ctx, s.address, requests, clients, round)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			if n > 0 {
				s.measured = append(s.measured, m)
			}
		}
	}
	return report(out, sides[0], sides[1])
}

// side is one of the two receivers, and how each round went.
type side struct {
	name, address string
	measured      []measure
}

func report(out io.Writer, floor, product *side) error {
	var faster, slower []float64
	for i, m := range product.measured {
		faster = append(faster, m.perSecond/floor.measured[i].perSecond)
		slower = append(slower, float64(m.p99)/float64(floor.measured[i].p99))
	}
	slices.Sort(faster)
	slices.Sort(slower)
	fmt.Fprintf(out, "\nSigned events that are unrelated, %d clients, medians of %d rounds of %s each, in turns:\n\n", clients, rounds, round)
	table := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "  receiver\tevents/s\tp50\tp99")
	for _, s := range []*side{floor, product} {
		fmt.Fprintf(table, "  %s\t%.0f\t%s\t%s\n", s.name,
			median(s.measured, func(m measure) float64 { return m.perSecond }),
			time.Duration(median(s.measured, func(m measure) float64 { return float64(m.p50) })).Round(time.Microsecond),
			time.Duration(median(s.measured, func(m measure) float64 { return float64(m.p99) })).Round(time.Microsecond))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "\n  ratio of events/s: %s\n  ratio of p99:      %s\n", spanOf(faster), spanOf(slower))
	return err
}

// spanOf gives the median of what is sorted, and its ends.
func spanOf(sorted []float64) string {
	return fmt.Sprintf("%.2f (%.2f to %.2f)", sorted[len(sorted)/2], sorted[0], sorted[len(sorted)-1])
}

func median(measured []measure, of func(measure) float64) float64 {
	var values []float64
	for _, m := range measured {
		values = append(values, of(m))
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// startBare starts this program as the floor.
func startBare(ctx context.Context, key string) (address string, stop func() error, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	p, record, err := process.StartReady(ctx, exec.Command(self, "bare", key), func(r process.Record) bool { return r["msg"] == "serving" })
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprint(record["address"]), stopping(ctx, p), nil
}

// startProduct starts a replica on a control plane, with one target that is good.
func startProduct(ctx context.Context, out io.Writer, dir, key string) (address string, stop func() error, err error) {
	var binaries cluster.Binaries
	if binaries.Etcd, err = toolchain.Etcd.Build(ctx, out); err != nil {
		return "", nil, err
	}
	if binaries.KubeAPIServer, err = toolchain.KubeAPIServer.Build(ctx, out); err != nil {
		return "", nil, err
	}
	binary, err := toolchain.Product(ctx, dir, false)
	if err != nil {
		return "", nil, err
	}
	root, err := toolchain.Root(ctx)
	if err != nil {
		return "", nil, err
	}
	c, err := cluster.Start(ctx, binaries, filepath.Join(dir, "cluster"))
	if err != nil {
		return "", nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop())
		}
	}()
	i, err := installation.Start(ctx, installation.Spec{
		Cluster: c, Binary: binary, Manifests: filepath.Join(root, "deploy", "kustomize"), Dir: dir, Namespace: "bench", Targets: []string{"token"},
		Config: fmt.Sprintf("events: {address: \"127.0.0.1:0\", senders: [{name: flux, hmacKeyFile: %q, namespaces: [\"*\"]}]}\n", key),
	})
	if err != nil {
		return "", nil, err
	}
	r, err := i.Replica(ctx, "refresher-0", "")
	if err != nil {
		i.Close()
		return "", nil, err
	}
	end := stopping(ctx, r.Process)
	waiting, cancel := context.WithTimeout(ctx, patient)
	defer cancel()
	record, err := r.Output.Wait(waiting, func(r process.Record) bool { return r["msg"] == "receiving events" })
	if err != nil {
		err = errors.Join(err, end(), errors.New(r.Output.String()))
		i.Close()
		return "", nil, err
	}
	return fmt.Sprint(record["address"]), func() error {
		err := end()
		i.Close()
		return errors.Join(err, c.Stop())
	}, nil
}

// stopping gives how to stop a process, also when ctx has ended.
func stopping(ctx context.Context, p *process.Process) func() error {
	ending := context.WithoutCancel(ctx)
	return func() error {
		ctx, cancel := context.WithTimeout(ending, patient)
		defer cancel()
		return p.Stop(ctx)
	}
}
