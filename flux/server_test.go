package flux_test

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"flux-token-refresher/flux"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is the other end of an API's HTTP client: an API server with custom resources, as far as lists, watches, merge patches and
// discovery go. It runs inside a synctest bubble, and refuses and hangs on demand.
type server struct {
	mu       sync.Mutex
	groups   map[string][]version // the preferred one first
	objects  map[string]object    // resource/namespace/name
	number   int                  // the last resourceVersion
	watchers map[*watcher]bool
	requests []string
	patches  []string // body of each, behind its content type and field manager
	// instead answers a request before the server does; nil is the server's answer.
	instead func(*http.Request) (*http.Response, error)
}

type object = map[string]any

// version is one that a group is served in, with its resources and their kinds.
type version struct {
	name      string
	resources map[string]string
}

type watcher struct {
	prefix, apiVersion string
	events             chan object
}

// installed is what Flux 2.7 and newer bring.
func installed() *server {
	return &server{
		groups: map[string][]version{
			sourceGroup: {{"v1", map[string]string{
				"gitrepositories": "GitRepository", "gitrepositories/status": "GitRepository", "ocirepositories": "OCIRepository",
				"helmrepositories": "HelmRepository", "helmcharts": "HelmChart", "buckets": "Bucket",
			}}},
			"image.toolkit.fluxcd.io": {{"v1", map[string]string{
				"imagerepositories": "ImageRepository", "imageupdateautomations": "ImageUpdateAutomation",
			}}},
		},
		objects:  map[string]object{},
		watchers: map[*watcher]bool{},
	}
}

func (s *server) api(t *testing.T) *flux.API {
	t.Helper()
	api, err := flux.NewAPI(&rest.Config{Host: "https://api.example.com", QPS: -1, Transport: s})
	if err != nil {
		t.Fatal(err)
	}
	return api
}

// resources names the resource of each kind.
var resources = map[string]string{
	"GitRepository": "gitrepositories", "OCIRepository": "ocirepositories", "HelmRepository": "helmrepositories", "HelmChart": "helmcharts",
	"Bucket": "buckets", "ImageRepository": "imagerepositories", "ImageUpdateAutomation": "imageupdateautomations",
}

// put creates or changes an object of a kind, and tells the watchers.
func (s *server) put(kind, namespace, name string, change func(object)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := resources[kind] + "/" + namespace + "/" + name
	o, ok := s.objects[at]
	if !ok {
		o = object{"kind": kind, "metadata": object{"namespace": namespace, "name": name, "uid": "uid-of-" + name, "generation": int64(1)}}
	}
	o = clone(o)
	change(o)
	s.store(at, o, map[bool]string{true: "MODIFIED", false: "ADDED"}[ok])
}

func (s *server) store(at string, o object, event string) {
	s.number++
	o["metadata"].(object)["resourceVersion"] = strconv.Itoa(s.number)
	if event == "DELETED" {
		delete(s.objects, at)
	} else {
		s.objects[at] = o
	}
	for w := range s.watchers {
		if strings.HasPrefix(at, w.prefix) {
			w.events <- object{"type": event, "object": served(o, w.apiVersion)}
		}
	}
}

func (s *server) remove(kind, namespace, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := resources[kind] + "/" + namespace + "/" + name
	s.store(at, clone(s.objects[at]), "DELETED")
}

// sourceGroup is where most kinds are.
const sourceGroup = "source.toolkit.fluxcd.io"

// serve changes the versions of sourceGroup; watches of what was served before end.
func (s *server) serve(versions ...version) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.groups[sourceGroup] = versions
	for w := range s.watchers {
		if strings.HasPrefix(w.apiVersion, sourceGroup+"/") {
			close(w.events)
			delete(s.watchers, w)
		}
	}
}

