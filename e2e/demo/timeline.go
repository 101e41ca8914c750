package main

// What the demo prints: a line for each thing that happened, with the time since the start and what was measured.

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// columns is the width of the output.
const columns = 100

type timeline struct {
	out     io.Writer
	started time.Time
}

// chapter begins a part of the story.
func (t *timeline) chapter(title string) {
	fmt.Fprintf(t.out, "\n  %s\n", title)
}

// did tells what happened now.
func (t *timeline) did(format string, args ...any) { t.measured("", format, args...) }

// measured tells what happened now, and at the end of the line what was measured.
func (t *timeline) measured(figure, format string, args ...any) {
	t.at(time.Now(), figure, format, args...)
}

// at tells what is known to have happened at some time.
func (t *timeline) at(when time.Time, figure, format string, args ...any) {
	elapsed := fmt.Sprintf("%.1f s", when.Sub(t.started).Seconds())
	text := fmt.Sprintf("  %8s  %s", elapsed, fmt.Sprintf(format, args...))
	fmt.Fprintln(t.out, leader(text, figure))
}

// command shows what a person would type for what the demo does through the API.
func (t *timeline) command(line string) { t.did("$ %s", line) }

// more adds a line to what was told last.
func (t *timeline) more(format string, args ...any) {
	fmt.Fprintf(t.out, "  %8s  %s\n", "", fmt.Sprintf(format, args...))
}

// leader sets a figure at the right edge, with dots that lead there.
func leader(text, figure string) string {
	if figure == "" {
		return text
	}
	gap := columns - utf8.RuneCountInString(text) - utf8.RuneCountInString(figure) - 2
	return text + " " + strings.Repeat(".", max(gap, 2)) + " " + figure
}

// short writes a duration with three digits or less.
func short(d time.Duration) string {
	switch ms := float64(d) / float64(time.Millisecond); {
	case ms < 10:
		return fmt.Sprintf("%.1f ms", ms)
	case ms < 1000:
		return fmt.Sprintf("%.0f ms", ms)
	default:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
}
