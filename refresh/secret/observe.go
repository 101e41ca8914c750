package secret

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"flux-token-refresher/refresh"
)

// Observe tells what a Secret says about itself, as far as target is concerned. Everything on a Secret is input
// that anybody may have written: what cannot be read counts as absent.
func Observe(target refresh.Target, s *corev1.Secret) refresh.Observed {
	o := refresh.Observed{
		Exists:       true,
		UID:          string(s.UID),
		Version:      s.ResourceVersion,
		Created:      s.Labels[ManagedByLabel] == Actor,
		Suspended:    s.Annotations[Suspend] == "true",
		Refused:      refused(target, s),
		Foreign:      foreign(target, s),
		OtherManager: otherManager(target, s.ManagedFields),
		TokenHash:    s.Annotations[TokenHash],
		WrittenHash:  s.Annotations[ContentHash],
		ConfigHash:   s.Annotations[ConfigHash],
		ContentHash:  target.Format.ContentHash(s.Data),
		ExpiresAt:    moment(s.Annotations[ExpiresAt]),
		RefreshAt:    moment(s.Annotations[RefreshAt]),
		RefreshedAt:  moment(s.Annotations[RefreshedAt]),
		Request:      request(s.Annotations),
		Handled: refresh.Handled{
			Request: s.Annotations[HandledRequest],
			Outcome: refresh.Outcome(s.Annotations[HandledOutcome]),
		},
	}
	o.Leftover = leftover(target, s, o.Foreign)
	return o
}

// moment reads RFC 3339; what does not parse is zero.
func moment(value string) time.Time {
	t, err := time.Parse(time.RFC3339, value)
	if err != nil {
		return time.Time{}
	}
	return t.UTC()
}

// required are the keys of which a Secret of a type must have one, for the types that can hold a token and ask for something
// (https://kubernetes.io/docs/concepts/configuration/secret/#secret-types).
var required = map[corev1.SecretType][]string{
	corev1.SecretTypeBasicAuth:        {corev1.BasicAuthUsernameKey, corev1.BasicAuthPasswordKey},
	corev1.SecretTypeDockerConfigJson: {corev1.DockerConfigJsonKey},
}

// refused says why the API server, or the Secret's real owner, would never take the token, so that none is minted
// for nothing. Types are a list of what is allowed, because the API server itself adds foreign keys to most of the
// others, a ServiceAccount's token among them (measured). The format has to write what its type asks for: a key of somebody else's
// could go at any time, and one of ours goes with the format that wrote it.
func refused(target refresh.Target, s *corev1.Secret) string {
	if s.Immutable != nil && *s.Immutable {
		return "it is immutable: delete it, or create it again without immutable: true"
	}
	if s.Type == corev1.SecretTypeOpaque || s.Type == "" {
		return ""
	}
	keys, known := required[s.Type]
	written := func(key string) bool { return slices.Contains(target.Format.Keys(), key) }
	switch {
	case !known:
		return fmt.Sprintf("its type %s belongs to something else: use a Secret of type Opaque (the type of a Secret cannot be changed)", s.Type)
	case !slices.ContainsFunc(keys, written):
		return fmt.Sprintf("its type %s needs the key %s, which the target's format does not write: use a format with that key, or a Secret of type Opaque",
			s.Type, strings.Join(keys, " or "))
	}
	return ""
}

// foreign tells that somebody else's credential stands there: a Secret without our mark whose keys, of the target or
// of any that Flux reads a credential from, hold something.
func foreign(target refresh.Target, s *corev1.Secret) bool {
	if s.Annotations[TokenHash] != "" {
		return false
	}
	credential := func(key string) bool { return len(s.Data[key]) > 0 }
	return slices.ContainsFunc(target.Format.Keys(), credential) ||
		slices.ContainsFunc([]string{"bearerToken", "username", "password"}, credential)
}

