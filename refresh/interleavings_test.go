package refresh_test

// Requests, leaders, people, crashes and lost answers in every order: whatever an event was acknowledged for is done.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	metricnoop "go.opentelemetry.io/otel/metric/noop"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/refreshtest"
	"flux-token-refresher/refresh/secret"
)

// FuzzInterleavings runs an hour of a seed's making, and then half an hour in which nothing fails any more. Of that hour:
//
//   - an acknowledged request is handled by a write whose observation saw it, unless somebody took it off the Secret;
//   - a demand, which a person annotates or an event makes, ends in another token than the one that was written before;
//   - a request that was acknowledged without being written was handled, is about a token that is gone, or about one about which a request is open;
//   - in the end no Secret holds a token that was revoked before a request about it was acknowledged, nor anything that is not ours;
//   - the issuer gave no more tokens than there were first ones of a term, revocations, demands, looks without a verdict and refreshes that were due:
//     however many events there are, they cost a look at the Git servers each, and no mint.
func FuzzInterleavings(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		synctest.Test(t, func(t *testing.T) {
			s := newSimulation(t, seed)
			s.hour()
			s.calm.Store(true)
			s.elect(false)
			time.Sleep(30 * time.Minute)
			s.stop()
			s.check()
		})
	})
}

// simulation is a Refresher's world, in which all that takes time or fails does so by the seed and the moment alone.
type simulation struct {
	t       *testing.T
	seed    uint64
	random  *rand.Rand // of the hour's own decisions
	targets []refresh.Target
	store   *refreshtest.Store
	started time.Time
	calm    atomic.Bool // nothing fails, or takes time, any more

	term  *tenure
	group sync.WaitGroup // terms, and requests under way

	terms, demands int
	mu             sync.Mutex
	mints          int
	beginnings     int                  // the first mints of an identity in a term, whose leader knew of no token
	revoked        map[string]time.Time // by hash
	undecided      int                  // looks at a token about which the Git servers said nothing
	asked          []asked
	coalesced      []asked // events about the token that stood there, acknowledged by what stood there; at is when they happened
}

// asked is a request that was acknowledged as written, as it stands in its context. One that is about no token is a demand.
type asked struct {
	target  refresh.Name
	at      time.Time
	raw     string
	context string
	about   string
	held    string // token-hash when it was written
}

func newSimulation(t *testing.T, seed uint64) *simulation {
	s := &simulation{
		t: t, seed: seed, random: rand.New(rand.NewPCG(seed, 1)), targets: many(5), store: refreshtest.NewStore(), started: time.Now(),
		revoked: map[string]time.Time{},
	}
	for i := range s.targets {
		s.targets[i].Mint.Identity = fmt.Sprint("identity-", i%2)
		s.targets[i].Verify = true
	}
	return s
}

// chance gives the dice of one moment and place.
func (s *simulation) chance(place string) *rand.Rand {
	h := fnv.New64a()
	_, _ = fmt.Fprint(h, place, time.Now().UnixNano())
	return rand.New(rand.NewPCG(s.seed, h.Sum64()))
}

