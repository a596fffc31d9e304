"""What is promised of two clouds, each promise as a function that shows it or fails."""

import datetime
import json
import os
import secrets
import signal
import time

from two_clouds import settings
from two_clouds.company import AZURE, AZURE2, EDGE, GOOGLE, HUB, HUB2, HUB2_NAME, HUB_NAME, VENDORS, Company, PublicCa, read
from two_clouds.search import Patterns, in_capture, in_memory
from two_clouds.wait import Failed, until

# What replays by itself: these services only ask. The others pay and send.
ASKING = {"models.py", "balance.py", "nightly.sh", "payouts.sh", "refunds.mjs"}


class Stage:
    """The company at work, and what was shown of it."""

    def __init__(self, world, say, rps):
        self.say, self.rps = say, rps
        self.company = company = Company(world)
        self.token = secrets.token_hex(32)
        self.edges = PublicCa(company.world.place("edge-ca"))
        self.old_keys = {}
        self.captures = []
        self.noticed = []
        self.shown = []
        say("three vendors, public DNS, two networks with their routers and private DNS")
        self._hubs()
        self._edge()
        self.services = company.services(company.hub.root(), company.edge.root())
        say(f"{len(self.services)} services, each on a machine of its own; the CAs are in their image")

    def show(self, claim, figure):
        self.shown.append((claim, figure))
        self.say(f"{claim}: {figure}")

    def _hubs(self):
        company = self.company
        self.hubs = [company.hub, company.hub2]
        permitted = sorted({vendor.host.split(".", 1)[1] for vendor in VENDORS} | {"company.example"})
        for hub, name in zip(self.hubs, (HUB_NAME, HUB2_NAME)):
            hub.machine.write("/etc/claviger/acme-dns", settings.HOOK, mode=0o755)
            hub.machine.write("/etc/claviger/edges.pem", self.edges.root.read_text())
            hub.write_key("edge-token", self.token)
            for vendor in VENDORS:
                hub.write_key(vendor.name, company.apis[vendor.name].keys[0])
            if hub is company.hub:
                hub.command("ca", "init", "--permit", *permitted)
            else:
                # One CA for both: whoever trusts the one hub trusts the other.
                self._copy_ca(company.hub, hub)
            hub.configure(settings.hub(name))
            hub.start()
        self.say("two hubs, which hold the keys")
        for name, address in ((HUB_NAME, AZURE), (HUB2_NAME, AZURE2)):
            # From the edge's address, the only one that the security group admits.
            asked = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "4", "--resolve", f"{name}:443:{address}", f"https://{name}/"]
            until(f"{name} has its public certificate", lambda: company.edge.machine.run(*asked, code=None).endswith("400"), 60)
        self.say("they have their certificates from the public authority, by DNS-01")

    @staticmethod
    def _copy_ca(of, to):
        to.machine.sh("mkdir -p -m 0700 /var/lib/claviger/ca")
        for file in of.machine.path("/var/lib/claviger/ca").iterdir():
            if file.is_file():
                to.machine.write(f"/var/lib/claviger/ca/{file.name}", file.read_bytes(), mode=0o600)

    def _edge(self):
        edge = self.company.edge
        certificate, key = self.edges.issue(settings.EDGE_IDENTITY, edge.machine.home, usage="clientAuth")
        edge.machine.write("/etc/claviger/edge.pem", certificate.read_text())
        edge.machine.write("/etc/claviger/edge.key", key.read_text(), mode=0o640)
        edge.write_key("edge-token", self.token)
        edge.command("ca", "init", "--permit", *sorted({vendor.host.split(".", 1)[1] for vendor in VENDORS}))
        edge.configure(settings.edge())
        edge.start()
        self.say("an edge, which holds none")

    # ---- What is counted ----

    def failures(self):
        """All that failed so far, in the order in which it was noticed here."""
        for service in self.services:
            said = service.calls()[1]
            self.noticed += [f"{service.name}: {line}" for line in said[service.noticed:]]
            service.noticed = len(said)
        return self.noticed

    def calls(self, cloud=None):
        return sum(service.calls()[0] for service in self.services if cloud in (None, service.cloud))

    def nothing_failed(self, since, what, asking_only=False):
        """Since there were `since` failures, there was none more."""
        failures = self.failures()[since:]
        if asking_only:
            failures = [line for line in failures if line.split(" in ")[0] in ASKING]
        if failures:
            raise Failed(f"{what}: {len(failures)} calls failed, such as\n  " + "\n  ".join(failures[-5:]))

    def everybody_calls(self, times=3, seconds=60):
        """Until each of the services has made so many calls more."""
        before = {service.name: service.calls()[0] for service in self.services}
        until("each service has made its calls", lambda: all(
            service.calls()[0] >= before[service.name] + times for service in self.services) or self.failures(), seconds)

    # ---- The promises ----

    def all_24_work(self):
        for service in self.services:
            service.start(self.company.key_log("services"))
        def idle():
            return [service.name for service in self.services if service.calls()[0] < 5]
        try:
            until("each service has made five calls", lambda: not idle() or self.failures(), 120)
        except Failed as failed:
            raise Failed(f"{failed}; not so {', '.join(idle())}") from None
        self.nothing_failed(0, "not all services work")
        self.show("services that work, with placeholders for keys", f"{len(self.services)} of {len(self.services)}, "
                  f"{self.calls('Azure')} calls in Azure, {self.calls('Google')} in Google, 0 failed")
        for vendor in VENDORS:
            api = self.company.apis[vendor.name]
            asked = api.requests()
            bad = [one for one in asked if not one["authorized"]]
            if bad or not asked:
                raise Failed(f"{vendor.host} saw {len(bad)} of {len(asked)} requests without its key")

    def a_key_is_replaced(self):
        """The vendors accept both for a while, the files on the hubs change, then the vendors forget the old ones."""
        since = len(self.failures())
        begun = time.time()
        fresh = {}
        for vendor in VENDORS:
            api = self.company.apis[vendor.name]
            fresh[vendor.name] = vendor.new_key()
            api.accept(*api.keys, fresh[vendor.name])
            self.old_keys[vendor.name] = api.keys[0]
        written = time.time()
        for hub in self.hubs:
            for vendor in VENDORS:
                hub.write_key(vendor.name, fresh[vendor.name])
        old = {name: self._versions_before(written).get(name) for name in fresh}
        waiting = {self._address(service): service for service in self.services}
        reached = {}

        def all_reached():
            for record in self.company.hub.audit() + self.company.hub2.audit():
                address = record.get("edge_client") or record.get("client")
                if address in waiting and record.get("credential_version") not in (None, old.get(record.get("route"))):
                    reached.setdefault(address, _seconds(record["time"]))
            return len(reached) == len(waiting)
        until("the new keys are used for each of the services", all_reached, 60)
        for vendor in VENDORS:
            self.company.apis[vendor.name].accept(fresh[vendor.name])
        self.everybody_calls()
        self.nothing_failed(since, "replacing the keys")
        self.show("three keys replaced on the hubs, used for all 24 services", f"within {max(reached.values()) - written:.1f} s, 0 calls failed; "
                  "the old ones are void at the vendors")

    def _versions_before(self, moment):
        """The version of each credential that was used last before then."""
        found = {}
        for record in self.company.hub.audit():
            if record.get("credential_version") and _seconds(record["time"]) <= moment:
                found[record["route"]] = record["credential_version"]
        return found

    @staticmethod
    def _address(service):
        return service.machine.address

    def the_trails_join(self):
        """Each request of a service in Google is on both trails, under one id."""
        at_edge = {record["request_id"]: record for record in self.company.edge.audit() if record.get("route")}
        at_hub = {record["edge_request_id"]: record for hub in self.hubs for record in hub.audit() if record.get("edge_request_id")}
        # What is under way stands on one trail so far.
        settled = [one for one in at_edge if one in at_hub]
        wrong = [one for one in settled if at_hub[one].get("edge_client") != at_edge[one]["client"]]
        if wrong or len(settled) < len(at_edge) - len(self.services) - 8:
            raise Failed(f"{len(settled)} of {len(at_edge)} requests of the edge are on a hub's trail, {len(wrong)} of them with another caller")
        self.show("requests on the edge's trail that are on the hub's, with the same id and caller", f"{len(settled)} of {len(at_edge)} (the others under way)")

    def memory_has_no_key(self):
        """In the memory of no process but the hubs' and the vendors'."""
        keys = {vendor.name: self.company.apis[vendor.name].keys[0] for vendor in VENDORS}
        patterns = Patterns({**keys, **{f"old {name}": key for name, key in self.old_keys.items()}})
        looked_bytes = processes = 0
        for service in self.services:
            own = Patterns({"placeholder": service.placeholder()})
            for pid in _tree(service.process.pid):
                try:
                    found, looked = in_memory(pid, patterns)
                except (ProcessLookupError, FileNotFoundError):
                    # A child of a shell's that has ended meanwhile.
                    continue
                if found:
                    raise Failed(f"{service.name} (process {pid}) has a key in its memory: {sorted(found)}")
                looked_bytes += looked
                processes += 1
            if not in_memory(service.process.pid, own)[0]:
                raise Failed(f"the search is blind: {service.name} must have its own placeholder in its memory")
        others = [(machine.name, process.pid) for machine in self.company.world.machines for process in machine.started
                  if process.poll() is None and machine not in self._keepers() and machine not in {service.machine for service in self.services}]
        others.append(("the edge", self.company.edge.pid()))
        for name, pid in others:
            found, looked = in_memory(pid, patterns)
            if found:
                raise Failed(f"{name} (process {pid}) has a key in its memory: {sorted(found)}")
            looked_bytes += looked
            processes += 1
        for hub in self.hubs:
            if not set(keys) <= in_memory(hub.pid(), patterns)[0]:
                raise Failed(f"the search is blind: {hub.machine.name} must have the keys in its memory")
        for vendor in VENDORS:
            if vendor.name not in in_memory(self.company.apis[vendor.name].process.pid, patterns)[0]:
                raise Failed(f"the search is blind: {vendor.host} must have its key in its memory")
        self.show("processes without a key in their memory, the edge's among them", f"{processes}, {looked_bytes >> 20} MiB searched; "
                  "found where they must be: in the hubs and the vendors, and each service's placeholder in its own")

    def _keepers(self):
        return {hub.machine for hub in self.hubs} | {api.machine for api in self.company.apis.values()}

    def captures_begin(self):
        self.captures = [router.capture() for router in (self.company.internet, self.company.azure, self.company.google)]
        until("the captures have begun", lambda: all(capture.begun() for capture in self.captures))

    def wires_have_no_key(self):
        """In no packet, decrypted, but between a hub and the vendor whose key it is."""
        pcaps = [capture.end() for capture in self.captures]
        words = {f"key of {vendor.name}": self.company.apis[vendor.name].keys[0] for vendor in VENDORS}
        patterns = Patterns({**words, **{f"old key of {name}": key for name, key in self.old_keys.items()}, "edge's token": self.token,
                             **{f"placeholder of {service.script}": service.placeholder() for service in self.services}})
        logs = list(self.company.key_logs.iterdir())
        packets = decrypted = with_key = 0
        edge_to_hub = False
        vendors = {vendor.address: vendor.name for vendor in VENDORS}
        # Addresses of hubs, before and behind the translation.
        hubs = {HUB, HUB2, AZURE, AZURE2}
        placeholders = set()
        for pcap in pcaps:
            for (source, target), link in in_capture(pcap, logs, patterns).items():
                packets += link.packets
                decrypted += link.decrypted_bytes
                keys = {name for name in link.found if "key of" in name}
                if keys:
                    allowed = {f"{age}key of {vendors.get(target)}" for age in ("", "old ")}
                    if source not in hubs or not keys <= allowed:
                        raise Failed(f"{pcap.stem}: {sorted(keys)} went from {source} to {target}")
                    with_key += 1
                if "edge's token" in link.found:
                    edge_to_hub = True
                    if target not in hubs:
                        raise Failed(f"{pcap.stem}: the edge's token went from {source} to {target}")
                seen = {name for name in link.found if name.startswith("placeholder")}
                if seen and (target in vendors or source in hubs and target not in hubs):
                    raise Failed(f"{pcap.stem}: {sorted(seen)} went from {source} to {target}")
                placeholders |= seen
        if not with_key or not edge_to_hub or len(placeholders) < len({service.script for service in self.services}):
            raise Failed(f"the search is blind: keys to vendors on {with_key} links, the edge's token {'seen' if edge_to_hub else 'not seen'}, "
                         f"{len(placeholders)} placeholders")
        self.show("packets without a key, decrypted, on every wire but hub to vendor", f"{packets} packets, {decrypted >> 10} KiB of them decrypted; "
                  f"found where they must be: keys on {with_key} links of hub to vendor, the token from edge to hub, {len(placeholders)} placeholders from the services")

    def stolen_proofs_are_worth_nothing(self):
        """The edge's certificate and token, from a third network and, one without the other, from the right one."""
        stranger, edge = self.company.stranger, self.company.edge.machine
        url = f"https://{HUB_NAME}/v1/models"
        for file in ("edge.pem", "edge.key"):
            stranger.write(f"/root/{file}", edge.path(f"/etc/claviger/{file}").read_bytes(), mode=0o600)

        def ask(machine, directory, certificate, token):
            words = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "4", "-H", "Claviger-Authority: api.openai.com",
                     "-H", "Claviger-Caller: 10.20.1.11", "-H", "Claviger-Request-Id: 00000000000000000000000000000000"]
            words += ["--cert", f"{directory}/edge.pem", "--key", f"{directory}/edge.key"] if certificate else []
            words += ["-H", f"Claviger-Token: {self.token}"] if token else []
            return machine.run(*words, url, code=None).strip()[-3:]

        said = {"all of it, past the security group": ask(stranger, "/root", True, True)}
        self.company.security_group(admits=(GOOGLE, stranger.address))
        said["all of it, the security group left open"] = ask(stranger, "/root", True, True)
        self.company.security_group()
        said["from the right address without the token"] = ask(edge, "/etc/claviger", True, False)
        said["from there without the certificate"] = ask(edge, "/etc/claviger", False, True)
        said["from there without either"] = ask(edge, "/etc/claviger", False, False)
        said["from there with both"] = ask(edge, "/etc/claviger", True, True)
        wanted = ["000", "403", "401", "401", "401", "200"]
        if list(said.values()) != wanted:
            raise Failed(f"answers to stolen proofs: {said}, and not {wanted}")
        self.show("stolen certificate and token", "from a third network: no connection, and 403 where the security group was left open; "
                  "from the right address one without the other: 401 (both together: 200)")

    def upgrades_lose_nothing(self):
        for claviger, what in ((self.company.hub, "the hub"), (self.company.edge, "the edge")):
            since = len(self.failures())
            before = self.calls()
            claviger.hand_over()
            self.everybody_calls()
            self.nothing_failed(since, f"replacing the process of {what}")
            self.show(f"a new process of {what} takes over under load", f"{self.calls() - before} calls, 0 failed")

    def a_hub_goes(self):
        """The edge goes on with the second one: when the first is stopped, and when it vanishes without a word."""
        since = len(self.failures())
        before = self.calls("Google")
        self._used(self.company.hub)
        # From the other cloud: the first hub's own services have no second one.
        azure = self.company.azure
        azure.run("nft", "insert", "rule", "ip", "cloud", "pass", "iifname", "wan", "ip", "daddr", HUB, "tcp", "dport", "443", "reject", "with", "tcp", "reset")
        self._google_calls()
        self.nothing_failed(since, "the first hub refuses", asking_only=True)
        self._used(self.company.hub2)
        self.show("the first hub refuses its connections; the edge goes on with the second", f"{self.calls('Google') - before} calls, "
                  f"none that could be sent again failed ({len(self.failures()) - since} others)")
        self.company.security_group()
        since = len(self.failures())
        until("the edge is back at the first hub", lambda: self._used(self.company.hub), 30)
        before = self.calls("Google")
        azure.run("nft", "insert", "rule", "ip", "cloud", "pass", "ip", "daddr", HUB, "iifname", "wan", "drop")
        azure.run("nft", "insert", "rule", "ip", "cloud", "pass", "ip", "saddr", HUB, "oifname", "wan", "tcp", "sport", "443", "drop")
        self._google_calls(seconds=60)
        self.nothing_failed(since, "the first hub vanishes", asking_only=True)
        self.show("the first hub vanishes without a word; the edge goes on with the second", f"{self.calls('Google') - before} calls, "
                  f"none that could be sent again failed ({len(self.failures()) - since} others)")
        self.company.security_group()

    def _google_calls(self, seconds=60):
        google = [service for service in self.services if service.cloud == "Google"]
        before = {service.name: service.calls()[0] for service in google}
        until("each service in Google has made three calls", lambda: all(
            service.calls()[0] >= before[service.name] + 3 for service in google), seconds)

    def _used(self, hub, times=1):
        """Whether an edge's request reaches this hub now."""
        before = sum(1 for record in hub.audit() if record.get("edge_request_id"))
        try:
            until(f"{hub.machine.name} gets requests of the edge", lambda: sum(1 for record in hub.audit() if record.get("edge_request_id")) >= before + times, 15)
            return True
        except Failed:
            return False

    def the_edge_is_cut_off(self):
        """No hub in reach: a fast, clear refusal, and service within a second of the link's return."""
        self.company.google.run("nft", "insert", "rule", "ip", "cloud", "pass", "oifname", "wan", "tcp", "dport", "443", "reject", "with", "tcp", "reset")
        probe = self.services[-1].machine
        timed = ["curl", "-sS", "-o", "-", "-w", "\n%{http_code} %{time_total}", "--max-time", "20", "https://api.openai.com/v1/models"]
        until("the edge says that no hub is in reach", lambda: probe.run(*timed, code=None).rpartition("\n")[2].startswith("503"), 20)
        said, _, figures = probe.run(*timed, code=None).rpartition("\n")
        seconds = float(figures.split()[1])
        if "hub" not in said or seconds > 1:
            raise Failed(f"cut off, the edge answered after {seconds} s: {figures} {said[:300]}")
        self.company.google.filter(self.company.google_rules)
        back = time.monotonic()
        until("the edge serves again", lambda: probe.run(*timed, code=None).rpartition("\n")[2].startswith("200"), 20)
        self.show("cut off from both hubs, the edge refuses", f"503 after {seconds * 1000:.0f} ms; serves {time.monotonic() - back:.1f} s after the link's return")


    def no_loop(self):
        """The private DNS names Claviger; Claviger asks the public one. Told to ask the private one, it goes in no circle."""
        hub = self.company.hub.machine
        named = hub.run("python3", "-c", "import socket; print(socket.gethostbyname('api.openai.com'))").strip()
        if named != HUB:
            raise Failed(f"on the hub's own machine the name must be overridden too; it is {named}")
        # Each hub takes the other one for the vendor, trusts its certificate, and may go to private addresses: all
        # of it wrong, and written.
        for claviger, name, wrong in ((self.company.hub, HUB_NAME, HUB2), (self.company.hub2, HUB2_NAME, HUB)):
            claviger.machine.write("/etc/claviger/own-root.pem", self.company.hub.root())
            text = settings.hub(name, more=f'''
[upstream."api.openai.com"]
addresses = ["{wrong}:443"]
ca_file = "/etc/claviger/own-root.pem"
''')
            claviger.configure(text)
            os.kill(claviger.pid(), signal.SIGHUP)
        probe = self.services[0].machine
        words = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "10", "https://api.openai.com/v1/models"]
        until("a request that goes in a circle is answered 508", lambda: probe.run(*words, code=None) == "508", 20)
        for claviger, name in ((self.company.hub, HUB_NAME), (self.company.hub2, HUB2_NAME)):
            claviger.configure(settings.hub(name))
            os.kill(claviger.pid(), signal.SIGHUP)
        until("the hubs are as they were", lambda: probe.run(*words, code=None) == "200", 20)
        self.show("the private DNS override", "leads even the hub's own machine to itself, and no request of it goes in a circle; "
                  "two hubs that are made to take each other for the vendor: 508")

    def each_hop_is_measured(self, seconds=5):
        """loadgen from a service's machine of each cloud, and past all of it, straight to the vendor."""
        rate = self.rps
        for service in self.services:
            service.process.send_signal(signal.SIGSTOP)
        try:
            figures = {}
            at_azure = next(service.machine for service in self.services if service.cloud == "Azure")
            at_google = next(service.machine for service in self.services if service.cloud == "Google")
            address = VENDORS[0].address
            key = self.company.apis[VENDORS[0].name].keys[0]
            for what, machine, to, bearer in (
                    ("straight to the vendor", self.company.stranger, address, key),
                    ("through the hub", at_azure, HUB, "sk-placeholder"),
                    ("through edge and hub", at_google, EDGE, "sk-placeholder")):
                machine.write("/root/all.pem", self.company.public_trust + self.company.hub.root() + self.company.edge.root())
                said = json.loads(machine.run(
                    self.company.bin / "loadgen", "--json", "--quiet", "--rps", rate, "--connections", 16, "--duration", f"{seconds}s", "--warmup", "1s", "--lag-bound", "60s",
                    "--cacert", "/root/all.pem", "--connect", f"{to}:443", "--header", f"Authorization: Bearer {bearer}", "https://api.openai.com/v1/models", remarks=False))
                [target] = said["targets"]
                errors = {kind: count for kind, count in target["errors"].items() if count}
                if errors:
                    raise Failed(f"{what}: loadgen saw {errors}")
                latency = target["latency"]
                figures[what] = (latency["p50"], latency["p99"])
        finally:
            for service in self.services:
                service.process.send_signal(signal.SIGCONT)
        (p50, p99), *_ = figures.values()
        self.show(f"latency at {rate} requests/s, p50 / p99", "; ".join(
            f"{what} {one / 1000:.2f} / {other / 1000:.2f} ms" + (f" (added {(one - p50) / 1000:.2f} / {(other - p99) / 1000:.2f})" if (one, other) != (p50, p99) else "")
            for what, (one, other) in figures.items()))


def _seconds(written):
    """The trail's times are RFC 3339 in UTC."""
    return datetime.datetime.fromisoformat(written.replace("Z", "+00:00")).timestamp()


def _tree(pid):
    """A process and its children."""
    found = [pid]
    for child in read(f"/proc/{pid}/task/{pid}/children").split():
        found += _tree(int(child))
    return found
