# Everything here but a node needs Go, a C compiler (for the race detector), make and git, and nothing else. What takes minutes to build
# (Kubernetes, etcd, containerd, Flux's controllers, Jaeger, Prometheus, golangci-lint) is built once, into the user's cache folder.

# Of the tag v1.2.3 it is 1.2.3, as that of the image and the chart.
VERSION := $(patsubst v%,%,$(shell git describe --tags --always --dirty 2>/dev/null || echo unknown))

.PHONY: build test test-node lint demo cluster bench fuzz

build:
	go build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/flux-token-refresher ./cmd/flux-token-refresher

# The tools first, because go test would not show that something is being built. -count=1: Go's cache of test
# results does not know that the tests in e2e build the product. TestEventLoop by itself and aloud: it measures. Of fuzzing a number of
# executions, because with a time Go 1.26 now and then takes its own deadline for a failure (golang/go#75804); without the one of which each
# takes a third of a second: its seeds have been run before.
test:
	cd e2e && go run ./tools >/dev/null
	go test -race -timeout 10m ./...
	cd e2e && go test -race -count=1 -timeout 30m -skip '^TestEventLoop$$' ./...
	cd e2e && go test -race -count=1 -v -run '^TestEventLoop$$' .
	$(MAKE) fuzz FUZZTIME=3000x EXCEPT=FuzzInterleavings

# The product in Pods, on a node of its own. As root on Linux, with what it says is missing, else "make test" is all there is. The first run
# builds everything within that hour.
test-node:
	cd e2e && go test -count=1 -tags node -timeout 1h -v ./node

lint:
	lint=$$(cd e2e && go run ./tools golangci-lint) && $$lint run ./... && cd e2e && $$lint run ./...
	go mod tidy -diff && go mod verify
	cd e2e && go mod tidy -diff

# KEEP=1 leaves the cluster running.
demo:
	cd e2e && go run ./demo

# That node, to look around in.
cluster:
	cd e2e && go run ./node

# Each fuzz target for that long, one after the other, from its seeds and testdata/fuzz. What it finds stands there, too, and fails "make test".
FUZZTIME = 10m
EXCEPT =

fuzz:
	grep -rHo --include='*_test.go' '^func Fuzz[A-Za-z]*' . | sed 's,/[^/]*:func , ,' | grep -v ' $(EXCEPT)$$' | sort | while read -r package target; do \
		go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s "$$package" || exit; \
	done

# Signed events a second against a bare handler, in one run.
bench:
	cd e2e && go run ./bench
