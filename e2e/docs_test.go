package e2e

// The commands of the docs, run as they stand there, in the order in which a reader meets them.

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/flux"
	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/e2e/internal/toolchain"
	"flux-token-refresher/internal/config"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure/azuretest"
	"flux-token-refresher/refresh/secret"
)

// command is one that a reader is shown.
type command struct{ file, line string }

var (
	// ours begins what is run here: our program and kubectl, also with an environment before them.
	ours = regexp.MustCompile(`^(?:[A-Z_]+=\S+ )*(?:kubectl|(?:bin/)?flux-token-refresher) `)
	// explained is a line of a table of commands: what it does stands beside it.
	explained = regexp.MustCompile(`^(\S+(?: \S+)*?) {2,}[^#\s].*$`)
	// continues is a line of a command that goes on in the next one.
	continues = regexp.MustCompile(`[\\|]$`)
	// inline is a command in a sentence, not the name of one.
	inline = regexp.MustCompile("`([^`]+ -[^`]+)`")
)

// commands reads them from a Markdown file: lines of code, and what sentences quote.
func commands(t *testing.T, file string) []command {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("..", file))
	if err != nil {
		t.Fatal(err)
	}
	var out []command
	add := func(line string) {
		if m := explained.FindStringSubmatch(line); m != nil {
			line = m[1] + " --help"
		}
		if ours.MatchString(line) {
			out = append(out, command{file, line})
		}
	}
	fenced, begun := false, ""
	for line := range strings.Lines(string(content)) {
		code := strings.TrimSpace(line)
		switch {
		case begun != "" || strings.HasPrefix(line, "    ") && ours.MatchString(code) && continues.MatchString(code):
			begun += code + "\n"
			if !continues.MatchString(code) {
				add(begun)
				begun = ""
			}
		case strings.HasPrefix(code, "```"):
			fenced = !fenced
		case fenced || strings.HasPrefix(line, "    "):
			add(code)
		default:
			for _, m := range inline.FindAllStringSubmatch(line, -1) {
				add(m[1])
			}
		}
	}
	return out
}

// example gives the first YAML block of a Markdown file that holds a text, without the indentation of a list.
func example(t *testing.T, file, with string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("..", file))
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range regexp.MustCompile("(?ms)^( *)```yaml\n(.*?)^ *```$").FindAllStringSubmatch(string(content), -1) {
		if strings.Contains(block[2], with) {
			return strings.ReplaceAll("\n"+block[2], "\n"+block[1], "\n")
		}
	}
	t.Fatalf("%s has no example with %q", file, with)
	return ""
}

