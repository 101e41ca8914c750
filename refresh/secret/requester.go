package secret

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"flux-token-refresher/internal/kube"
	"flux-token-refresher/refresh"
)

// Ask is an event's wish for another token.
type Ask struct {
	// Sender, Source and ID name the event: the same three are the same wish, however often it arrives.
	Sender, Source, ID string
	// Verdict is what was made of it; for people.
	Verdict string
	// Time is when what the event reports happened, Received when it came in.
	Time, Received time.Time
	// TraceParent is the W3C traceparent of the event's span; "" when there is none.
	TraceParent string
	// Demand tells that nobody complains of the token that stands there: another one is wanted whatever the Git servers say of it.
	Demand bool
}

// Answer is what became of an Ask.
type Answer struct {
	// Written: it stands on the Secret now. Otherwise what stands there answers it.
	Written bool
	// Overtaken: the event is older than the token, so it is about an earlier one.
	Overtaken bool
	// OpenTrace is the traceparent of the request that was open already, if it has one.
	OpenTrace string
}

// Requester writes requests for a refresh, from any replica: the leader's watch sees them, and whoever leads next does too.
type Requester struct{ client typedcorev1.SecretsGetter }

// NewRequester gives a Requester. About the client see New.
func NewRequester(client typedcorev1.SecretsGetter) *Requester { return &Requester{client: client} }

// requestTries bounds how often a request is written anew because somebody else changed the Secret meanwhile.
const requestTries = 5

// Request asks for a refresh of a target. When it returns without an error, the wish is durable, or nothing is left to wish for:
//
//   - the Secret does not exist or holds no token, which the leader sees by itself;
//   - the Secret is suspended, or can never take a token;
//   - the event is older than the token (Overtaken). Both times count in whole seconds; an event of the same second is not older;
//   - this very event was asked, or handled, before;
//   - a request about this token is open (OpenTrace), or a person's.
//
// Errors are *refresh.Error, or the context's; then nobody knows of the wish.
func (r *Requester) Request(ctx context.Context, target refresh.Target, ask Ask) (Answer, error) {
	raw := refresh.LongHash(ask.Sender, ask.Source, ask.ID)
	for range requestTries {
		live, err := get(ctx, r.client, target.Name)
		if err != nil || live == nil {
			return Answer{}, err
		}
		observed := Observe(target, live)
		about, open := about(target, live), observed.Request
		switch {
		case about == "", observed.Suspended, observed.Refused != "", refresh.Hash(raw) == observed.Handled.Request:
			return Answer{}, nil
		case ask.Time.Truncate(time.Second).Before(observed.RefreshedAt):
			return Answer{Overtaken: true}, nil
		case open.Open() && (open.About == about && !ask.Demand || open.About == ""):
			return Answer{OpenTrace: open.TraceParent}, nil
		}
		if ask.Demand {
			about = ""
		}
		err = r.write(ctx, live, raw, about, ask)
		if !errors.Is(err, refresh.ErrConflict) {
			return Answer{Written: err == nil}, err
		}
	}
	return Answer{}, &refresh.Error{Class: refresh.Unavailable, Text: "the Secret changes faster than a request can be written to it"}
}

// about names the token that stands in a Secret; "" when there is none. Of a format that does not show the token, it is the token that
// we wrote, while that content stands.
func about(target refresh.Target, s *corev1.Secret) string {
	content := target.Format.ContentHash(s.Data)
	switch value := target.Format.Value(s.Data); {
	case content == "":
		return ""
	case value != "":
		return refresh.Hash(value)
	case content == s.Annotations[ContentHash]:
		return s.Annotations[TokenHash]
	}
	return ""
}

func (r *Requester) write(ctx context.Context, live *corev1.Secret, raw, about string, ask Ask) error {
	why := requestContext{
		Request: raw, About: about, Verdict: ask.Verdict, Sender: ask.Sender, Source: ask.Source,
		Received: ask.Received.UTC().Format(time.RFC3339Nano), TraceParent: ask.TraceParent,
	}
	text, err := json.Marshal(why)
	if err == nil && len(text) > maxRequestContext {
		why.Source = "" // for people, and the only one that can be long
		text, err = json.Marshal(why)
	}
	if err != nil {
		return err
	}
	change, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"resourceVersion": live.ResourceVersion,
		"annotations":     map[string]string{Request: raw, RequestContext: string(text)},
	}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, kube.RequestTimeout)
	defer cancel()
	_, err = r.client.Secrets(live.Namespace).Patch(ctx, live.Name, types.MergePatchType, change, metav1.PatchOptions{FieldManager: Actor})
	switch {
	case apierrors.IsNotFound(err):
		return refresh.ErrConflict // deleted meanwhile
	case err != nil:
		return failure(ctx, "annotate", err)
	}
	return nil
}
