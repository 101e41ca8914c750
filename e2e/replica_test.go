package e2e

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"flux-token-refresher/e2e/internal/replica"
)

// TestReplicaIsItsServiceAccount: what a replica is given names its ServiceAccount, to Kubernetes and to Entra.
func TestReplicaIsItsServiceAccount(t *testing.T) {
	t.Parallel()
	namespace := newNamespace(t)
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "replica"}}
	if _, err := newClient(t).CoreV1().ServiceAccounts(namespace).Create(t.Context(), account, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	spec := replica.Spec{Namespace: namespace}
	if err := spec.Authenticate(t.Context(), controlPlane, "replica"); err != nil {
		t.Fatal(err)
	}
	want := "system:serviceaccount:" + namespace + ":replica"

	config, err := clientcmd.RESTConfigFromKubeConfig(spec.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	review, err := client.AuthenticationV1().SelfSubjectReviews().
		Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := review.Status.UserInfo.Username; got != want {
		t.Errorf("Kubernetes knows it as %s, want %s", got, want)
	}

	parts := strings.Split(spec.Assertion, ".")
	if len(parts) != 3 {
		t.Fatal("the assertion is no JWT")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		Issuer   string   `json:"iss"`
		Subject  string   `json:"sub"`
		Audience []string `json:"aud"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	if claims.Issuer != controlPlane.Issuer() || claims.Subject != want ||
		len(claims.Audience) != 1 || claims.Audience[0] != "api://AzureADTokenExchange" {
		t.Errorf("the assertion says %+v, want issuer %s, subject %s, audience api://AzureADTokenExchange", claims, controlPlane.Issuer(), want)
	}
}
