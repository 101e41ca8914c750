package main

// Where identities find proofs that are Kubernetes objects.

import (
	"context"
	"net/http"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"

	"flux-token-refresher/internal/kube"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure"
	"flux-token-refresher/refresh/secret"
)

// The annotations of the workload identity webhook (azure.github.io/azure-workload-identity).
const (
	annotatedClient = "azure.workload.identity/client-id"
	annotatedTenant = "azure.workload.identity/tenant-id"
)

// assertionLife is the shortest that kube-apiserver allows, in seconds: a token is exchanged at once and then forgotten.
const assertionLife = 600

// proofs implements azure.Cluster.
type proofs struct{ core *coreclient.CoreV1Client }

func (p proofs) Secret(ctx context.Context, name refresh.Name, keys ...string) ([]string, error) {
	return secret.Values(ctx, p.core, name, keys...)
}

func (p proofs) ServiceAccount(ctx context.Context, name refresh.Name, audience string) (azure.ServiceAccount, error) {
	ctx, cancel := context.WithTimeout(ctx, kube.RequestTimeout)
	defer cancel()
	object := kube.Object{
		Name:   "the ServiceAccount " + name.String(),
		Rights: "get on it and create on its token, by name",
		Means:  map[int]string{http.StatusNotFound: "it does not exist"},
	}
	accounts := p.core.ServiceAccounts(name.Namespace)
	account, err := accounts.Get(ctx, name.Name, metav1.GetOptions{})
	if err != nil {
		return azure.ServiceAccount{}, object.Failure(ctx, "read", err)
	}
	request, err := accounts.CreateToken(ctx, name.Name, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}, ExpirationSeconds: new(int64(assertionLife))},
	}, metav1.CreateOptions{})
	if err != nil {
		return azure.ServiceAccount{}, object.Failure(ctx, "get a token of", err)
	}
	return azure.ServiceAccount{
		Token: request.Status.Token, ClientID: account.Annotations[annotatedClient], TenantID: account.Annotations[annotatedTenant],
	}, nil
}
