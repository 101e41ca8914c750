package azure

// The Terraform configuration and the Bicep template give the identity that the script gives, to the account that is
// deployed. Neither is run: providers and compiler are not Go modules. The syntax and the references of the Terraform
// configuration are checked, not its arguments.

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"flux-token-refresher/e2e/internal/manifests"
)

const (
	terraform = "../../deploy/azure/terraform"
	bicep     = "../../deploy/azure/identity.bicep"
	base      = "../../deploy/kustomize/base"
)

// An identity is what the three have to agree on.
type identity struct {
	Name, Credential, Subject, Audience string
	Licence                             string
	Reads                               string   // the group of the project
	Contributes                         string   // the group that may push
	Rights                              []string // what that group may do with the repository
}

// fromScript reads it from what the script sent to az.
func fromScript(t *testing.T) identity {
	t.Helper()
	a := newAzure(t)
	a.succeed(t, append(slices.Clone(arguments), "--issuer", issuer)...)
	w := a.world(t)
	var id identity
	for _, change := range w.Changes {
		e := w.Exchanges[slices.IndexFunc(w.Exchanges, func(e exchange) bool { return e.Call == change && len(e.Makes) > 0 })]
		switch e.Makes[0] {
		case "identity":
			id.Name = flag(t, change, "--name")
		case "credential":
			id.Credential, id.Subject, id.Audience = flag(t, change, "--name"), flag(t, change, "--subject"), flag(t, change, "--audiences")
		case "member":
			id.Licence = field[string](t, e.Body, "accessLevel", "accountLicenseType")
		case "reader":
			id.Reads = groupName(t, w, change)
		case "group":
			id.Contributes = field[string](t, e.Body, "displayName")
		case "right":
			entries := field[[]any](t, e.Body, "accessControlEntries")
			id.Rights = rights(int(field[float64](t, entries[0], "allow")))
		}
	}
	return id
}

func flag(t *testing.T, call, name string) string {
	t.Helper()
	words := strings.Fields(call)
	i := slices.Index(words, name)
	if i < 0 || i+1 == len(words) {
		t.Fatalf("no %s in %s", name, call)
	}
	return words[i+1]
}

func field[T any](t *testing.T, object any, path ...string) T {
	t.Helper()
	for _, name := range path {
		fields, _ := object.(map[string]any)
		object = fields[name]
	}
	value, ok := object.(T)
	if !ok {
		t.Fatalf("%s is %v", strings.Join(path, "."), object)
	}
	return value
}

// groupName gives the name of the recorded group that a membership is added to.
func groupName(t *testing.T, w world, change string) string {
	t.Helper()
	for _, e := range w.Exchanges {
		var groups struct {
			Value []struct{ Descriptor, DisplayName string }
		}
		if !strings.Contains(e.Call, "/graph/groups?") || json.Unmarshal(e.Answer, &groups) != nil {
			continue
		}
		for _, g := range groups.Value {
			if strings.Contains(change, g.Descriptor) {
				return g.DisplayName
			}
		}
	}
	t.Fatalf("no group is recorded for %s", change)
	return ""
}

// rights gives the names of bits in the security namespace "Git Repositories", as Azure DevOps documents them.
func rights(bits int) []string {
	names := map[int]string{2: "GenericRead", 4: "GenericContribute", 8: "ForcePush", 16: "CreateBranch", 32: "CreateTag"}
	var found []string
	for bit := 1; bit <= bits; bit <<= 1 {
		if bits&bit != 0 {
			found = append(found, names[bit])
		}
	}
	slices.Sort(found)
	return found
}

// A module is a Terraform configuration: its blocks by address ("azurerm_user_assigned_identity.this", "var.issuer").
type module struct {
	blocks map[string]*hclsyntax.Body
	vars   map[string]cty.Value // their defaults
}

