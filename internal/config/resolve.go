package config

// What follows from a file that could be read: references, ranges, and what the environment adds.

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure"
	"flux-token-refresher/refresh/gitremote"
	"flux-token-refresher/refresh/secret"
)

type resolver struct {
	*decoder
	file *file
	env  func(string) string
}

func (r *resolver) config() *Config {
	r.constant("apiVersion", r.file.APIVersion, apiVersion)
	r.constant("kind", r.file.Kind, kind)
	c := &Config{
		Identities:    r.identities(),
		Refresh:       r.policy(),
		Verify:        r.verify(),
		Events:        r.events(),
		Election:      r.election(),
		HealthAddress: r.file.Health.Address,
		PodName:       r.getenv("POD_NAME"),
	}
	c.Targets = r.targets(c.Identities)
	r.address("health.address", r.file.Health.Address)
	return c
}

func (r *resolver) constant(path, value, want string) {
	if r.required(path, "write "+want) && value != "" && value != want {
		r.failf(path, "is %s; this version reads %s", quote(value), want)
	}
}

func (r *resolver) targets(identities []azure.Identity) []refresh.Target {
	r.notEmpty("targets", r.file.Targets == nil, len(r.file.Targets))
	byName := map[string]azure.Identity{}
	var names []string
	credential := map[refresh.Name]string{}
	for _, id := range identities {
		if id.CredentialSecret != (refresh.Name{}) {
			credential[id.CredentialSecret] = id.Name
		}
		if id.Name != "" {
			byName[id.Name] = id
			names = append(names, id.Name)
		}
	}
	out := make([]refresh.Target, len(r.file.Targets))
	first := map[string]string{}
	for i, in := range r.file.Targets {
		at := fmt.Sprintf("targets[%d]", i)
		t := refresh.Target{
			Mint:   refresh.MintKey{Identity: in.Identity, Scope: in.Scope},
			Create: in.Create,
			Labels: in.Labels,
		}
		if r.required(at+".secret", "name the Secret as namespace/name") {
			t.Name = r.objectName(at+".secret", in.Secret)
		}
		if t.Name != (refresh.Name{}) {
			r.unique(first, at+".secret", in.Secret)
			if owner, ok := credential[t.Name]; ok {
				r.failf(at+".secret", "is the credentialSecret of the identity %s; name another Secret", owner)
			}
		}
		id, known := byName[in.Identity]
		if r.required(at+".identity", "name who asks for the token") && in.Identity != "" && !known && len(names) > 0 {
			r.failf(at+".identity", "there is no identity %s; %s", quote(in.Identity), suggest(in.Identity, names))
		}
		if resource, ok := strings.CutSuffix(in.Scope, "/.default"); !ok || resource == "" {
			r.failf(at+".scope", "%s does not end in /.default after a resource; write it like %s", quote(in.Scope), azureDevOps)
		}
		// What an identity for something else has is not shown to Azure DevOps.
		t.Verify = r.oneOf(at+".verify", in.Verify, "auto", "never") && in.Verify == "auto" && strings.EqualFold(in.Scope, azureDevOps)
		t.Format = r.format(at, in)
		t.ConfigHash = configHash(id, in)
		r.labels(at, in)
		out[i] = t
	}
	return out
}

func (r *resolver) format(at string, in target) refresh.Format {
	if in.Format != "basicAuth" {
		r.only(at+".username", "format: basicAuth")
	}
	if in.Format != "template" {
		r.only(at+".template", "format: template")
	}
	if !r.oneOf(at+".format", in.Format, "bearerToken", "basicAuth", "template") {
		return refresh.Format{}
	}
	switch in.Format {
	case "basicAuth":
		if strings.ContainsFunc(in.Username, func(c rune) bool { return c == ':' || !strconv.IsPrint(c) }) {
			r.failf(at+".username", "%s cannot be sent by basic authentication; write a name without a colon", quote(in.Username))
		}
		return refresh.BasicAuth(in.Username)
	case "template":
		return r.template(at+".template", in.Template)
	}
	return refresh.BearerToken()
}

func (r *resolver) template(path string, sources map[string]string) refresh.Format {
	const right = `write Go templates over .Token and .ExpiresAt, like "{{ .Token }}"`
	if !r.required(path, right) {
		return refresh.Format{}
	}
	before := len(r.problems)
	for _, key := range slices.Sorted(maps.Keys(sources)) {
		r.kubernetes(join(path, key), key, validation.IsConfigMapKey(key))
	}
	if len(r.problems) > before {
		return refresh.Format{}
	}
	format, err := refresh.Template(sources)
	if err != nil {
		r.failf(path, "%v; %s", err, right)
	}
	return format
}

