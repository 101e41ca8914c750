// Package replica runs flux-token-refresher as a process, with what a Pod would give it.
package replica

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/process"
)

// Spec is what a replica gets.
type Spec struct {
	// Binary is the path of the product.
	Binary string
	// Command is the subcommand; "run" when empty. Flags follow those of the files.
	Command string
	Flags   []string
	// Stdin is nothing when nil.
	Stdin io.Reader
	// Name and Namespace are the Pod's (POD_NAME, POD_NAMESPACE).
	Name, Namespace string
	// Config is the content of its configuration file; health.address is 127.0.0.1:0, where the replica logs
	// which port it took.
	Config []byte
	// Kubeconfig is how it reaches the API server.
	Kubeconfig []byte
	// Assertion is the content of AZURE_FEDERATED_TOKEN_FILE: a ServiceAccount's token for the
	// audience api://AzureADTokenExchange. Left out, there is no such file.
	Assertion string
	// Env is the environment beside these; nothing of the parent's is inherited.
	Env map[string]string
}

// Authenticate makes the replica a Pod of a ServiceAccount of its namespace: its access to the API server, and its assertion for Entra.
func (s *Spec) Authenticate(ctx context.Context, c *cluster.Cluster, serviceAccount string) error {
	access, err := c.Token(ctx, s.Namespace, serviceAccount)
	if err != nil {
		return err
	}
	if s.Kubeconfig, err = cluster.Kubeconfig(c.TokenConfig(access)); err != nil {
		return err
	}
	s.Assertion, err = c.Token(ctx, s.Namespace, serviceAccount, "api://AzureADTokenExchange")
	return err
}

// Replica is a running process of the product.
type Replica struct {
	*process.Process
	// Output is everything that it wrote to stdout and stderr.
	Output *process.Output

	name string
}

// client keeps no connection, whose goroutine would outlive the test.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// Start starts "flux-token-refresher COMMAND" with its files in dir, which it creates. The caller must Stop it, or Wait until it ended.
func Start(spec Spec, dir string) (*Replica, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	files := map[string][]byte{"config.yaml": spec.Config, "kubeconfig": spec.Kubeconfig}
	env := map[string]string{
		"POD_NAME": spec.Name, "POD_NAMESPACE": spec.Namespace,
		"GORACE": "halt_on_error=1 atexit_sleep_ms=0", // a race ends the replica, with exit code 66; it exits without the detector's pause of 1 s
	}
	if spec.Assertion != "" {
		files["assertion"] = []byte(spec.Assertion)
		env["AZURE_FEDERATED_TOKEN_FILE"] = file("assertion")
	}
	for name, content := range files {
		if err := os.WriteFile(file(name), content, 0o600); err != nil {
			return nil, err
		}
	}
	maps.Copy(env, spec.Env)

	args := []string{cmp.Or(spec.Command, "run"), "--config=" + file("config.yaml"), "--kubeconfig=" + file("kubeconfig")}
	command := exec.Command(spec.Binary, append(args, spec.Flags...)...)
	for _, name := range slices.Sorted(maps.Keys(env)) {
		command.Env = append(command.Env, name+"="+env[name])
	}
	output := process.NewOutput()
	command.Stdin, command.Stdout, command.Stderr = spec.Stdin, output, output
	p, err := process.Start(command)
	if err != nil {
		return nil, fmt.Errorf("start replica %s: %w", spec.Name, err)
	}
	return &Replica{Process: p, Output: output, name: spec.Name}, nil
}

// Name is the Pod's name.
func (r *Replica) Name() string { return r.name }

// WaitReady returns when /readyz answers 200; when the replica ends instead, the error says so. The error holds
// what the replica wrote.
func (r *Replica) WaitReady(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-r.Done():
			cancel(errors.New("it ended"))
		case <-ctx.Done():
		}
	}()
	defer func() {
		cancel(nil)
		<-watched
	}()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := r.Get(ctx, "/readyz")
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s\nreplica %s did not become ready: %w: %w", r.Output, r.name, context.Cause(ctx), err)
		}
	}
}

// Get gives the body of a path of the health address, such as /metrics; another status than 200 is an error.
func (r *Replica) Get(ctx context.Context, path string) ([]byte, error) {
	return r.get(ctx, path, "*/*")
}

func (r *Replica) get(ctx context.Context, path, accept string) ([]byte, error) {
	address, err := r.Address(ctx)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", accept)
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s of replica %s: %s: %s", path, r.name, response.Status, body)
	}
	return body, nil
}

// Address is the host:port of the health address; it waits until the replica says where it serves.
func (r *Replica) Address(ctx context.Context) (string, error) {
	record, err := r.Output.Wait(ctx, func(r process.Record) bool { return r["msg"] == "serving" })
	if err != nil {
		return "", fmt.Errorf("health address of replica %s: %w", r.name, err)
	}
	address, ok := record["address"].(string)
	if !ok {
		return "", fmt.Errorf("health address of replica %s: there is none in %v", r.name, record)
	}
	return address, nil
}