func (s *server) refuse(instead func(*http.Request) (*http.Response, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.instead = instead
}

// asked gives the requests since it was called last, without those of discovery.
func (s *server) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := slices.DeleteFunc(s.requests, func(r string) bool { return !strings.Contains(r, "/namespaces/") })
	s.requests = nil
	return asked
}

// discovered gives the requests of discovery since it was called last.
func (s *server) discovered() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := slices.DeleteFunc(s.requests, func(r string) bool { return strings.Contains(r, "/namespaces/") })
	s.requests = nil
	return asked
}

func (s *server) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	verb := r.Method
	if r.URL.Query().Get("watch") != "" {
		verb = "WATCH"
	}
	s.requests = append(s.requests, verb+" "+r.URL.Path)
	if s.instead != nil {
		if response, err := s.instead(r); response != nil || err != nil {
			return response, err
		}
	}
	// apis/GROUP/VERSION/namespaces/NAMESPACE/RESOURCE/NAME
	part := append(strings.Split(strings.Trim(r.URL.Path, "/"), "/"), "", "", "", "", "", "")[:7]
	versions := s.groups[part[1]]
	at := slices.IndexFunc(versions, func(v version) bool { return v.name == part[2] })
	switch {
	case len(versions) == 0 || part[2] != "" && at < 0:
		return notFound()
	case part[2] == "":
		return answer(http.StatusOK, groupOf(part[1], versions))
	case part[3] == "":
		return answer(http.StatusOK, resourcesOf(part[1], versions[at]))
	case versions[at].resources[part[5]] == "":
		return notFound()
	}
	return s.resource(r, part[1]+"/"+part[2], part[5]+"/"+part[4]+"/", part[6])
}

func (s *server) resource(r *http.Request, apiVersion, prefix, name string) (*http.Response, error) {
	o := s.objects[prefix+name]
	switch {
	case name == "" && r.URL.Query().Get("watch") != "":
		return s.watch(r, apiVersion, prefix)
	case name == "":
		items := []object{}
		for at, o := range s.objects {
			if strings.HasPrefix(at, prefix) {
				items = append(items, served(o, apiVersion))
			}
		}
		return answer(http.StatusOK, object{
			"apiVersion": apiVersion, "kind": "List", "metadata": object{"resourceVersion": strconv.Itoa(s.number)}, "items": items,
		})
	case o == nil:
		return notFound()
	case r.Method == http.MethodPatch:
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		s.patches = append(s.patches, r.Header.Get("Content-Type")+" "+r.URL.Query().Get("fieldManager")+" "+string(body))
		var change struct {
			Metadata struct{ Annotations map[string]any }
		}
		if err := json.Unmarshal(body, &change); err != nil {
			return nil, err
		}
		o = clone(o)
		o["metadata"].(object)["annotations"] = change.Metadata.Annotations
		s.store(prefix+name, o, "MODIFIED")
	}
	return answer(http.StatusOK, served(o, apiVersion))
}

// watch sends the events of a watch that wants to have the initial ones first.
func (s *server) watch(r *http.Request, apiVersion, prefix string) (*http.Response, error) {
	w := &watcher{prefix: prefix, apiVersion: apiVersion, events: make(chan object, 10_000)}
	if r.URL.Query().Get("sendInitialEvents") != "" {
		for at, o := range s.objects {
			if strings.HasPrefix(at, prefix) {
				w.events <- object{"type": "ADDED", "object": served(o, apiVersion)}
			}
		}
		w.events <- object{"type": "BOOKMARK", "object": object{"apiVersion": apiVersion, "kind": "Any", "metadata": object{
			"resourceVersion": strconv.Itoa(s.number), "annotations": object{metav1.InitialEventsAnnotationKey: "true"},
		}}}
	}
	s.watchers[w] = true
	reader, writer := io.Pipe()
	body := &stream{PipeReader: reader, closed: make(chan struct{})}
	go func() {
		defer func() { _ = writer.Close() }()
		encoder := json.NewEncoder(writer)
		for {
			select {
			case e, ok := <-w.events:
				if !ok || encoder.Encode(e) != nil {
					return
				}
			case <-body.closed:
				return
			case <-r.Context().Done():
				return
			}
		}
	}()
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: body}, nil
}

