package flux

// CustomResourceDefinitions, ServiceAccounts and rights, as the controllers' repositories have them.

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"flux-token-refresher/e2e/internal/cluster"
	"flux-token-refresher/e2e/internal/manifests"
	"flux-token-refresher/e2e/internal/toolchain"
)

var definitions = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// install gives the cluster what the controller needs there, and the controller its program and its access.
func (c *Controller) install(ctx context.Context, spec Spec) (err error) {
	if c.binary, err = c.tool.Build(ctx, spec.Progress); err != nil {
		return err
	}
	if _, err := prepare(ctx, spec.Cluster, c.tool); err != nil {
		return err
	}
	token, err := spec.Cluster.Token(ctx, Namespace, c.tool.Name)
	if err != nil {
		return err
	}
	kubeconfig, err := cluster.Kubeconfig(spec.Cluster.TokenConfig(token))
	if err != nil {
		return err
	}
	return os.WriteFile(c.kubeconfig(), kubeconfig, 0o600)
}

// prepare gives the cluster a controller's definitions, ServiceAccount and rights, and the folder where its repository has more.
func prepare(ctx context.Context, in *cluster.Cluster, tool toolchain.Tool) (config string, err error) {
	sources, err := tool.SourceDir(ctx)
	if err != nil {
		return "", err
	}
	config = filepath.Join(sources, "config")
	if err := define(ctx, in, filepath.Join(config, "crd", "bases")); err != nil {
		return "", err
	}
	return config, authorize(ctx, in, tool.Name, filepath.Join(config, "rbac", "role.yaml"))
}

// define applies the definitions in dir and waits until the API server serves their kinds.
func define(ctx context.Context, in *cluster.Cluster, dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return err
	}
	client, err := dynamic.NewForConfig(in.Config())
	if err != nil {
		return err
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		objects, err := manifests.Parse(content)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for _, object := range objects {
			options := metav1.ApplyOptions{FieldManager: "e2e", Force: true}
			if _, err := client.Resource(definitions).Apply(ctx, object.GetName(), object, options); err != nil {
				return fmt.Errorf("apply %s: %w", object.GetName(), err)
			}
			if _, err := awaitObject(ctx, client.Resource(definitions), object.GetName(), isTrue("Established")); err != nil {
				return err
			}
		}
	}
	return nil
}

// authorize creates a ServiceAccount and binds to it the ClusterRole in a file, under its own name.
func authorize(ctx context.Context, in *cluster.Cluster, name, file string) error {
	client, err := kubernetes.NewForConfig(in.Config())
	if err != nil {
		return err
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	role := &rbacv1.ClusterRole{}
	if err := yaml.Unmarshal(content, role); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	role.Name = name
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: Namespace, Name: name}},
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := client.CoreV1().Namespaces().Apply(ctx, applycorev1.Namespace(Namespace), metav1.ApplyOptions{FieldManager: "e2e"}); err != nil {
		return err
	}
	if _, err := client.CoreV1().ServiceAccounts(Namespace).Create(ctx, account, metav1.CreateOptions{}); err != nil {
		return err
	}
	if _, err := client.RbacV1().ClusterRoles().Create(ctx, role, metav1.CreateOptions{}); err != nil {
		return err
	}
	_, err = client.RbacV1().ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{})
	return err
}
