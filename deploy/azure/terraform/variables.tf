variable "subscription_id" {
  description = "The Azure subscription that the managed identity lives in."
  type        = string
}

variable "resource_group" {
  description = "The resource group that it lives in; it exists already."
  type        = string
}

variable "organization" {
  description = "The Azure DevOps organization: ORG of https://dev.azure.com/ORG."
  type        = string
}

variable "project" {
  description = "Its project that holds the repositories."
  type        = string
}

variable "repository" {
  description = "A repository that the identity may push to, as Flux's image automation does. Null: it only reads."
  type        = string
  default     = null
}

variable "issuer" {
  description = "The cluster's service account issuer, to the letter: oidc_issuer_url of azurerm_kubernetes_cluster."
  type        = string

  validation {
    condition     = startswith(var.issuer, "https://")
    error_message = "The issuer is an https URL."
  }
}

variable "identity" {
  description = "The name of the managed identity."
  type        = string
  default     = "flux-token-refresher"
}

variable "namespace" {
  description = "The namespace of the ServiceAccount."
  type        = string
  default     = "flux-system"
}

variable "service_account" {
  description = "The name of the ServiceAccount."
  type        = string
  default     = "flux-token-refresher"
}
