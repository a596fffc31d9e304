output "edge_private_address" {
  description = "Where the private zones lead; for `install-ca --verify HOST --connect ADDRESS`."
  value       = google_compute_address.edge.address
}

output "nat_address" {
  description = "The one address from which this network calls out: `edge_addresses` of deploy/terraform/azure, as ADDRESS/32."
  value       = google_compute_address.nat.address
}

output "connector" {
  description = "For `deploy/gcp/move-cloud-run --connector`."
  value       = google_vpc_access_connector.this.id
}

output "service_account" {
  description = "The machine's identity."
  value       = google_service_account.edge.email
}

output "ca_certificate_object" {
  description = "For `gcloud storage cp`; null until the certificate is uploaded."
  value       = one([for object in google_storage_bucket_object.root : "gs://${object.bucket}/${object.name}"])
}
