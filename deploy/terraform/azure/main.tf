# Claviger in Azure: one virtual network, one machine, the names of the APIs led to it inside of that network, and nothing
# that a stranger can reach. No secret passes through here: keys are brought to the machine, the CA is made on it, and
# neither is in Terraform's state.

data "azurerm_client_config" "current" {}

locals {
  subnets = {
    hub      = cidrsubnet(var.address_space, 1, 0)
    services = cidrsubnet(var.address_space, 1, 1)
  }
  # Azure keeps the first four addresses of each subnet.
  hub_address = cidrhost(local.subnets.hub, 4)
}

resource "azurerm_resource_group" "this" {
  name     = var.name
  location = var.location
  tags     = var.tags
}

# ---- Network ---------------------------------------------------------------------------------------------------

resource "azurerm_virtual_network" "this" {
  name                = var.name
  resource_group_name = azurerm_resource_group.this.name
  location            = azurerm_resource_group.this.location
  address_space       = [var.address_space]
  tags                = var.tags
}

resource "azurerm_subnet" "this" {
  for_each = local.subnets

  name                 = each.key
  resource_group_name  = azurerm_resource_group.this.name
  virtual_network_name = azurerm_virtual_network.this.name
  address_prefixes     = [each.value]
  service_endpoints    = ["Microsoft.KeyVault", "Microsoft.Storage"]
  # The hub leaves by its own address. The services leave as Azure lets them, unless they shall not.
  default_outbound_access_enabled = each.key == "services" && !var.block_direct_https
}

resource "azurerm_network_security_group" "hub" {
  name                = "${var.name}-hub"
  resource_group_name = azurerm_resource_group.this.name
  location            = azurerm_resource_group.this.location
  tags                = var.tags

  security_rule {
    name                       = "services-https"
    description                = "The services call the APIs' names, which lead here."
    priority                   = 100
    direction                  = "Inbound"
    access                     = "Allow"
    protocol                   = "Tcp"
    source_address_prefix      = local.subnets.services
    source_port_range          = "*"
    destination_address_prefix = local.hub_address
    destination_port_range     = "443"
  }

  dynamic "security_rule" {
    for_each = length(var.edge_addresses) > 0 ? [var.edge_addresses] : []

    content {
      name                       = "edge-https"
      description                = "The other cloud's edge, and nobody else on the Internet."
      priority                   = 110
      direction                  = "Inbound"
      access                     = "Allow"
      protocol                   = "Tcp"
      source_address_prefixes    = security_rule.value
      source_port_range          = "*"
      destination_address_prefix = local.hub_address
      destination_port_range     = "443"
    }
  }

  dynamic "security_rule" {
    for_each = length(var.admin_addresses) > 0 ? [var.admin_addresses] : []

    content {
      name                       = "admin-ssh"
      description                = "Whoever operates the machine."
      priority                   = 120
      direction                  = "Inbound"
      access                     = "Allow"
      protocol                   = "Tcp"
      source_address_prefixes    = security_rule.value
      source_port_range          = "*"
      destination_address_prefix = local.hub_address
      destination_port_range     = "22"
    }
  }

  # Azure's own rules behind this one admit the whole virtual network and its load balancer's probes.
  security_rule {
    name                       = "nobody-else"
    priority                   = 4096
    direction                  = "Inbound"
    access                     = "Deny"
    protocol                   = "*"
    source_address_prefix      = "*"
    source_port_range          = "*"
    destination_address_prefix = "*"
    destination_port_range     = "*"
  }
}

