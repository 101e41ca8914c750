package config

// What may stand in the file: its fields by their names, and what they are when they are left out.

import (
	"time"

	elect "flux-token-refresher/election"
)

const (
	apiVersion = "flux-token-refresher/v1alpha1"
	kind       = "Config"
	// azureDevOps is the scope of Azure DevOps: the same application in every tenant.
	azureDevOps = "499b84ac-1321-427f-aa17-267ca6975798/.default"
)

type file struct {
	APIVersion string     `yaml:"apiVersion"`
	Kind       string     `yaml:"kind"`
	Identities []identity `yaml:"identities"`
	Targets    []target   `yaml:"targets"`
	Refresh    policy     `yaml:"refresh"`
	Events     events     `yaml:"events"`
	Election   election   `yaml:"election"`
	Health     health     `yaml:"health"`
}

type identity struct {
	Name             string `yaml:"name"`
	Type             string `yaml:"type"`
	TenantID         string `yaml:"tenantID"`
	ClientID         string `yaml:"clientID"`
	ServiceAccount   string `yaml:"serviceAccount"`
	TokenFile        string `yaml:"tokenFile"`
	ResourceID       string `yaml:"resourceID"`
	CredentialSecret string `yaml:"credentialSecret"`
	Cloud            string `yaml:"cloud"`
	AuthorityHost    string `yaml:"authorityHost"`
	CAFile           string `yaml:"caFile"`
}

type target struct {
	Secret   string            `yaml:"secret"`
	Identity string            `yaml:"identity"`
	Scope    string            `yaml:"scope"`
	Format   string            `yaml:"format"`
	Username string            `yaml:"username"`
	Template map[string]string `yaml:"template"`
	Labels   map[string]string `yaml:"labels"`
	Create   bool              `yaml:"create"`
	Verify   string            `yaml:"verify"`
}

func (t *target) setDefaults() {
	t.Scope = azureDevOps
	t.Format = "bearerToken"
	t.Username = "git"
	t.Verify = "auto"
}

type policy struct {
	LifetimeFraction float64       `yaml:"lifetimeFraction"`
	Jitter           float64       `yaml:"jitter"`
	MinValidity      time.Duration `yaml:"minValidity"`
	Cooldown         time.Duration `yaml:"cooldown"`
	VerifyHosts      []string      `yaml:"verifyHosts"`
	VerifyCAFile     string        `yaml:"verifyCAFile"`
}

func (p *policy) setDefaults() {
	p.LifetimeFraction = 0.75
	p.Jitter = 0.1
	p.MinValidity = 10 * time.Minute
	p.Cooldown = 30 * time.Second
	p.VerifyHosts = []string{"dev.azure.com", "*.visualstudio.com"}
}

type events struct {
	Address string        `yaml:"address"`
	TLS     serverTLS     `yaml:"tls"`
	Senders []sender      `yaml:"senders"`
	MaxAge  time.Duration `yaml:"maxAge"`
}

func (e *events) setDefaults() {
	e.Address = ":8080"
	e.MaxAge = 10 * time.Minute
}

type serverTLS struct {
	CertFile     string `yaml:"certFile"`
	KeyFile      string `yaml:"keyFile"`
	ClientCAFile string `yaml:"clientCAFile"`
}

type sender struct {
	Name            string   `yaml:"name"`
	HMACKeyFile     string   `yaml:"hmacKeyFile"`
	BearerTokenFile string   `yaml:"bearerTokenFile"`
	ClientName      string   `yaml:"clientName"`
	Namespaces      []string `yaml:"namespaces"`
}

type election struct {
	// Lease is POD_NAMESPACE/flux-token-refresher when it is left out.
	Lease         string        `yaml:"lease"`
	LeaseDuration time.Duration `yaml:"leaseDuration"`
	RenewDeadline time.Duration `yaml:"renewDeadline"`
	RetryPeriod   time.Duration `yaml:"retryPeriod"`
}

func (e *election) setDefaults() {
	e.LeaseDuration = elect.DefaultLeaseDuration
	e.RenewDeadline = elect.DefaultRenewDeadline
	e.RetryPeriod = elect.DefaultRetryPeriod
}

type health struct {
	Address string `yaml:"address"`
}

func (h *health) setDefaults() { h.Address = ":8081" }
