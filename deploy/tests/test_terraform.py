"""deploy/terraform: parsed by HashiCorp's own parser, held against what the providers accept, and against rules of ours.

Terraform's registry, and with it `terraform validate`, is not needed: the providers' schemas are in
provider-schema.json (see ./provider-schema). Where a terraform or tofu is installed, it also judges the formatting and
evaluates what needs no provider.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from machine import KIT, STOCK, run

HERE = Path(__file__).resolve().parent
SCHEMA = json.loads((HERE / "provider-schema.json").read_text())
MODULES = {name: KIT / "terraform" / name for name in ("azure", "gcp")}
META = {"count", "for_each", "depends_on", "lifecycle", "provider"}
TERRAFORM = shutil.which("tofu") or shutil.which("terraform")


class Module:
    def __init__(self, directory):
        self.directory = directory
        files = sorted(directory.glob("*.tf"))
        said = run("node", "hcl2json.js", *files, cwd=STOCK / "node")
        self.blocks = {"resource": {}, "data": {}, "variable": {}, "output": {}, "locals": {}, "terraform": [], "provider": {}}
        for parsed in json.loads(said).values():
            for kind, content in parsed.items():
                if kind == "locals":
                    for block in content:
                        self.blocks["locals"].update(block)
                elif kind in ("resource", "data"):
                    for type_, named in content.items():
                        for name, [body] in named.items():
                            self.blocks[kind][f"{type_}.{name}"] = body
                elif kind == "terraform":
                    self.blocks[kind] += content
                else:
                    self.blocks[kind].update({name: body[0] for name, body in content.items()})

    def expressions(self, but=()):
        for kind, content in self.blocks.items():
            if kind not in but:
                yield from strings(content)


def strings(value):
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


class Modules(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.modules = {name: Module(directory) for name, directory in MODULES.items()}

    def check_block(self, where, body, attributes, meta=frozenset()):
        problems = []
        given = set(body)
        for dynamic, blocks in body.get("dynamic", {}).items():
            given.add(dynamic)
            if dynamic not in attributes or "block" not in attributes[dynamic]:
                problems.append(f"{where}: there is no block `{dynamic}`")
                continue
            for block in blocks:
                problems += self.check_block(f"{where}.{dynamic}", block["content"][0], attributes[dynamic]["block"])
        for name in given - {"dynamic"} - meta:
            if name not in attributes:
                problems.append(f"{where}: `{name}` is unknown")
            elif "block" in attributes[name]:
                value = body.get(name)
                for item in value if isinstance(value, list) else [value]:
                    if isinstance(item, dict):
                        problems += self.check_block(f"{where}.{name}", item, attributes[name]["block"])
            else:
                type_, value = attributes[name]["type"], body.get(name)
                literal = not (isinstance(value, str) and "${" in value)
                good = {"string": str, "number": (int, float), "boolean": bool, "list": list, "map": dict}.get(type_, object)
                if literal and not isinstance(value, good):
                    problems.append(f"{where}.{name} is a {type_}, not {value!r}")
        problems += [f"{where}: `{name}` is required" for name, about in attributes.items() if about["required"] and name not in given]
        return problems

    def test_the_providers_accept_every_attribute(self):
        for module in self.modules.values():
            problems = []
            for kind in ("resource", "data"):
                for address, body in module.blocks[kind].items():
                    type_ = address.split(".")[0]
                    self.assertIn(type_, SCHEMA[kind], "run deploy/tests/provider-schema again")
                    problems += self.check_block(address, body, SCHEMA[kind][type_]["attributes"], META)
            self.assertEqual(problems, [])

    def test_the_search_for_mistakes_finds_them(self):
        attributes = SCHEMA["resource"]["azurerm_subnet"]["attributes"]
        good = {"name": "a", "resource_group_name": "b", "virtual_network_name": "c", "address_prefixes": ["10.0.0.0/24"]}
        self.assertEqual(self.check_block("s", good, attributes, META), [])
        self.assertEqual(self.check_block("s", good | {"nam": "a"}, attributes, META), ["s: `nam` is unknown"])
        self.assertEqual(self.check_block("s", good | {"address_prefixes": "x"}, attributes, META), ["s.address_prefixes is a list, not 'x'"])
        del good["name"]
        self.assertEqual(self.check_block("s", good, attributes, META), ["s: `name` is required"])

    def test_the_provider_versions_that_are_asked_for_include_those_of_the_schema(self):
        pins = {}
        for module in self.modules.values():
            for name, [about] in ((name, about if isinstance(about, list) else [about])
                                  for name, about in module.blocks["terraform"][0]["required_providers"][0].items()):
                pins[name] = about["version"]
        self.assertEqual(set(pins), set(SCHEMA["providers"]))
        for name, pin in pins.items():
            major, minor = map(int, SCHEMA["providers"][name].split(".")[:2])
            low, high = re.match(r"~> (\d+)\.(\d+)$|>= (\d+)\.(\d+), < (\d+)\.0$", pin), None
            self.assertIsNotNone(low, pin)
            numbers = [int(number) for number in low.groups() if number]
            high = numbers[2] if len(numbers) == 3 else numbers[0] + 1
            self.assertTrue((numbers[0], numbers[1]) <= (major, minor) < (high, 0), f"{name}: {pin}")

    def test_references_lead_somewhere_and_nothing_is_left_over(self):
        for module in self.modules.values():
            used = {"var": set(), "local": set()}
            for expression in module.expressions():
                text = expression if "${" in expression else ""
                for kind, name in re.findall(r"\b(var|local)\.([a-z_0-9]+)", text):
                    used[kind].add(name)
                for kind, type_, name, attribute in re.findall(r"(\bdata\.)?\b((?:azurerm|google)_[a-z_0-9]+)\.([a-z_]+)(?:\[[^\]]*\])?\.?([a-z_0-9]+)?", text):
                    where = "data" if kind else "resource"
                    self.assertIn(f"{type_}.{name}", module.blocks[where], expression)
                    if attribute:
                        self.assertIn(attribute, SCHEMA[where][type_]["exports"], expression)
            self.assertEqual(used["var"], set(module.blocks["variable"]))
            self.assertEqual(used["local"], set(module.blocks["locals"]))
            for kind in ("variable", "output"):
                for name, body in module.blocks[kind].items():
                    self.assertTrue(body.get("description"), f"{kind} {name} has no description")

    def test_nothing_secret_comes_into_the_state(self):
        for module in self.modules.values():
            for address, body in module.blocks["resource"].items():
                self.assertNotRegex(address, r"secret_version|key_vault_secret|random_password|tls_private_key|_key\.")
                self.assertFalse({"admin_password", "password", "secret_data", "private_key"} & set(strings(body)), address)
            for name in [*module.blocks["variable"], *module.blocks["output"]]:
                self.assertNotRegex(name, r"password|secret|token|private_key|api_key")

    def test_azure_admits_nobody_but_the_services_and_the_edge(self):
        blocks = self.modules["azure"].blocks
        group = blocks["resource"]["azurerm_network_security_group.hub"]
        rules = group["security_rule"] + [rule["content"][0] for rule in group["dynamic"]["security_rule"]]
        admitted = {(rule["destination_port_range"], str(rule.get("source_address_prefix", rule.get("source_address_prefixes"))))
                    for rule in rules if rule["direction"] == "Inbound" and rule["access"] == "Allow"}
        self.assertEqual(admitted, {("443", "${local.subnets.services}"), ("443", "${security_rule.value}"), ("22", "${security_rule.value}")})
        [last] = [rule for rule in rules if rule["access"] == "Deny"]
        self.assertEqual((last["priority"], last["direction"], last["protocol"], last["source_address_prefix"], last["destination_port_range"]),
                         (4096, "Inbound", "*", "*", "*"))
        self.assertEqual(len({rule["priority"] for rule in rules}), len(rules))
        sources = [rule["for_each"] for rule in group["dynamic"]["security_rule"]]
        self.assertTrue(sources[0].startswith("${length(var.edge_addresses) > 0") and sources[1].startswith("${length(var.admin_addresses) > 0"))
        for variable in ("edge_addresses", "admin_addresses"):
            self.assertEqual(blocks["variable"][variable]["default"], [])
        attached = blocks["resource"]["azurerm_subnet_network_security_group_association.this"]["for_each"]
        self.assertEqual(set(attached), {"hub", "services"})

    def test_google_admits_nobody_from_the_internet(self):
        resources = self.modules["gcp"].blocks["resource"]
        incoming = {address: body for address, body in resources.items()
                    if address.startswith("google_compute_firewall.") and body["direction"] == "INGRESS"}
        self.assertEqual(set(incoming), {"google_compute_firewall.callers", "google_compute_firewall.admin"})
        for body in incoming.values():
            self.assertNotIn("0.0.0.0/0", str(body["source_ranges"]))
            self.assertTrue(body["target_tags"])
        self.assertNotIn("access_config", resources["google_compute_instance.edge"]["network_interface"][0], "no public address")

    def test_every_name_is_a_private_zone_of_its_own(self):
        azure, google = (self.modules[name].blocks["resource"] for name in ("azure", "gcp"))
        self.assertEqual(azure["azurerm_private_dns_zone.api"]["name"], "${each.value}")
        self.assertEqual(azure["azurerm_private_dns_a_record.api"]["name"], "@")
        self.assertEqual(azure["azurerm_private_dns_zone_virtual_network_link.api"]["resolution_policy"], "Default")
        self.assertEqual(google["google_dns_managed_zone.api"]["visibility"], "private")
        self.assertEqual(google["google_dns_managed_zone.api"]["dns_name"], "${each.value}.")
        # HTTPS over UDP, and resolvers of others, would slip past.
        denied = azure["azurerm_network_security_group.services"]["dynamic"]["security_rule"]
        self.assertIn("Udp = 4001", denied[0]["for_each"])
        self.assertEqual(denied[1]["content"][0]["destination_port_ranges"], ["53", "853"])
        for block in google["google_compute_firewall.no_direct_https"]["deny"]:
            self.assertEqual(set(block["ports"]), {"443", "53", "853"})


@unittest.skipUnless(TERRAFORM, "neither terraform nor tofu is installed, and no package registry has one")
class WithTerraform(unittest.TestCase):
    def terraform(self, directory, *arguments, code=0):
        finished = subprocess.run([TERRAFORM, *arguments], cwd=directory, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, timeout=120, env=os.environ | {"TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1", "TF_CLI_CONFIG_FILE": "/dev/null"})
        self.assertEqual(finished.returncode, code, finished.stdout)
        return finished.stdout

    def test_formatting(self):
        self.terraform(KIT / "terraform", "fmt", "-check", "-recursive", "-diff")

    def evaluate(self, module, values, outputs, code=0):
        """Variables, locals, and what needs no provider: planned by the real program."""
        with tempfile.TemporaryDirectory() as directory:
            copy = Path(directory, "terraform", module)
            copy.mkdir(parents=True)
            (Path(directory) / "cloud-init").symlink_to(KIT / "cloud-init")
            shutil.copy(MODULES[module] / "variables.tf", copy)
            text = (MODULES[module] / "main.tf").read_text()
            (copy / "locals.tf").write_text("\n".join(re.findall(r"^locals \{\n.*?^\}", text, re.M | re.S)))
            (copy / "outputs.tf").write_text("".join(f'output "{name}" {{\n  value = {value}\n}}\n' for name, value in outputs.items()))
            (copy / "terraform.tfvars.json").write_text(json.dumps(values))
            said = self.terraform(copy, "plan", "-input=false", "-no-color", "-out=plan", code=code)
            if code:
                return said
            planned = json.loads(self.terraform(copy, "show", "-json", "plan"))["planned_values"]["outputs"]
            return {name: planned[name]["value"] for name in outputs}

    AZURE = {"subscription_id": "0", "api_hosts": ["api.sendgrid.com"], "permit": ["sendgrid.com", "openai.com"],
             "package_url": "https://files.example/claviger.deb", "package_sha256": "0" * 64, "ssh_public_key": "ssh-ed25519 AAAA"}
    GCP = {"project": "p", "api_hosts": ["api.sendgrid.com"], "permit": ["sendgrid.com"],
           "package_url": "https://files.example/claviger.deb", "package_sha256": "0" * 64}

    def test_what_the_variables_become(self):
        azure = self.evaluate("azure", self.AZURE, {"hub": "local.hub_address", "subnets": "local.subnets"})
        self.assertEqual(azure, {"hub": "10.40.0.4", "subnets": {"hub": "10.40.0.0/23", "services": "10.40.2.0/23"}})
        gcp = self.evaluate("gcp", self.GCP, {"subnet": "local.subnet", "connector": "local.connector", "zone": "local.zone", "startup": "local.startup"})
        self.assertEqual((gcp["subnet"], gcp["connector"], gcp["zone"]), ("10.60.0.0/25", "10.60.0.240/28", "europe-west1-b"))
        subprocess.run(["sh", "-n"], input=gcp["startup"].encode(), check=True)
        self.assertIn("/usr/local/sbin/claviger-setup\n", gcp["startup"])
        large = self.evaluate("gcp", self.GCP | {"address_space": "10.0.0.0/16"}, {"connector": "local.connector"})
        self.assertEqual(large["connector"], "10.0.255.240/28")

    def test_wrong_values_are_refused_with_the_cure(self):
        for module, variable, value, words in [
            ("azure", "name", "Claviger", "a-z and 0-9"),
            ("azure", "address_space", "10.40.0.0", "such as 10.40.0.0/22"),
            ("azure", "api_hosts", ["https://api.sendgrid.com"], "full name in lower case"),
            ("azure", "edge_addresses", ["0.0.0.0/0"], "/24 or smaller"),
            ("azure", "admin_addresses", ["0.0.0.0/0"], "the whole Internet is refused"),
            ("azure", "package_sha256", "abc", "64 hexadecimal"),
            ("azure", "permit", [], "at least one domain"),
            ("gcp", "address_space", "10.60.0.0/28", "/24 or larger"),
            ("gcp", "name", "-", "begins with a letter"),
            ("gcp", "api_hosts", ["sendgrid"], "full name"),
        ]:
            with self.subTest(variable=variable, value=value):
                values = (self.AZURE if module == "azure" else self.GCP) | {variable: value}
                said = self.evaluate(module, values, {"ok": '"ok"'}, code=1)
                self.assertIn(words, " ".join(said.replace("│", " ").split()))


if __name__ == "__main__":
    unittest.main()