// stream is a body that tells when it was closed.
type stream struct {
	*io.PipeReader
	once   sync.Once
	closed chan struct{}
}

func (s *stream) Close() error {
	s.once.Do(func() { close(s.closed) })
	return s.PipeReader.Close()
}

func groupOf(name string, versions []version) metav1.APIGroup {
	group := metav1.APIGroup{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "APIGroup"}, Name: name}
	for _, v := range versions {
		group.Versions = append(group.Versions, metav1.GroupVersionForDiscovery{GroupVersion: name + "/" + v.name, Version: v.name})
	}
	group.PreferredVersion = group.Versions[0]
	return group
}

func resourcesOf(group string, v version) metav1.APIResourceList {
	list := metav1.APIResourceList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "APIResourceList"}, GroupVersion: group + "/" + v.name}
	for name, kind := range v.resources {
		list.APIResources = append(list.APIResources, metav1.APIResource{Name: name, Kind: kind, Namespaced: true})
	}
	return list
}

// served is an object in one of its versions.
func served(o object, apiVersion string) object {
	o = clone(o)
	o["apiVersion"] = apiVersion
	return o
}

func clone(o object) object {
	out := make(object, len(o))
	for key, value := range o {
		if inner, ok := value.(object); ok {
			value = clone(inner)
		}
		out[key] = value
	}
	return out
}

// answer is a response of the API server.
func answer(code int, body any) (*http.Response, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(raw))}, nil
}

// status is an error of the API server.
func status(code int32, reason metav1.StatusReason) (*http.Response, error) {
	return answer(int(code), metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Code: code, Reason: reason, Message: "whatever-a-server-says",
	})
}

func notFound() (*http.Response, error) {
	return status(http.StatusNotFound, metav1.StatusReasonNotFound)
}

func forbidden(*http.Request) (*http.Response, error) {
	return status(http.StatusForbidden, metav1.StatusReasonForbidden)
}

func away(*http.Request) (*http.Response, error) {
	return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
}

func hangs(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// logTo gives a Logger that writes to out.
func logTo(out io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// The changes of an object.

func reads(secret string) func(object) {
	return func(o object) {
		o["spec"] = object{"secretRef": object{"name": secret}, "url": "https://git.example.com/" + o["metadata"].(object)["name"].(string)}
	}
}

func from(kind, name string) func(object) {
	return func(o object) { o["spec"] = object{"sourceRef": object{"kind": kind, "name": name}} }
}

// authenticationRequired is what source-controller says of a token that ended.
const authenticationRequired = "failed to checkout and determine revision: unable to clone 'https://git.example.com/a': authentication required"

// ready gives a Ready condition; handled is status.lastHandledReconcileAt.
func ready(value, reason, message string, since time.Time, handled string) func(object) {
	return func(o object) {
		o["status"] = object{
			"lastHandledReconcileAt": handled,
			"conditions": []object{
				{"type": "Reconciling", "status": "True", "reason": "ProgressingWithRetry", "message": message, "lastTransitionTime": stamp(since)},
				{
					"type": "Ready", "status": value, "reason": reason, "message": message, "lastTransitionTime": stamp(since),
					"observedGeneration": o["metadata"].(object)["generation"],
				},
			},
		}
	}
}

// stamp is a time as the API server keeps it: in whole seconds.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func fails(since time.Time) func(object) {
	return ready("False", "GitOperationFailed", authenticationRequired, since, "")
}

func suspended(o object) { o["spec"].(object)["suspend"] = true }

func all(changes ...func(object)) func(object) {
	return func(o object) {
		for _, change := range changes {
			change(o)
		}
	}
}
