# Gives flux-token-refresher its identity: a user-assigned managed identity that one ServiceAccount may use, a member of the
# Azure DevOps organization that reads one project and, where var.repository is given, contributes to one repository. The same
# as ../setup.sh, which a test compares it with.

provider "azurerm" {
  features {}
  subscription_id = var.subscription_id
}

provider "azuredevops" {
  org_service_url = "https://dev.azure.com/${var.organization}"
}

data "azurerm_resource_group" "this" {
  name = var.resource_group
}

resource "azurerm_user_assigned_identity" "this" {
  name                = var.identity
  resource_group_name = data.azurerm_resource_group.this.name
  location            = data.azurerm_resource_group.this.location
}

resource "azurerm_federated_identity_credential" "this" {
  name                      = var.identity
  user_assigned_identity_id = azurerm_user_assigned_identity.this.id
  issuer                    = var.issuer
  subject                   = "system:serviceaccount:${var.namespace}:${var.service_account}"
  audience                  = ["api://AzureADTokenExchange"]
}

data "azuredevops_project" "this" {
  name = var.project
}

data "azuredevops_group" "readers" {
  project_id = data.azuredevops_project.this.id
  name       = "Readers"
}

# The service principal of the identity has to be a user with the licence Basic, here "express": with less, Azure DevOps answers
# as if the repository did not exist.
resource "azuredevops_service_principal_entitlement" "this" {
  origin               = "aad"
  origin_id            = azurerm_user_assigned_identity.this.principal_id
  account_license_type = "express"
}

resource "azuredevops_group_membership" "readers" {
  group   = data.azuredevops_group.readers.descriptor
  members = [azuredevops_service_principal_entitlement.this.descriptor]
  mode    = "add"
}

data "azuredevops_git_repository" "this" {
  count = var.repository == null ? 0 : 1

  project_id = data.azuredevops_project.this.id
  name       = var.repository
}

# A group of its own, because the built-in Contributors may push to every repository of the project.
resource "azuredevops_group" "contributors" {
  count = var.repository == null ? 0 : 1

  scope        = data.azuredevops_project.this.id
  display_name = var.identity
  description  = "Flux pushes to ${data.azuredevops_git_repository.this[0].id} as one of these"
}

resource "azuredevops_group_membership" "contributors" {
  count = var.repository == null ? 0 : 1

  group   = azuredevops_group.contributors[0].descriptor
  members = [azuredevops_service_principal_entitlement.this.descriptor]
  mode    = "add"
}

resource "azuredevops_git_permissions" "contributors" {
  count = var.repository == null ? 0 : 1

  project_id    = data.azuredevops_project.this.id
  repository_id = data.azuredevops_git_repository.this[0].id
  principal     = azuredevops_group.contributors[0].descriptor
  replace       = false
  permissions = {
    GenericRead       = "Allow"
    GenericContribute = "Allow"
    CreateBranch      = "Allow"
  }
}
