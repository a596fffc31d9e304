# Claviger in Google Cloud: a network, one machine without a public address, the names of the APIs led to it inside of that
# network, and a connector through which Cloud Run services reach it. No secret passes through here, and none is in
# Terraform's state.

locals {
  zone              = coalesce(var.zone, "${var.region}-b")
  prefix            = tonumber(split("/", var.address_space)[1])
  subnet            = cidrsubnet(var.address_space, 1, 0)
  connector         = cidrsubnet(var.address_space, 28 - local.prefix, pow(2, 28 - local.prefix) - 1)
  edge_tag          = "${var.name}-edge"
  restricted_google = "199.36.153.4/30"
  # Identity-Aware Proxy's forwarders.
  iap = "35.235.240.0/20"
}

# ---- Network ---------------------------------------------------------------------------------------------------

resource "google_compute_network" "this" {
  name                    = var.name
  auto_create_subnetworks = false
}

resource "google_compute_subnetwork" "edge" {
  name                     = "${var.name}-edge"
  network                  = google_compute_network.this.id
  region                   = var.region
  ip_cidr_range            = local.subnet
  private_ip_google_access = true
}

# The connector's own machines live in this range, and Cloud Run services come from it.
resource "google_vpc_access_connector" "this" {
  name          = var.name
  region        = var.region
  network       = google_compute_network.this.name
  ip_cidr_range = local.connector
  min_instances = 2
  max_instances = 3
}

# One fixed address for all that leaves: the other cloud's security group names it.
resource "google_compute_address" "nat" {
  name         = "${var.name}-nat"
  region       = var.region
  address_type = "EXTERNAL"
}

resource "google_compute_router" "this" {
  name    = var.name
  region  = var.region
  network = google_compute_network.this.id
}

resource "google_compute_router_nat" "this" {
  name                               = var.name
  region                             = var.region
  router                             = google_compute_router.this.name
  nat_ip_allocate_option             = "MANUAL_ONLY"
  nat_ips                            = [google_compute_address.nat.self_link]
  source_subnetwork_ip_ranges_to_nat = "ALL_SUBNETWORKS_ALL_IP_RANGES"
  # One endpoint takes as many connections as there are ports: the default of 64 would not do for a busy API.
  enable_dynamic_port_allocation      = true
  enable_endpoint_independent_mapping = false
  min_ports_per_vm                    = 1024
  max_ports_per_vm                    = 32768

  log_config {
    enable = true
    filter = "ERRORS_ONLY"
  }
}

# A network of Google's admits nothing unless a rule says so.
resource "google_compute_firewall" "callers" {
  name          = "${var.name}-callers"
  network       = google_compute_network.this.name
  direction     = "INGRESS"
  source_ranges = concat([local.connector, local.subnet], var.caller_networks)
  target_tags   = [local.edge_tag]

  allow {
    protocol = "tcp"
    ports    = ["443"]
  }
}

resource "google_compute_firewall" "admin" {
  count = var.admin_through_iap ? 1 : 0

  name          = "${var.name}-admin"
  network       = google_compute_network.this.name
  direction     = "INGRESS"
  source_ranges = [local.iap]
  target_tags   = [local.edge_tag]

  allow {
    protocol = "tcp"
    ports    = ["22"]
  }
}

resource "google_compute_firewall" "edge_out" {
  count = var.block_direct_https ? 1 : 0

  name               = "${var.name}-edge-out"
  network            = google_compute_network.this.name
  direction          = "EGRESS"
  priority           = 900
  destination_ranges = ["0.0.0.0/0"]
  target_tags        = [local.edge_tag]

  allow {
    protocol = "all"
  }
}

# Inside of the network, and Google's own APIs at their restricted addresses.
resource "google_compute_firewall" "inside" {
  count = var.block_direct_https ? 1 : 0

  name               = "${var.name}-inside"
  network            = google_compute_network.this.name
  direction          = "EGRESS"
  priority           = 910
  destination_ranges = concat([var.address_space, local.restricted_google], var.caller_networks)

  allow {
    protocol = "all"
  }
}

# UDP too: HTTP/3 is HTTPS. And no resolver but the network's own, which knows the private zones.
resource "google_compute_firewall" "no_direct_https" {
  count = var.block_direct_https ? 1 : 0

  name               = "${var.name}-no-direct-https"
  network            = google_compute_network.this.name
  direction          = "EGRESS"
  priority           = 1000
  destination_ranges = ["0.0.0.0/0"]

  deny {
    protocol = "tcp"
    ports    = ["443", "53", "853"]
  }

  deny {
    protocol = "udp"
    ports    = ["443", "53", "853"]
  }
}

# ---- The machine -----------------------------------------------------------------------------------------------

# It may do nothing in the project; grant it single secrets when its keys come from Secret Manager one day.
resource "google_service_account" "edge" {
  account_id   = "${var.name}-edge"
  display_name = "Claviger"
}

resource "google_compute_address" "edge" {
  name         = "${var.name}-edge"
  region       = var.region
  subnetwork   = google_compute_subnetwork.edge.id
  address_type = "INTERNAL"
}

