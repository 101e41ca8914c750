package main

// What is shown at the end: one trace, and what was measured.

import (
	"context"
	"errors"
	"fmt"
	"time"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/refresh"
)

// row is one line of the table.
type row struct {
	what   string
	took   time.Duration
	remark string
}

func (d *demo) row(what string, took time.Duration, remark string) {
	d.rows = append(d.rows, row{what, took, remark})
}

func (d *demo) report(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := d.showTrace(ctx, d.event); err != nil {
		return fmt.Errorf("the trace: %w", err)
	}
	return d.showTable(ctx)
}

func (d *demo) showTable(ctx context.Context) error {
	least, err := d.leastValidity()
	if err != nil {
		return err
	}
	end, err := d.cluster.Audit.Mark(ctx)
	if err != nil {
		return err
	}
	requests := d.cluster.Audit.Between(0, end, d.ours)
	writes, reads := 0, 0
	var refused error
	for _, r := range requests {
		switch {
		case r.Code == 403:
			refused = errors.Join(refused, fmt.Errorf("refused, so the rights do not suffice: %s", r))
		case r.Resource == "secrets" && r.Verb == "patch":
			writes++
		case r.Resource == "secrets" && r.Verb == "get":
			reads++
		}
	}
	if refused != nil {
		return refused
	}
	fmt.Fprint(d.out, "\n\nMeasured\n\n")
	for _, r := range d.rows {
		fmt.Fprintln(d.out, leader("  "+r.what, fmt.Sprintf("%s   %7s", short(r.took), r.remark)))
	}
	fmt.Fprintf(d.out, `
  In all: %d tokens minted, %d writes of the Secret, %d reads of it beside its watch (for reports that
  a source failed), nothing refused by RBAC or the admission policy. When a token was replaced it
  had %.0f s left or more, by Entra's word.

Everything that was claimed here happened, in %s.
`, d.installed.Entra.Requests(), writes, reads, least.Seconds(),
		time.Since(d.started).Round(time.Second))
	return nil
}

// leastValidity is what was left, at the least, of a token when it went from the Secret; an error when one had ended there.
func (d *demo) leastValidity() (time.Duration, error) {
	least := time.Duration(1<<63 - 1)
	states := d.secret.all()
	for n, s := range states {
		if s.object == nil || refresh.Hash(string(s.object.Data["bearerToken"])) != hash(s.object) {
			continue
		}
		until := time.Now()
		if n+1 < len(states) {
			until = states[n+1].seen
		}
		left := expiry(s.object).Sub(until)
		if left <= 0 {
			return 0, fmt.Errorf("token %s stood in the Secret for %s after its end", hash(s.object), -left)
		}
		if n+1 < len(states) && states[n+1].object != nil && hash(states[n+1].object) != hash(s.object) {
			least = min(least, left)
		}
	}
	return least, nil
}

// ours tells whether a request came from the product.
func (d *demo) ours(r cluster.Request) bool {
	return r.User == "system:serviceaccount:"+namespace+":"+installation.Account
}