// TestDocumentedCommands: what the docs show works as typed, and prints no token.
func TestDocumentedCommands(t *testing.T) {
	t.Parallel()
	_ = fluxOf(t) // its kinds
	i := install(t, func(spec *installation.Spec) {
		spec.Namespace, spec.Config = flux.Namespace, "refresh: {cooldown: 100ms}\n"
	})
	startReplica(t, i, "refresher-0", "")
	const name = "flux-system"
	awaitSecret(t, i, name, sound(i))

	// A reader's checkout, with the programs beside it, and what a pod's environment gives.
	dir := t.TempDir()
	spec := replicaSpec(t, i, "reader", "")
	kubectl, err := toolchain.Kubectl.Build(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig, err := cluster.Kubeconfig(i.Cluster.Config())
	if err != nil {
		t.Fatal(err)
	}
	file := func(path ...string) string { return filepath.Join(append([]string{dir}, path...)...) }
	for _, folder := range []string{"bin", "overlay"} {
		if err := os.Mkdir(file(folder), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(file("deploy"), os.DirFS("../deploy")); err != nil {
		t.Fatal(err)
	}
	for program, path := range map[string]string{"kubectl": kubectl, "flux-token-refresher": product(t)} {
		if err := os.Symlink(path, file("bin", program)); err != nil {
			t.Fatal(err)
		}
	}
	// What Azure has made before a reader runs what follows.
	certificate, err := azuretest.NewClientCertificate(time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string]string{
		"tls.crt": certificate.CertificatePEM, "tls.key": certificate.KeyPEM, "FILE": "a-client-secret",
		"bin/openssl":                "#!/bin/sh\nhead -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \\n'\n", // rand -hex 32, where there is none
		"config.yaml":                example(t, "README.md", "kind: Config"),
		"overlay/config.yaml":        example(t, "README.md", "kind: Config"),
		"overlay/kustomization.yaml": example(t, "README.md", "overlay/kustomization.yaml"),
		"kubeconfig":                 string(kubeconfig),
		"assertion":                  spec.Assertion,
	} {
		if err := os.WriteFile(file(path), []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{
		"PATH=" + file("bin") + ":" + os.Getenv("PATH"), "HOME=" + dir, "KUBECONFIG=" + file("kubeconfig"),
		"AZURE_FEDERATED_TOKEN_FILE=" + file("assertion"),
	}
	for variable, value := range spec.Env {
		env = append(env, variable+"="+value)
	}

	// What no pod runs here for.
	needsPods := regexp.MustCompile(`^kubectl .*\blogs\b`)
	ran := 0
	for _, document := range []string{"README.md", "docs/configuration.md", "docs/identities.md", "docs/events.md", "docs/secret.md", "docs/operating.md", "docs/runbooks.md"} {
		if document == "docs/events.md" {
			withEvents(t, file("overlay"))
		}
		for _, c := range commands(t, document) {
			if needsPods.MatchString(c.line) {
				continue
			}
			shell := exec.CommandContext(patient(t), "sh", "-euc", c.line)
			shell.Dir, shell.Env = dir, env
			out, err := shell.CombinedOutput()
			if err != nil {
				t.Errorf("%s: %s\n%s\n%s", c.file, c.line, err, out)
			}
			if bytes.Contains(out, []byte("(no change)")) {
				t.Errorf("%s: %s\nchanges nothing", c.file, c.line)
			}
			for _, token := range i.Entra.Tokens() {
				if bytes.Contains(out, []byte(token)) {
					t.Errorf("%s: %s\nprints a token", c.file, c.line)
				}
			}
			t.Logf("%s: %s", c.file, c.line)
			ran++
		}
	}
	if ran < 10 {
		t.Errorf("%d commands were found, which cannot be all", ran)
	}

	// What they were to do was done.
	awaitSecret(t, i, name, func(s *corev1.Secret) bool {
		if !sound(i)(s) {
			return false
		}
		asked := s.Annotations[secret.Request]
		return asked != "" && s.Annotations[secret.HandledRequest] == refresh.Hash(asked)
	})
	for name, keys := range map[string][]string{"repos-certificate": {"tls.crt", "tls.key"}, "partner-credential": {"clientSecret"}} {
		if _, err := secret.Values(t.Context(), i.Client.CoreV1(), refresh.Name{Namespace: i.Namespace, Name: name}, keys...); err != nil {
			t.Errorf("what an identity reads: %v", err)
		}
	}
	key, err := i.Client.CoreV1().Secrets(i.Namespace).Get(t.Context(), "flux-token-refresher-events", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(key.Data["token"]); n != 64 {
		t.Errorf("the key that both ends share has %d digits, want 64", n)
	}
	if len(key.Data) != 1 {
		t.Errorf("after the key was changed there are %d keys, want one", len(key.Data))
	}
	// What the README's overlay said still holds after events were added to it.
	deployment, err1 := i.Client.AppsV1().Deployments(i.Namespace).Get(t.Context(), installation.Account, metav1.GetOptions{})
	account, err2 := i.Client.CoreV1().ServiceAccounts(i.Namespace).Get(t.Context(), installation.Account, metav1.GetOptions{})
	_, err3 := i.Client.CoreV1().Services(i.Namespace).Get(t.Context(), installation.Account, metav1.GetOptions{})
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	pod := deployment.Spec.Template.Spec
	if got := pod.Containers[0].Image; got != "REGISTRY/flux-token-refresher:TAG" {
		t.Errorf("the image is %s", got)
	}
	if got := account.Annotations["azure.workload.identity/client-id"]; got != "CLIENT-ID" {
		t.Errorf("the client id is %s", got)
	}
	mounted, err := i.Client.CoreV1().ConfigMaps(i.Namespace).Get(t.Context(), volume(t, pod, "config").ConfigMap.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse("config.yaml", []byte(mounted.Data["config.yaml"]), nil)
	if err != nil || len(c.Events.Senders) != 1 {
		t.Errorf("the pods read, with %v,\n%s", err, mounted.Data["config.yaml"])
	}
}

// withEvents changes an overlay as docs/events.md says.
func withEvents(t *testing.T, overlay string) {
	t.Helper()
	for path, change := range map[string]func(string) string{
		"kustomization.yaml": func(s string) string {
			return strings.Replace(s, "[../deploy/kustomize/base]", "[../deploy/kustomize/events]", 1)
		},
		"config.yaml": func(s string) string { return s + example(t, "docs/events.md", "senders:") },
	} {
		path = filepath.Join(overlay, path)
		if err := os.WriteFile(path, []byte(change(string(read(t, path)))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
