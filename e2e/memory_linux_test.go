package e2e

// The product's memory, as the kernel counts it.

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/e2e/internal/process"
	"flux-token-refresher/e2e/internal/toolchain"
	"flux-token-refresher/events"
)

// TestMemoryUnderAttack: two hundred at once, who send as much as may be sent, with a proof and without, do not have a replica with one target hold more
// than its 30 MiB. Who is one too many is cut off, which is no failure here.
func TestMemoryUnderAttack(t *testing.T) {
	t.Parallel()
	const attackers, each, most = 200, 5, 30 << 20
	binary, err := toolchain.Product(t.Context(), t.TempDir(), false) // the race detector has a memory of its own
	if err != nil {
		t.Fatal(err)
	}
	l := newLoop(t, controlPlane, fluxOf(t), newNamespace(t), func(_ *loop, spec *installation.Spec) {
		spec.Binary = binary
	})
	l.leader = startReplica(t, l.Installation, "refresher-0", "")
	receiving, err := l.leader.Output.Wait(patient(t), func(r process.Record) bool { return r["msg"] == "receiving events" })
	if err != nil {
		t.Fatal(err)
	}
	l.events = fmt.Sprintf("http://%s/events", receiving["address"])
	awaitSecret(t, l.Installation, credential, sound(l.Installation))
	before := anonymous(t, l.leader.PID())

	long := longEvent()
	attacks := []func(id string) attack{
		func(string) attack { return attack{"forged", long, signature(l.sources.key, nil)} },
		func(string) attack { return attack{"signed", long, signature(l.sources.key, long)} },
		func(id string) attack {
			batch := fullBatch(l.Namespace, id)
			return attack{"a full batch", batch, signature(l.sources.key, batch)}
		},
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	var peak int
	answers := map[string]int{}
	for n := range attackers {
		all.Go(func() {
			for round := range each {
				with := attacks[n%len(attacks)](fmt.Sprint(n, "-", round))
				answer := with.name + ": cut off"
				if response, err := plainHTTP.Do(l.request(t, with.body, map[string]string{"X-Signature": with.signature})); err == nil {
					answer = fmt.Sprint(with.name, ": ", response.StatusCode)
					_ = response.Body.Close()
				}
				held := anonymous(t, l.leader.PID())
				mu.Lock()
				answers[answer]++
				peak = max(peak, held)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	t.Logf("anonymous memory: %.1f MiB before, %.1f MiB at most while %d at once sent %d KiB each; %v",
		float64(before)/(1<<20), float64(peak)/(1<<20), attackers, len(long)>>10, answers)
	for _, want := range []string{"forged: 401", "signed: 202", "a full batch: 202"} {
		if answers[want] == 0 {
			t.Errorf("none of %q: that was no attack", want)
		}
	}
	if peak > most {
		t.Errorf("%d KiB are more than 30 MiB", peak>>10)
	}
}

// attack is a body, and what its sender says is its signature.
type attack struct {
	name      string
	body      []byte
	signature string
}

// longEvent is one of Flux with as much as a body may have.
func longEvent() []byte {
	body := fmt.Appendf(nil, `{"involvedObject":{"apiVersion":"source.toolkit.fluxcd.io/v1","kind":"GitRepository","namespace":"apps","name":"app"},`+
		`"severity":"error","reason":"GitOperationFailed","timestamp":%q,"message":"`, time.Now().UTC().Format(time.RFC3339))
	const words, end = "i/o timeout ", `"}`
	return append(body, strings.Repeat(words, (events.MaxSize-len(body)-len(end))/len(words))+end...)
}

// fullBatch has a hundred events with twenty attributes each, which ask for a refresh: as many as there may be. No other one has the same events.
func fullBatch(namespace, id string) []byte {
	var extensions strings.Builder
	for n := range 13 {
		fmt.Fprintf(&extensions, `"extension%d":"value",`, n)
	}
	all := make([]string, 100)
	for n := range all {
		all[n] = "{" + extensions.String() + requestEvent(fmt.Sprint(id, "-", n), namespace, credential)[1:]
	}
	return []byte("[" + strings.Join(all, ",") + "]")
}

var rssAnon = regexp.MustCompile(`(?m)^RssAnon:\s+(\d+) kB$`)

// anonymous is how much memory a process holds that is no file's (proc_pid_status(5)), in bytes.
func anonymous(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Error(err)
		return 0
	}
	found := rssAnon.FindSubmatch(status)
	if found == nil {
		t.Error("the kernel does not tell RssAnon")
		return 0
	}
	size, err := strconv.Atoi(string(found[1]))
	if err != nil {
		t.Error(err)
	}
	return size << 10
}