func (r *resolver) labels(at string, in target) {
	if len(in.Labels) > 0 && !in.Create {
		r.failf(at+".labels", "only a Secret that is created here gets labels; write create: true or leave them out")
	}
	for _, key := range slices.Sorted(maps.Keys(in.Labels)) {
		path, value := join(at+".labels", key), in.Labels[key]
		r.kubernetes(path, key, validation.IsQualifiedName(key))
		r.kubernetes(path, value, validation.IsValidLabelValue(value))
		if key == secret.ManagedByLabel {
			r.failf(path, "is set by flux-token-refresher itself; leave it out")
		}
	}
}

func (r *resolver) policy() refresh.Policy {
	p := r.file.Refresh
	if !(p.LifetimeFraction > 0 && p.LifetimeFraction < 1) {
		r.failf("refresh.lifetimeFraction", "is %v; write a number between 0 and 1, like 0.75", p.LifetimeFraction)
	}
	if !(p.Jitter >= 0 && p.Jitter <= 0.5) {
		r.failf("refresh.jitter", "is %v; write a number from 0 to 0.5", p.Jitter)
	}
	if p.MinValidity < 0 {
		r.failf("refresh.minValidity", "is %v; write a duration of 0s or more", p.MinValidity)
	}
	if p.Cooldown <= 0 || p.Cooldown > 15*time.Minute {
		r.failf("refresh.cooldown", "is %v; write a duration of more than 0s and at most 15m", p.Cooldown)
	}
	return refresh.Policy{LifetimeFraction: p.LifetimeFraction, Jitter: p.Jitter, MinValidity: p.MinValidity, Cooldown: p.Cooldown}
}

func (r *resolver) verify() gitremote.Config {
	p := r.file.Refresh
	for i, host := range p.VerifyHosts {
		if host != "" && !gitremote.ValidHost(host) {
			r.failf(fmt.Sprintf("refresh.verifyHosts[%d]", i), "%s is no host name; write it like dev.azure.com or *.visualstudio.com, "+
				"with a port where that is not 443", quote(host))
		}
	}
	return gitremote.Config{Hosts: p.VerifyHosts, CAFile: p.VerifyCAFile}
}

func (r *resolver) election() Election {
	e := r.file.Election
	out := Election{LeaseDuration: e.LeaseDuration, RenewDeadline: e.RenewDeadline, RetryPeriod: e.RetryPeriod}
	switch namespace := r.getenv("POD_NAMESPACE"); {
	case r.set("election.lease"):
		out.Lease = r.objectName("election.lease", e.Lease)
	case namespace == "" && r.env != nil:
		r.failf("election.lease", "is missing, and POD_NAMESPACE is not set; "+
			"write namespace/name, or set it in the pod from metadata.namespace")
	default:
		out.Lease = refresh.Name{Namespace: namespace, Name: "flux-token-refresher"}
	}
	// A Lease holds whole seconds. client-go draws each try up to 1.2 retryPeriods after the last one.
	if e.LeaseDuration < time.Second || e.LeaseDuration > time.Hour || e.LeaseDuration%time.Second != 0 {
		r.failf("election.leaseDuration", "is %v; write whole seconds, from 1s to 1h", e.LeaseDuration)
	}
	if e.LeaseDuration <= e.RenewDeadline {
		r.failf("election.leaseDuration", "is %v; it has to be longer than renewDeadline (%v)", e.LeaseDuration, e.RenewDeadline)
	}
	if e.RetryPeriod <= 0 {
		r.failf("election.retryPeriod", "is %v; write a duration of more than 0s", e.RetryPeriod)
	} else if e.RenewDeadline <= e.RetryPeriod*6/5 {
		r.failf("election.renewDeadline", "is %v; it has to be longer than 1.2 times retryPeriod (%v)", e.RenewDeadline, e.RetryPeriod)
	}
	return out
}

func (r *resolver) events() Events {
	e := r.file.Events
	r.address("events.address", e.Address)
	if e.MaxAge <= 0 {
		r.failf("events.maxAge", "is %v; write a duration of more than 0s", e.MaxAge)
	}
	if r.set("events.tls.certFile") != r.set("events.tls.keyFile") {
		r.failf("events.tls", "has one of certFile and keyFile; write both")
	}
	if r.set("events.tls.clientCAFile") && !r.set("events.tls.certFile") {
		r.failf("events.tls.clientCAFile", "needs a server that speaks TLS; write certFile and keyFile too")
	}
	out := Events{Address: e.Address, TLSCertFile: e.TLS.CertFile, TLSKeyFile: e.TLS.KeyFile, ClientCAFile: e.TLS.ClientCAFile, MaxAge: e.MaxAge}
	first, firstClient := map[string]string{}, map[string]string{}
	for i, s := range e.Senders {
		at := fmt.Sprintf("events.senders[%d]", i)
		if r.required(at+".name", "give the sender a name") && s.Name != "" {
			r.kubernetes(at+".name", s.Name, validation.IsDNS1123Label(s.Name))
			r.unique(first, at+".name", s.Name)
			if slices.Contains(taken, s.Name) {
				r.failf(at+".name", "%q means something else in metrics and on the Secret; choose another", s.Name)
			}
		}
		proofs := 0
		for _, proof := range []string{".hmacKeyFile", ".bearerTokenFile", ".clientName"} {
			if r.set(at + proof) {
				proofs++
			}
		}
		if proofs != 1 {
			r.failf(at, "has %d ways to prove who it is; write one of hmacKeyFile, bearerTokenFile and clientName", proofs)
		}
		r.clientName(firstClient, at+".clientName", s.ClientName)
		for j, namespace := range s.Namespaces {
			if namespace != "" && namespace != "*" {
				r.kubernetes(fmt.Sprintf("%s.namespaces[%d]", at, j), namespace, validation.IsDNS1123Label(namespace))
			}
		}
		out.Senders = append(out.Senders, Sender(s))
	}
	return out
}

