// Package azure gets access tokens from Microsoft Entra ID, through azidentity.
//
// A plain GetToken is no refresh: azidentity answers from its cache until five minutes before a token's
// end (measured: one token from 0 to 54m59s of 60 minutes). So each mint builds its credential anew,
// which also reads the proof of the identity anew.
//
// One call is one try, within a deadline: when to try again is the caller's decision. Whatever Entra says
// about a failure is reduced to a refresh.Error whose sentence is ours.
package azure

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"flux-token-refresher/refresh"
)

// DefaultTimeout bounds one mint where Config does not: reading the proof, the discovery of the token endpoint and the request itself.
const DefaultTimeout = 20 * time.Second

// TokenExchange is the audience of a ServiceAccount token that is exchanged: the one that Entra proposes for federated
// credentials, and that the workload identity webhook asks for.
const TokenExchange = "api://AzureADTokenExchange"

// Config says which identities there are, and how they are watched at work.
type Config struct {
	Identities []Identity
	// Cluster is where the proofs stand that are Kubernetes objects; it may be nil where no identity names one.
	Cluster Cluster
	// Timeout bounds one mint; DefaultTimeout when zero.
	Timeout time.Duration
	// Dial connects to whoever issues tokens: an authority, or the endpoint of managed identities, which is a link-local
	// address. net.Dialer's when nil.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// TracerProvider and MeterProvider take what is told about a mint; nothing is told where they are nil.
	TracerProvider trace.TracerProvider
	MeterProvider  metric.MeterProvider
}

// Cluster reads the proofs that are Kubernetes objects. Both are called at each mint and end with their context. An error
// that is no *refresh.Error is not shown to anybody.
type Cluster interface {
	// Secret gives the values of the keys, in their order, from one version of a Secret.
	Secret(ctx context.Context, name refresh.Name, keys ...string) ([]string, error)
	// ServiceAccount gives a ServiceAccount, with a new token of it for the audience.
	ServiceAccount(ctx context.Context, name refresh.Name, audience string) (ServiceAccount, error)
}

// ServiceAccount is what a Kubernetes ServiceAccount is to Entra.
type ServiceAccount struct {
	Token string
	// TenantID and ClientID are what its annotations say; "" where they say nothing.
	TenantID, ClientID string
}

// Type is how an identity proves who it is.
type Type string

const (
	// WorkloadIdentity exchanges a Kubernetes ServiceAccount token, which Entra trusts through a federated credential.
	WorkloadIdentity Type = "workloadIdentity"
	// ManagedIdentity asks the machine that it runs on: IMDS on a node, or the endpoint that IDENTITY_ENDPOINT and
	// IDENTITY_HEADER name (the App Service form).
	ManagedIdentity Type = "managedIdentity"
	// ClientSecret shows a secret of the application.
	ClientSecret Type = "clientSecret"
	// ClientCertificate signs with a certificate of the application.
	ClientCertificate Type = "clientCertificate"
	// AzureCLI asks az for a token of whoever is logged in; for development.
	AzureCLI Type = "azureCLI"
)

// Identity is an application or a managed identity in Entra, and how it proves itself. What its Type does not use is empty.
type Identity struct {
	// Name is what a refresh.MintKey calls it.
	Name string
	Type Type
	// TenantID is the tenant's GUID or one of its domain names; ClientID the GUID of the application or managed identity. With a
	// ServiceAccount "" stands for what its annotations say; for AzureCLI, TenantID "" is the tenant that az is logged in to.
	TenantID, ClientID string
	// ResourceID names a ManagedIdentity in the place of ClientID. The machine's own (system-assigned) has neither.
	ResourceID string
	// AuthorityHost is the https URL of the cloud's Entra; "" is the public cloud's.
	AuthorityHost string
	// CAFile names CA certificates (PEM) that are trusted for AuthorityHost, beside the system's; "" is none. It is
	// read at each mint.
	CAFile string
	// TokenFile holds the ServiceAccount token of a WorkloadIdentity, which the kubelet renews; it is read at each mint.
	TokenFile string
	// ServiceAccount is whose token a WorkloadIdentity exchanges, in the place of TokenFile.
	ServiceAccount refresh.Name
	// CredentialSecret holds the key clientSecret of a ClientSecret, tls.crt and tls.key of a ClientCertificate.
	CredentialSecret refresh.Name
}

// New makes a Source that holds no token yet. Its errors are mistakes in config.
func New(config Config) (*Source, error) {
	if config.Timeout == 0 {
		config.Timeout = DefaultTimeout
	}
	if config.Dial == nil {
		config.Dial = new(net.Dialer).DialContext
	}
	if config.TracerProvider == nil {
		config.TracerProvider = tracenoop.NewTracerProvider()
	}
	if config.MeterProvider == nil {
		config.MeterProvider = metricnoop.NewMeterProvider()
	}
	identities := make(map[string]Identity, len(config.Identities))
	for _, id := range config.Identities {
		if err := id.validate(config.Cluster != nil); err != nil {
			return nil, fmt.Errorf("identity %q: %w", id.Name, err)
		}
		if _, twice := identities[id.Name]; twice {
			return nil, fmt.Errorf("identity %q: the name is used twice", id.Name)
		}
		if id.AuthorityHost == "" {
			id.AuthorityHost = cloud.AzurePublic.ActiveDirectoryAuthorityHost
		}
		identities[id.Name] = id
	}
	metrics, err := newMetrics(config.MeterProvider)
	if err != nil {
		return nil, err
	}
	return &Source{
		minter: minter{
			cluster: config.Cluster, timeout: config.Timeout, dial: config.Dial, tracing: tracing(config.TracerProvider),
		},
		metrics:    metrics,
		identities: identities,
	}, nil
}

func (id Identity) validate(cluster bool) error {
	none := refresh.Name{}
	if err := id.validateProof(); err != nil {
		return err
	}
	namesItself := id.Type == ManagedIdentity || id.Type == AzureCLI || id.ServiceAccount != none
	switch {
	case id.Name == "":
		return errors.New("it has no Name")
	case id.TenantID == "" && !namesItself:
		return errors.New("it has no TenantID")
	case id.ClientID == "" && !namesItself:
		return errors.New("it has no ClientID")
	case !cluster && (id.ServiceAccount != none || id.CredentialSecret != none):
		return errors.New("there is no Cluster to read its proof from")
	case id.AuthorityHost == "":
		return nil
	}
	u, err := url.Parse(id.AuthorityHost)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" {
		return errors.New("AuthorityHost is no https URL of a host")
	}
	return nil
}

func (id Identity) validateProof() error {
	none := refresh.Name{}
	switch id.Type {
	case WorkloadIdentity:
		if (id.TokenFile == "") == (id.ServiceAccount == none) {
			return errors.New("it has not one of TokenFile and ServiceAccount")
		}
	case ClientSecret, ClientCertificate:
		if id.CredentialSecret == none {
			return errors.New("it has no CredentialSecret")
		}
	case ManagedIdentity:
		if id.ClientID != "" && id.ResourceID != "" {
			return errors.New("it has both ClientID and ResourceID")
		}
	case AzureCLI:
	default:
		return fmt.Errorf("there is no Type %q", id.Type)
	}
	return nil
}

// host is the authority's, for people.
func (id Identity) host() string {
	u, err := url.Parse(id.AuthorityHost)
	if err != nil {
		return ""
	}
	return u.Host
}
