package config

// Who asks for tokens: which fields belong to which type, and what the environment says where they are left out.

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"k8s.io/apimachinery/pkg/util/validation"

	"flux-token-refresher/refresh"
	"flux-token-refresher/refresh/azure"
)

// clouds are the authorities of Microsoft's clouds.
var clouds = map[string]string{
	"AzurePublic":     cloud.AzurePublic.ActiveDirectoryAuthorityHost,
	"AzureChina":      cloud.AzureChina.ActiveDirectoryAuthorityHost,
	"AzureGovernment": cloud.AzureGovernment.ActiveDirectoryAuthorityHost,
}

var (
	guid   = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)
	domain = regexp.MustCompile(`^[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)+$`)
	// resourceID is that of a user-assigned managed identity.
	resourceID = regexp.MustCompile(`(?i)^/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.ManagedIdentity/userAssignedIdentities/[^/]+$`)
)

func (r *resolver) identities() []azure.Identity {
	r.notEmpty("identities", r.file.Identities == nil, len(r.file.Identities))
	out := make([]azure.Identity, len(r.file.Identities))
	first := map[string]string{}
	for i, in := range r.file.Identities {
		at := fmt.Sprintf("identities[%d]", i)
		if r.required(at+".name", "give the identity a name that targets refer to") && in.Name != "" {
			r.kubernetes(at+".name", in.Name, validation.IsDNS1123Label(in.Name))
			r.unique(first, at+".name", in.Name)
		}
		out[i] = r.identity(at, in)
	}
	return out
}

// belongs has the types that a field means something to, for those that not all types have.
var belongs = []struct {
	field string
	types []azure.Type
}{
	{"tenantID", []azure.Type{azure.WorkloadIdentity, azure.ClientSecret, azure.ClientCertificate, azure.AzureCLI}},
	{"clientID", []azure.Type{azure.WorkloadIdentity, azure.ManagedIdentity, azure.ClientSecret, azure.ClientCertificate}},
	{"serviceAccount", []azure.Type{azure.WorkloadIdentity}},
	{"tokenFile", []azure.Type{azure.WorkloadIdentity}},
	{"resourceID", []azure.Type{azure.ManagedIdentity}},
	{"credentialSecret", []azure.Type{azure.ClientSecret, azure.ClientCertificate}},
	{"cloud", []azure.Type{azure.WorkloadIdentity, azure.ClientSecret, azure.ClientCertificate}},
	{"authorityHost", []azure.Type{azure.WorkloadIdentity, azure.ClientSecret, azure.ClientCertificate}},
	{"caFile", []azure.Type{azure.WorkloadIdentity, azure.ClientSecret, azure.ClientCertificate}},
}

func (r *resolver) identity(at string, in identity) azure.Identity {
	id := azure.Identity{Name: in.Name, Type: azure.Type(in.Type), CAFile: in.CAFile}
	if !r.oneOf(at+".type", in.Type, "workloadIdentity", "managedIdentity", "clientSecret", "clientCertificate", "azureCLI") {
		return id
	}
	for _, b := range belongs {
		if !slices.Contains(b.types, id.Type) {
			r.only(at+"."+b.field, "the "+typesOf(b.types))
		}
	}
	switch id.Type {
	case azure.WorkloadIdentity:
		r.workloadIdentity(at, in, &id)
	case azure.ManagedIdentity:
		r.managedIdentity(at, in, &id)
		return id
	case azure.ClientSecret, azure.ClientCertificate:
		keys := "the key clientSecret"
		if id.Type == azure.ClientCertificate {
			keys = "the keys tls.crt and tls.key"
		}
		if r.required(at+".credentialSecret", "name the Secret with "+keys+" as namespace/name") {
			id.CredentialSecret = r.objectName(at+".credentialSecret", in.CredentialSecret)
		}
		id.TenantID = r.tenant(at, r.orEnv(at+".tenantID", in.TenantID, "AZURE_TENANT_ID", "write it"))
		id.ClientID = r.client(at, r.orEnv(at+".clientID", in.ClientID, "AZURE_CLIENT_ID", "write it"))
	case azure.AzureCLI:
		id.TenantID = r.tenant(at, r.elseEnv(at+".tenantID", in.TenantID, "AZURE_TENANT_ID"))
		return id
	}
	id.AuthorityHost = r.authority(at, in)
	return id
}

func typesOf(types []azure.Type) string {
	names := make([]string, len(types))
	for i, t := range types {
		names[i] = string(t)
	}
	if len(names) == 1 {
		return "type " + names[0]
	}
	return "types " + strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}

