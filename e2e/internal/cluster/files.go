package cluster

// The files that a control plane starts from, and what is read from them when it fails.

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
)

const (
	tokensFile      = "tokens.csv"
	signingKeyFile  = "service-account.key"
	auditPolicyFile = "audit-policy.yaml"
	caFile          = "apiserver.crt" // which the API server makes itself

	// auditPolicy: every request once, with who, what and how it ended, and no bodies.
	auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
`
)

// writeFiles writes what kube-apiserver reads at start into dir, and gives the administrator's token.
func writeFiles(dir string) (adminToken string, err error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048) // RS256, as clusters sign by default
	if err != nil {
		return "", err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	adminToken = rand.Text()
	for name, content := range map[string][]byte{
		tokensFile:      fmt.Appendf(nil, "%s,admin,admin,system:masters\n", adminToken),
		signingKeyFile:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		auditPolicyFile: []byte(auditPolicy),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return "", err
		}
	}
	return adminToken, nil
}

// tail gives the end of a log file, for an error message.
func tail(path string) []byte {
	const most = 4096
	content, err := os.ReadFile(path)
	if err != nil {
		return []byte(err.Error())
	}
	return content[max(0, len(content)-most):]
}
