package flux_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"flux-token-refresher/flux"
	"flux-token-refresher/refresh"
)

// targets of the tests: what is called target in the namespace apps, and what is called flux-system in flux-system.
var targets = []refresh.Name{{Namespace: "apps", Name: "target"}, {Namespace: "flux-system", Name: "flux-system"}}

// reported is Flux's event about an object.
func reported(t *testing.T, apiVersion, kind, namespace, name, uid, message string) flux.Event {
	t.Helper()
	body, err := json.Marshal(object{
		"involvedObject": object{"apiVersion": apiVersion, "kind": kind, "namespace": namespace, "name": name, "uid": uid},
		"severity":       "error", "reason": "GitOperationFailed", "message": message, "timestamp": time.Now().UTC().Format(time.RFC3339),
	})
	if err != nil {
		t.Fatal(err)
	}
	_, e, err := flux.Decode(body)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// route has a Router say what an event means, and then what it concerns, as a receiver of events does.
func route(ctx context.Context, r *flux.Router, e flux.Event) (c flux.Classification, targets []refresh.Name, err error) {
	if c = r.Reported(e, mayAll); c.Verdict != flux.Unrelated {
		targets, err = r.ReportedTargets(ctx, e)
	}
	return c, targets, err
}

// mayAll but the namespace secret.
func mayAll(namespace string) bool { return namespace != "secret" }

// world is a namespace with an object of each kind.
func world() *server {
	s := installed()
	for _, kind := range []string{"GitRepository", "OCIRepository", "HelmRepository", "Bucket", "ImageRepository"} {
		s.put(kind, "apps", "reads", reads("target"))
		s.put(kind, "apps", "other", reads("other"))
		s.put(kind, "apps", "none", func(o object) { o["spec"] = object{} })
		s.put(kind, "elsewhere", "reads", reads("target"))
	}
	for _, source := range []string{"HelmRepository", "GitRepository", "Bucket"} {
		s.put("HelmChart", "apps", strings.ToLower(source), from(source, "reads"))
	}
	s.put("ImageUpdateAutomation", "apps", "reads", from("GitRepository", "reads"))
	s.put("ImageUpdateAutomation", "apps", "other", from("GitRepository", "other"))
	s.put("ImageUpdateAutomation", "apps", "dangling", from("GitRepository", "nobody"))
	s.put("ImageUpdateAutomation", "apps", "wrong", from("HelmChart", "gitrepository"))
	s.put("ImageUpdateAutomation", "apps", "escaping", from("GitRepository", "../../secrets/target"))
	s.put("ImageUpdateAutomation", "apps", "across", func(o object) {
		o["spec"] = object{"sourceRef": object{"kind": "GitRepository", "name": "flux-system", "namespace": "flux-system"}}
	})
	s.put("ImageUpdateAutomation", "apps", "explicit", func(o object) {
		o["spec"] = object{"sourceRef": object{"kind": "GitRepository", "name": "reads", "namespace": "apps"}}
	})
	s.put("GitRepository", "flux-system", "flux-system", reads("flux-system"))
	return s
}

// An event leads to the Secret that its object references, when that is a target, and to nothing else.
func TestRoute(t *testing.T) {
	t.Parallel()
	const source, image = "source.toolkit.fluxcd.io/v1", "image.toolkit.fluxcd.io/v1"
	const concerns, concernsNone = "apps/target", ""
	for _, test := range []struct {
		apiVersion, kind, namespace, name, uid, message string // the message is authenticationRequired when left out
		targets                                         string
		verdict                                         flux.Verdict // auth-failure when left out
		rule                                            string       // looked at when given
		requests                                        int
	}{
		{source, "GitRepository", "apps", "reads", "", "", concerns, "", "", 1},
		{source, "OCIRepository", "apps", "reads", "", "", concerns, "", "", 1},
		{source, "HelmRepository", "apps", "reads", "", "", concerns, "", "", 1},
		{source, "Bucket", "apps", "reads", "", "", concerns, "", "", 1},
		{image, "ImageRepository", "apps", "reads", "", "", concerns, "", "", 1},
		{source, "HelmChart", "apps", "helmrepository", "", "", concerns, "", "", 2},
		{source, "HelmChart", "apps", "gitrepository", "", "", concerns, "", "", 2},
		{source, "HelmChart", "apps", "bucket", "", "", concerns, "", "", 2},
		{image, "ImageUpdateAutomation", "apps", "reads", "", "", concerns, "", "", 2},
		{image, "ImageUpdateAutomation", "apps", "explicit", "", "", concerns, "", "", 2},
		{"source.toolkit.fluxcd.io/v1beta2", "GitRepository", "apps", "reads", "", "", concerns, "", "", 1}, // as another version calls it

		{source, "GitRepository", "apps", "reads", "uid-of-reads", "", concerns, "", "", 1},
		{source, "GitRepository", "apps", "reads", "uid-of-its-predecessor", "", concernsNone, "", "", 1},
		{source, "GitRepository", "apps", "gone", "", "", concernsNone, "", "", 1},
		{source, "GitRepository", "apps", "other", "", "", concernsNone, "", "", 1},
		{source, "GitRepository", "apps", "none", "", "", concernsNone, "", "", 1},
		{image, "ImageUpdateAutomation", "apps", "other", "", "", concernsNone, "", "", 2},
		{image, "ImageUpdateAutomation", "apps", "wrong", "", "", concernsNone, "", "", 1},
		{image, "ImageUpdateAutomation", "apps", "escaping", "", "", concernsNone, "", "", 1},
		{image, "ImageUpdateAutomation", "apps", "across", "", "", concernsNone, "", "", 1},

		// A namespace without a target, or of others.
		{source, "GitRepository", "elsewhere", "reads", "", "", concernsNone, "", "", 0},
		{source, "GitRepository", "secret", "reads", "", "", concernsNone, flux.Unrelated, flux.RuleNamespace, 0},
		// Kinds that are not in the table.
		{"source.toolkit.fluxcd.io/v1", "Kustomization", "apps", "reads", "", "", concernsNone, flux.Unrelated, "", 0},
		{"example.com/v1", "GitRepository", "apps", "reads", "", "", concernsNone, flux.Unrelated, flux.RuleKind, 0},
		{"", "GitRepository", "apps", "reads", "", "", concernsNone, flux.Unrelated, flux.RuleKind, 0},
		// What no token mends.
		{source, "GitRepository", "apps", "reads", "", "unable to clone: context deadline exceeded", concernsNone, flux.Unrelated, "", 0},
		{source, "GitRepository", "apps", "reads", "", "basic auth and bearer token cannot be set at the same time", concernsNone, flux.Unrelated, "url-user", 0},
		// What only the server can settle.
		{source, "GitRepository", "apps", "reads", "", "unable to clone 'https://dev.azure.com/o/p/_git/r': repository not found", concerns, flux.PossibleAuthFailure, "", 1},
	} {
		t.Run(test.apiVersion+" "+test.kind+" "+test.namespace+" "+test.name+" "+test.uid+" "+test.message, func(t *testing.T) {
			t.Parallel()
			s := world()
			router := flux.NewRouter(s.api(t), targets, logTo(io.Discard))
			message := test.message
			if message == "" {
				message = authenticationRequired
			}
			c, targets, err := route(t.Context(), router, reported(t, test.apiVersion, test.kind, test.namespace, test.name, test.uid, message))
			if err != nil {
				t.Fatal(err)
			}
			verdict := test.verdict
			if verdict == "" {
				verdict = flux.AuthFailure
			}
			if got := list(targets); got != test.targets || c.Verdict != verdict || c.Rule == "" || test.rule != "" && c.Rule != test.rule {
				t.Errorf("%q, %q by rule %q; want %q, %q by %q", got, c.Verdict, c.Rule, test.targets, verdict, test.rule)
			}
			if asked := s.asked(); len(asked) != test.requests {
				t.Errorf("requests %q, want %d", asked, test.requests)
			}
		})
	}
}

func list(names []refresh.Name) string {
	var all []string
	for _, n := range names {
		all = append(all, n.String())
	}
	return strings.Join(all, " ")
}

// A request names its target, and asks nobody.
func TestRouteOfARequest(t *testing.T) {
	t.Parallel()
	requested, namespace := flux.Classification{Verdict: flux.RefreshRequested, Rule: flux.RuleRequest}, flux.Classification{Verdict: flux.Unrelated, Rule: flux.RuleNamespace}
	for subject, want := range map[string]struct {
		flux.Classification
		targets string
	}{
		"apps/target":  {requested, "apps/target"},
		"apps/other":   {requested, ""},
		"apps":         {requested, ""},
		"secret/other": {namespace, ""},
	} {
		t.Run(subject, func(t *testing.T) {
			t.Parallel()
			s := world()
			router := flux.NewRouter(s.api(t), targets, logTo(io.Discard))
			if c, concerned := router.Requested(subject, mayAll), list(router.RequestedTargets(subject)); c != want.Classification || concerned != want.targets {
				t.Errorf("%v, %q; want %v", c, concerned, want)
			}
			if asked := s.asked(); len(asked) > 0 {
				t.Errorf("requests: %q", asked)
			}
		})
	}
}

// The version is the server's preferred one that has the kind. It is discovered once, and again when it is no longer served.
func TestRouteDiscoversVersions(t *testing.T) {
	t.Parallel()
	git, buckets := map[string]string{"gitrepositories": "GitRepository"}, map[string]string{"buckets": "Bucket"}
	s := world()
	delete(s.groups, sourceGroup)
	router := flux.NewRouter(s.api(t), targets, logTo(io.Discard))
	leads := func(want, requests string) {
		t.Helper()
		s.asked()
		_, got, err := route(t.Context(), router, reported(t, sourceGroup+"/v1", "Bucket", "apps", "reads", "", authenticationRequired))
		if err != nil || list(got) != want {
			t.Errorf("%q, %v; want %q", list(got), err, want)
		}
		if asked := strings.Join(s.requests, " "); asked != requests {
			t.Errorf("requests %s\nwant     %s", asked, requests)
		}
	}
	leads("", "GET /apis/"+sourceGroup) // not installed

	s.serve(version{"v1", git}, version{"v1beta2", buckets}, version{"v1beta1", buckets})
	find := "GET /apis/" + sourceGroup + " GET /apis/" + sourceGroup + "/v1 GET /apis/" + sourceGroup + "/v1beta2"
	read := " GET /apis/" + sourceGroup + "/v1beta2/namespaces/apps/buckets/reads"
	leads("apps/target", find+read)
	leads("apps/target", read[1:])

	s.serve(version{"v2", buckets})
	leads("apps/target", read[1:]+" GET /apis/"+sourceGroup+" GET /apis/"+sourceGroup+"/v2 GET /apis/"+sourceGroup+"/v2/namespaces/apps/buckets/reads")

	s.serve()
	leads("", "GET /apis/"+sourceGroup+"/v2/namespaces/apps/buckets/reads GET /apis/"+sourceGroup)
}

// An API server that does not answer is no verdict: the sender comes again. What it says goes nowhere.
func TestRouteFails(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		instead func(*http.Request) (*http.Response, error)
		class   refresh.Class
		took    time.Duration
	}{
		"away":      {away, refresh.Unavailable, 0},
		"hanging":   {hangs, refresh.Unavailable, 10 * time.Second},
		"forbidden": {forbidden, refresh.Misconfigured, 0},
		"broken": {func(*http.Request) (*http.Response, error) {
			return status(http.StatusInternalServerError, "InternalError")
		}, refresh.Unavailable, 0},
	} {
		for _, discovered := range []bool{false, true} {
			t.Run(name+map[bool]string{true: ", discovered"}[discovered], func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					s := world()
					router := flux.NewRouter(s.api(t), targets, logTo(io.Discard))
					e := reported(t, "source.toolkit.fluxcd.io/v1", "GitRepository", "apps", "reads", "", authenticationRequired)
					if discovered {
						if _, _, err := route(t.Context(), router, e); err != nil {
							t.Fatal(err)
						}
					}
					s.refuse(test.instead)
					began := time.Now()
					_, _, err := route(t.Context(), router, e)
					var failure *refresh.Error
					if !errors.As(err, &failure) || failure.Class != test.class || strings.Contains(err.Error(), "whatever-a-server-says") {
						t.Errorf("%v, want a *refresh.Error of class %s", err, test.class)
					}
					if took := time.Since(began); took != test.took {
						t.Errorf("took %s, want %s", took, test.took)
					}

					ctx, cancel := context.WithCancel(t.Context())
					cancel()
					if _, _, err := route(ctx, router, e); !errors.Is(err, context.Canceled) {
						t.Errorf("%v, want the context's error", err)
					}
				})
			})
		}
	}
}
