// The managed identity of flux-token-refresher, and the federated credential that lets one ServiceAccount use it. Azure DevOps is
// not in Azure Resource Manager: setup.sh, run after this with the same names, finds these and does the rest.

@description('The name of the managed identity.')
param identity string = 'flux-token-refresher'

@description('The cluster\'s service account issuer, to the letter: properties.oidcIssuerProfile.issuerURL of an AKS cluster.')
param issuer string

@description('The namespace of the ServiceAccount.')
param namespace string = 'flux-system'

@description('The name of the ServiceAccount.')
param serviceAccount string = 'flux-token-refresher'

param location string = resourceGroup().location

resource managedIdentity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: identity
  location: location
}

resource federatedCredential 'Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials@2023-01-31' = {
  parent: managedIdentity
  name: identity
  properties: {
    issuer: issuer
    subject: 'system:serviceaccount:${namespace}:${serviceAccount}'
    audiences: ['api://AzureADTokenExchange']
  }
}

@description('For the annotation azure.workload.identity/client-id of the ServiceAccount.')
output clientId string = managedIdentity.properties.clientId
output tenantId string = managedIdentity.properties.tenantId