// leftover says what of a foreign credential stays beside the keys of the target: source-controller reads bearerToken where there is one, and
// no username and password then (NewAuthOptions of fluxcd/pkg/git). A user name without a password is no credential. Once the token is ours
// only that counts which Flux uses instead.
func leftover(target refresh.Target, s *corev1.Secret, foreign bool) string {
	stays := func(key string) bool {
		_, there := s.Data[key] // an empty bearerToken is one, to Flux
		return there && !slices.Contains(target.Format.Keys(), key)
	}
	var keys []string
	if stays("bearerToken") {
		keys = append(keys, "bearerToken")
	}
	if stays("password") {
		if stays("username") {
			keys = append(keys, "username")
		}
		keys = append(keys, "password")
	}
	if len(keys) == 0 || !foreign && keys[0] != "bearerToken" {
		return ""
	}
	effect := "which Flux uses instead of what the target's format writes. Remove it"
	if slices.Contains(target.Format.Keys(), "bearerToken") {
		effect = "which Flux ignores beside bearerToken. When nothing else reads that, remove it"
	}
	operations := make([]string, len(keys))
	for i, key := range keys {
		operations[i] = fmt.Sprintf(`{"op":"remove","path":"/data/%s"}`, key)
	}
	return fmt.Sprintf("Left beside it: %s, %s: kubectl -n %s patch secret %s --type=json -p '[%s]'",
		strings.Join(keys, ", "), effect, s.Namespace, s.Name, strings.Join(operations, ","))
}

// otherManager is the field manager, other than ours, that last wrote a key of the target.
func otherManager(target refresh.Target, entries []metav1.ManagedFieldsEntry) string {
	var name string
	var last time.Time
	for _, entry := range entries {
		// Times are whole seconds and may be missing; of equal ones the later entry wins.
		if entry.Manager == Actor || (entry.Time != nil && entry.Time.Time.Before(last)) || !owns(entry, target.Format.Keys()) {
			continue
		}
		name = entry.Manager
		if entry.Time != nil {
			last = entry.Time.Time
		}
	}
	return name
}

// owns tells whether an entry of managedFields covers one of the keys of a Secret's data. What was applied as stringData, as most
// Secrets in Git are written, stands there under that name, although the API server has made data of it (measured).
func owns(entry metav1.ManagedFieldsEntry, keys []string) bool {
	if entry.FieldsV1 == nil {
		return false
	}
	var fields fieldpath.Set
	if err := fields.FromJSON(entry.FieldsV1.GetRawReader()); err != nil {
		return false
	}
	return slices.ContainsFunc(keys, func(key string) bool {
		return fields.Has(fieldpath.MakePathOrDie("data", key)) || fields.Has(fieldpath.MakePathOrDie("stringData", key))
	})
}

// maxRequestContext is in bytes: an annotation that anybody may write is not parsed without a bound.
const maxRequestContext = 1 << 10

var (
	hashForm = regexp.MustCompile(`^[0-9a-f]{16}$`)
	// traceParentForm is the version 00 of https://www.w3.org/TR/trace-context/#traceparent-header.
	traceParentForm = regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)
)

// requestContext is the annotation request-context: who asked, and why.
type requestContext struct {
	// Request is the annotation request that this is about.
	Request string `json:"request"`
	// About is refresh.Hash of the token that is complained of.
	About string `json:"about,omitempty"`
	// Verdict, Sender and Source are the event's; for people.
	Verdict string `json:"verdict,omitempty"`
	Sender  string `json:"sender,omitempty"`
	Source  string `json:"source,omitempty"`
	// Received is when the event came in: RFC 3339 with fractions of a second.
	Received    string `json:"received,omitempty"`
	TraceParent string `json:"traceparent,omitempty"`
}

// request gives the open request. Its context is taken only whole, and only when it names this very request: else
// a context left over from an earlier request would speak for a person's.
func request(annotations map[string]string) refresh.Request {
	raw := annotations[Request]
	if raw == "" || refresh.Hash(raw) == annotations[HandledRequest] {
		return refresh.Request{}
	}
	open := refresh.Request{ID: refresh.Hash(raw)}
	text := annotations[RequestContext]
	if len(text) > maxRequestContext {
		return open
	}
	var context requestContext
	if json.Unmarshal([]byte(text), &context) != nil || context.Request != raw ||
		(context.About != "" && !hashForm.MatchString(context.About)) ||
		(context.TraceParent != "" && !traceParentForm.MatchString(context.TraceParent)) {
		return open
	}
	open.About, open.TraceParent, open.Received = context.About, context.TraceParent, moment(context.Received)
	return open
}
