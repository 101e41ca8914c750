package secret_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/secret"
)

const traceParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// entry is one entry of managedFields that owns fields, written as JSON, at a second of an hour.
func entry(manager string, operation metav1.ManagedFieldsOperationType, second int, fields string) metav1.ManagedFieldsEntry {
	at := metav1.NewTime(time.Date(2030, 1, 1, 12, 0, second, 0, time.UTC))
	return metav1.ManagedFieldsEntry{
		Manager: manager, Operation: operation, Time: &at, FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(fields),
	}
}

func TestObserve(t *testing.T) {
	t.Parallel()
	bearer := refresh.BearerToken()
	template := func(key, source string) refresh.Format {
		format, err := refresh.Template(map[string]string{key: source})
		if err != nil {
			t.Fatal(err)
		}
		return format
	}
	docker, password := template(corev1.DockerConfigJsonKey, `{"token":"{{ .Token }}"}`), template("password", "{{ .Token }}")
	annotated := func(pairs ...string) func(*corev1.Secret) {
		return func(s *corev1.Secret) {
			for i := 0; i < len(pairs); i += 2 {
				metav1.SetMetaDataAnnotation(&s.ObjectMeta, pairs[i], pairs[i+1])
			}
		}
	}
	// requested is a Secret with the request "7" and a context.
	requested := func(context string) func(*corev1.Secret) {
		return annotated(secret.Request, "7", secret.RequestContext, context)
	}
	open := refresh.Request{ID: refresh.Hash("7")}
	const data = `{"f:data":{".":{},"f:bearerToken":{}}}`

	for _, test := range []struct {
		name   string
		format refresh.Format
		secret func(*corev1.Secret)
		want   refresh.Observed
		// refused is a part of Observed.Refused, whose sentences are not contract.
		refused string
	}{
		{name: "an empty Secret", format: bearer, secret: func(*corev1.Secret) {}, want: refresh.Observed{}},
		{
			name: "what we wrote", format: bearer,
			secret: func(s *corev1.Secret) {
				s.Labels = map[string]string{secret.ManagedByLabel: secret.Actor}
				s.Data = map[string][]byte{"bearerToken": []byte("token")}
				annotated(
					secret.ExpiresAt, "2030-01-01T13:00:00Z", secret.RefreshAt, "2030-01-01T12:45:00Z", secret.RefreshedAt, "2030-01-01T14:00:00+02:00",
					secret.TokenHash, "t", secret.ContentHash, "w", secret.ConfigHash, "c",
					secret.HandledRequest, "h", secret.HandledOutcome, "Refreshed",
				)(s)
			},
			want: refresh.Observed{
				Created: true, TokenHash: "t", WrittenHash: "w", ConfigHash: "c",
				ContentHash: bearer.ContentHash(map[string][]byte{"bearerToken": []byte("token")}),
				ExpiresAt:   time.Date(2030, 1, 1, 13, 0, 0, 0, time.UTC),
				RefreshAt:   time.Date(2030, 1, 1, 12, 45, 0, 0, time.UTC),
				RefreshedAt: time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC),
				Handled:     refresh.Handled{Request: "h", Outcome: refresh.Refreshed},
			},
		},
		{
			name: "times that are none", format: bearer,
			secret: annotated(secret.ExpiresAt, "tomorrow", secret.RefreshAt, "1893456000", secret.RefreshedAt, "2030-01-01 12:00:00Z"),
		},
		{name: "managed by something else", format: bearer, secret: func(s *corev1.Secret) {
			s.Labels = map[string]string{secret.ManagedByLabel: "Helm"}
		}},
		{name: "suspended", format: bearer, secret: annotated(secret.Suspend, "true"), want: refresh.Observed{Suspended: true}},
		{name: "not suspended", format: bearer, secret: annotated(secret.Suspend, "True")},

		{name: "immutable", format: bearer, secret: func(s *corev1.Secret) { s.Immutable = new(true) }, refused: "immutable"},
		{name: "said to be mutable", format: bearer, secret: func(s *corev1.Secret) { s.Immutable = new(false) }},
		{name: "of type basic-auth", format: refresh.BasicAuth("git"), secret: func(s *corev1.Secret) { s.Type = corev1.SecretTypeBasicAuth }},
		{name: "of type basic-auth, with one of its keys", format: password, secret: func(s *corev1.Secret) { s.Type = corev1.SecretTypeBasicAuth }},
		{name: "of type basic-auth, without its keys", format: bearer, secret: func(s *corev1.Secret) { s.Type = corev1.SecretTypeBasicAuth }, refused: "username or password"},
		{name: "of a ServiceAccount", format: bearer, secret: func(s *corev1.Secret) { s.Type = corev1.SecretTypeServiceAccountToken }, refused: "kubernetes.io/service-account-token"},
		{name: "of type tls", format: bearer, secret: func(s *corev1.Secret) { s.Type = corev1.SecretTypeTLS }, refused: "kubernetes.io/tls"},
		{name: "of an unknown type", format: bearer, secret: func(s *corev1.Secret) { s.Type = "example.com/x" }, refused: "example.com/x"},
		{name: "a registry's, without its key", format: bearer, secret: func(s *corev1.Secret) { s.Type = corev1.SecretTypeDockerConfigJson }, refused: ".dockerconfigjson"},
		{name: "a registry's, with its key", format: docker, secret: func(s *corev1.Secret) { s.Type = corev1.SecretTypeDockerConfigJson }},

		{
			name: "somebody's credential in our key", format: docker,
			secret: func(s *corev1.Secret) { s.Data = map[string][]byte{corev1.DockerConfigJsonKey: []byte("{}")} },
			want: refresh.Observed{
				Foreign: true, ContentHash: docker.ContentHash(map[string][]byte{corev1.DockerConfigJsonKey: []byte("{}")}),
			},
		},
		{
			name: "somebody's password beside our key", format: bearer,
			secret: func(s *corev1.Secret) { s.Data = map[string][]byte{"password": []byte("x"), "bearerToken": {}} },
			want:   refresh.Observed{Foreign: true},
		},
		{name: "keys that hold nothing", format: bearer, secret: func(s *corev1.Secret) {
			s.Data = map[string][]byte{"password": {}, "username": nil, "ca.crt": []byte("x")}
		}},
		{
			name: "a password beside what is ours", format: bearer,
			secret: func(s *corev1.Secret) {
				s.Data = map[string][]byte{"password": []byte("x")}
				annotated(secret.TokenHash, "t")(s)
			},
			want: refresh.Observed{TokenHash: "t"},
		},

		{
			name: "the last other manager of a key", format: bearer,
			secret: func(s *corev1.Secret) {
				s.ManagedFields = []metav1.ManagedFieldsEntry{
					entry("second", metav1.ManagedFieldsOperationApply, 2, data),
					entry("first", metav1.ManagedFieldsOperationUpdate, 1, data),
					entry(secret.Actor, metav1.ManagedFieldsOperationApply, 9, data),
					entry("elsewhere", metav1.ManagedFieldsOperationUpdate, 9, `{"f:data":{"f:ca.crt":{}},"f:metadata":{"f:annotations":{"f:bearerToken":{}}}}`),
				}
			},
			want: refresh.Observed{OtherManager: "second"},
		},
		{
			name: "managers without a time or of the same second", format: bearer,
			secret: func(s *corev1.Secret) {
				timeless := entry("timeless", metav1.ManagedFieldsOperationUpdate, 0, data)
				timeless.Time = nil
				s.ManagedFields = []metav1.ManagedFieldsEntry{
					timeless,
					entry("first", metav1.ManagedFieldsOperationUpdate, 1, data),
					entry("second", metav1.ManagedFieldsOperationUpdate, 1, data),
				}
			},
			want: refresh.Observed{OtherManager: "second"},
		},
		{
			name: "a manager that applied stringData", format: bearer,
			secret: func(s *corev1.Secret) {
				s.ManagedFields = []metav1.ManagedFieldsEntry{
					entry("git", metav1.ManagedFieldsOperationApply, 1, `{"f:stringData":{"f:bearerToken":{}}}`),
					entry(secret.Actor, metav1.ManagedFieldsOperationApply, 2, data),
				}
			},
			want: refresh.Observed{OtherManager: "git"},
		},
		{
			name: "managedFields that cannot be read", format: bearer,
			secret: func(s *corev1.Secret) {
				empty := entry("empty", metav1.ManagedFieldsOperationUpdate, 1, "")
				empty.FieldsV1 = nil
				s.ManagedFields = []metav1.ManagedFieldsEntry{empty, entry("broken", metav1.ManagedFieldsOperationUpdate, 1, `{"f:data":`)}
			},
		},

		{name: "a request", format: bearer, secret: annotated(secret.Request, "7"), want: refresh.Observed{Request: open}},
		{name: "an empty request", format: bearer, secret: annotated(secret.Request, "")},
		{
			name: "a handled request", format: bearer,
			secret: annotated(secret.Request, "7", secret.HandledRequest, refresh.Hash("7")),
			want:   refresh.Observed{Handled: refresh.Handled{Request: refresh.Hash("7")}},
		},
		{
			name: "a request after a handled one", format: bearer,
			secret: annotated(secret.Request, "7", secret.HandledRequest, refresh.Hash("6")),
			want:   refresh.Observed{Request: open, Handled: refresh.Handled{Request: refresh.Hash("6")}},
		},
		{
			name: "a request with its context", format: bearer,
			secret: requested(`{"request":"7","about":"0123456789abcdef","traceparent":"` + traceParent + `","verdict":"auth-failure","more":[1]}`),
			want:   refresh.Observed{Request: refresh.Request{ID: open.ID, About: "0123456789abcdef", TraceParent: traceParent}},
		},
		{name: "a context of nothing", format: bearer, secret: requested(`{"request":"7"}`), want: refresh.Observed{Request: open}},
		{name: "a context without a request", format: bearer, secret: annotated(secret.RequestContext, `{"request":""}`)},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := &corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "target", UID: "uid", ResourceVersion: "5"},
				Type:       corev1.SecretTypeOpaque,
			}
			test.secret(s)
			got := secret.Observe(refresh.Target{Format: test.format}, s)
			if (got.Refused == "") != (test.refused == "") || !strings.Contains(got.Refused, test.refused) {
				t.Errorf("refused: %q, want something about %q", got.Refused, test.refused)
			}
			want := test.want
			want.Exists, want.UID, want.Version, want.Refused, want.Leftover = true, "uid", "5", got.Refused, got.Leftover
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// What stays of somebody's credential beside our token is named, with the command that removes it and what Flux makes of it.
func TestLeftover(t *testing.T) {
	t.Parallel()
	const ignored, used = "which Flux ignores beside bearerToken", "which Flux uses instead of"
	template, err := refresh.Template(map[string]string{"token": "{{ .Token }}"})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		format refresh.Format
		keys   []string
		// left and effect are "" where nothing is left.
		left, effect string
	}{
		"a personal access token":                  {refresh.BearerToken(), []string{"password", "username"}, "username, password", ignored},
		"a password alone":                         {refresh.BearerToken(), []string{"password"}, "password", ignored},
		"a user name is no credential":             {refresh.BearerToken(), []string{"username"}, "", ""},
		"a developer's token, taken over":          {refresh.BearerToken(), []string{"bearerToken"}, "", ""},
		"a personal access token, taken over":      {refresh.BasicAuth("git"), []string{"password", "username"}, "", ""},
		"a developer's token, in Flux's eyes":      {refresh.BasicAuth("git"), []string{"bearerToken"}, "bearerToken", used},
		"both, where something else is written":    {template, []string{"bearerToken", "password", "username"}, "bearerToken, username, password", used},
		"keys that are no credential stay unnamed": {refresh.BearerToken(), []string{"bearerToken", "ca.crt"}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "target"}, Data: map[string][]byte{}}
			for _, key := range test.keys {
				s.Data[key] = []byte("theirs")
			}
			target := refresh.Target{Format: test.format}
			got := secret.Observe(target, s)
			if !got.Foreign {
				t.Error("it is not said to be foreign")
			}
			if test.left == "" {
				if got.Leftover != "" {
					t.Errorf("left: %s", got.Leftover)
				}
				return
			}
			var operations []string
			for key := range strings.SplitSeq(test.left, ", ") {
				operations = append(operations, `{"op":"remove","path":"/data/`+key+`"}`)
			}
			command := "kubectl -n ns patch secret target --type=json -p '[" + strings.Join(operations, ",") + "]'"
			if !strings.HasPrefix(got.Leftover, "Left beside it: "+test.left+", "+test.effect) || !strings.HasSuffix(got.Leftover, ": "+command) {
				t.Errorf("got %s\nwant %s … %s", got.Leftover, test.left, command)
			}
			// Once the token is ours, what Flux uses instead of it is named still, and nothing else.
			metav1.SetMetaDataAnnotation(&s.ObjectMeta, secret.TokenHash, "0123456789abcdef")
			want := ""
			if strings.HasPrefix(test.left, "bearerToken") {
				want = got.Leftover
			}
			if ours := secret.Observe(target, s).Leftover; ours != want {
				t.Errorf("beside our token: %q, want %q", ours, want)
			}
		})
	}
}

