package main

import (
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// TestRecovered: a source that was Ready all the while has not recovered.
func TestRecovered(t *testing.T) {
	t.Parallel()
	matches := recovered()
	for n, step := range []struct {
		status string
		want   bool
	}{
		{"True", false},
		{"Unknown", false},
		{"True", false},
		{"False", false},
		{"Unknown", false},
		{"True", true},
	} {
		o := &unstructured.Unstructured{Object: map[string]any{"status": map[string]any{
			"conditions": []any{map[string]any{"type": "Ready", "status": step.status}},
		}}}
		if got := matches(o); got != step.want {
			t.Errorf("state %d, %s: %t", n, step.status, got)
		}
	}
	if recovered()(nil) {
		t.Error("what is not there has recovered")
	}
}
