package e2e

// One leader, whatever happens: package election in processes of their own, against the real API server, with a network of their
// own each. What the replicas do in their terms is to write; what they wrote, and when they began to, is compared with
// what the Lease said.

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/netproxy"
	"flux-token-refresher/e2e/internal/process"
	"flux-token-refresher/election"
)

const (
	leaseName    = "leader"
	ticksName    = "ticks"
	candidateEnv = "FTR_E2E_CANDIDATE"
	tickPeriod   = 20 * time.Millisecond
)

func init() { children["candidate"] = candidate }

// candidateSpec is what a candidate gets, as JSON in candidateEnv.
type candidateSpec struct {
	Name, Namespace string
	Kubeconfig      []byte
	Timing          timing
	// Linger is how long the work goes on trying after its context has ended, so that only fresh holds it back.
	Linger time.Duration
}

type timing struct{ LeaseDuration, RenewDeadline, RetryPeriod time.Duration }

var (
	usual  = timing{election.DefaultLeaseDuration, election.DefaultRenewDeadline, election.DefaultRetryPeriod}
	scaled = timing{usual.LeaseDuration / 5, usual.RenewDeadline / 5, usual.RetryPeriod / 5}
)

// candidate is a replica whose work, while fresh allows it, is to write into a ConfigMap who it is and when it began to.
func candidate() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := runCandidate(ctx, []byte(os.Getenv(candidateEnv))); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func runCandidate(ctx context.Context, raw []byte) error {
	var spec candidateSpec
	if err := json.Unmarshal(raw, &spec); err != nil {
		return err
	}
	config, err := clientcmd.RESTConfigFromKubeConfig(spec.Kubeconfig)
	if err != nil {
		return err
	}
	config.QPS, config.UserAgent = -1, spec.Name
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	return election.Run(ctx, election.Config{
		Client:        client.CoordinationV1(),
		Lease:         types.NamespacedName{Namespace: spec.Namespace, Name: leaseName},
		Identity:      spec.Name,
		LeaseDuration: spec.Timing.LeaseDuration,
		RenewDeadline: spec.Timing.RenewDeadline,
		RetryPeriod:   spec.Timing.RetryPeriod,
		Logger:        logger,
	}, func(ctx context.Context, fresh func() bool) error {
		lingering, stop := context.WithCancel(context.WithoutCancel(ctx))
		defer stop()
		context.AfterFunc(ctx, func() { time.AfterFunc(spec.Linger, stop) })
		ticker := time.NewTicker(tickPeriod)
		defer ticker.Stop()
		for {
			select {
			case <-lingering.Done():
				return ctx.Err()
			case <-ticker.C:
			}
			began := time.Now()
			if !fresh() {
				continue
			}
			call, cancel := context.WithTimeout(lingering, time.Second)
			patch := fmt.Appendf(nil, `{"data":{"by":%q,"began":%q}}`, spec.Name, began.Format(time.RFC3339Nano))
			_, err := client.CoreV1().ConfigMaps(spec.Namespace).Patch(call, ticksName, types.MergePatchType, patch, metav1.PatchOptions{})
			cancel()
			if err != nil {
				logger.Info("a tick failed", "error", err)
			}
		}
	})
}

// electorate is the candidates of one Lease.
type electorate struct {
	namespace string
	timing    timing
	linger    time.Duration
	*record
}

func newElectorate(t *testing.T, timing timing, linger time.Duration) *electorate {
	t.Helper()
	e := &electorate{namespace: newNamespace(t), timing: timing, linger: linger}
	client := newClient(t)
	ticks := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: ticksName}}
	if _, err := client.CoreV1().ConfigMaps(e.namespace).Create(t.Context(), ticks, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	e.record = newRecord(t, client, e.namespace)
	return e
}

