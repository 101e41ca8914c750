package e2e

// docs/installation.md: what a user copies from it works.

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/strvals"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"flux-token-refresher/internal/config"
	"flux-token-refresher/internal/rbac"
)

func TestInstallationDocs(t *testing.T) {
	t.Parallel()
	var prose strings.Builder
	blocks := map[string]string{} // by the file that their first line names
	for i, part := range strings.Split(string(read(t, "../docs/installation.md")), "```") {
		if i%2 == 0 {
			prose.WriteString(part)
			continue
		}
		first, rest, _ := strings.Cut(strings.TrimPrefix(part, "yaml\n# "), "\n")
		blocks[first] = rest
	}
	c, err := config.Parse("config.yaml", []byte(blocks["config.yaml"]), nil)
	if err != nil {
		t.Fatal(err)
	}
	rights, err := rbac.YAML(rbac.Objects(c, types.NamespacedName{Namespace: "flux-system", Name: "flux-token-refresher"}))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"overlay/kustomization.yaml", "kustomization.yaml", "flux/kustomization.yaml", "prod/kustomization.yaml"} {
		built(t, kustomization(t, map[string]string{
			"kustomization.yaml": strings.ReplaceAll(blocks[name], "../deploy", "DEPLOY"),
			"config.yaml":        blocks["config.yaml"], "rbac.yaml": string(rights),
		}))
	}
	commands := 0
	for line := range strings.SplitSeq(prose.String(), "\n") {
		words := strings.Fields(line)
		if !strings.HasPrefix(line, "    ") || len(words) < 2 {
			continue
		}
		switch words[0] + " " + words[1] {
		case "kubectl apply":
			if blocks[words[3]+"/kustomization.yaml"] == "" { // built above
				t.Errorf("%s: the page has no such overlay", line)
			}
		case "helm install", "helm upgrade":
			if filepath.Join("..", words[3]) != chartDir {
				t.Errorf("%s: it is another chart", line)
			}
			helm(t, words[2], words[4:], blocks)
		case "flux-token-refresher config":
			arguments, _, _ := strings.Cut(line, ">")
			command := exec.CommandContext(patient(t), product(t), strings.Fields(arguments)[1:]...)
			command.Dir = kustomization(t, map[string]string{"config.yaml": blocks["config.yaml"]})
			if got, err := command.Output(); err != nil || string(got) != string(rights) {
				t.Errorf("%s: %v\n%s", line, err, got)
			}
		default:
			t.Errorf("nothing tries %s", line)
		}
		commands++
	}
	if commands < 4 {
		t.Errorf("found %d commands: are they still indented?", commands)
	}
}

// The README's own line.
func TestReadmeInstallsByHelm(t *testing.T) {
	t.Parallel()
	found := 0
	for line := range strings.SplitSeq(strings.ReplaceAll(string(read(t, "../README.md")), "\\\n", " "), "\n") {
		words := strings.Fields(line)
		if len(words) < 4 || words[0] != "helm" || words[1] != "install" {
			continue
		}
		if filepath.Join("..", words[3]) != chartDir {
			t.Errorf("%s: it is another chart", line)
		}
		helm(t, words[2], words[4:], nil)
		found++
	}
	if found != 1 {
		t.Errorf("found %d commands, want one", found)
	}
}

// helm renders what a command line of it would install; its files are the page's blocks.
func helm(t *testing.T, name string, flags []string, blocks map[string]string) {
	t.Helper()
	as, values := types.NamespacedName{Name: name}, map[string]any{}
	for i := 0; i+1 < len(flags); i += 2 {
		var err error
		switch value := flags[i+1]; flags[i] {
		case "--namespace":
			as.Namespace = value
		case "--set":
			err = strvals.ParseInto(value, values)
		case "--values":
			err = yaml.Unmarshal([]byte(blocks[value]), &values)
		default:
			t.Errorf("nothing tries %s", flags[i])
		}
		if err != nil {
			t.Errorf("%s %s: %v", flags[i], flags[i+1], err)
		}
	}
	text, err := yaml.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	release(t, as, string(text))
}
