"""The configurations of hubs and edge, as the company's operators wrote them."""

from two_clouds.company import ACME_NAME, GOOGLE, HUB2_NAME, HUB_NAME, PUBLIC_DNS, VENDORS

EDGE_IDENTITY = "edge.google.company.example"

_BOTH = f"""
[server]
workers = 1
# The stage has many machines in one: what they lock is one sum.
memory_lock = "off"

[log]
format = "json"

[dns]
servers = ["{PUBLIC_DNS}"]
"""


# How a record gets into the company's zone: what `[acme] hook` calls, with the DNS provider's API behind it.
HOOK = f"""#!/bin/sh
set -eu
case $1 in
present) call=set-txt body="{{\\"host\\":\\"$2.\\",\\"value\\":\\"$3\\"}}" ;;
cleanup) call=clear-txt body="{{\\"host\\":\\"$2.\\"}}" ;;
esac
exec curl -sSf --max-time 20 --data "$body" "http://{PUBLIC_DNS}:8055/$call"
"""


def hub(name, more=""):
    """Services of its own network as they come; the other cloud's edge from its address, with certificate and token."""
    text = _BOTH + f"""
[acme]
terms_agreed = true
contact = "mailto:ops@company.example"
directory = "https://{ACME_NAME}/dir"
challenge = "dns-01"
hook = ["/etc/claviger/acme-dns"]
resolvers = ["{PUBLIC_DNS}"]

[caller.google-edge]
networks = ["{GOOGLE}/32"]
certificate = "{EDGE_IDENTITY}"
token = "file:///etc/claviger/keys/edge-token"

[host."{name}"]
certificate = "acme"
client_ca = "/etc/claviger/edges.pem"
client_certificate = "request"
edges = ["google-edge"]
{more}
"""
    for vendor in VENDORS:
        text += f"""
[[route]]
preset = "{vendor.name}"
credential = "file:///etc/claviger/keys/{vendor.name}"
callers = ["open", "google-edge"]
audit = "required"
"""
    return text


def edge():
    """No key; everything to the hub, or to the second one."""
    text = _BOTH
    for name, host in (("hub", HUB_NAME), ("hub2", HUB2_NAME)):
        text += f"""
[upstream.{name}]
host = "{host}"
hub = true
client_certificate = "/etc/claviger/edge.pem"
client_key = "/etc/claviger/edge.key"
token = "file:///etc/claviger/keys/edge-token"
"""
    return text + f"""
[[route]]
host = [{", ".join(f'"{vendor.host}"' for vendor in VENDORS)}]
upstream = ["hub", "hub2"]
"""
