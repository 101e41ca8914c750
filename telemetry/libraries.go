// What libraries log by themselves: client-go through klog, the OpenTelemetry SDK, the Azure SDK. All three can
// print requests, bodies or headers; here they are cut down to what may be read by anybody.

package telemetry

import (
	"context"
	"log/slog"
	"net/url"
	"os"
	"path"
	"regexp"
	"strings"
	"sync"
	"time"

	azlog "github.com/Azure/azure-sdk-for-go/sdk/azcore/log"
	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	"k8s.io/klog/v2"
)

// captureLibraries routes them to logger. They are all global to the process.
func captureLibraries(logger *slog.Logger, problems *problems) {
	otel.SetErrorHandler(problems)
	otel.SetLogger(logr.FromSlogHandler(library{out: logger.With("logger", "opentelemetry").Handler(), errors: slog.LevelWarn, bare: true, limit: newLimiter()}))
	klog.SetSlogLogger(slog.New(library{out: logger.With("logger", "klog").Handler(), errors: slog.LevelError, limit: newLimiter()}))
	// AZURE_SDK_GO_LOGGING=all installs a listener that prints whole answers of Entra.
	azlog.SetListener(nil)
}

// library is the handler behind a library's log. Errors keep their worth, one a minute from each line of code (all of
// them at debug); everything else is debug. What is more verbose than logr's V(4) is dropped whatever the log level
// is: client-go prints headers and bodies, Secrets among them, at V(8).
type library struct {
	out slog.Handler
	// errors is the level at which its errors are ours.
	errors slog.Level
	// bare drops all but the message: the SDK logs malformed OTEL_EXPORTER_OTLP_HEADERS and endpoints as they are.
	bare  bool
	limit *limiter
}

func (l library) level(of slog.Level) slog.Level {
	if of >= slog.LevelError {
		return l.errors
	}
	return slog.LevelDebug
}

func (l library) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelDebug && l.out.Enabled(ctx, l.level(level))
}

func (l library) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelDebug {
		return nil
	}
	out := slog.NewRecord(r.Time, l.level(r.Level), r.Message, r.PC)
	if !l.bare {
		r.Attrs(func(a slog.Attr) bool { out.AddAttrs(a); return true })
	}
	if source := r.Source(); source != nil {
		out.AddAttrs(slog.Group(slog.SourceKey, "file", path.Base(source.File), "line", source.Line))
	}
	if out.Level > slog.LevelDebug {
		unsaid, ok := l.limit.allow(r.PC)
		switch {
		case !ok:
			out.Level = slog.LevelDebug
		case unsaid > 0:
			out.AddAttrs(slog.Int("unsaid", unsaid))
		}
	}
	if !l.out.Enabled(ctx, out.Level) {
		return nil
	}
	return l.out.Handle(ctx, out)
}

func (l library) WithAttrs(attrs []slog.Attr) slog.Handler {
	if !l.bare {
		l.out = l.out.WithAttrs(attrs)
	}
	return l
}

func (l library) WithGroup(name string) slog.Handler {
	l.out = l.out.WithGroup(name)
	return l
}

// problems is OpenTelemetry's error handler: a collector that does not answer costs one line a minute.
type problems struct {
	logger *slog.Logger
	limit  *limiter
}

// Handle implements otel.ErrorHandler. What is behind the first colon varies (ports, addresses), so what
// is before it ("traces export") decides what is the same.
func (p *problems) Handle(err error) {
	text := redact(err)
	kind, _, _ := strings.Cut(text, ":")
	if unsaid, ok := p.limit.allow(kind); ok {
		p.logger.Warn("telemetry is not complete", "error", text, "unsaid", unsaid)
	}
}

var urls = regexp.MustCompile(`[a-zA-Z][a-zA-Z0-9+.-]*://[^\s"']+`)

// redact gives the error's text without what a collector answered, which can echo what it was sent, and
// without the credentials that OTEL_* holds: user names, passwords and queries of URLs, and headers.
func redact(err error) string {
	const maxText = 300 // bytes
	text, _, _ := strings.Cut(err.Error(), "body:")
	text = urls.ReplaceAllStringFunc(text, func(s string) string {
		u, err := url.Parse(s)
		if err != nil {
			return "(a URL)"
		}
		return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
	})
	for _, secret := range secretsOfEnvironment() {
		text = strings.ReplaceAll(text, secret, "(redacted)")
	}
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return strings.TrimSpace(text)
}

// secretsOfEnvironment are the values of OTEL_EXPORTER_OTLP_HEADERS and its kin, as they stand there, decoded, and
// word by word ("Bearer …").
func secretsOfEnvironment() []string {
	var secrets []string
	for _, variable := range []string{"OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_METRICS_HEADERS", "OTEL_EXPORTER_OTLP_LOGS_HEADERS"} {
		for pair := range strings.SplitSeq(os.Getenv(variable), ",") {
			_, raw, ok := strings.Cut(pair, "=")
			if !ok {
				raw = pair
			}
			decoded, _ := url.PathUnescape(raw)
			for _, s := range append(strings.Fields(decoded), raw) {
				// Shorter ones are no secrets, and replacing "1" everywhere makes an error unreadable.
				if len(s) >= 8 {
					secrets = append(secrets, s)
				}
			}
		}
	}
	return secrets
}

// limiter lets each kind of message through once a minute.
type limiter struct {
	mu    sync.Mutex
	kinds map[any]*said
}

type said struct {
	last   time.Time
	unsaid int
}

func newLimiter() *limiter { return &limiter{kinds: map[any]*said{}} }

// allow tells whether a message of this kind may be written now, and how many were not since the last one that was.
func (l *limiter) allow(kind any) (unsaid int, ok bool) {
	const every, most = time.Minute, 1000
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.kinds[kind]
	now := time.Now()
	switch {
	case k == nil:
		if len(l.kinds) >= most {
			clear(l.kinds)
		}
		l.kinds[kind] = &said{last: now}
		return 0, true
	case now.Sub(k.last) < every:
		k.unsaid++
		return 0, false
	}
	unsaid, k.last, k.unsaid = k.unsaid, now, 0
	return unsaid, true
}
