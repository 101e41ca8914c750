package e2e

// Nothing that the process emits holds a token, or what proves an identity, not even when everybody it talks to repeats
// what they were sent.

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"

	"flux-token-refresher/e2e/internal/installation"
	"flux-token-refresher/e2e/internal/netproxy"
	"flux-token-refresher/e2e/internal/otlp"
	"flux-token-refresher/e2e/internal/process"
	"flux-token-refresher/e2e/internal/replica"
	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure/azuretest"
	"flux-token-refresher/refresh/secret"
)

// pieceLength is how many characters of an encoded secret are looked for at a time.
const pieceLength = 16

// search finds secrets in what was emitted: whole, or any part whose encoded form is longer than two pieces.
type search map[string]string // pieces of every form of every secret; what they are a piece of

// add takes a secret into the search, and each part of it when it is a JWT, but for the header, which says nothing.
func (s search) add(t *testing.T, name, value string) {
	t.Helper()
	if parts := strings.Split(value, "."); len(parts) == 3 {
		for _, part := range parts[1:] {
			s.addForms(t, name, part)
		}
		return
	}
	s.addForms(t, name, value)
}

func (s search) addForms(t *testing.T, name, value string) {
	t.Helper()
	for form, text := range forms(value) {
		if len(text) < pieceLength {
			t.Fatalf("%s is too short to be found for sure (%s)", name, form)
		}
		for at := 0; at+pieceLength <= len(text); at += pieceLength {
			s[text[at:at+pieceLength]] = name + " in " + form
		}
		s[text[len(text)-pieceLength:]] = name + " in " + form
	}
}