func readModule(t *testing.T) module {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(terraform, "*.tf"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	parser := hclparse.NewParser()
	m := module{blocks: map[string]*hclsyntax.Body{}, vars: map[string]cty.Value{}}
	for _, name := range files {
		file, diagnostics := parser.ParseHCLFile(name)
		if diagnostics.HasErrors() {
			t.Fatal(diagnostics)
		}
		for _, block := range file.Body.(*hclsyntax.Body).Blocks {
			address := strings.Join(block.Labels, ".")
			switch block.Type {
			case "variable":
				address = "var." + address
				m.vars[block.Labels[0]] = cty.UnknownVal(cty.String)
				if value, ok := block.Body.Attributes["default"]; ok {
					m.vars[block.Labels[0]], diagnostics = value.Expr.Value(nil)
				}
			case "resource":
			default:
				address = block.Type + "." + address
			}
			if diagnostics.HasErrors() {
				t.Fatal(diagnostics)
			}
			if _, ok := m.blocks[address]; ok {
				t.Errorf("%s: %s twice", name, address)
			}
			m.blocks[address] = block.Body
		}
	}
	return m
}

// text evaluates an attribute that needs nothing but variables and their defaults.
func (m module) text(t *testing.T, address, attribute string) string {
	t.Helper()
	value := m.value(t, address, attribute)
	if value.Type() != cty.String || !value.IsWhollyKnown() {
		t.Fatalf("%s.%s is %#v", address, attribute, value)
	}
	return value.AsString()
}

func (m module) value(t *testing.T, address, attribute string) cty.Value {
	t.Helper()
	body, ok := m.blocks[address]
	if !ok {
		t.Fatalf("no %s", address)
	}
	found, ok := body.Attributes[attribute]
	if !ok {
		t.Fatalf("no %s in %s", attribute, address)
	}
	value, diagnostics := found.Expr.Value(&hcl.EvalContext{Variables: map[string]cty.Value{"var": cty.ObjectVal(m.vars)}})
	if diagnostics.HasErrors() {
		t.Fatal(diagnostics)
	}
	return value
}

func (m module) identity(t *testing.T) identity {
	t.Helper()
	id := identity{
		Name:        m.text(t, "azurerm_user_assigned_identity.this", "name"),
		Credential:  m.text(t, "azurerm_federated_identity_credential.this", "name"),
		Subject:     m.text(t, "azurerm_federated_identity_credential.this", "subject"),
		Licence:     m.text(t, "azuredevops_service_principal_entitlement.this", "account_license_type"),
		Reads:       m.text(t, "data.azuredevops_group.readers", "name"),
		Contributes: m.text(t, "azuredevops_group.contributors", "display_name"),
	}
	for _, audience := range m.value(t, "azurerm_federated_identity_credential.this", "audience").AsValueSlice() {
		id.Audience += audience.AsString()
	}
	for right, value := range m.value(t, "azuredevops_git_permissions.contributors", "permissions").AsValueMap() {
		if value.AsString() != "Allow" {
			t.Errorf("%s: %s", right, value.AsString())
		}
		id.Rights = append(id.Rights, right)
	}
	slices.Sort(id.Rights)
	return id
}

// TestTerraformReferences: each reference leads to a block that is there, and each variable is used.
func TestTerraformReferences(t *testing.T) {
	t.Parallel()
	m := readModule(t)
	used := map[string]bool{}
	for address, body := range m.blocks {
		var traversals []hcl.Traversal
		diagnostics := hclsyntax.VisitAll(body, func(node hclsyntax.Node) hcl.Diagnostics {
			if e, ok := node.(*hclsyntax.ScopeTraversalExpr); ok {
				traversals = append(traversals, e.Traversal)
			}
			return nil
		})
		if diagnostics.HasErrors() {
			t.Fatal(diagnostics)
		}
		for _, traversal := range traversals {
			if traversal.RootName() == "string" && strings.HasPrefix(address, "var.") {
				continue // a type
			}
			parts := 2
			if traversal.RootName() == "data" {
				parts = 3
			}
			var names []string
			for _, step := range traversal[:min(parts, len(traversal))] {
				switch step := step.(type) {
				case hcl.TraverseRoot:
					names = append(names, step.Name)
				case hcl.TraverseAttr:
					names = append(names, step.Name)
				}
			}
			target := strings.Join(names, ".")
			if _, ok := m.blocks[target]; !ok {
				t.Errorf("%s: %s refers to %s, which is not there", traversal.SourceRange(), address, target)
			}
			used[target] = used[target] || target != address
		}
	}
	for name := range m.vars {
		if !used["var."+name] {
			t.Errorf("the variable %s is not used", name)
		}
	}
}

// TestDocumentedTemplates: docs/azure.md gives each variable and parameter that has no default, and none that is not there.
func TestDocumentedTemplates(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/azure.md")
	if err != nil {
		t.Fatal(err)
	}
	given := map[string]bool{}
	for _, m := range regexp.MustCompile(`-var (\w+)=`).FindAllStringSubmatch(string(page), -1) {
		given[m[1]] = true
	}
	m := readModule(t)
	for name := range given {
		if _, ok := m.vars[name]; !ok {
			t.Errorf("there is no variable %s", name)
		}
	}
	for name, value := range m.vars {
		if !value.IsKnown() && !given[name] {
			t.Errorf("the variable %s has no default and is not given", name)
		}
	}

	_, parameters, _ := strings.Cut(string(page), "--parameters ")
	parameters, _, _ = strings.Cut(parameters, "\n")
	text, err := os.ReadFile(bicep)
	if err != nil {
		t.Fatal(err)
	}
	var required []string
	for _, m := range regexp.MustCompile(`(?m)^param (\w+) string$`).FindAllStringSubmatch(string(text), -1) {
		required = append(required, m[1]+"=URL")
	}
	if diff := cmp.Diff(strings.Join(required, " "), parameters); diff != "" {
		t.Errorf("parameters (-required +given)\n%s", diff)
	}
}

// fromBicep reads the template's defaults and its two resources, line by line: enough for a file as small as this.
func fromBicep(t *testing.T) identity {
	t.Helper()
	text, err := os.ReadFile(bicep)
	if err != nil {
		t.Fatal(err)
	}
	params := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^param (\w+) string(?: = '([^']*)')?`).FindAllStringSubmatch(string(text), -1) {
		params[m[1]] = m[2]
	}
	value := func(pattern string) string {
		m := regexp.MustCompile(`(?m)^\s*`+pattern+`$`).FindAllStringSubmatch(string(text), -1)
		if len(m) != 1 {
			t.Fatalf("%d lines like %s", len(m), pattern)
		}
		return regexp.MustCompile(`\$\{(\w+)\}`).ReplaceAllStringFunc(m[0][1], func(name string) string {
			name = strings.Trim(name, "${}")
			if params[name] == "" {
				t.Errorf("the parameter %s has no default", name)
			}
			return params[name]
		})
	}
	// Both resources have the name `identity`.
	if names := regexp.MustCompile(`(?m)^  name: identity$`).FindAllString(string(text), -1); len(names) != 2 {
		t.Errorf("%d resources are called as the parameter identity says, want 2", len(names))
	}
	return identity{
		Name:       params["identity"],
		Credential: params["identity"],
		Subject:    value(`subject: '(.*)'`),
		Audience:   value(`audiences: \['(.*)'\]`),
	}
}

func TestSameIdentity(t *testing.T) {
	t.Parallel()
	want := fromScript(t)
	if diff := cmp.Diff(want, readModule(t).identity(t)); diff != "" {
		t.Errorf("Terraform (-script +terraform)\n%s", diff)
	}
	// Bicep knows no Azure DevOps.
	azureAlone := identity{Name: want.Name, Credential: want.Credential, Subject: want.Subject, Audience: want.Audience}
	if diff := cmp.Diff(azureAlone, fromBicep(t)); diff != "" {
		t.Errorf("Bicep (-script +bicep)\n%s", diff)
	}

	objects, err := manifests.Render(base, "flux-system")
	if err != nil {
		t.Fatal(err)
	}
	accounts := slices.DeleteFunc(objects, func(o *unstructured.Unstructured) bool { return o.GetKind() != "ServiceAccount" })
	if len(accounts) != 1 {
		t.Fatalf("%d ServiceAccounts are deployed, want 1", len(accounts))
	}
	if got := fmt.Sprintf("system:serviceaccount:%s:%s", accounts[0].GetNamespace(), accounts[0].GetName()); got != want.Subject {
		t.Errorf("%s is deployed, and %s gets the identity", got, want.Subject)
	}
}
