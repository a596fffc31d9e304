terraform {
  required_version = ">= 1.5"

  required_providers {
    azurerm = {
      source  = "hashicorp/azurerm"
      version = "~> 4.42"
    }
  }
}

provider "azurerm" {
  features {}

  subscription_id = var.subscription_id
  # The storage account refuses shared keys.
  storage_use_azuread = true
}