// start starts a candidate that reaches the API server at host, and returns when it follows the Lease.
func (e *electorate) start(t *testing.T, name, host string) *process.Process {
	t.Helper()
	config := controlPlane.Config()
	config.Host = host
	kubeconfig, err := cluster.Kubeconfig(config)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := json.Marshal(candidateSpec{
		Name: name, Namespace: e.namespace, Kubeconfig: kubeconfig, Timing: e.timing, Linger: e.linger,
	})
	if err != nil {
		t.Fatal(err)
	}
	before, err := controlPlane.Audit.Mark(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command(os.Args[0])
	command.Env = []string{childEnv + "=candidate", candidateEnv + "=" + string(spec)}
	var output bytes.Buffer
	command.Stdout, command.Stderr = &output, &output
	p, err := process.Start(command)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("candidate %s:\n%s", name, &output)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := controlPlane.Audit.Wait(ctx, before, 1, func(r cluster.Request) bool {
		return r.UserAgent == name && r.Verb == "watch" && r.Namespace == e.namespace && r.Name == leaseName
	}); err != nil {
		t.Fatalf("candidate %s does not follow the Lease: %v", name, err)
	}
	return p
}

// startBehindProxy is start with a network that can be cut.
func (e *electorate) startBehindProxy(t *testing.T, name string) (*process.Process, *netproxy.Proxy) {
	t.Helper()
	proxy, err := netproxy.Start(controlPlane.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := proxy.Close(); err != nil {
			t.Error(err)
		}
	})
	return e.start(t, name, "https://"+proxy.Address()), proxy
}

// record is what the API server told of the Lease and the ticks, from the beginning.
type record struct {
	mu     sync.Mutex
	leases []leaseState
	ticks  []tick
	grown  chan struct{} // closed, and made anew, when something is added
}

type leaseState struct {
	told              time.Time // when the watch told
	deleted           bool
	holder            string
	acquired, renewed time.Time
}

type tick struct {
	by    string
	began time.Time
}

func newRecord(t *testing.T, client kubernetes.Interface, namespace string) *record {
	t.Helper()
	r := &record{grown: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	leases, err := client.CoordinationV1().Leases(namespace).Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ticks, err := client.CoreV1().ConfigMaps(namespace).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + ticksName})
	if err != nil {
		t.Fatal(err)
	}
	var reading sync.WaitGroup
	for _, events := range []watch.Interface{leases, ticks} {
		reading.Go(func() {
			defer events.Stop()
			for event := range events.ResultChan() {
				r.add(event)
			}
			if ctx.Err() == nil {
				t.Error("a watch of the test itself ended early")
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		reading.Wait()
	})
	return r
}

func (r *record) add(event watch.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch object := event.Object.(type) {
	case *coordinationv1.Lease:
		state := leaseState{told: time.Now(), deleted: event.Type == watch.Deleted}
		if !state.deleted {
			state.holder = *object.Spec.HolderIdentity
			state.acquired, state.renewed = object.Spec.AcquireTime.Time, object.Spec.RenewTime.Time
		}
		r.leases = append(r.leases, state)
	case *corev1.ConfigMap:
		began, err := time.Parse(time.RFC3339Nano, object.Data["began"])
		if err != nil {
			return // as it was created
		}
		r.ticks = append(r.ticks, tick{object.Data["by"], began})
	}
	close(r.grown)
	r.grown = make(chan struct{})
}

// mark gives how many states of the Lease there are.
func (r *record) mark() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.leases)
}

// wait gives the first n states since a mark that match, as soon as there are so many.
func (r *record) wait(t *testing.T, mark, n int, what string, match func(leaseState) bool) []leaseState {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		r.mu.Lock()
		var found []leaseState
		for _, state := range r.leases[mark:] {
			if match(state) && len(found) < n {
				found = append(found, state)
			}
		}
		grown := r.grown
		r.mu.Unlock()
		if len(found) == n {
			return found
		}
		select {
		case <-grown:
		case <-ctx.Done():
			t.Fatalf("%s: seen %d of %d times", what, len(found), n)
		}
	}
}

