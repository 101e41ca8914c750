// The watch of Flux's objects beside the targets.

package flux

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/util/workqueue"

	"flux-token-refresher/refresh"
)

const (
	// lookAgain is when a kind that is not installed is looked for again.
	lookAgain = 2 * time.Minute
	// rediscover is when a kind is looked for again whose discovery failed, or whose objects are no longer served.
	rediscover = time.Second
	// syncTimeout bounds the wait for the first list of a kind.
	syncTimeout = 5 * time.Second
)

// SourcesConfig is what Sources work with. All fields are required.
type SourcesConfig struct {
	API     *API
	Targets []refresh.Target
	// Ask shows the token to the Git server of a repository and gives what that one said, Why included; the zero Trial when the
	// token may not be shown to it. url is as it stands in the object.
	Ask func(ctx context.Context, url string, token refresh.Token) refresh.Trial
	// Request asks for a refresh of a target by the protocol of the Secret's annotations. It is durable when it returns. overtaken tells
	// that nothing was asked for, because the token is newer than the failure.
	Request func(ctx context.Context, target refresh.Name, ask Ask) (overtaken bool, err error)
	Logger  *slog.Logger
}

// Sources are Flux's objects in the namespaces of the targets, as one term of leadership sees them: it is refresh.Readers, and the
// safety net for events that do not arrive. Safe for concurrent use.
type Sources struct {
	SourcesConfig
	targets    map[refresh.Name]bool
	namespaces []string
	queue      workqueue.TypedRateLimitingInterface[key] // set by Run, before there is any object

	mu      sync.Mutex
	shelves map[place]*shelf
	missing map[*kind]bool             // not installed
	woken   map[refresh.Name]time.Time // when Wake was called last
	changed chan struct{}              // closed when something was synced or found to be missing
}

// place is where objects are watched, with the rights of one Role.
type place struct {
	kind      *kind
	namespace string
}

// shelf is what one watch brought.
type shelf struct {
	objects map[string]*object // by name
	synced  bool               // there was a first list
	refused bool               // RBAC does not let us watch
}

var _ refresh.Readers = (*Sources)(nil)

// NewSources gives the Sources of one term. Nothing is known before Run.
func NewSources(config SourcesConfig) *Sources {
	s := &Sources{
		SourcesConfig: config,
		targets:       map[refresh.Name]bool{},
		shelves:       map[place]*shelf{},
		missing:       map[*kind]bool{},
		woken:         map[refresh.Name]time.Time{},
		changed:       make(chan struct{}),
	}
	namespaces := map[string]bool{}
	for _, t := range config.Targets {
		s.targets[t.Name] = true
		namespaces[t.Name.Namespace] = true
	}
	s.namespaces = slices.Sorted(maps.Keys(namespaces))
	for _, k := range kinds {
		for _, namespace := range s.namespaces {
			s.shelves[place{k, namespace}] = &shelf{}
		}
	}
	return s
}

// Run watches until ctx ends, and then returns nil. It is called once.
func (s *Sources) Run(ctx context.Context) error {
	s.queue = workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[key](time.Second, time.Minute))
	var group sync.WaitGroup
	for _, k := range kinds {
		group.Go(func() { s.follow(ctx, k) })
	}
	group.Go(func() { (&safetyNet{Sources: s, asked: map[key]*asked{}}).run(ctx) })
	<-ctx.Done()
	s.queue.ShutDown()
	group.Wait()
	return nil
}

// follow watches a kind whenever it is installed. It never does before discovery has found it: where rights are granted the API
// server says 404 of a kind that it does not know, and 403 elsewhere.
func (s *Sources) follow(ctx context.Context, k *kind) {
	log := s.Logger.With("kind", k.name)
	failing := false
	for ctx.Err() == nil {
		pause := rediscover
		switch resource, ok, err := s.API.resource(ctx, k); {
		case err != nil:
			if !failing && ctx.Err() == nil {
				log.WarnContext(ctx, "cannot find out whether the kind is installed", "error", err)
			}
			failing = true
		case !ok:
			failing = false
			s.lacks(k)
			pause = lookAgain
		default:
			failing = false
			log.DebugContext(ctx, "watching", "version", resource.Version)
			s.watch(ctx, k, resource)
			s.API.forget(k)
			s.reset(k)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// watch watches the objects of a kind in all namespaces, until ctx ends or they are no longer served.
func (s *Sources) watch(ctx context.Context, k *kind, resource schema.GroupVersionResource) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	for _, namespace := range s.namespaces {
		w := &watch{
			sources: s, place: place{k, namespace}, objects: s.API.objects.Resource(resource).Namespace(namespace), gone: cancel,
			log: s.Logger.With("resource", resource.GroupResource().String(), "namespace", namespace),
		}
		group.Go(func() { w.run(ctx) })
	}
	group.Wait()
}

// tell wakes whoever awaits a change. It is called with mu.
func (s *Sources) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Sources) lacks(k *kind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.missing[k] = true
	s.tell()
}

// reset forgets what is known of a kind.
func (s *Sources) reset(k *kind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, namespace := range s.namespaces {
		s.shelves[place{k, namespace}] = &shelf{}
	}
}

func (s *Sources) replace(at place, objects map[string]*object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.shelves[at].objects
	s.shelves[at] = &shelf{objects: objects, synced: true}
	s.missing[at.kind] = false
	s.tell()
	for name := range before {
		if objects[name] == nil {
			s.queue.Add(key{at.kind, at.namespace, name})
		}
	}
	for _, o := range objects {
		s.notice(o)
	}
}

func (s *Sources) put(at place, o *object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shelves[at].objects[o.name] = o
	s.notice(o)
}

func (s *Sources) remove(at place, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.shelves[at].objects, name)
	s.queue.Add(key{at.kind, at.namespace, name})
}

func (s *Sources) refuse(at place, refused bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shelves[at].refused = refused
	s.tell()
}

// notice has the safety net look at an object: at a failure only after the event about it had its chance, unless it is too late for
// that. It is called with mu.
func (s *Sources) notice(o *object) {
	wait := grace
	if o.failure.id == "" || s.overtaken(o) {
		wait = 0
	}
	s.queue.AddAfter(o.key(), wait)
}

// overtaken tells that a failure is from before the last Wake. It is called with mu.
func (s *Sources) overtaken(o *object) bool {
	secret, _ := s.secretOf(o)
	return o.failure.since.Before(s.woken[refresh.Name{Namespace: o.namespace, Name: secret}])
}

// secretOf gives the Secret that an object reads, "" when it reads none; known is false as long as its source was not listed. It is
// called with mu.
func (s *Sources) secretOf(o *object) (secret string, known bool) {
	k := o.kind.sourceOf(o)
	if k == nil {
		return o.secret, true
	}
	shelf := s.shelves[place{k, o.namespace}]
	if source := shelf.objects[o.source.Name]; source != nil {
		return source.secret, true
	}
	return "", shelf.synced || s.missing[k]
}

// readers gives the objects that read a Secret. It is called with mu.
func (s *Sources) readers(secret refresh.Name) []*object {
	var out []*object
	for _, k := range kinds {
		for _, o := range s.shelves[place{k, secret.Namespace}].objects {
			if name, _ := s.secretOf(o); name == secret.Name {
				out = append(out, o)
			}
		}
	}
	return out
}
