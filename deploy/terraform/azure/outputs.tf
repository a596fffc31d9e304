output "hub_private_address" {
  description = "Where the private zones lead; for `install-ca --verify HOST --connect ADDRESS`."
  value       = local.hub_address
}

output "hub_public_address" {
  description = "The address from which the APIs are called."
  value       = azurerm_public_ip.hub.ip_address
}

output "services_subnet_id" {
  description = "The subnet for the services."
  value       = azurerm_subnet.this["services"].id
}

output "key_vault_uri" {
  description = "The vault that the hub's identity may read secrets from."
  value       = azurerm_key_vault.this.vault_uri
}

output "identity_client_id" {
  description = "The hub's managed identity."
  value       = azurerm_user_assigned_identity.hub.client_id
}

output "ca_certificate_url" {
  description = "For `install-ca --url`; null until the certificate is uploaded."
  value       = one(azurerm_storage_blob.root[*].url)
}