// waitLeader waits until somebody holds the Lease, not one of these names.
func (r *record) waitLeader(t *testing.T, mark int, not ...string) leaseState {
	t.Helper()
	return r.wait(t, mark, 1, fmt.Sprintf("a leader that is not %q", not), func(s leaseState) bool {
		return s.holder != "" && !slices.Contains(not, podOf(s.holder))
	})[0]
}

// waitRenewals lets n renewals of a holder pass from now on.
func (r *record) waitRenewals(t *testing.T, holder string, n int) {
	t.Helper()
	r.wait(t, r.mark(), n, "renewals by "+holder, func(s leaseState) bool { return s.holder == holder })
}

// podOf gives the name of the replica of an identity NAME_RANDOM, or NAME.
func podOf(identity string) string {
	name, _, _ := strings.Cut(identity, "_")
	return name
}

// holders gives who held the Lease, one after the other; "" is nobody, "deleted" that there was none.
func (r *record) holders() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []string
	for _, state := range r.leases {
		holder := state.holder
		if state.deleted {
			holder = "deleted"
		}
		if len(all) == 0 || all[len(all)-1] != holder {
			all = append(all, holder)
		}
	}
	return all
}

func (r *record) expectHolders(t *testing.T, want ...string) {
	t.Helper()
	if got := r.holders(); !slices.Equal(got, want) {
		t.Errorf("the Lease was held by %q, one after the other, want %q", got, want)
	}
}

// expectFenced checks each tick: it began in a term of its writer, and less than renewDeadline after a renewal by its writer
// began. Those who should have written did.
func (e *electorate) expectFenced(t *testing.T, writers ...string) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	count := map[string]int{}
	for _, tick := range e.ticks {
		count[tick.by]++
		var holder string
		var acquired, renewed time.Time
		for _, state := range e.leases {
			if state.holder == "" || state.acquired.After(tick.began) {
				continue
			}
			if state.holder != holder {
				holder, acquired = state.holder, state.acquired
			}
			if state.holder == tick.by && !state.renewed.After(tick.began) {
				renewed = state.renewed
			}
		}
		if holder != tick.by {
			t.Errorf("%s began a write %s after %s had acquired the Lease", tick.by, tick.began.Sub(acquired), holder)
		}
		if age := tick.began.Sub(renewed); age >= e.timing.RenewDeadline {
			t.Errorf("%s began a write %s after its last renewal, want less than %s", tick.by, age, e.timing.RenewDeadline)
		}
	}
	for _, name := range writers {
		if count[name] == 0 {
			t.Errorf("%s never wrote", name)
		}
	}
	t.Logf("writes: %v", count)
}

// rounds stops the leader n times, starts another replica in its place, and gives how long it took each time, from the
// signal until the API server said that somebody else holds the Lease. running is the replicas, by name; start starts one.
func (r *record) rounds(
	t *testing.T, n int, sig syscall.Signal, running map[string]*process.Process, start func(name string) *process.Process,
) []time.Duration {
	t.Helper()
	leader := r.waitLeader(t, 0)
	var took []time.Duration
	for i := range n {
		name := podOf(leader.holder)
		mark, stopped := r.mark(), time.Now()
		if err := running[name].Signal(sig); err != nil {
			t.Fatal(err)
		}
		leader = r.waitLeader(t, mark, name)
		took = append(took, leader.told.Sub(stopped))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if _, err := running[name].Wait(ctx); err != nil {
			t.Error(err)
		}
		cancel()
		delete(running, name)
		name = fmt.Sprintf("replica-%d", i+3)
		running[name] = start(name)
	}
	return took
}

// expectTakeovers prints the times of rounds, and compares them with what was promised.
func expectTakeovers(t *testing.T, took []time.Duration, median, worst time.Duration) {
	t.Helper()
	slices.Sort(took)
	at := func(share float64) time.Duration { return took[int(share*float64(len(took)-1)+0.5)] }
	t.Logf("%d takeovers: median %s, 95%% %s, worst %s", len(took),
		at(0.5).Round(time.Millisecond), at(0.95).Round(time.Millisecond), at(1).Round(time.Millisecond))
	if at(0.5) > median || at(1) > worst {
		t.Errorf("want a median of %s and %s at worst", median, worst)
	}
}