// workloadIdentity takes what is left out from what the workload identity webhook put into the pod's environment; with a
// serviceAccount from that account's annotations, which are read with its token: the pod's environment is about another account.
func (r *resolver) workloadIdentity(at string, in identity, id *azure.Identity) {
	if r.set(at + ".serviceAccount") {
		id.ServiceAccount = r.objectName(at+".serviceAccount", in.ServiceAccount)
		if r.set(at + ".tokenFile") {
			r.failf(at+".tokenFile", "stands beside serviceAccount; keep one of the two")
		}
		id.TenantID, id.ClientID = r.tenant(at, in.TenantID), r.client(at, in.ClientID)
		return
	}
	const file = "AZURE_FEDERATED_TOKEN_FILE"
	const webhook = `, or label the pod azure.workload.identity/use: "true" where the workload identity webhook runs, which sets it`
	const annotation = "the annotation azure.workload.identity/client-id of the pod's ServiceAccount"
	fromClient := webhook + " from " + annotation
	if r.getenv(file) != "" {
		fromClient = ", or set " + annotation + ": the workload identity webhook saw the pod, and found none"
	}
	id.TokenFile = r.orEnv(at+".tokenFile", in.TokenFile, file, "write it"+webhook)
	id.TenantID = r.tenant(at, r.orEnv(at+".tenantID", in.TenantID, "AZURE_TENANT_ID", "write it"+webhook))
	id.ClientID = r.client(at, r.orEnv(at+".clientID", in.ClientID, "AZURE_CLIENT_ID", "write it"+fromClient))
}

func (r *resolver) managedIdentity(at string, in identity, id *azure.Identity) {
	id.ResourceID = in.ResourceID
	if in.ResourceID != "" && !resourceID.MatchString(in.ResourceID) {
		r.failf(at+".resourceID", "%s is no managed identity; write it like /subscriptions/…/resourceGroups/…/providers/"+
			"Microsoft.ManagedIdentity/userAssignedIdentities/…", quote(in.ResourceID))
	}
	switch {
	case !r.set(at + ".resourceID"):
		id.ClientID = r.client(at, r.elseEnv(at+".clientID", in.ClientID, "AZURE_CLIENT_ID"))
	case r.set(at + ".clientID"):
		r.failf(at+".resourceID", "stands beside clientID; keep one of the two")
	}
}

func (r *resolver) tenant(at, value string) string {
	at += ".tenantID"
	if value != "" && !guid.MatchString(value) && !domain.MatchString(value) {
		r.failf(at, "%s%s is no tenant; write its id (a GUID) or a domain of it", r.origin(at, "AZURE_TENANT_ID"), quote(value))
	}
	return value
}

func (r *resolver) client(at, value string) string {
	at += ".clientID"
	if value != "" && !guid.MatchString(value) {
		r.failf(at, "%s%s is no client id; write the GUID of the application or managed identity", r.origin(at, "AZURE_CLIENT_ID"), quote(value))
	}
	return value
}

// authority is the authority of an identity: its authorityHost, or its cloud, or the environment's, or the
// public cloud's.
func (r *resolver) authority(at string, in identity) string {
	const variable = "AZURE_AUTHORITY_HOST"
	path, value := at+".authorityHost", in.AuthorityHost
	switch {
	case r.set(path) && r.set(at+".cloud"):
		r.failf(at+".cloud", "stands beside authorityHost; keep one of the two")
	case r.set(at + ".cloud"):
		r.oneOf(at+".cloud", in.Cloud, "AzurePublic", "AzureChina", "AzureGovernment")
		return clouds[in.Cloud]
	case !r.set(path):
		value = r.getenv(variable)
	}
	if value == "" {
		return clouds["AzurePublic"]
	}
	// The address is not shown: it could hold a password.
	u, err := url.Parse(value)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || strings.TrimSuffix(value[len("https://"):], "/") != u.Host {
		r.failf(path, "%sis not the https address of a host; write it like %s", r.origin(path, variable), clouds["AzurePublic"])
		return ""
	}
	return "https://" + strings.ToLower(u.Host) + "/"
}

// configHash is refresh.Target's ConfigHash. JSON keeps its parts apart, so that two configurations that differ
// have different texts.
func configHash(id azure.Identity, in target) string {
	content := struct {
		Tenant, Client, Authority, Scope, Format string
		Username                                 string            `json:",omitempty"`
		Template                                 map[string]string `json:",omitempty"`
		// Who it is, where neither the file nor the environment names a client.
		Who string `json:",omitempty"`
	}{
		Tenant: id.TenantID, Client: id.ClientID, Authority: id.AuthorityHost,
		Scope: in.Scope, Format: in.Format, Template: in.Template,
	}
	if in.Format == "basicAuth" {
		content.Username = in.Username
	}
	switch {
	case id.ServiceAccount != (refresh.Name{}) && (id.TenantID == "" || id.ClientID == ""):
		content.Who = id.ServiceAccount.String()
	case id.Type == azure.ManagedIdentity && id.ClientID == "":
		content.Who = string(id.Type) + id.ResourceID
	case id.Type == azure.AzureCLI:
		content.Who = string(id.Type)
	}
	text, err := json.Marshal(content)
	if err != nil {
		panic(err) // strings always marshal
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}