resource "google_compute_instance" "edge" {
  name         = "${var.name}-edge"
  zone         = local.zone
  machine_type = var.machine_type
  tags         = [local.edge_tag]
  labels       = var.labels

  boot_disk {
    initialize_params {
      image = "debian-cloud/debian-12"
      size  = 20
      type  = "pd-balanced"
    }
  }

  network_interface {
    subnetwork = google_compute_subnetwork.edge.id
    network_ip = google_compute_address.edge.address
  }

  service_account {
    email  = google_service_account.edge.email
    scopes = ["cloud-platform"]
  }

  shielded_instance_config {
    enable_secure_boot          = true
    enable_vtpm                 = true
    enable_integrity_monitoring = true
  }

  metadata = {
    enable-oslogin         = "TRUE"
    block-project-ssh-keys = "TRUE"
    serial-port-enable     = "FALSE"
    # Google's Debian images have no cloud-init: the same script comes from the same file, as a start-up script.
    startup-script = local.startup
  }

  lifecycle {
    # Its disk holds the CA: a newer image is no reason to make the machine anew.
    ignore_changes = [boot_disk[0].initialize_params[0].image]
  }

  # It fetches the package at its first start.
  depends_on = [google_compute_router_nat.this]
}

locals {
  # The files of the cloud-init configuration, written by a start-up script, which Google runs at every boot: the setup
  # can be run again, and is not once it has succeeded.
  setup = yamldecode(templatefile("${path.module}/../../cloud-init/edge.yaml", {
    package_url    = var.package_url
    package_sha256 = var.package_sha256
    permit         = join(" ", var.permit)
  }))
  startup = join("\n", concat(
    ["#!/bin/sh", "set -eu", "[ ! -e /var/lib/claviger-setup.done ] || exit 0"],
    ["apt-get update", "DEBIAN_FRONTEND=noninteractive apt-get install --yes ${join(" ", local.setup.packages)}"],
    [for file in local.setup.write_files : "echo ${base64encode(file.content)} | base64 -d >${file.path}; chmod ${try(file.permissions, "0644")} ${file.path}"],
    [for command in local.setup.runcmd : join(" ", command)],
    ["touch /var/lib/claviger-setup.done", ""],
  ))
}

# ---- Names -----------------------------------------------------------------------------------------------------

# One zone per name, and not per domain: a zone answers for all of its names, and whatever else lives under the provider's
# domain must go on being found. AAAA and HTTPS, of which the zone has none, get an empty answer instead of the provider's.
resource "google_dns_managed_zone" "api" {
  for_each = var.api_hosts

  name        = "${var.name}-${replace(each.value, ".", "-")}"
  dns_name    = "${each.value}."
  description = "Leads ${each.value} to Claviger"
  visibility  = "private"
  labels      = var.labels

  private_visibility_config {
    networks {
      network_url = google_compute_network.this.id
    }
  }
}

resource "google_dns_record_set" "api" {
  for_each = google_dns_managed_zone.api

  managed_zone = each.value.name
  name         = each.value.dns_name
  type         = "A"
  ttl          = 60
  rrdatas      = [google_compute_address.edge.address]
}

# Where direct HTTPS is refused, Google's own APIs are reached at the restricted addresses.
resource "google_dns_managed_zone" "googleapis" {
  count = var.block_direct_https ? 1 : 0

  name        = "${var.name}-googleapis"
  dns_name    = "googleapis.com."
  description = "Google's APIs at the addresses that need no way to the Internet"
  visibility  = "private"
  labels      = var.labels

  private_visibility_config {
    networks {
      network_url = google_compute_network.this.id
    }
  }
}

resource "google_dns_record_set" "googleapis" {
  for_each = var.block_direct_https ? {
    "restricted.googleapis.com." = { type = "A", rrdatas = ["199.36.153.4", "199.36.153.5", "199.36.153.6", "199.36.153.7"] }
    "*.googleapis.com."          = { type = "CNAME", rrdatas = ["restricted.googleapis.com."] }
  } : {}

  managed_zone = google_dns_managed_zone.googleapis[0].name
  name         = each.key
  type         = each.value.type
  ttl          = 300
  rrdatas      = each.value.rrdatas
}

# ---- The CA's certificate, for the services' images ------------------------------------------------------------

resource "google_storage_bucket" "trust" {
  name                        = "${var.project}-${var.name}-trust"
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  labels                      = var.labels

  versioning {
    enabled = true
  }
}

resource "google_storage_bucket_iam_member" "readers" {
  for_each = var.ca_readers

  bucket = google_storage_bucket.trust.name
  role   = "roles/storage.objectViewer"
  member = each.value
}

resource "google_storage_bucket_object" "root" {
  count = var.ca_certificate == null ? 0 : 1

  name         = "claviger-root.crt"
  bucket       = google_storage_bucket.trust.name
  source       = var.ca_certificate
  content_type = "application/x-pem-file"
}
