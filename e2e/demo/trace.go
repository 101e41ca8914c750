package main

// One trace through two pods: from the event at a follower to the word to Flux from the leader.

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"flux-token-refresher/e2e/internal/otlp"
)

// shownAttributes are the few that fit beside a tree.
var shownAttributes = map[string]bool{
	"event.verdict": true, "refresh.outcome": true, "token.accepted": true, "token.rejected": true, "flux.woken": true,
}

// showTrace shows that of an event.
func (d *demo) showTrace(ctx context.Context, event otlp.Span) error {
	root, err := d.spans.Wait(ctx, func(s otlp.Span) bool { return s.Name == "refresh" && s.TraceID == event.TraceID })
	if err != nil {
		return err
	}
	follower, leader := event.Resource[podName], root.Resource[podName]
	spans := d.spans.Spans(func(s otlp.Span) bool { return s.TraceID == event.TraceID })
	pods := map[string]string{} // by the span's name
	for i := range spans {
		pods[spans[i].Name] = spans[i].Resource[podName]
		shown := map[string]string{}
		for key, value := range spans[i].Attributes {
			if shownAttributes[key] {
				shown[key] = value
			}
		}
		spans[i].Attributes = shown
	}
	for name, pod := range map[string]string{
		"POST /events": follower, "refresh.request": follower,
		"refresh": leader, "token.acquire": leader, "secret.apply": leader, "token.verify": leader, "flux.wake": leader,
	} {
		if pods[name] != pod {
			return fmt.Errorf("the span %s is of %q, want %s", name, pods[name], pod)
		}
	}
	fmt.Fprintf(d.out, "\n\nThe event that came in at %s, and the refresh by %s: one trace (OpenTelemetry)\n\n", follower, leader)
	var tree bytes.Buffer
	if err := otlp.WriteTree(&tree, spans); err != nil {
		return err
	}
	return indent(d.out, &tree)
}

func indent(w io.Writer, text *bytes.Buffer) error {
	for line := range bytes.Lines(text.Bytes()) {
		if _, err := fmt.Fprintf(w, "  %s", line); err != nil {
			return err
		}
	}
	return nil
}
