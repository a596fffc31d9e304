variable "subscription_id" {
  description = "The subscription in which everything is made."
  type        = string
}

variable "name" {
  description = "What everything is called, and begins with: a-z, 0-9, at most 16 characters (storage accounts allow no more)."
  type        = string
  default     = "claviger"

  validation {
    condition     = can(regex("^[a-z][a-z0-9]{2,15}$", var.name))
    error_message = "The name is 3 to 16 characters of a-z and 0-9, and begins with a letter."
  }
}

variable "location" {
  description = "The region."
  type        = string
  default     = "westeurope"
}

variable "address_space" {
  description = "The virtual network. Two halves of it become the subnets of the hub and of the services."
  type        = string
  default     = "10.40.0.0/22"

  validation {
    condition     = can(cidrhost(var.address_space, 0)) && !strcontains(var.address_space, ":")
    error_message = "This is no IPv4 network, such as 10.40.0.0/22."
  }
}

variable "api_hosts" {
  description = "The names of the APIs that lead to Claviger, such as api.sendgrid.com. Each becomes a private DNS zone of its own."
  type        = set(string)

  validation {
    condition     = alltrue([for host in var.api_hosts : can(regex("^([a-z0-9]([a-z0-9-]*[a-z0-9])?\\.)+[a-z]{2,}$", host))])
    error_message = "An API host is a full name in lower case, without a final dot."
  }
}

variable "permit" {
  description = "Every domain that will ever stand behind Claviger: the CA is made for these and cannot be widened."
  type        = list(string)

  validation {
    condition     = length(var.permit) > 0
    error_message = "Name at least one domain, such as sendgrid.com."
  }
}

variable "package_url" {
  description = "Where the machine fetches the Debian package from."
  type        = string
}

variable "package_sha256" {
  description = "The package's SHA-256; anything else is refused."
  type        = string

  validation {
    condition     = can(regex("^[0-9a-f]{64}$", var.package_sha256))
    error_message = "A SHA-256 has 64 hexadecimal digits, in lower case."
  }
}

variable "ssh_public_key" {
  description = "The public key of whoever operates the machine. There is no password."
  type        = string
}

variable "admin_addresses" {
  description = "Networks from which SSH to the machine is admitted. Empty: none (use Azure Bastion or the serial console)."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for network in var.admin_addresses : can(cidrhost(network, 0)) && !endswith(network, "/0")])
    error_message = "Each is a network such as 203.0.113.7/32; the whole Internet is refused."
  }
}

variable "edge_addresses" {
  description = "The other cloud's outgoing addresses (deploy/terraform/gcp prints its own): from these, and no other public ones, port 443 is admitted. Empty: the hub has no door to the Internet."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for network in var.edge_addresses : can(cidrhost(network, 0)) && tonumber(split("/", network)[1]) >= 24])
    error_message = "Each is an IPv4 network of /24 or smaller, such as 203.0.113.7/32."
  }
}

variable "public_zone" {
  description = "A public DNS zone in Azure that is there already, for the hub's public name. Null: no public record."
  type        = object({ name = string, resource_group_name = string, record = string })
  default     = null
}

variable "block_direct_https" {
  description = "Refuse HTTPS and QUIC from the services' subnet to the Internet, so that the private zones cannot be gone around. Everything else that they call by HTTPS must then have a private endpoint or an exception."
  type        = bool
  default     = false
}

variable "deployer_addresses" {
  description = "Public addresses from which Terraform itself runs: admitted to the key vault and the storage account."
  type        = list(string)
  default     = []
}

variable "ca_certificate" {
  description = "The file that `claviger ca export` wrote, to be uploaded. Null until the machine has made it."
  type        = string
  default     = null
}

variable "vm_size" {
  description = "Two cores suffice for about 70,000 requests per second of small calls; memory is not the limit."
  type        = string
  default     = "Standard_D2as_v5"
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
  default     = {}
}
