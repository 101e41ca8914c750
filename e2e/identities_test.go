package e2e

// Identities whose proofs are not the pod's own token, with a real API server and the rights of "config rbac".

import (
	"bytes"
	"crypto/x509"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/e2e/internal/process"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure/azuretest"
	"flux-token-refresher/refresh/secret"
)

const identitiesConfig = `apiVersion: flux-token-refresher/v1alpha1
kind: Config
identities:
  - {name: certified, type: clientCertificate, credentialSecret: NAMESPACE/certificate}
  - {name: machine, type: managedIdentity, clientID: 22222222-0000-4000-8000-000000000002}
  - {name: account, type: workloadIdentity, serviceAccount: NAMESPACE/repos}
targets:
  - {secret: NAMESPACE/by-certificate, identity: certified, create: true}
  - {secret: NAMESPACE/by-machine, identity: machine, create: true}
  - {secret: NAMESPACE/by-account, identity: account, create: true}
health: {address: "127.0.0.1:0"}
`

const (
	machineClient = "22222222-0000-4000-8000-000000000002" // a managed identity
	accountClient = "33333333-0000-4000-8000-000000000003" // trusts the ServiceAccount repos
)

// identities installs the configuration above with an Entra that knows all three, and gives the machine's endpoint. The
// ServiceAccount has the annotations.
func identities(t *testing.T, annotations func(tenant string) map[string]string) (*installation.Installation, *azuretest.Endpoint) {
	t.Helper()
	certificate, err := azuretest.NewClientCertificate(time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	i := install(t, func(s *installation.Spec) {
		s.Entra = azuretest.Config{MinLifetime: 12 * time.Second, MaxLifetime: 12 * time.Second}
		s.Edit = func(string) string { return strings.ReplaceAll(identitiesConfig, "NAMESPACE", s.Namespace) }
	})
	var tenant string
	i.Entra.Change(func(c *azuretest.Config) {
		pod := &c.Applications[0]
		tenant = pod.TenantID
		pod.Certificates = []*x509.Certificate{certificate.Certificate}
		federated := pod.Federated[0]
		federated.Subject = "system:serviceaccount:" + i.Namespace + ":repos"
		c.Applications = append(c.Applications,
			azuretest.Application{TenantID: tenant, ClientID: machineClient},
			azuretest.Application{TenantID: tenant, ClientID: accountClient, Federated: []azuretest.FederatedCredential{federated}})
	})
	endpoint, err := i.Entra.StartEndpoint(azuretest.EndpointConfig{
		Identities: []azuretest.ManagedIdentity{{ClientID: machineClient, ResourceID: "/machine"}}, Header: "a header",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(endpoint.Close)
	i.Env = map[string]string{"IDENTITY_ENDPOINT": endpoint.AppService(), "IDENTITY_HEADER": "a header"}

	core := i.Client.CoreV1()
	if _, err := core.Secrets(i.Namespace).Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "certificate"}, Type: corev1.SecretTypeTLS,
		StringData: map[string]string{"tls.crt": certificate.CertificatePEM, "tls.key": certificate.KeyPEM},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if annotations == nil {
		return i, endpoint
	}
	if _, err := core.ServiceAccounts(i.Namespace).Create(t.Context(), &corev1.ServiceAccount{
		ObjectMeta: metav1.ObjectMeta{Name: "repos", Annotations: annotations(tenant)},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return i, endpoint
}

func annotated(tenant string) map[string]string {
	return map[string]string{"azure.workload.identity/client-id": accountClient, "azure.workload.identity/tenant-id": tenant}
}

// TestIdentities: each writes tokens of its own application and rotates them. The machine's endpoint insists on a token until that has
// ended, which is no reason to ask it again and again, or to say so.
func TestIdentities(t *testing.T) {
	t.Parallel()
	i, endpoint := identities(t, annotated)
	r := startReplica(t, i, "refresher-0", "")

	of := func(client string) func(*corev1.Secret) bool {
		return func(s *corev1.Secret) bool {
			if !sound(i)(s) {
				return false
			}
			issued, err := i.Entra.Validate(string(s.Data["bearerToken"]), azuretest.AzureDevOps)
			return err == nil && issued.ClientID == client
		}
	}
	for name, client := range map[string]string{"by-certificate": i.ClientID(), "by-account": accountClient, "by-machine": machineClient} {
		first := awaitSecret(t, i, name, of(client))
		second := awaitSecret(t, i, name, func(s *corev1.Secret) bool {
			return of(client)(s) && s.Annotations[secret.TokenHash] != first.Annotations[secret.TokenHash]
		})
		reason, want := second.Annotations[secret.Reason], refresh.RefreshDue
		if name == "by-machine" {
			want = refresh.TokenExpired
		}
		if reason != string(want) {
			t.Errorf("%s: the second token came for %s, want %s", name, reason, want)
		}
	}
	// Each token is asked for once, and once more when it was to be refreshed; time goes on while this counts.
	said := len(r.Output.Records(func(r process.Record) bool { return r["msg"] == "the issuer gave the same token again" }))
	asked := endpoint.Requests()
	tokens := i.Entra.Minted(machineClient, azuretest.AzureDevOpsScope)
	if tokens < 2 || asked > 2*tokens || said < 1 || said > tokens {
		t.Errorf("%d requests for %d tokens, and said %d times that it was the same", asked, tokens, said)
	}

	used := usedRights(t, i, nil)
	for _, right := range []string{"get secrets certificate", "get serviceaccounts repos", "create serviceaccounts/token repos"} {
		if !slices.Contains(used, right) {
			t.Errorf("not used: %s", right)
		}
	}
}

// TestProofIsMissing, or may not be read, or says too little of itself: the log says what to do, and with what code. The other identities work.
func TestProofIsMissing(t *testing.T) {
	t.Parallel()
	none := func(string) map[string]string { return nil }
	for name, c := range map[string]struct {
		annotations func(string) map[string]string
		// proof takes the place of other in the configuration, which the rights are not made for.
		other, proof string
		failing      string
		want         string
	}{
		"no ServiceAccount": {nil, "", "", "by-account", "404: identity account: read the ServiceAccount NAMESPACE/repos: it does not exist"},
		"no annotations": {none, "", "", "by-account",
			"identity account: ServiceAccount NAMESPACE/repos has no annotation azure.workload.identity/client-id; annotate it, or write clientID"},
		"a ServiceAccount without rights": {annotated, "/repos", "/strange", "by-account",
			"403: identity account: read the ServiceAccount NAMESPACE/strange: not allowed: grant get on it and create on its token, by name (flux-token-refresher config rbac prints the Role)"},
		"no key": {annotated, "clientCertificate", "clientSecret", "by-certificate", "identity certified: there is no Secret NAMESPACE/certificate with the key clientSecret"},
		"a Secret without rights": {annotated, "/certificate", "/strange", "by-certificate",
			"403: identity certified: read the Secret NAMESPACE/strange: not allowed: grant get on it by name"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i, _ := identities(t, c.annotations)
			if strings.HasPrefix(c.want, "403") {
				deniedOnPurpose.Store(i.Namespace, true)
			}
			spec := replicaSpec(t, i, "refresher-0", "")
			spec.Command, spec.Config = "once", bytes.ReplaceAll(spec.Config, []byte(c.other), []byte(c.proof))
			r := launch(t, i, spec)
			code, err := r.Wait(patient(t))
			if err != nil {
				t.Fatal(err)
			}
			want := strings.ReplaceAll(c.want, "NAMESPACE", i.Namespace)
			if code != 1 || !strings.Contains(r.Output.String(), want) {
				t.Errorf("exit code %d, want 1 and %q in:\n%s", code, want, r.Output)
			}
			for _, other := range []string{"by-certificate", "by-machine", "by-account"} {
				if other != c.failing {
					awaitSecret(t, i, other, sound(i))
				}
			}
		})
	}
}
