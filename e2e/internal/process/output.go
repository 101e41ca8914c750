package process

// What a process writes, line by line.

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"sync"
)

// Output collects lines. Safe for concurrent use.
type Output struct {
	mu    sync.Mutex
	text  []byte
	grown chan struct{} // closed, and made anew, when text grows
}

// NewOutput gives an empty one, to be a command's Stdout and Stderr.
func NewOutput() *Output { return &Output{grown: make(chan struct{})} }

// Write implements io.Writer.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, p...)
	close(o.grown)
	o.grown = make(chan struct{})
	return len(p), nil
}

// Bytes gives everything that was written so far.
func (o *Output) Bytes() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return bytes.Clone(o.text)
}

// String gives everything that was written so far.
func (o *Output) String() string { return string(o.Bytes()) }

// Record is one line of the log: a JSON object.
type Record map[string]any

// Records gives the matching records of the log so far; lines that are not JSON are left out.
func (o *Output) Records(match func(Record) bool) []Record {
	o.mu.Lock()
	defer o.mu.Unlock()
	records, _ := scan(o.text, match)
	return records
}

// Wait gives the first matching record of the log as soon as it is written.
func (o *Output) Wait(ctx context.Context, match func(Record) bool) (Record, error) {
	for read := 0; ; {
		o.mu.Lock()
		found, n := scan(o.text[read:], match)
		grown := o.grown
		o.mu.Unlock()
		read += n
		if len(found) > 0 {
			return found[0], nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return nil, fmt.Errorf("no such line in the log: %w", context.Cause(ctx))
		}
	}
}

// scan gives the matching records of the complete lines of text, and how long these are.
func scan(text []byte, match func(Record) bool) (found []Record, n int) {
	for {
		line, _, complete := bytes.Cut(text[n:], []byte("\n"))
		if !complete {
			return found, n
		}
		n += len(line) + 1
		var record Record
		if json.Unmarshal(line, &record) == nil && match(record) {
			found = append(found, record)
		}
	}
}