// A context is input that anybody may write: what is not exactly right is no context, and the request stays open.
func TestObserveMalformedRequestContext(t *testing.T) {
	t.Parallel()
	whole := func(request, about, traceParent string) string {
		return fmt.Sprintf(`{"request":%q,"about":%q,"traceparent":%q}`, request, about, traceParent)
	}
	const about = "0123456789abcdef"
	for name, context := range map[string]string{
		"of another request":          whole("8", about, traceParent),
		"of no request":               whole("", about, traceParent),
		"named by its hash":           whole(refresh.Hash("7"), about, traceParent),
		"not JSON":                    "request=7",
		"cut off":                     whole("7", about, traceParent)[:80],
		"followed by more":            whole("7", about, traceParent) + "{}",
		"a list":                      "[" + whole("7", about, traceParent) + "]",
		"a number for the request":    `{"request":7,"about":"` + about + `"}`,
		"longer than 1 KiB":           whole("7", about, traceParent) + strings.Repeat(" ", 1<<10),
		"about a short hash":          whole("7", about[:15], traceParent),
		"about a long hash":           whole("7", about+"0", traceParent),
		"about no hash":               whole("7", "ghijklmnopqrstuv", traceParent),
		"about a hash with a newline": whole("7", about+"\n", traceParent),
		"a traceparent cut off":       whole("7", about, traceParent[:54]),
		"a traceparent of version ff": whole("7", about, "ff"+traceParent[2:]),
		"a traceparent that is code":  whole("7", about, "<script>"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{
				secret.Request: "7", secret.RequestContext: context,
			}}}
			got := secret.Observe(refresh.Target{Format: refresh.BearerToken()}, s).Request
			if want := (refresh.Request{ID: refresh.Hash("7")}); got != want {
				t.Errorf("%s gives %+v, want %+v", context, got, want)
			}
		})
	}
}

