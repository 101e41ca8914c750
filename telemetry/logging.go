// The log: slog, with the ids of the trace that a line belongs to, and the same lines over OpenTelemetry where they are asked for.

package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"

	"go.opentelemetry.io/contrib/bridges/otelslog"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	"go.opentelemetry.io/otel/trace"
)

// LogFormat is how a line of the log is written.
type LogFormat string

const (
	// JSON is one object per line, for pods.
	JSON LogFormat = "json"
	// Text is key=value, for people.
	Text LogFormat = "text"
)

func newLogger(cfg Config) (*slog.Logger, error) {
	w := cfg.LogWriter
	if w == nil {
		w = os.Stderr
	}
	options := &slog.HandlerOptions{Level: cfg.LogLevel}
	var plain slog.Handler
	switch cfg.LogFormat {
	case JSON, "":
		plain = slog.NewJSONHandler(w, options)
	case Text:
		plain = slog.NewTextHandler(w, options)
	default:
		return nil, fmt.Errorf("log format %q: use text or json", cfg.LogFormat)
	}
	return slog.New(traced{root: plain, full: plain}), nil
}

// alsoTo makes a logger whose lines go to provider as well.
func alsoTo(provider *sdklog.LoggerProvider, logger *slog.Logger, level slog.Level) *slog.Logger {
	bridge := otelslog.NewHandler("flux-token-refresher", otelslog.WithLoggerProvider(provider))
	return slog.New(slog.NewMultiHandler(logger.Handler(), leveled{bridge, level}))
}

// leveled drops what is below its level: the bridge takes everything.
type leveled struct {
	slog.Handler
	lowest slog.Level
}

func (h leveled) Enabled(_ context.Context, level slog.Level) bool { return level >= h.lowest }

func (h leveled) WithAttrs(attrs []slog.Attr) slog.Handler {
	return leveled{h.Handler.WithAttrs(attrs), h.lowest}
}

func (h leveled) WithGroup(name string) slog.Handler {
	return leveled{h.Handler.WithGroup(name), h.lowest}
}

// traced adds trace_id and span_id (OpenTelemetry, "Trace Context in non-OTLP Log Formats") to lines whose context holds a span. They
// stand at the top of a line, where log pipelines look for them, also when the logger has a group open.
type traced struct {
	// root has none of with; full is root with all of it.
	root, full slog.Handler
	with       []func(slog.Handler) slog.Handler
}

func (h traced) Enabled(ctx context.Context, level slog.Level) bool {
	return h.root.Enabled(ctx, level)
}

func (h traced) Handle(ctx context.Context, r slog.Record) error {
	span := trace.SpanContextFromContext(ctx)
	if !span.IsValid() {
		return h.full.Handle(ctx, r)
	}
	out := h.root.WithAttrs([]slog.Attr{
		slog.String("trace_id", span.TraceID().String()),
		slog.String("span_id", span.SpanID().String()),
	})
	for _, with := range h.with {
		out = with(out)
	}
	return out.Handle(ctx, r)
}

func (h traced) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.and(func(out slog.Handler) slog.Handler { return out.WithAttrs(attrs) })
}

func (h traced) WithGroup(name string) slog.Handler {
	return h.and(func(out slog.Handler) slog.Handler { return out.WithGroup(name) })
}

func (h traced) and(with func(slog.Handler) slog.Handler) slog.Handler {
	// Clipped, so that siblings do not write into one another's array.
	return traced{root: h.root, full: with(h.full), with: append(slices.Clip(h.with), with)}
}