// startThree starts replica-0 to replica-2 and gives them by name, with a function that starts one more.
func (e *electorate) startThree(t *testing.T) (running map[string]*process.Process, start func(name string) *process.Process) {
	t.Helper()
	start = func(name string) *process.Process { return e.start(t, name, controlPlane.Config().Host) }
	running = map[string]*process.Process{}
	for _, name := range []string{"replica-0", "replica-1", "replica-2"} {
		running[name] = start(name)
	}
	return running, start
}

func TestElectionSIGTERM(t *testing.T) {
	e := newElectorate(t, usual, 0)
	running, start := e.startThree(t)
	took := e.rounds(t, 10, syscall.SIGTERM, running, start)
	expectTakeovers(t, took, 250*time.Millisecond, time.Second)
	e.expectFenced(t)
}

func TestElectionSIGKILL(t *testing.T) {
	t.Parallel()
	e := newElectorate(t, scaled, 0)
	running, start := e.startThree(t)
	took := e.rounds(t, 3, syscall.SIGKILL, running, start)
	expectTakeovers(t, took, scaled.LeaseDuration+time.Second, scaled.LeaseDuration+time.Second)
	if earliest := scaled.LeaseDuration - 2*scaled.RetryPeriod; took[0] < earliest {
		t.Errorf("a takeover after %s: the lease of the dead leader was not over before %s", took[0], earliest)
	}
	e.expectFenced(t)
}

// A leader that is stopped (SIGSTOP) for longer than its lease, then goes on: it must start nothing, and let the other lead.
func TestElectionPausedLeader(t *testing.T) {
	t.Parallel()
	e := newElectorate(t, scaled, time.Second)
	a := e.start(t, "a", controlPlane.Config().Host)
	e.waitLeader(t, 0)
	e.waitRenewals(t, "a", 3)
	e.start(t, "b", controlPlane.Config().Host)

	mark, paused := e.mark(), time.Now()
	if err := a.Pause(); err != nil {
		t.Fatal(err)
	}
	successor := e.waitLeader(t, mark, "a")
	t.Logf("b leads %s after a was paused", successor.told.Sub(paused).Round(time.Millisecond))
	e.waitRenewals(t, "b", 3)
	if err := a.Resume(); err != nil {
		t.Fatal(err)
	}
	e.waitRenewals(t, "b", 10)
	e.expectHolders(t, "a", "b")
	e.expectFenced(t, "a", "b")
}

// A leader that is asked to end while it is stopped past its lease finds a successor in it, whose Lease its release leaves alone.
func TestElectionReleaseSparesSuccessor(t *testing.T) {
	t.Parallel()
	e := newElectorate(t, scaled, 0)
	a := e.start(t, "a", controlPlane.Config().Host)
	e.waitLeader(t, 0)
	e.waitRenewals(t, "a", 3)
	e.start(t, "b", controlPlane.Config().Host)

	mark := e.mark()
	if err := a.Pause(); err != nil {
		t.Fatal(err)
	}
	e.waitLeader(t, mark, "a")
	stop(t, a)
	e.waitRenewals(t, "b", 5)
	e.expectHolders(t, "a", "b")
	e.expectFenced(t, "a", "b")
}