// FuzzRequest: whatever stands in the annotations, a request is open or not by its own value alone, and its context is one that can be
// trusted to have the form that it has, or none.
func FuzzRequest(f *testing.F) {
	const about = "0123456789abcdef"
	whole := fmt.Sprintf(`{"request":"7","about":%q,"verdict":"auth-failure","sender":"flux","source":"a/b","received":"2030-01-01T12:00:00.5Z","traceparent":%q}`, about, traceParent)
	for _, context := range []string{whole, whole[:90], "[" + whole + "]", `{"request":7}`, `{"request":"7","REQUEST":"8"}`, `{"request":"7","received":"x"}`, "{}", ""} {
		f.Add("7", context, "")
		f.Add("7", context, refresh.Hash("7"))
	}
	f.Fuzz(func(t *testing.T, raw, context, handled string) {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{
			secret.Request: raw, secret.RequestContext: context, secret.HandledRequest: handled,
		}}}
		got := secret.Observe(refresh.Target{Format: refresh.BearerToken()}, s).Request
		if got.Open() != (raw != "" && refresh.Hash(raw) != handled) {
			t.Fatalf("open is %t", got.Open())
		}
		if !got.Open() {
			if got != (refresh.Request{}) {
				t.Errorf("no request, and yet %+v", got)
			}
			return
		}
		empty := got.About == "" && got.TraceParent == "" && got.Received.IsZero()
		if len(context) > 1<<10 && !empty {
			t.Errorf("%d bytes of context give %+v", len(context), got)
		}
		if got.ID != refresh.Hash(raw) || got.About != "" && !hash.MatchString(got.About) || got.TraceParent != "" && len(got.TraceParent) != len(traceParent) {
			t.Errorf("%+v", got)
		}
		var named struct{ Request string }
		if err := json.Unmarshal([]byte(context), &named); !empty && (err != nil || named.Request != raw) {
			t.Errorf("the context of request %q, which is %q, gives %+v", named.Request, raw, got)
		}
	})
}

var hash = regexp.MustCompile(`\A[0-9a-f]{16}\z`)