// pass lets up to longest go by.
func (s *simulation) pass(ctx context.Context, place string, longest time.Duration) error {
	if s.calm.Load() {
		return ctx.Err()
	}
	select {
	case <-time.After(time.Duration(s.chance(place + " takes").Int64N(int64(longest)))):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// happens tells whether something that happens in one of ten cases does so here and now.
func (s *simulation) happens(place string) bool {
	return !s.calm.Load() && s.chance(place).IntN(10) == 0
}

// hour does what people, Git servers, senders and machines do in an hour.
func (s *simulation) hour() {
	s.elect(false)
	for time.Since(s.started) < time.Hour {
		time.Sleep(time.Duration(s.random.ExpFloat64() * float64(4*time.Second)))
		target := s.targets[s.random.IntN(len(s.targets))]
		switch n := s.random.IntN(100); {
		case n < 6:
			s.revoke(target)
		case n < 89: // a source fails, or so somebody says; often several do, and two replicas get each event
			for i := range 1 + s.random.IntN(4) {
				s.event(target, fmt.Sprint("source-", i), s.random.IntN(100) == 0)
			}
		case n < 92:
			_ = s.store.Delete(s.t.Context(), target.Name)
		case n < 95:
			_ = s.store.Edit(s.t.Context(), "somebody", target.Name, func(live *corev1.Secret) { live.Data["bearerToken"] = []byte("theirs") })
		case n < 96:
			s.demand(target)
		case n < 98:
			s.term.cancel() // it crashes; the Lease runs out
			time.Sleep(time.Duration(s.random.Int64N(int64(15 * time.Second))))
			s.elect(false)
		default:
			s.elect(true)
		}
	}
}

// revoke ends the token in a Secret at the Git servers.
func (s *simulation) revoke(target refresh.Target) {
	hash := s.token(target)
	s.mu.Lock()
	defer s.mu.Unlock()
	if hash != "" && s.revoked[hash].IsZero() {
		s.revoked[hash] = time.Now()
	}
}

// token gives the hash of what stands in a Secret; "" when there is none.
func (s *simulation) token(target refresh.Target) string {
	live, _ := s.store.Get(s.t.Context(), target.Name)
	if live == nil {
		return ""
	}
	return refresh.Hash(string(live.Data["bearerToken"]))
}

// demand has a person ask for another token.
func (s *simulation) demand(target refresh.Target) {
	s.demands++
	a := asked{target: target.Name, at: time.Now(), raw: fmt.Sprint(s.random.Int())}
	if err := s.store.Edit(s.t.Context(), "somebody", target.Name, func(live *corev1.Secret) {
		metav1.SetMetaDataAnnotation(&live.ObjectMeta, secret.Request, a.raw)
		a.context, a.held = live.Annotations[secret.RequestContext], live.Annotations[secret.TokenHash]
	}); err != nil {
		return // there is no Secret
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, a)
}

// event has a sender tell, after a while and twice, that a source failed now.
func (s *simulation) event(target refresh.Target, source string, demand bool) {
	ask := secret.Ask{
		Sender: "flux", Source: source, ID: fmt.Sprint(s.random.Int()), Verdict: "auth-failure", Time: time.Now(), Demand: demand,
	}
	if demand {
		s.demands++
	}
	failed := s.token(target)
	for replica := range 2 {
		s.group.Go(func() {
			hands := &hands{simulation: s, place: fmt.Sprint("replica ", replica, " for ", ask.ID)}
			if s.pass(s.t.Context(), hands.place, 5*time.Second) != nil {
				return
			}
			ask := ask
			ask.Received = time.Now()
			answer, err := secret.NewRequester(hands).Request(s.t.Context(), target, ask)
			switch {
			case err != nil: // not acknowledged
			case answer.Written:
				s.mu.Lock()
				defer s.mu.Unlock()
				s.asked = append(s.asked, hands.written)
			case answer.Overtaken:
				if failed != "" && hands.token == failed {
					s.t.Errorf("%s: what failed at %s is said to be overtaken, and the token that it failed with stands there", target.Name, ask.Time)
				}
			case failed != "" && hands.token == failed:
				live, _ := s.store.Get(s.t.Context(), target.Name)
				if live != nil && refresh.Hash(string(live.Data["bearerToken"])) == failed {
					o := secret.Observe(target, live)
					handled := o.Handled.Request == refresh.Hash(refresh.LongHash(ask.Sender, ask.Source, ask.ID))
					if open := o.Request; !handled && open.Open() && open.About != "" && open.About != failed {
						s.t.Errorf("%s: what failed at %s is left to a request about another token", target.Name, ask.Time)
					}
				}
				s.mu.Lock()
				defer s.mu.Unlock()
				s.coalesced = append(s.coalesced, asked{target: target.Name, at: ask.Time, raw: ask.ID, about: failed})
			}
		})
	}
}

// tenure is one term of leadership, and after it perhaps that of one who does not know yet.
type tenure struct {
	cancel func()
	leads  atomic.Bool
	blind  func() // ends what it sees
}

// elect has another replica lead. One that was deposed without a crash stood still meanwhile: it sees nothing any more, and what it had begun goes on.
func (s *simulation) elect(deposed bool) {
	if last := s.term; last != nil {
		last.leads.Store(false)
		last.blind()
		if deposed {
			s.group.Go(func() {
				time.Sleep(time.Duration(s.chance("the last one ends").Int64N(int64(10 * time.Second))))
				last.cancel()
			})
		} else {
			last.cancel()
		}
	}
	synctest.Wait()
	s.terms++
	ctx, cancel := context.WithCancel(s.t.Context())
	seeing, blind := context.WithCancel(ctx)
	term := &tenure{cancel: cancel, blind: blind}
	term.leads.Store(true)
	place := fmt.Sprint("term ", s.terms)
	source := &refreshtest.Source{Latency: 300 * time.Millisecond, Fail: func(key refresh.MintKey) error {
		if s.happens(place + key.Identity + " fails") {
			return &refresh.Error{Class: refresh.Unavailable, Text: "away"}
		}
		return nil
	}}
	readers := &refreshtest.Readers{}
	readers.Answer(func(token refresh.Token) refresh.Trial {
		s.mu.Lock()
		defer s.mu.Unlock()
		switch {
		case s.happens(place + token.Hash + " is not judged"):
			s.undecided++
			return refresh.Trial{Silent: 1}
		case !s.revoked[token.Hash].IsZero():
			return refresh.Trial{Rejected: 1}
		}
		return refresh.Trial{Accepted: 1}
	})
	r := &refresh.Refresher{
		Targets: s.targets, Policy: policy, Source: source, Readers: readers, Recorder: &refreshtest.Recorder{}, Fresh: term.leads.Load,
		Store:  &shaky{Store: s.store, simulation: s, place: place, seeing: seeing, views: map[refresh.Name]*view{}},
		Logger: slog.New(slog.DiscardHandler), TracerProvider: tracenoop.NewTracerProvider(), MeterProvider: metricnoop.NewMeterProvider(),
	}
	s.term = term
	s.group.Go(func() {
		if err := r.Run(ctx); err != nil {
			s.t.Errorf("a term ended with %v", err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		minted := map[string]bool{}
		for _, mint := range source.Mints() {
			if !mint.Token.IsZero() {
				s.mints++
				minted[mint.Key.Identity] = true
			}
		}
		s.beginnings += len(minted)
	})
}

func (s *simulation) stop() {
	s.term.blind()
	s.term.cancel()
	s.group.Wait()
}

var (
	errAway = &refresh.Error{Class: refresh.Unavailable, Text: "the Kubernetes API does not answer"}
	secrets = schema.GroupResource{Resource: "secrets"}
)

// shaky is the Store of one term: what it is told comes late, writes take time, fail, or are done although nothing says so.
type shaky struct {
	refresh.Store
	*simulation
	place  string
	seeing context.Context // whose end is that of all it sees

	mu    sync.Mutex
	views map[refresh.Name]*view
}

// view is the last that was seen of a Secret, and whether it was told.
type view struct {
	mu      sync.Mutex
	last    refresh.Observed
	untold  bool
	observe func(refresh.Observed)
}

func (v *view) tell() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.untold {
		v.untold = false
		v.observe(v.last)
	}
}

func (s *shaky) Watch(ctx context.Context, target refresh.Target, observe func(refresh.Observed)) error {
	v := &view{observe: observe}
	s.mu.Lock()
	s.views[target.Name] = v
	s.mu.Unlock()
	changed := make(chan struct{}, 1)
	var late sync.WaitGroup
	late.Go(func() {
		for {
			select {
			case <-changed:
				_ = s.pass(s.seeing, s.place+" sees "+target.Name.Name, time.Second)
				v.tell()
			case <-s.seeing.Done():
				return
			}
		}
	})
	err := s.Store.Watch(s.seeing, target, func(o refresh.Observed) {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.last, v.untold = o, true
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	late.Wait()
	<-ctx.Done()
	return err
}

func (s *shaky) Apply(ctx context.Context, target refresh.Target, observed refresh.Observed, token refresh.Token, record refresh.Record) error {
	return s.write(ctx, target.Name, func() error { return s.Store.Apply(ctx, target, observed, token, record) })
}

func (s *shaky) Settle(ctx context.Context, target refresh.Target, observed refresh.Observed, handled refresh.Handled, at time.Time) error {
	return s.write(ctx, target.Name, func() error { return s.Store.Settle(ctx, target, observed, handled, at) })
}

func (s *shaky) write(ctx context.Context, name refresh.Name, write func() error) error {
	place := s.place + " writes " + name.Name
	if err := s.pass(ctx, place, time.Second); err != nil {
		return err
	}
	if s.happens(place + ", which is lost") {
		return errAway
	}
	err := write()
	if err := s.pass(ctx, place+" and hears", time.Second); err != nil {
		return err
	}
	if s.happens(place + ", whose answer is lost") {
		return errAway
	}
	if err == nil {
		s.mu.Lock()
		v := s.views[name]
		s.mu.Unlock()
		v.tell()
	}
	return err
}

// hands are what a replica asks for a refresh with: the part of client-go that a Requester needs.
type hands struct {
	typedcorev1.SecretInterface
	*simulation
	place   string
	token   string // the hash of the token that was read last
	written asked
}

func (h *hands) Secrets(string) typedcorev1.SecretInterface { return h }

func (h *hands) Get(ctx context.Context, name string, _ metav1.GetOptions) (*corev1.Secret, error) {
	if err := h.pass(ctx, h.place+" reads", time.Second); err != nil {
		return nil, err
	}
	if h.happens(h.place + " cannot read") {
		return nil, apierrors.NewServiceUnavailable("away")
	}
	live, _ := h.store.Get(ctx, refresh.Name{Namespace: target.Name.Namespace, Name: name})
	if live == nil {
		return nil, apierrors.NewNotFound(secrets, name)
	}
	h.token = refresh.Hash(string(live.Data["bearerToken"]))
	return live, nil
}

func (h *hands) Patch(ctx context.Context, name string, _ types.PatchType, data []byte, _ metav1.PatchOptions, _ ...string) (*corev1.Secret, error) {
	var change struct {
		Metadata struct {
			ResourceVersion string
			Annotations     map[string]string
		}
	}
	var why struct{ About string }
	if err := errors.Join(json.Unmarshal(data, &change), json.Unmarshal([]byte(change.Metadata.Annotations[secret.RequestContext]), &why)); err != nil {
		return nil, err
	}
	if err := h.pass(ctx, h.place+" writes", time.Second); err != nil {
		return nil, err
	}
	if h.happens(h.place + " cannot write") {
		return nil, apierrors.NewServiceUnavailable("away")
	}
	on := refresh.Name{Namespace: target.Name.Namespace, Name: name}
	conflict, held := false, ""
	if err := h.store.Edit(ctx, secret.Actor, on, func(live *corev1.Secret) {
		if conflict = live.ResourceVersion != change.Metadata.ResourceVersion; conflict {
			return
		}
		held = live.Annotations[secret.TokenHash]
		for key, value := range change.Metadata.Annotations {
			metav1.SetMetaDataAnnotation(&live.ObjectMeta, key, value)
		}
	}); err != nil {
		return nil, apierrors.NewNotFound(secrets, name)
	}
	switch {
	case conflict:
		return nil, apierrors.NewConflict(secrets, name, errors.New("it was changed"))
	case h.happens(h.place + ", whose answer is lost"):
		return nil, apierrors.NewServiceUnavailable("away")
	}
	h.written = asked{target: on, at: time.Now(), raw: change.Metadata.Annotations[secret.Request], context: change.Metadata.Annotations[secret.RequestContext], about: why.About, held: held}
	return nil, nil
}

// check holds what came of it against what was promised.
func (s *simulation) check() {
	history := map[refresh.Name][]*corev1.Secret{}
	for _, write := range s.store.Writes() {
		history[write.Name] = append(history[write.Name], write.Secret)
	}
	for _, a := range s.asked {
		s.handled(a, history[a.target])
	}
	for _, target := range s.targets {
		last := history[target.Name][len(history[target.Name])-1]
		if last == nil {
			s.t.Errorf("%s is missing", target.Name)
			continue
		}
		o := secret.Observe(target, last)
		if value := string(last.Data["bearerToken"]); refresh.Hash(value) != o.TokenHash || o.Request.Open() {
			s.t.Errorf("%s holds %q, with the annotations %v", target.Name, value, last.Annotations)
		}
		for _, a := range slices.Concat(s.asked, s.coalesced) {
			if at := s.revoked[a.about]; a.target == target.Name && !at.IsZero() && at.Before(a.at) && o.TokenHash == a.about {
				s.t.Errorf("%s holds the token that was revoked at %s, though request %s about it was acknowledged", target.Name, at, a.raw)
			}
		}
	}
	// Every token is due once in its time, 40 minutes at the least, for each identity.
	due := 2 * int(time.Since(s.started)/(40*time.Minute))
	bound := s.beginnings + len(s.revoked) + s.demands + s.undecided + due
	if s.mints > bound {
		s.t.Errorf("%d mints; %d first ones of a term, %d revocations, %d demands, %d looks without a verdict and %d refreshes that were due allow %d",
			s.mints, s.beginnings, len(s.revoked), s.demands, s.undecided, due, bound)
	}
	s.t.Logf("%d terms, %d requests acknowledged as written, and %d as answered by another, %d mints of %d, %d revocations",
		s.terms, len(s.asked), len(s.coalesced), s.mints, bound, len(s.revoked))
}

// handled looks for the write that handled a request, in what became of its Secret.
func (s *simulation) handled(a asked, history []*corev1.Secret) {
	at := slices.IndexFunc(history, func(w *corev1.Secret) bool {
		return w != nil && w.Annotations[secret.Request] == a.raw && w.Annotations[secret.RequestContext] == a.context
	})
	if at < 0 {
		s.t.Errorf("%s: the acknowledged request %s was never there", a.target, a.raw)
		return
	}
	for i := at + 1; i < len(history); i++ {
		switch w := history[i]; {
		case w == nil || w.Annotations[secret.Request] != a.raw:
			return // somebody deleted the Secret, or asked for something else
		case w.Annotations[secret.HandledRequest] == refresh.Hash(a.raw):
			outcome, token := w.Annotations[secret.HandledOutcome], w.Annotations[secret.TokenHash]
			if outcome == string(refresh.Refreshed) && token == a.about {
				s.t.Errorf("%s: request %s was answered with the token that it is about", a.target, a.raw)
			}
			if a.about == "" && (outcome != string(refresh.Refreshed) || token == a.held || refresh.Hash(string(w.Data["bearerToken"])) != token) {
				s.t.Errorf("%s: the demand %s ended in %s, with the token %s in the place of %s", a.target, a.raw, outcome, token, a.held)
			}
			return
		}
	}
	s.t.Errorf("%s: the acknowledged request %s was never handled", a.target, a.raw)
}