resource "azurerm_network_security_group" "services" {
  name                = "${var.name}-services"
  resource_group_name = azurerm_resource_group.this.name
  location            = azurerm_resource_group.this.location
  tags                = var.tags

  # UDP too: HTTP/3 is HTTPS.
  dynamic "security_rule" {
    for_each = var.block_direct_https ? { Tcp = 4000, Udp = 4001 } : {}

    content {
      name                       = "no-direct-https-${lower(security_rule.key)}"
      description                = "Claviger's rules hold only where it cannot be gone around."
      priority                   = security_rule.value
      direction                  = "Outbound"
      access                     = "Deny"
      protocol                   = security_rule.key
      source_address_prefix      = "*"
      source_port_range          = "*"
      destination_address_prefix = "Internet"
      destination_port_range     = "443"
    }
  }

  # DNS over TLS and to strangers would go around the private zones.
  dynamic "security_rule" {
    for_each = var.block_direct_https ? [1] : []

    content {
      name                       = "no-foreign-resolvers"
      priority                   = 4002
      direction                  = "Outbound"
      access                     = "Deny"
      protocol                   = "*"
      source_address_prefix      = "*"
      source_port_range          = "*"
      destination_address_prefix = "Internet"
      destination_port_ranges    = ["53", "853"]
    }
  }
}

resource "azurerm_subnet_network_security_group_association" "this" {
  for_each = {
    hub      = azurerm_network_security_group.hub.id
    services = azurerm_network_security_group.services.id
  }

  subnet_id                 = azurerm_subnet.this[each.key].id
  network_security_group_id = each.value
}

# ---- The machine -----------------------------------------------------------------------------------------------

# It reaches the APIs from this address, which some providers want to know. What may come in says the security group.
resource "azurerm_public_ip" "hub" {
  name                = "${var.name}-hub"
  resource_group_name = azurerm_resource_group.this.name
  location            = azurerm_resource_group.this.location
  allocation_method   = "Static"
  sku                 = "Standard"
  tags                = var.tags
}

resource "azurerm_network_interface" "hub" {
  name                = "${var.name}-hub"
  resource_group_name = azurerm_resource_group.this.name
  location            = azurerm_resource_group.this.location
  tags                = var.tags

  ip_configuration {
    name                          = "hub"
    subnet_id                     = azurerm_subnet.this["hub"].id
    private_ip_address_allocation = "Static"
    private_ip_address            = local.hub_address
    public_ip_address_id          = azurerm_public_ip.hub.id
  }
}

resource "azurerm_user_assigned_identity" "hub" {
  name                = "${var.name}-hub"
  resource_group_name = azurerm_resource_group.this.name
  location            = azurerm_resource_group.this.location
  tags                = var.tags
}

resource "azurerm_linux_virtual_machine" "hub" {
  name                            = "${var.name}-hub"
  resource_group_name             = azurerm_resource_group.this.name
  location                        = azurerm_resource_group.this.location
  size                            = var.vm_size
  admin_username                  = "operator"
  disable_password_authentication = true
  network_interface_ids           = [azurerm_network_interface.hub.id]
  secure_boot_enabled             = true
  vtpm_enabled                    = true
  tags                            = var.tags

  custom_data = base64encode(templatefile("${path.module}/../../cloud-init/hub.yaml", {
    package_url    = var.package_url
    package_sha256 = var.package_sha256
    permit         = join(" ", var.permit)
  }))

  admin_ssh_key {
    username   = "operator"
    public_key = var.ssh_public_key
  }

  identity {
    type         = "UserAssigned"
    identity_ids = [azurerm_user_assigned_identity.hub.id]
  }

  os_disk {
    caching              = "ReadWrite"
    storage_account_type = "Premium_LRS"
  }

  source_image_reference {
    publisher = "Debian"
    offer     = "debian-12"
    sku       = "12-gen2"
    version   = "latest"
  }

  lifecycle {
    # Its disk holds the CA: a newer image or first-boot file is no reason to make the machine anew.
    ignore_changes = [custom_data, source_image_reference]
  }

  depends_on = [azurerm_subnet_network_security_group_association.this]
}

# ---- Names -----------------------------------------------------------------------------------------------------

# One zone per name, and not per domain: a zone answers for all of its names, and whatever else lives under the provider's
# domain must go on being found. And a zone, not a record in a forwarder: it answers every type. AAAA and HTTPS, of which
# there are none, get an empty answer instead of the provider's own.
resource "azurerm_private_dns_zone" "api" {
  for_each = var.api_hosts

  name                = each.value
  resource_group_name = azurerm_resource_group.this.name
  tags                = var.tags
}

