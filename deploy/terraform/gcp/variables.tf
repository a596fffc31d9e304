variable "project" {
  description = "The project in which everything is made."
  type        = string
}

variable "name" {
  description = "What everything is called, and begins with: a-z, 0-9 and -, at most 20 characters (a connector allows 25)."
  type        = string
  default     = "claviger"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{2,18}[a-z0-9]$", var.name))
    error_message = "The name is 4 to 20 characters of a-z, 0-9 and -, begins with a letter, and ends without a dash."
  }
}

variable "region" {
  description = "The region; the Cloud Run services must be in the same."
  type        = string
  default     = "europe-west1"
}

variable "zone" {
  description = "The zone of the machine. Null: the region's zone b."
  type        = string
  default     = null
}

variable "address_space" {
  description = "A private network of /24 or larger. The machine's subnet is its first half; the connector takes the last /28."
  type        = string
  default     = "10.60.0.0/24"

  validation {
    condition     = can(cidrhost(var.address_space, 0)) && !strcontains(var.address_space, ":") && tonumber(split("/", var.address_space)[1]) <= 24
    error_message = "This is no IPv4 network of /24 or larger, such as 10.60.0.0/24."
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

variable "caller_networks" {
  description = "Further networks, besides the connector's, from which services may call: subnets of VMs, peered networks."
  type        = list(string)
  default     = []
}

variable "admin_through_iap" {
  description = "Admit SSH through Google's Identity-Aware Proxy. There is no other way in."
  type        = bool
  default     = true
}

variable "block_direct_https" {
  description = "Refuse HTTPS and QUIC to the Internet for all of this network but the machine. Cloud Run services obey it with `move-cloud-run --egress all-traffic`. Google's own APIs stay reachable through their restricted addresses."
  type        = bool
  default     = false
}

variable "ca_certificate" {
  description = "The file that `claviger ca export` wrote, to be uploaded. Null until the machine has made it."
  type        = string
  default     = null
}

variable "ca_readers" {
  description = "Who may read the CA's certificate, such as serviceAccount:build@PROJECT.iam.gserviceaccount.com."
  type        = set(string)
  default     = []
}

variable "machine_type" {
  description = "The machine: two cores suffice for tens of thousands of small calls per second."
  type        = string
  default     = "e2-standard-2"
}

variable "labels" {
  description = "Labels of whatever can have them."
  type        = map(string)
  default     = {}
}
