// Package azuretest emulates Microsoft Entra ID as far as tokens for applications go: over TLS with a CA of its
// own it serves a tenant's OpenID discovery and the token endpoint, validates the federated assertion or the
// client secret, answers with Entra's own errors, fails as told, and knows of every token that it issued whether it is
// still good. It listens on a real loopback port, so that other processes can use it as well.
//
// Error bodies follow what Entra answers, as reported in the issues of Azure/azure-workload-identity (340, 605, 616,
// 1200, 1232) and in Microsoft's list of AADSTS codes, which tells the texts but not always the HTTP status: where
// neither does, the status is what the OAuth error calls for (RFC 6749 section 5.2).
package azuretest

import (
	"crypto"
	"crypto/x509"
	"time"
)

// AzureDevOps is the resource that tokens for Git repositories of Azure DevOps are for, and AzureDevOpsScope its scope.
const (
	AzureDevOps      = "499b84ac-1321-427f-aa17-267ca6975798"
	AzureDevOpsScope = AzureDevOps + "/.default"
)

// TokenExchange is the audience that Entra proposes for federated credentials.
const TokenExchange = "api://AzureADTokenExchange"

// Config is what an Entra knows and how it behaves. The zero value knows nobody.
type Config struct {
	// Address to listen on; 127.0.0.1 and a free port when empty. It cannot be changed later.
	Address string
	// Host is a name to stand in URLs in the place of the address, and in the certificate beside loopback. It cannot be changed later.
	Host string
	// Applications name the tenants, too.
	Applications []Application
	// MinLifetime and MaxLifetime bound a token's lifetime, which is random as Entra's is: 60 and 90 minutes
	// when zero. Entra counts in whole seconds.
	MinLifetime, MaxLifetime time.Duration
	// RefreshIn is the refresh_in of every answer; zero leaves it out.
	RefreshIn time.Duration
	// Gate holds back every answer of the token endpoint until it is closed; nil holds back none.
	Gate <-chan struct{}
	// Latency passes before each answer of the token endpoint.
	Latency time.Duration
	// Echo puts everything that was sent, the proof included, into every answer: its body and its headers.
	Echo bool
	// Outage is the answer to every token request while it is set.
	Outage *Answer
}

// Application is an app registration or a managed identity.
type Application struct {
	TenantID, ClientID string
	// Federated are the federated credentials; Secrets the client secrets; Certificates those with which it may sign.
	Federated    []FederatedCredential
	Secrets      []Secret
	Certificates []*x509.Certificate
	// Resources that it may have tokens for; AzureDevOps when empty.
	Resources []string
	Disabled  bool
}

// FederatedCredential trusts the assertions of somebody else.
type FederatedCredential struct {
	Issuer, Subject, Audience string
	// Keys are the issuer's public keys (*rsa.PublicKey, *ecdsa.PublicKey), which Entra would fetch from the
	// issuer's jwks_uri.
	Keys []crypto.PublicKey
}

// Secret is a client secret; it does not expire when Expires is zero.
type Secret struct {
	Value   string
	Expires time.Time
}