// A leader whose network fails stops before the next one leads; when the network is back it follows.
func TestElectionNetwork(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(*netproxy.Proxy) error{
		"cut":  (*netproxy.Proxy).Cut,
		"hung": func(p *netproxy.Proxy) error { p.Hang(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newElectorate(t, scaled, time.Second)
			a, proxy := e.startBehindProxy(t, "a")
			e.waitLeader(t, 0)
			e.waitRenewals(t, "a", 3)
			e.start(t, "b", controlPlane.Config().Host)

			mark, failed := e.mark(), time.Now()
			if err := fail(proxy); err != nil {
				t.Fatal(err)
			}
			successor := e.waitLeader(t, mark, "a")
			t.Logf("b leads %s after a lost its network", successor.told.Sub(failed).Round(time.Millisecond))
			e.waitRenewals(t, "b", 3)
			if err := proxy.Heal(); err != nil {
				t.Fatal(err)
			}
			e.waitRenewals(t, "b", 10)
			stop(t, a)
			e.waitRenewals(t, "b", 3)
			e.expectHolders(t, "a", "b")
			e.expectFenced(t, "a", "b")
		})
	}
}

// The Lease is deleted by hand: its holder creates it again and leads on; the other does not take the chance.
func TestElectionLeaseDeleted(t *testing.T) {
	t.Parallel()
	e := newElectorate(t, scaled, 0)
	e.start(t, "a", controlPlane.Config().Host)
	e.waitLeader(t, 0)
	e.start(t, "b", controlPlane.Config().Host)
	mark := e.mark()
	leases := newClient(t).CoordinationV1().Leases(e.namespace)
	if err := leases.Delete(t.Context(), leaseName, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	deleted := e.wait(t, mark, 1, "the deletion", func(s leaseState) bool { return s.deleted })[0]
	created := e.waitLeader(t, mark)
	t.Logf("the Lease is there again after %s", created.told.Sub(deleted.told).Round(time.Millisecond))
	e.waitRenewals(t, "a", 10)
	e.expectHolders(t, "a", "deleted", "a")
	e.expectFenced(t, "a")
}

// A follower whose watch is half-open hears of nothing: it takes nothing from a leader that is alive, and what is free
// once leaseDuration has passed.
func TestElectionHalfOpenWatch(t *testing.T) {
	t.Parallel()
	e := newElectorate(t, scaled, 0)
	a := e.start(t, "a", controlPlane.Config().Host)
	e.waitLeader(t, 0)
	proxy := newDeafProxy(t)
	e.start(t, "b", proxy.URL)

	close(proxy.deaf)
	e.waitRenewals(t, "a", 15) // two leases long
	e.expectHolders(t, "a")

	mark, stopped := e.mark(), time.Now()
	stop(t, a)
	b := e.waitLeader(t, mark, "a")
	took := b.told.Sub(stopped)
	t.Logf("b leads %s after a release that its watch did not tell", took.Round(time.Millisecond))
	if limit := scaled.LeaseDuration + time.Second; took > limit {
		t.Errorf("it took %s, want at most %s", took, limit)
	}
	e.expectHolders(t, "a", "", "b")
	e.expectFenced(t, "a")
}

// deafProxy is an HTTP proxy to the API server whose watches, once deaf is closed, tell nothing any more, and do not end; those
// that are opened later neither.
type deafProxy struct {
	*httptest.Server
	deaf chan struct{}
}

func newDeafProxy(t *testing.T) *deafProxy {
	t.Helper()
	config := controlPlane.Config()
	target, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	transport, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	p := &deafProxy{deaf: make(chan struct{})}
	p.Server = httptest.NewServer(&httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport:     transport,
		FlushInterval: -1,
		ModifyResponse: func(r *http.Response) error {
			if r.Request.URL.Query().Get("watch") != "" {
				r.Body = &deafBody{r.Body, p.deaf, r.Request.Context().Done()}
			}
			return nil
		},
		// A candidate that ends cancels its calls: not worth a line.
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	})
	t.Cleanup(p.Close)
	return p
}

type deafBody struct {
	io.ReadCloser
	deaf, over <-chan struct{}
}

// Read implements io.Reader.
func (b *deafBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	select {
	case <-b.deaf:
		<-b.over
		return 0, context.Canceled
	default:
		return n, err
	}
}

// stop asks the process to end, and waits for it.
func stop(t *testing.T, p *process.Process) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := p.Stop(ctx); err != nil {
		t.Error(err)
	}
}
