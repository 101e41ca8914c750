output "client_id" {
  description = "For the annotation azure.workload.identity/client-id of the ServiceAccount."
  value       = azurerm_user_assigned_identity.this.client_id
}

output "tenant_id" {
  description = "The tenant of the identity, to which the organization has to be connected."
  value       = azurerm_user_assigned_identity.this.tenant_id
}