// in gives what a text holds of the secrets, each once.
func (s search) in(text []byte) []string {
	found := map[string]bool{}
	for at := 0; at+pieceLength <= len(text); at++ {
		if what, ok := s[string(text[at:at+pieceLength])]; ok {
			found[what] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// forms are the ways in which a program writes a value down, each with what does not depend on the bytes around the value.
func forms(value string) map[string]string {
	raw := []byte(value)
	quoted := marshal(value)
	lower := hex.EncodeToString(raw)
	out := map[string]string{
		"plain":       value,
		"JSON":        quoted[1 : len(quoted)-1],
		"a Go string": strings.Trim(fmt.Sprintf("%q", value), `"`),
		"a URL query": url.QueryEscape(value),
		"a URL path":  url.PathEscape(value),
		"hex":         lower,
		"upper hex":   strings.ToUpper(lower),
		"decimals":    strings.Trim(fmt.Sprintf("%d", raw), "[]"),
		"Go bytes":    strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", raw), "[]byte{"), "}"),
	}
	for shift := range 3 {
		out[fmt.Sprintf("base64 shifted by %d", shift)] = aligned(base64.RawStdEncoding, raw, shift)
		out[fmt.Sprintf("URL base64 shifted by %d", shift)] = aligned(base64.RawURLEncoding, raw, shift)
	}
	return out
}

func marshal[T string | []byte](value T) string {
	out, err := json.Marshal(value)
	if err != nil {
		panic(err) // these always marshal
	}
	return string(out)
}

// aligned is the base64 of raw where it begins shift bytes after a multiple of three, without the characters at both ends
// that hold bits of its neighbours, or the padding.
func aligned(encoding *base64.Encoding, raw []byte, shift int) string {
	encoded := encoding.EncodeToString(append(make([]byte, shift), raw...))
	begin, end := []int{0, 2, 3}[shift], len(encoded)
	if (shift+len(raw))%3 != 0 {
		end--
	}
	return encoded[begin:end]
}

// The search finds every form that it claims to find, wherever the secret stands in what was encoded.
func TestLeakSearch(t *testing.T) {
	t.Parallel()
	const jwt = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQ6YTpiIn0.c2lnbmF0dXJlLW9mLWEtdG9rZW4_YW5kLW1vcmU"
	const awkward = `8Q~a"b\c<d>&e+f/g=h%i jÄ~k_l-m.n`
	encoders := map[string]func([]byte) string{
		"plain":           func(b []byte) string { return string(b) },
		"JSON":            func(b []byte) string { return marshal(string(b)) },
		"%q":              func(b []byte) string { return fmt.Sprintf("%q", b) },
		"URL query":       func(b []byte) string { return url.QueryEscape(string(b)) },
		"URL path":        func(b []byte) string { return url.PathEscape(string(b)) },
		"hex":             hex.EncodeToString,
		"upper hex":       func(b []byte) string { return fmt.Sprintf("%X", b) },
		"%v of bytes":     func(b []byte) string { return fmt.Sprintf("%v", b) },
		"%#v of bytes":    func(b []byte) string { return fmt.Sprintf("%#v", b) },
		"base64":          base64.StdEncoding.EncodeToString,
		"raw base64":      base64.RawStdEncoding.EncodeToString,
		"URL base64":      base64.URLEncoding.EncodeToString,
		"raw URL base64":  base64.RawURLEncoding.EncodeToString,
		"JSON of base64":  marshal[[]byte],
		"query of base64": func(b []byte) string { return url.QueryEscape(base64.RawURLEncoding.EncodeToString(b)) },
	}
	parts := strings.Split(jwt, ".")
	for planted, value := range map[string]string{
		"a whole token": jwt, "a payload": parts[1], "a signature": parts[2], "a client secret": awkward, "a part": jwt[40 : 40+2*pieceLength-1],
	} {
		s := search{}
		s.add(t, "the token", jwt)
		s.add(t, "the client secret", awkward)
		for form, encode := range encoders {
			for before := range 3 {
				for after := range 3 {
					around := strings.Repeat("x", before) + value + strings.Repeat("y", after)
					if text := "what was " + encode([]byte(around)) + " said"; len(s.in([]byte(text))) == 0 {
						t.Errorf("%s in %s, %d bytes before it and %d after, is not found: %s", planted, form, before, after, text)
					}
				}
			}
		}
		innocent := fmt.Sprintf(`{"msg":"wrote a new token","token_hash":"%s","header":"%s","subject":"system:serviceaccount:a:b"}`, refresh.Hash(value), parts[0])
		if found := s.in([]byte(innocent)); len(found) > 0 {
			t.Errorf("found in what is innocent: %q", found)
		}
	}
}

// repeated are answers of an Entra that repeats what it was sent. Those that pass by themselves come first: the others
// would lengthen the time until they are tried again.
var repeated = []azuretest.Answer{
	azuretest.Garbage(),
	azuretest.Broken(http.StatusServiceUnavailable),
	azuretest.AADSTS(90033),
	azuretest.Throttled("1"),
	azuretest.AADSTS(700024),
	azuretest.AADSTS(700213),
	azuretest.AADSTS(7000215),
	azuretest.AADSTS(1234567),
	{Status: http.StatusBadRequest, Body: "<html>"},
	{Status: http.StatusTemporaryRedirect, Header: http.Header{"Location": {"https://elsewhere.invalid/"}}},
}

func TestNothingLeaks(t *testing.T) {
	t.Parallel()
	for _, identity := range slices.Sorted(maps.Keys(driveable)) {
		t.Run(identity, func(t *testing.T) {
			t.Parallel()
			d := newDrive(t, identity)
			d.rotateAndRepair(t)
			d.refuse(t)
			d.denyWrites(t)
			d.cutOff(t)
			d.stopWhileEntraHangs(t)
			d.searchAll(t)
		})
	}
}

// driveable are the identities to drive, each with its fields in the configuration.
var driveable = map[string]string{
	"workload identity":  "type: workloadIdentity",
	"service account":    "type: workloadIdentity\n    serviceAccount: NAMESPACE/federated",
	"client secret":      "type: clientSecret\n    credentialSecret: NAMESPACE/credential",
	"client certificate": "type: clientCertificate\n    credentialSecret: NAMESPACE/credential",
}

// drive takes one replica through all that can make it talk.
type drive struct {
	*installation.Installation
	replica  *replica.Replica
	proxy    *netproxy.Proxy
	receiver *otlp.Receiver
	secrets  search
	emitted  map[string][]byte
	requests int
}

const (
	driven  = "driven"  // the target that most is done to
	adopted = "adopted" // somebody's personal access token stands in it
	frozen  = "frozen"  // the same, and it is immutable
)

func newDrive(t *testing.T, identity string) *drive {
	t.Helper()
	d := &drive{proxy: newProxy(t), receiver: newReceiver(t), secrets: search{}, emitted: map[string][]byte{}}
	random := func(name string) string {
		value := rand.Text() + `~"\<&+/=%` + rand.Text()
		d.secrets.add(t, name, value)
		return value
	}
	clientSecret, pat := random("the client secret"), random("the personal access token")
	certificate, err := azuretest.NewClientCertificate(time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	// PKCS #8 begins with what the certificate says too: the algorithm and the modulus, which end in the 8th line of 64 characters.
	for n, line := range strings.Split(certificate.KeyPEM, "\n")[9:24] {
		d.secrets.add(t, fmt.Sprintf("line %d of the certificate's key", 9+n), line)
	}
	d.Installation = install(t, func(s *installation.Spec) {
		s.Targets = []string{driven, adopted, frozen}
		s.Config = "refresh: {cooldown: 1ms}\nelection: {leaseDuration: 6s, renewDeadline: 5s, retryPeriod: 400ms}\n"
		s.Edit = func(config string) string {
			return strings.Replace(config, "type: workloadIdentity", strings.ReplaceAll(driveable[identity], "NAMESPACE", s.Namespace), 1)
		}
		s.Entra = azuretest.Config{Echo: true, MinLifetime: 4 * time.Second, MaxLifetime: 4 * time.Second}
		s.Env = d.receiver.Env()
		s.Env["AZURE_SDK_GO_LOGGING"] = "all"
		s.Env["OTEL_METRIC_EXPORT_INTERVAL"] = "500" // ms: while there is something to tell
		s.Env["OTEL_LOGS_EXPORTER"] = "otlp"
		for name, object := range map[string]*corev1.Secret{
			"credential": {StringData: map[string]string{
				"clientSecret": clientSecret, "tls.crt": certificate.CertificatePEM, "tls.key": certificate.KeyPEM,
			}},
			adopted: {StringData: map[string]string{"bearerToken": pat}},
			frozen:  {StringData: map[string]string{"bearerToken": pat}, Immutable: new(true)},
		} {
			object.Name = name
			if _, err := newClient(t).CoreV1().Secrets(s.Namespace).Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	})
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "federated"}}
	d.Entra.Change(func(c *azuretest.Config) {
		app := &c.Applications[0]
		app.Secrets = []azuretest.Secret{{Value: clientSecret}}
		app.Certificates = []*x509.Certificate{certificate.Certificate}
		federated := app.Federated[0]
		federated.Subject = "system:serviceaccount:" + d.Namespace + ":" + account.Name
		app.Federated = append(app.Federated, federated)
		account.Annotations = map[string]string{
			"azure.workload.identity/client-id": app.ClientID, "azure.workload.identity/tenant-id": app.TenantID,
		}
	})
	if _, err := d.Client.CoreV1().ServiceAccounts(d.Namespace).Create(t.Context(), account, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}

	spec := replicaSpec(t, d.Installation, "refresher-0", d.proxy.Address())
	spec.Flags = []string{"--log-level=debug"}
	kube, err := clientcmd.RESTConfigFromKubeConfig(spec.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	d.secrets.add(t, "the assertion", spec.Assertion)
	d.secrets.add(t, "the ServiceAccount's token", kube.BearerToken)
	d.replica = launch(t, d.Installation, spec)
	return d
}

// newProxy is the network between a replica and the API server.
func newProxy(t *testing.T) *netproxy.Proxy {
	t.Helper()
	return newProxyTo(t, controlPlane.Address())
}

func newProxyTo(t *testing.T, target string) *netproxy.Proxy {
	t.Helper()
	proxy, err := netproxy.Start(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := proxy.Close(); err != nil {
			t.Error(err)
		}
	})
	return proxy
}

func newReceiver(t *testing.T) *otlp.Receiver {
	t.Helper()
	receiver, err := otlp.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := receiver.Close(); err != nil {
			t.Error(err)
		}
	})
	return receiver
}

// rotateAndRepair: the first token, one by the timer, and what is done to a Secret put right.
func (d *drive) rotateAndRepair(t *testing.T) {
	good := sound(d.Installation)
	awaitSecret(t, d.Installation, driven, good)
	due := awaitSecret(t, d.Installation, driven, func(s *corev1.Secret) bool {
		return good(s) && s.Annotations[secret.Reason] == string(refresh.RefreshDue)
	})
	d.Entra.Change(func(c *azuretest.Config) { c.MinLifetime, c.MaxLifetime = time.Hour, time.Hour })
	lasting := awaitSecret(t, d.Installation, driven, func(s *corev1.Secret) bool {
		if !good(s) || s.ResourceVersion == due.ResourceVersion {
			return false
		}
		ends, err := time.Parse(time.RFC3339, s.Annotations[secret.ExpiresAt])
		return err == nil && time.Until(ends) > 30*time.Minute
	})
	d.patch(t, driven, `{"stringData":{"bearerToken":"somebody's"}}`)
	repaired := awaitSecret(t, d.Installation, driven, func(s *corev1.Secret) bool {
		return good(s) && s.ResourceVersion != lasting.ResourceVersion
	})
	if err := d.Client.CoreV1().Secrets(d.Namespace).Delete(t.Context(), driven, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	awaitSecret(t, d.Installation, driven, func(s *corev1.Secret) bool { return good(s) && s.UID != repaired.UID })
	awaitSecret(t, d.Installation, adopted, good)
}

func (d *drive) patch(t *testing.T, name, patch string) {
	t.Helper()
	_, err := d.Client.CoreV1().Secrets(d.Namespace).Patch(t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// request asks for a refresh, and gives the value that it asks with.
func (d *drive) request(t *testing.T) string {
	t.Helper()
	d.requests++
	value := fmt.Sprintf("request-%d", d.requests)
	d.patch(t, driven, `{"metadata":{"annotations":{"`+secret.Request+`":"`+value+`"}}}`)
	return value
}

func (d *drive) awaitHandled(t *testing.T, request string) {
	t.Helper()
	awaitSecret(t, d.Installation, driven, func(s *corev1.Secret) bool {
		return s != nil && s.Annotations[secret.HandledRequest] == refresh.Hash(request)
	})
}

const saidFailed = "refresh failed; the Secret stays as it is"

// expect gives what waits for the next line of the log with a message, counted from now.
func (d *drive) expect(message string) func(*testing.T) {
	is := func(r process.Record) bool { return r["msg"] == message }
	n := len(d.replica.Output.Records(is)) + 1
	return func(t *testing.T) {
		t.Helper()
		if _, err := d.replica.Output.Wait(patient(t), func(r process.Record) bool {
			if is(r) {
				n--
			}
			return n == 0
		}); err != nil {
			t.Fatalf("%s: %v", message, err)
		}
	}
}

// refuse: Entra refuses in every way, and repeats what it was sent.
func (d *drive) refuse(t *testing.T) {
	for _, answer := range repeated {
		failed := d.expect(saidFailed)
		d.Entra.Next(answer)
		request := d.request(t)
		failed(t)
		d.awaitHandled(t, request)
	}
}

// denyWrites: an admission policy denies a new token, and repeats it.
func (d *drive) denyWrites(t *testing.T) {
	deniedOnPurpose.Store(d.Namespace, true)
	admission := d.Client.AdmissionregistrationV1()
	name := "repeat-" + d.Namespace
	policy := &admissionv1.ValidatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: admissionv1.ValidatingAdmissionPolicySpec{
			MatchConstraints: &admissionv1.MatchResources{
				NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: d.Namespace}},
				ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: admissionv1.RuleWithOperations{
					Operations: []admissionv1.OperationType{admissionv1.Update},
					Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"secrets"}},
				}}},
			},
			Validations: []admissionv1.Validation{{
				Expression:        "object.data == oldObject.data",
				MessageExpression: "'you sent ' + object.data.bearerToken",
			}},
		},
	}
	if _, err := admission.ValidatingAdmissionPolicies().Create(t.Context(), policy, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		err := admission.ValidatingAdmissionPolicies().Delete(context.WithoutCancel(t.Context()), name, metav1.DeleteOptions{})
		if err != nil {
			t.Error(err)
		}
	}()
	binding := &admissionv1.ValidatingAdmissionPolicyBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       admissionv1.ValidatingAdmissionPolicyBindingSpec{PolicyName: name, ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny}},
	}
	if _, err := admission.ValidatingAdmissionPolicyBindings().Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		err := admission.ValidatingAdmissionPolicyBindings().Delete(context.WithoutCancel(t.Context()), name, metav1.DeleteOptions{})
		if err != nil {
			t.Error(err)
		}
	}()
	d.awaitDenial(t)

	failed := d.expect(saidFailed)
	request := d.request(t)
	failed(t)
	s := awaitSecret(t, d.Installation, driven, func(s *corev1.Secret) bool { return s != nil })
	if s.Annotations[secret.HandledRequest] == refresh.Hash(request) {
		t.Error("the policy denied nothing")
	}
}

