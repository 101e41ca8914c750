package otlp

// A trace as a tree of text.

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

// pod is the resource attribute that names the pod whose span it is.
const pod = "k8s.pod.name"

// WriteTree writes a trace, one line a span: the name below its parent's, the pod where the trace runs through several, how long it took, and
// its attributes. A span whose parent is not among the spans is a root.
func WriteTree(w io.Writer, spans []Span) error {
	ids, pods := map[string]bool{}, map[string]bool{}
	for _, s := range spans {
		ids[s.ID], pods[s.Resource[pod]] = true, true
	}
	children := map[string][]Span{}
	for _, s := range spans {
		parent := s.Parent
		if !ids[parent] {
			parent = ""
		}
		children[parent] = append(children[parent], s)
	}
	type row struct {
		name string
		span Span
	}
	var rows []row
	var add func(parent, indent string)
	add = func(parent, indent string) {
		below := children[parent]
		slices.SortFunc(below, func(a, b Span) int { return a.Start.Compare(b.Start) })
		for i, s := range below {
			branch, next := indent+"├─ ", indent+"│  "
			switch {
			case parent == "":
				branch, next = "", ""
			case i == len(below)-1:
				branch, next = indent+"└─ ", indent+"   "
			}
			rows = append(rows, row{name: branch + s.Name, span: s})
			add(s.ID, next)
		}
	}
	add("", "")

	width, podWidth := 0, 0
	for _, r := range rows {
		width, podWidth = max(width, utf8.RuneCountInString(r.name)), max(podWidth, len(r.span.Resource[pod]))
	}
	for _, r := range rows {
		name := fmt.Sprintf("%-*s", width, r.name)
		if len(pods) > 1 {
			name = fmt.Sprintf("%s  %-*s", name, podWidth, r.span.Resource[pod])
		}
		line := fmt.Sprintf("%s  %10s  %s", name, took(r.span), notes(r.span))
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " ")); err != nil {
			return err
		}
	}
	return nil
}

func took(s Span) string { return s.End.Sub(s.Start).Round(10 * time.Microsecond).String() }

func notes(s Span) string {
	var out []string
	if s.Status == tracepb.Status_STATUS_CODE_ERROR {
		out = append(out, strings.TrimSpace("error "+s.StatusText))
	}
	for _, key := range slices.Sorted(maps.Keys(s.Attributes)) {
		out = append(out, key+"="+s.Attributes[key])
	}
	return strings.Join(out, " ")
}
