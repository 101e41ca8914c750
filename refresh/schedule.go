package refresh

import (
	"strconv"
	"time"
)

// Policy is how eagerly tokens are refreshed.
type Policy struct {
	// LifetimeFraction of a token's life, counted from when it was minted, passes before it is refreshed: 0 < f < 1.
	LifetimeFraction float64
	// Jitter is the share of that time by which a refresh may come earlier, never later: 0 ≤ j < 1.
	Jitter float64
	// MinValidity, or a quarter of the life where that is less, is left of a token when it is refreshed.
	MinValidity time.Duration
	// Cooldown lies between two mints of a target that somebody requested.
	Cooldown time.Duration
	// Within makes a refresh due that much before its time; a service leaves it 0.
	Within time.Duration
}

// RefreshAt is when a token is to be replaced, in whole seconds, as the annotations hold it. It follows from the token alone, so that every look and every
// leader comes to the same time, and so do all the Secrets that share the token.
func (p Policy) RefreshAt(t Token) time.Time {
	life := t.Expires.Sub(t.Minted)
	wait := time.Duration(float64(life) * p.LifetimeFraction)
	if asked := t.RefreshOn.Sub(t.Minted); !t.RefreshOn.IsZero() && asked > 0 {
		wait = min(wait, asked)
	}
	// A fraction or a refresh_in of next to nothing would mint without pause.
	wait = max(wait, min(shortestWait, life/2))
	// Jitter spreads identities, not the looks at one token: rolled anew at each look it would creep
	// towards its earliest value (as in the kubelet's token manager).
	wait -= time.Duration(float64(wait) * p.Jitter * unit(t.Hash))
	wait = min(wait, life-min(p.MinValidity, life/4))
	return t.Minted.Add(wait).Truncate(time.Second)
}

// shortestWait is the least that a token is used, where it lives twice as long.
const shortestWait = 30 * time.Second

// UnchangedAt is when to ask again an issuer that insisted on a token which ends at expires, in whole seconds, as the annotations hold it:
// half-way to its end, as IMDS keeps a token for up to a day and cannot be forced (measured), but at least a minute from now.
func UnchangedAt(expires, now time.Time) time.Time {
	return now.Add(max(expires.Sub(now)/2, time.Minute)).Truncate(time.Second)
}

// backoffs are the first and the longest delay of each class of failure, doubling in between.
var backoffs = map[Class]struct{ first, longest time.Duration }{
	Unavailable:   {time.Second, 5 * time.Minute},
	Throttled:     {5 * time.Second, 5 * time.Minute},
	Assertion:     {5 * time.Second, 5 * time.Minute},
	Misconfigured: {time.Minute, 15 * time.Minute},
}

const (
	// longestDead bounds the delay once the token has ended and the other side may be back at any moment.
	longestDead = 30 * time.Second
	// longestAsked bounds what the other side may ask for once the token has ended: what it says is input, and nothing works meanwhile.
	longestAsked = 15 * time.Minute
)

// RetryDelay is how long to leave a failure alone: growing with the failures in a row (1, 2, …), a fifth of it given
// to jitter (0 ≤ u < 1), no less than the other side asked for. While validity is left, two more
// tries always fit into it, down to one a second; when none is left, an outage is tried every longestDead, and
// nobody is left alone for more than longestAsked.
func RetryDelay(err *Error, failures int, left time.Duration, u float64) time.Duration {
	b := backoffs[err.Class]
	d := b.longest
	if doublings := failures - 1; doublings < 10 {
		d = min(b.first<<doublings, b.longest)
	}
	d -= time.Duration(float64(d) / 5 * u)
	if left <= 0 && err.Class == Unavailable {
		d = min(d, longestDead)
	}
	d = max(d, err.RetryAfter)
	if left <= 0 {
		return min(d, longestAsked)
	}
	return min(d, max(left/3, time.Second))
}

// Cooldown is what lies between two requested mints of a target after so many new tokens in a row were rejected: it doubles
// with each, to 15 minutes, because another token does not help where a permission is missing.
func Cooldown(first time.Duration, rejections int) time.Duration {
	const longest = 15 * time.Minute
	if rejections > 10 {
		return longest
	}
	return max(first, min(first<<rejections, longest))
}

const (
	longestRepairDelay = time.Minute
	// contentionEnds is how long a Secret must have been left alone for its repairs to be forgotten. The
	// usual offender is a kustomization with the key in Git, which comes back every 10 minutes.
	contentionEnds = time.Hour
)

// RepairDelay is how long after its n-th repair in a row (1, 2, …) a Secret may be repaired again: 1, 2, 4, … 60 s.
// Somebody who comes back less often than that never waits.
func RepairDelay(n int) time.Duration {
	if n > 6 {
		return longestRepairDelay
	}
	return time.Second << (n - 1)
}

// spread gives a number in [0, 1) that differs from place to place and from moment to moment, and follows from them, so that a simulation
// repeats itself.
func spread(place string, now time.Time) float64 {
	return unit(Hash(place + now.Format(time.RFC3339Nano)))
}

// unit turns a hash (16 hex digits) into a fixed number in [0, 1).
func unit(hash string) float64 {
	n, err := strconv.ParseUint(hash, 16, 64)
	if err != nil {
		return 0
	}
	return float64(n>>11) / (1 << 53)
}
