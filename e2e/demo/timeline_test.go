package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestFiguresStandAtTheRightEdge(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	line := timeline{out: &out, started: time.Now()}
	line.measured("14 ms", "token %s took its place", "0123456789abcdef")
	line.measured("14.0 s after the kill", "ä → ü")
	for text := range strings.Lines(out.String()) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(text, "\n")); n != columns {
			t.Errorf("%d columns, want %d: %q", n, columns, text)
		}
	}
	if got, want := leader(strings.Repeat("x", columns), "1.0 s"), strings.Repeat("x", columns)+" .. 1.0 s"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestShort(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		420 * time.Microsecond:   "0.4 ms",
		9940 * time.Microsecond:  "9.9 ms",
		31400 * time.Microsecond: "31 ms",
		13849 * time.Millisecond: "13.8 s",
	} {
		if got := short(d); got != want {
			t.Errorf("%v: got %q, want %q", d, got, want)
		}
	}
}