// taken are senders that there are anyway: nobody who is known, the file of "once --event", and the leader's own watch.
var taken = []string{"none", "file", "flux-token-refresher"}

// clientName checks the name in a sender's certificate.
func (r *resolver) clientName(first map[string]string, path, name string) {
	if name == "" {
		return
	}
	if !r.set("events.tls.clientCAFile") {
		r.failf(path, "needs certificates to be verified; write events.tls.clientCAFile")
	}
	r.unique(first, path, name)
	if uri, err := url.Parse(name); err == nil && uri.Scheme != "" && uri.Host != "" {
		return
	}
	if len(validation.IsDNS1123Subdomain(name)) > 0 {
		r.failf(path, "%s is neither a DNS name nor a URI; write one of the certificate's subject alternative names, "+
			"like flux.example.com or spiffe://cluster.local/ns/flux-system/sa/notification-controller", quote(name))
	}
}

// getenv is a variable of the environment, "" when there is no environment.
func (r *resolver) getenv(name string) string {
	if r.env == nil {
		return ""
	}
	return r.env(name)
}

// elseEnv is a field's value, or the environment's.
func (r *resolver) elseEnv(path, value, variable string) string {
	if r.set(path) {
		return value
	}
	return r.getenv(variable)
}

// orEnv is elseEnv of what has to be somewhere.
func (r *resolver) orEnv(path, value, variable, right string) string {
	out := r.elseEnv(path, value, variable)
	if out == "" && r.env != nil && !r.set(path) {
		r.failf(path, "is missing, and %s is not set; %s", variable, right)
	}
	return out
}

// origin names the variable that a value came from, where the file did not say it.
func (r *resolver) origin(path, variable string) string {
	if r.set(path) {
		return ""
	}
	return variable + " "
}

// required tells whether the file sets a field, and complains when it does not.
func (r *resolver) required(path, right string) bool {
	if !r.set(path) {
		r.failf(path, "is missing; %s", right)
		return false
	}
	return true
}

// notEmpty complains of a list without elements; unread is one that has been complained of already.
func (r *resolver) notEmpty(path string, unread bool, n int) {
	if r.required(path, "write at least one") && !unread && n == 0 {
		r.failf(path, "is an empty list; write at least one")
	}
}

// only complains of a field that has no meaning here.
func (r *resolver) only(path, belongs string) {
	if r.set(path) {
		r.failf(path, "belongs to %s; leave it out", belongs)
	}
}

// oneOf tells whether value is a known one.
func (r *resolver) oneOf(path, value string, known ...string) bool {
	if slices.Contains(known, value) {
		return true
	}
	switch {
	case !r.set(path):
		r.failf(path, "is missing; write one of: %s", strings.Join(known, ", "))
	case value != "":
		r.failf(path, "%s is not known; %s", quote(value), suggest(value, known))
	}
	return false
}

// unique complains of a value that an earlier field had.
func (r *resolver) unique(first map[string]string, path, value string) {
	if earlier, ok := first[value]; ok {
		r.failf(path, "%s stands in line %d already; write each once", quote(value), r.line(earlier))
		return
	}
	first[value] = path
}

// objectName reads namespace/name. What is there is not shown, as it could be a secret itself.
func (r *resolver) objectName(path, value string) refresh.Name {
	if value == "" {
		return refresh.Name{}
	}
	name, err := refresh.ParseName(value)
	if err != nil {
		r.failf(path, "is not namespace/name; write it like flux-system/flux-system")
		return refresh.Name{}
	}
	for _, problem := range append(validation.IsDNS1123Label(name.Namespace), validation.IsDNS1123Subdomain(name.Name)...) {
		r.failf(path, "is not namespace/name; %s", problem)
	}
	return name
}

// kubernetes passes on what Kubernetes has to say about a name.
func (r *resolver) kubernetes(path, value string, problems []string) {
	for _, problem := range problems {
		r.failf(path, "%s is not valid; %s", quote(value), problem)
	}
}

// address complains of what is no address to listen on.
func (r *resolver) address(path, value string) {
	_, port, err := net.SplitHostPort(value)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		r.failf(path, "%s is not host:port; write it like :8081", quote(value))
	}
}
