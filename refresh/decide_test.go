package refresh_test

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"flux-token-refresher/refresh"
)

// row is one line of the table in docs/decisions.md, which is the specification and the test alike.
type row struct {
	secret, knows map[string]string
	action        refresh.Action
	reason        refresh.Reason
	looksAgain    string
	writes        []string
}

func decisions(t *testing.T) map[string]row {
	t.Helper()
	page, err := os.ReadFile("../docs/decisions.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]row{}
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 8 || strings.HasPrefix(cells[1], "-") || strings.TrimSpace(cells[1]) == "Secret" {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		r := row{
			secret: pairs(t, cells[1]), knows: pairs(t, cells[2]), action: refresh.Action(cells[3]),
			reason: refresh.Reason(cells[4]), looksAgain: cells[5], writes: strings.Fields(cells[6]),
		}
		name := strings.Join(slices.DeleteFunc([]string{cells[1], cells[2]}, func(s string) bool { return s == "" }), ", ")
		if _, again := rows[name]; again {
			t.Fatalf("the table has two rows for %q", name)
		}
		rows[name] = r
	}
	if len(rows) < 50 {
		t.Fatalf("read %d rows of docs/decisions.md: its form has changed", len(rows))
	}
	return rows
}

func pairs(t *testing.T, cell string) map[string]string {
	t.Helper()
	m := map[string]string{}
	for field := range strings.FieldsSeq(cell) {
		key, value, ok := strings.Cut(field, "=")
		if !ok && field != "good" {
			t.Fatalf("%q is not key=value", field)
		}
		m[key] = value
	}
	return m
}

// when reads a time relative to now; anything that is no time is zero, as for the annotations.
func when(now time.Time, s string) time.Time {
	d, err := time.ParseDuration(s)
	if err != nil {
		return time.Time{}
	}
	return now.Add(d)
}

var (
	now     = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	policy  = refresh.Policy{LifetimeFraction: 0.75, MinValidity: 10 * time.Minute, Cooldown: 30 * time.Second}
	target  = refresh.Target{Name: refresh.Name{Namespace: "flux-system", Name: "flux-system"}, Mint: refresh.MintKey{Identity: "repos", Scope: "azure-devops"}, ConfigHash: "c0ffee0000000000", Format: refresh.BearerToken()}
	current = refresh.NewToken("current", now.Add(-30*time.Minute), now.Add(30*time.Minute), time.Time{})
	other   = refresh.NewToken("other", now.Add(-time.Minute), now.Add(time.Hour), time.Time{})
	due     = refresh.NewToken("current", now.Add(-50*time.Minute), now.Add(10*time.Minute), time.Time{})
	ended   = refresh.NewToken("ended", now.Add(-time.Hour), now, time.Time{})
)

// observed gives the state that a row describes.
func (r row) observed(t *testing.T) (refresh.Target, refresh.Observed) {
	t.Helper()
	target := target
	content := target.Format.ContentHash(map[string][]byte{"bearerToken": []byte("current")})
	o := refresh.Observed{
		Exists: true, UID: "uid", Version: "7",
		TokenHash: current.Hash, WrittenHash: content, ContentHash: content, ConfigHash: target.ConfigHash,
		ExpiresAt: current.Expires, RefreshAt: now.Add(15 * time.Minute), RefreshedAt: now.Add(-30 * time.Minute),
	}
	for key, value := range r.secret {
		switch key {
		case "good":
		case "exists":
			o = refresh.Observed{}
		case "create":
			target.Create = true
		case "suspend":
			o.Suspended = true
		case "immutable", "type":
			o.Refused = "the Secret cannot take a token"
		case "token-hash":
			o.TokenHash, o.Foreign = "", r.secret["content"] != "missing"
		case "config-hash":
			o.ConfigHash = value
		case "content-hash":
			o.WrittenHash = ""
		case "content":
			o.ContentHash = map[string]string{"missing": "", "other": "0123456789abcdef"}[value]
		case "expires-at":
			o.ExpiresAt = when(now, value)
		case "refresh-at":
			o.RefreshAt = when(now, value)
		case "refreshed-at":
			o.RefreshedAt = when(now, value)
		case "request":
			if value == "open" {
				o.Request.ID = refresh.Hash("please")
			}
		case "about":
			o.Request.About = map[string]string{"current": current.Hash, "other": other.Hash}[value]
		default:
			t.Fatalf("no such state: %s", key)
		}
	}
	return target, o
}

func (r row) memory(t *testing.T) refresh.Memory {
	t.Helper()
	var m refresh.Memory
	for key, value := range r.knows {
		switch key {
		case "held":
			m.Held = map[string]refresh.Token{"current": current, "other": other, "due": due, "expired": ended}[value]
		case "misconfigured":
			m.Misconfigured = true
		case "mended":
			m.Mended = true
		case "mint-after":
			m.MintAfter = when(now, value)
		case "insists":
			m.InsistsUntil = when(now, value)
		case "answered":
			m.Answered = true
		case "write-after":
			m.WriteAfter = when(now, value)
		case "repair-after":
			m.RepairAfter = when(now, value)
		case "request-after":
			m.RequestAfter = when(now, value)
		default:
			t.Fatalf("no such memory: %s", key)
		}
	}
	return m
}

func TestDecide(t *testing.T) {
	t.Parallel()
	for name, r := range decisions(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			target, o := r.observed(t)
			got := refresh.Decide(target, o, r.memory(t), policy, now)
			if got.Why == "" {
				t.Error("the decision does not say why")
			}
			want := refresh.Decision{Action: r.action, Reason: r.reason}
			if r.action == refresh.Look || r.action == refresh.Keep {
				want.At = when(now, r.looksAgain)
			}
			got.Why, got.Renews = "", false
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("decided otherwise than the table (-table +decided):\n%s", diff)
			}
		})
	}
}

func TestDecideWithin(t *testing.T) {
	t.Parallel()
	_, o := row{secret: map[string]string{"refresh-at": "+10m"}}.observed(t)
	p := policy
	p.Within = 10 * time.Minute
	if d := refresh.Decide(target, o, refresh.Memory{}, p, now); d.Action != refresh.Mint || d.Reason != refresh.RefreshDue {
		t.Errorf("a refresh due in 10m, within 10m: %+v", d)
	}
	p.Within--
	if d := refresh.Decide(target, o, refresh.Memory{}, p, now); d.Action != refresh.Look || !d.At.Equal(now.Add(1)) {
		t.Errorf("a refresh due in 10m, within a nanosecond less: %+v", d)
	}
}
