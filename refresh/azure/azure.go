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
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
)

// DefaultTimeout bounds one mint where Config does not: the discovery of the token endpoint and the request itself.
const DefaultTimeout = 20 * time.Second

// Config says which identities there are, and how they are watched at work.
type Config struct {
	Identities []Identity
	// Timeout bounds one mint; DefaultTimeout when zero.
	Timeout time.Duration
	// TracerProvider and MeterProvider take what is told about a mint; nothing is told where they are nil.
	TracerProvider trace.TracerProvider
	MeterProvider  metric.MeterProvider
}

// Identity is an application or a managed identity in Entra, and how it proves itself.
type Identity struct {
	// Name is what a refresh.MintKey calls it.
	Name string
	// TenantID is the tenant's GUID or one of its domain names; ClientID the GUID of the application.
	TenantID, ClientID string
	// AuthorityHost is the https URL of the cloud's Entra; "" is the public cloud's.
	AuthorityHost string
	// CAFile names CA certificates (PEM) that are trusted for AuthorityHost, beside the system's; "" is none. It is
	// read at each mint.
	CAFile     string
	Credential Credential
}

// New makes a Source that holds no token yet. Its errors are mistakes in config.
func New(config Config) (*Source, error) {
	if config.Timeout == 0 {
		config.Timeout = DefaultTimeout
	}
	if config.TracerProvider == nil {
		config.TracerProvider = tracenoop.NewTracerProvider()
	}
	if config.MeterProvider == nil {
		config.MeterProvider = metricnoop.NewMeterProvider()
	}
	identities := make(map[string]Identity, len(config.Identities))
	for _, id := range config.Identities {
		if err := id.validate(); err != nil {
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
		minter:     minter{timeout: config.Timeout, tracing: tracing(config.TracerProvider)},
		metrics:    metrics,
		identities: identities,
	}, nil
}

func (id Identity) validate() error {
	switch {
	case id.Name == "":
		return errors.New("it has no Name")
	case id.TenantID == "":
		return errors.New("it has no TenantID")
	case id.ClientID == "":
		return errors.New("it has no ClientID")
	case id.Credential == nil:
		return errors.New("it has no Credential")
	}
	if id.AuthorityHost == "" {
		return nil
	}
	u, err := url.Parse(id.AuthorityHost)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" {
		return errors.New("AuthorityHost is no https URL of a host")
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