resource "azurerm_private_dns_a_record" "api" {
  for_each = azurerm_private_dns_zone.api

  name                = "@"
  zone_name           = each.value.name
  resource_group_name = azurerm_resource_group.this.name
  ttl                 = 60
  records             = [local.hub_address]
}

resource "azurerm_private_dns_zone_virtual_network_link" "api" {
  for_each = azurerm_private_dns_zone.api

  name                  = var.name
  private_dns_zone_name = each.value.name
  resource_group_name   = azurerm_resource_group.this.name
  virtual_network_id    = azurerm_virtual_network.this.id
  registration_enabled  = false
  # Never ask the Internet for what the zone does not have.
  resolution_policy = "Default"
  tags              = var.tags
}

resource "azurerm_dns_a_record" "hub" {
  count = var.public_zone == null ? 0 : 1

  name                = var.public_zone.record
  zone_name           = var.public_zone.name
  resource_group_name = var.public_zone.resource_group_name
  ttl                 = 300
  records             = [azurerm_public_ip.hub.ip_address]
  tags                = var.tags
}

# ---- Key vault: ready, and empty -------------------------------------------------------------------------------

# Claviger reads keys from files today. The vault, the identity and its right to read are what its next step needs; put
# secrets in with `az keyvault secret set`, never with Terraform, whose state would hold them.
resource "azurerm_key_vault" "this" {
  name                          = "${var.name}-${substr(md5(azurerm_resource_group.this.id), 0, 6)}"
  resource_group_name           = azurerm_resource_group.this.name
  location                      = azurerm_resource_group.this.location
  tenant_id                     = data.azurerm_client_config.current.tenant_id
  sku_name                      = "standard"
  rbac_authorization_enabled    = true
  purge_protection_enabled      = true
  soft_delete_retention_days    = 90
  public_network_access_enabled = true
  tags                          = var.tags

  network_acls {
    default_action             = "Deny"
    bypass                     = "None"
    virtual_network_subnet_ids = [azurerm_subnet.this["hub"].id]
    ip_rules                   = var.deployer_addresses
  }
}

resource "azurerm_role_assignment" "hub_reads_secrets" {
  scope                = azurerm_key_vault.this.id
  role_definition_name = "Key Vault Secrets User"
  principal_id         = azurerm_user_assigned_identity.hub.principal_id
  principal_type       = "ServicePrincipal"
}

# ---- The CA's certificate, for the services' machines and images -----------------------------------------------

resource "azurerm_storage_account" "trust" {
  name                            = "${var.name}${substr(md5(azurerm_resource_group.this.id), 0, 8)}"
  resource_group_name             = azurerm_resource_group.this.name
  location                        = azurerm_resource_group.this.location
  account_tier                    = "Standard"
  account_replication_type        = "LRS"
  min_tls_version                 = "TLS1_2"
  https_traffic_only_enabled      = true
  shared_access_key_enabled       = false
  default_to_oauth_authentication = true
  # The certificate is public by nature, and read by machines that have no identity yet; the networks are ours.
  allow_nested_items_to_be_public = true
  tags                            = var.tags

  network_rules {
    default_action             = "Deny"
    virtual_network_subnet_ids = [for subnet in azurerm_subnet.this : subnet.id]
    ip_rules                   = var.deployer_addresses
  }
}

# The account takes no shared key, so whoever runs Terraform needs a role to upload.
resource "azurerm_role_assignment" "deployer_uploads" {
  scope                = azurerm_storage_account.trust.id
  role_definition_name = "Storage Blob Data Contributor"
  principal_id         = data.azurerm_client_config.current.object_id
}

resource "azurerm_storage_container" "trust" {
  name                  = "trust"
  storage_account_id    = azurerm_storage_account.trust.id
  container_access_type = "blob"
}

resource "azurerm_storage_blob" "root" {
  count = var.ca_certificate == null ? 0 : 1

  name                   = "claviger-root.crt"
  storage_account_name   = azurerm_storage_account.trust.name
  storage_container_name = azurerm_storage_container.trust.name
  type                   = "Block"
  content_type           = "application/x-pem-file"
  source                 = var.ca_certificate
  content_md5            = filemd5(var.ca_certificate)

  depends_on = [azurerm_role_assignment.deployer_uploads]
}