// awaitDenial waits until the API server goes by the policy, and makes sure that it repeats what it was sent.
func (d *drive) awaitDenial(t *testing.T) {
	t.Helper()
	const sent = "what was sent to the policy, and comes back from it"
	s := search{}
	s.addForms(t, sent, sent)
	until(t.Context(), t, "the policy is in force", func(ctx context.Context) (bool, error) {
		_, err := d.Client.CoreV1().Secrets(d.Namespace).Patch(ctx, driven, types.MergePatchType,
			[]byte(`{"stringData":{"bearerToken":"`+sent+`"}}`), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil && len(s.in([]byte(err.Error()))) == 0 {
			return false, fmt.Errorf("it does not repeat what it was sent: %w", err)
		}
		return err != nil, nil
	})
}

// cutOff: the API server cannot be reached with a new token at hand, and leadership is lost; then it can be again.
func (d *drive) cutOff(t *testing.T) {
	d.replaceLeader(t)
	d.Entra.Change(func(c *azuretest.Config) { c.Latency = 2 * time.Second })
	failed, lost, asked := d.expect(saidFailed), d.expect(saidLost), d.Entra.Requests()
	d.request(t)
	if err := d.Entra.Await(patient(t), asked+1); err != nil {
		t.Fatal(err)
	}
	if err := d.proxy.Cut(); err != nil {
		t.Fatal(err)
	}
	failed(t)
	d.Entra.Change(func(c *azuretest.Config) { c.Latency = 0 })
	lost(t)
	leads := d.expect(saidLeads)
	if err := d.proxy.Heal(); err != nil {
		t.Fatal(err)
	}
	leads(t)
	d.awaitHandled(t, d.request(t))
}

const (
	saidLost  = "lost leadership"
	saidLeads = "became leader"
)

// replaceLeader begins another term, which knows nothing of what the policy denied: somebody empties the Lease.
func (d *drive) replaceLeader(t *testing.T) {
	t.Helper()
	lost, leads := d.expect(saidLost), d.expect(saidLeads)
	_, err := d.Client.CoordinationV1().Leases(d.Namespace).Patch(t.Context(), installation.Account, types.MergePatchType,
		[]byte(`{"spec":{"holderIdentity":""}}`), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	lost(t)
	leads(t)
}

// stopWhileEntraHangs takes the scrapes, and ends the replica while it waits for a token.
func (d *drive) stopWhileEntraHangs(t *testing.T) {
	ctx := patient(t)
	for _, path := range []string{"/metrics", "/healthz", "/readyz"} {
		body, err := d.replica.Get(ctx, path)
		if err != nil {
			t.Fatal(err)
		}
		d.emitted[path] = body
	}
	open, err := d.replica.OpenMetrics(ctx)
	if err != nil {
		t.Fatal(err)
	}
	d.emitted["/metrics in OpenMetrics"] = open

	asked := d.Entra.Requests()
	d.Entra.Next(azuretest.Hang())
	d.request(t)
	if err := d.Entra.Await(ctx, asked+1); err != nil {
		t.Fatal(err)
	}
	if err := d.replica.Stop(ctx); err != nil {
		t.Fatal(err)
	}
}

// searchAll looks through everything, after making sure that there is something to look through.
func (d *drive) searchAll(t *testing.T) {
	tokens := d.Entra.Tokens()
	if len(tokens) < 5 {
		t.Errorf("only %d tokens were issued", len(tokens))
	}
	for n, token := range tokens {
		d.secrets.add(t, fmt.Sprintf("token %d", n), token)
	}
	proofs := d.Entra.Proofs()
	for n, proof := range proofs {
		d.secrets.add(t, fmt.Sprintf("proof %d", n), proof)
	}
	d.emitted["the log"] = d.replica.Output.Bytes()
	d.emitted["OTLP"] = bytes.Join(d.receiver.Bodies(), []byte("\n"))
	d.collectObjects(t)

	for what, evidence := range map[string][]string{
		"the log":                 {`"level":"DEBUG"`, "AADSTS700213", "AADSTS1234567", "429", "503", "307", "422", saidLost},
		"OTLP":                    {"secret.apply", "token.acquire", "GetToken", "HTTP POST", "PATCH /api/v1/namespaces", "token_refresher.refreshes", saidLost},
		"/metrics":                {"token_refresher_refreshes_total", "token_refresher_token_requests_total"},
		"/metrics in OpenMetrics": {"token_refresher_refreshes_total", "# EOF"},
		"Events":                  {`"Refreshed"`, `"RefreshFailed"`, `"Adopted"`, `"Refused"`},
		"Secrets":                 {secret.TokenHash, "managedFields", driven, adopted, frozen},
	} {
		for _, text := range evidence {
			if !bytes.Contains(d.emitted[what], []byte(text)) {
				t.Errorf("%s: nothing of %q, so less was driven than is claimed", what, text)
			}
		}
	}
	for what, text := range d.emitted {
		if found := d.secrets.in(text); len(found) > 0 {
			t.Errorf("%s: %q", what, found)
		}
	}
	// What was echoed is found where it is: the search has what it looks for.
	data := awaitSecret(t, d.Installation, driven, func(s *corev1.Secret) bool { return s != nil }).Data
	if len(d.secrets.in(data["bearerToken"])) == 0 {
		t.Error("the token in the Secret is not one of those that were looked for")
	}
	t.Logf("%d secrets looked for in %d KiB", len(tokens)+len(proofs)+4, d.size()>>10)
}

// collectObjects takes what stands in the cluster: all of it but for the one key that is to hold a token.
func (d *drive) collectObjects(t *testing.T) {
	t.Helper()
	events, err := d.Client.CoreV1().Events(d.Namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	leases, err := d.Client.CoordinationV1().Leases(d.Namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	secrets, err := d.Client.CoreV1().Secrets(d.Namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range secrets.Items {
		delete(s.Data, "bearerToken")
		if s.Name == "credential" {
			delete(s.Data, "clientSecret")
			delete(s.Data, "tls.key")
		}
	}
	for what, objects := range map[string]any{"Events": events, "Leases": leases, "Secrets": secrets} {
		if d.emitted[what], err = json.Marshal(objects); err != nil {
			t.Fatal(err)
		}
	}
}

func (d *drive) size() (size int) {
	for _, text := range d.emitted {
		size += len(text)
	}
	return size
}
