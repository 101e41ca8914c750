// Package chart renders and installs the product's Helm chart with Helm's own code.
package chart

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/kube"
	release "helm.sh/helm/v4/pkg/release/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/manifests"
)

// oldest is the version of Kubernetes that charts are rendered for. Installing needs to be told a version too: an API server that was built
// without its version stamp, as those of the tests, gives none that a chart could be compared with.
var oldest = common.KubeVersion{Version: "v1.30.0", Major: "1", Minor: "30"}

// Release is the chart in a namespace, under a name.
type Release struct {
	// Dir is the chart's folder.
	Dir             string
	Name, Namespace string
	// Values is the YAML that a user writes; "" leaves all as the chart has it.
	Values string
}

// Render gives what `helm template` prints, and the notes that `helm install` ends with.
func (r Release) Render() (objects []*unstructured.Unstructured, notes string, err error) {
	install := action.NewInstall(quiet())
	install.DryRunStrategy = action.DryRunClient
	install.ReleaseName, install.Namespace = r.Name, r.Namespace
	install.KubeVersion = &oldest
	rendered, err := r.install(context.Background(), install)
	if err != nil {
		return nil, "", fmt.Errorf("render the release %s: %w", r.Name, err)
	}
	objects, err = manifests.Parse([]byte(rendered.Manifest))
	return objects, rendered.Info.Notes, err
}

// Install does what `helm install` does, as the client that config names, without waiting for pods. dir takes Helm's files.
func (r Release) Install(ctx context.Context, config *rest.Config, dir string) error {
	configuration, err := r.access(config, dir)
	if err != nil {
		return err
	}
	install := action.NewInstall(configuration)
	install.ReleaseName, install.Namespace = r.Name, r.Namespace
	install.WaitStrategy = kube.HookOnlyStrategy
	if _, err := r.install(ctx, install); err != nil {
		return fmt.Errorf("install the release %s: %w", r.Name, err)
	}
	return nil
}

// Upgrade does what `helm upgrade` does; see Install.
func (r Release) Upgrade(ctx context.Context, config *rest.Config, dir string) error {
	configuration, err := r.access(config, dir)
	if err != nil {
		return err
	}
	loaded, values, err := r.load()
	if err != nil {
		return err
	}
	upgrade := action.NewUpgrade(configuration)
	upgrade.Namespace = r.Namespace
	upgrade.WaitStrategy = kube.HookOnlyStrategy
	if _, err := upgrade.RunWithContext(ctx, r.Name, loaded, values); err != nil {
		return fmt.Errorf("upgrade the release %s: %w", r.Name, err)
	}
	return nil
}

// Uninstall does what `helm uninstall` does; see Install.
func (r Release) Uninstall(config *rest.Config, dir string) error {
	configuration, err := r.access(config, dir)
	if err != nil {
		return err
	}
	uninstall := action.NewUninstall(configuration)
	uninstall.WaitStrategy = kube.HookOnlyStrategy
	if _, err := uninstall.Run(r.Name); err != nil {
		return fmt.Errorf("uninstall the release %s: %w", r.Name, err)
	}
	return nil
}

func (r Release) install(ctx context.Context, install *action.Install) (*release.Release, error) {
	loaded, values, err := r.load()
	if err != nil {
		return nil, err
	}
	installed, err := install.RunWithContext(ctx, loaded, values)
	if err != nil {
		return nil, err
	}
	return installed.(*release.Release), nil
}

func (r Release) load() (*chart.Chart, map[string]any, error) {
	loaded, err := loader.LoadDir(r.Dir)
	if err != nil {
		return nil, nil, err
	}
	values := map[string]any{}
	if err := yaml.Unmarshal([]byte(r.Values), &values); err != nil {
		return nil, nil, fmt.Errorf("values: %w", err)
	}
	return loaded, values, nil
}

// access gives Helm the cluster that config names.
func (r Release) access(config *rest.Config, dir string) (*action.Configuration, error) {
	kubeconfig, err := cluster.Kubeconfig(config)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(path, kubeconfig, 0o600); err != nil {
		return nil, err
	}
	flags := genericclioptions.NewConfigFlags(false)
	flags.KubeConfig, flags.Namespace, flags.CacheDir = &path, &r.Namespace, &dir
	configuration := quiet()
	configuration.Capabilities = common.DefaultCapabilities.Copy()
	configuration.Capabilities.KubeVersion = oldest
	return configuration, configuration.Init(flags, r.Namespace, "")
}

// quiet keeps Helm's log out of the tests' output; what matters is in its errors.
func quiet() *action.Configuration {
	return action.NewConfiguration(action.ConfigurationSetLogger(slog.DiscardHandler))
}
