package secret

import (
	"context"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/tools/record/util"

	"flux-token-refresher/internal/kube"
	"flux-token-refresher/refresh"
)

const (
	// maxEvents is how many Events wait for the API server; more are dropped.
	maxEvents = 256
	// flushTimeout is what the Events that still wait get at the end.
	flushTimeout = time.Second
)

// Recorder is refresh.Recorder on Kubernetes Events (v1, create and patch). It uses client-go's correlation, which
// counts repeated Events and limits their number for each Secret, but not its broadcasters: those start a goroutine
// for each Event that nobody waits for, and try a dozen times; the newer one also drops the second note of a reason.
type Recorder struct {
	client   typedcorev1.EventsGetter
	instance string
	log      *slog.Logger
	queue    chan *corev1.Event
}

// NewRecorder gives a Recorder; instance names this replica. Nothing is recorded before Run.
func NewRecorder(client typedcorev1.EventsGetter, instance string, log *slog.Logger) *Recorder {
	return &Recorder{client: client, instance: instance, log: log, queue: make(chan *corev1.Event, maxEvents)}
}

// Event implements refresh.Recorder.
func (r *Recorder) Event(name refresh.Name, uid string, warning bool, reason, note string) {
	now := metav1.Now()
	event := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: name.Namespace,
			Name:      util.GenerateEventName(name.Name, now.UnixNano()),
		},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: "v1", Kind: "Secret", Namespace: name.Namespace, Name: name.Name, UID: types.UID(uid),
		},
		Type:                corev1.EventTypeNormal,
		Reason:              reason,
		Message:             note,
		Source:              corev1.EventSource{Component: Actor, Host: r.instance},
		ReportingController: Actor,
		ReportingInstance:   r.instance,
		FirstTimestamp:      now,
		LastTimestamp:       now,
		Count:               1,
	}
	if warning {
		event.Type = corev1.EventTypeWarning
	}
	select {
	case r.queue <- event:
	default:
		r.log.Debug("too many Events wait: one was dropped", "target", name.String(), "reason", reason)
	}
}

// Run records until ctx ends, then what still waits, for a second at most; it returns ctx's error.
func (r *Recorder) Run(ctx context.Context) error {
	correlator := record.NewEventCorrelatorWithOptions(record.CorrelatorOptions{})
	for ctx.Err() == nil {
		select {
		case event := <-r.queue:
			r.record(ctx, correlator, event)
		case <-ctx.Done():
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	for last.Err() == nil {
		select {
		case event := <-r.queue:
			r.record(last, correlator, event)
		default:
			return ctx.Err()
		}
	}
	return ctx.Err()
}

// record writes one Event, once.
func (r *Recorder) record(ctx context.Context, correlator *record.EventCorrelator, event *corev1.Event) {
	ctx, cancel := context.WithTimeout(ctx, kube.RequestTimeout)
	defer cancel()
	result, err := correlator.EventCorrelate(event)
	if err != nil || result.Skip {
		return
	}
	events := r.client.Events(event.Namespace)
	written := result.Event
	if result.Event.Count > 1 {
		written, err = events.Patch(ctx, result.Event.Name, types.StrategicMergePatchType, result.Patch, metav1.PatchOptions{})
	}
	if result.Event.Count == 1 || apierrors.IsNotFound(err) { // Events live for an hour
		result.Event.ResourceVersion = ""
		written, err = events.Create(ctx, result.Event, metav1.CreateOptions{})
	}
	if err != nil {
		r.log.DebugContext(ctx, "an Event was not recorded", "target", event.Namespace+"/"+event.InvolvedObject.Name, "reason", event.Reason,
			"why", apierrors.ReasonForError(err))
		return
	}
	correlator.UpdateState(written)
}
