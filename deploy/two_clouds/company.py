"""The company: an Internet, two clouds, hubs, an edge, and 24 services that know of none of it.

    INTERNET  203.0.113.1                 public DNS, the vendors, a stranger
        |                     |
    AZURE (198.51.100.10, .11)       GOOGLE (192.0.2.20)         networks with private addresses behind them,
    hub .4, hub2 .5, dns .2          edge .4, dns .2             and routers that translate and filter as the
    12 services                      12 services                 clouds' security groups do
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

from harness.soak import runs
from two_clouds.network import Image, Machine, Router, run
from two_clouds.wait import Failed, until

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))

# Where the edge finds the hubs.
HUB_NAME, HUB2_NAME = "keys.company.example", "keys2.company.example"
PUBLIC_DNS = "203.0.113.53"
STRANGER = "198.18.0.66"
# The public authority, which the hubs ask for their certificates.
ACME, ACME_NAME = "203.0.113.80", "acme.authority.example"
AZURE, HUB, HUB2, AZURE_DNS = "198.51.100.10", "10.10.0.4", "10.10.0.5", "10.10.0.2"
AZURE2 = "198.51.100.11"
GOOGLE, EDGE, GOOGLE_DNS = "192.0.2.20", "10.20.0.4", "10.20.0.2"


@dataclass(frozen=True)
class Vendor:
    name: str
    host: str
    address: str
    # How its keys look.
    prefix: str

    def new_key(self):
        return self.prefix + secrets.token_urlsafe(36).replace("-", "x").replace("_", "y")


VENDORS = [
    Vendor("openai", "api.openai.com", "203.0.113.10", "sk-proj-"),
    Vendor("stripe", "api.stripe.com", "203.0.113.20", "sk_live_"),
    Vendor("sendgrid", "api.sendgrid.com", "203.0.113.30", "SG."),
]
# What runs in each cloud: services/, each as its authors wrote it.
SERVICES = sorted(path.name for path in (HERE / "services").iterdir())
# Where the image has their runtimes and SDKs.
CLIENTS = Path("/opt/clients")
INTERPRETERS = {".py": [CLIENTS / "venv/bin/python", "-u"], ".mjs": ["node"], ".sh": ["sh"]}
# What only other tests use of them, and is large.
NOT_NEEDED = ("googleapiclient", "googleapiclient.*", "__pycache__")


def built(name):
    """A binary of the profile that scripts/two-clouds has built."""
    path = TARGET / os.environ.get("TWO_CLOUDS_PROFILE", "debug") / name
    if not path.is_file():
        raise Failed(f"{path} is missing: scripts/two-clouds builds it")
    return path


class PublicCa:
    """The root that everybody's machines trust, as the roots of the real Internet."""

    def __init__(self, directory):
        self.directory = directory
        self.root = directory / "root.pem"
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
            "-subj", "/CN=Public Root of the Stage", "-addext", "basicConstraints=critical,CA:TRUE",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-keyout", directory / "root.key", "-out", self.root)

    def issue(self, name, out, usage="serverAuth"):
        key, csr, certificate, extensions = (out / f"{name}.{end}" for end in ("key", "csr", "pem", "ext"))
        extensions.write_text(f"subjectAltName=DNS:{name}\nbasicConstraints=critical,CA:FALSE\nextendedKeyUsage={usage}\n")
        run("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}", "-keyout", key, "-out", csr)
        run("openssl", "x509", "-req", "-in", csr, "-CA", self.root, "-CAkey", self.directory / "root.key", "-days", "20",
            "-extfile", extensions, "-out", certificate)
        return certificate, key


class Api:
    """A vendor: mock-upstream on a machine of the Internet, which accepts only its own keys, and notes who came."""

    def __init__(self, machine, vendor, ca):
        self.machine, self.vendor = machine, vendor
        self.keys = [vendor.new_key()]
        self.key_file = machine.home / "keys"
        self.record = machine.home / "record.ndjson"
        certificate, key = ca.issue(vendor.host, machine.home)
        self._write()
        self.process = machine.start(
            built("mock-upstream"), "--listen", "0.0.0.0:443", "--cert", certificate, "--cert-key", key, "--auth", "any",
            "--key-file", self.key_file, "--record", self.record, "--control", "127.0.0.1:8080",
            "--ready-file", machine.home / "ready", log="log")
        until(f"{vendor.host} serves", lambda: "ready" in read(machine.home / "ready"))

    def _write(self):
        self.key_file.touch(mode=0o600)
        self.key_file.write_text("".join(f"{key}\n" for key in self.keys))

    def accept(self, *keys):
        self.keys = list(keys)
        self._write()
        self.machine.run("curl", "-sSf", "-X", "PUT", "--data-binary", f"@{self.key_file}", "http://127.0.0.1:8080/__keys")

    def requests(self):
        """What was noted of each request."""
        return [json.loads(line) for line in read(self.record).splitlines(keepends=True) if line.endswith("\n")]


class Service:
    """One of the 24: a script, a machine, and a line for each of its calls."""

    def __init__(self, machine, cloud, script):
        self.machine, self.cloud, self.script = machine, cloud, script
        self.name = f"{script} in {cloud}"
        self.log = machine.home / "calls"
        self.process = None
        # Of its failures, so many were counted.
        self.noticed = 0
        # Beside Node's packages, which it looks for from where the script is.
        shutil.copy(HERE / "services" / script, machine.path(CLIENTS / "node" / script))

    def start(self, key_log):
        # As a log-in gives it. And for the proof alone: what the clients' TLS libraries offer to whoever wants to look
        # into a capture.
        environment = dict(line.split("=", 1) for line in read(self.machine.path("/etc/environment")).splitlines() if "=" in line)
        environment.update(SSLKEYLOGFILE=key_log, NODE_OPTIONS=f"--tls-keylog={key_log}")
        self.process = self.machine.start(*INTERPRETERS[Path(self.script).suffix], CLIENTS / "node" / self.script, env={**environment, "NODE_NO_WARNINGS": "1"}, log="calls")

    def calls(self):
        """How many calls went well, and what is said of the others."""
        lines = read(self.log).splitlines()
        return lines.count("ok"), [line for line in lines if line != "ok"]

    def placeholder(self):
        """What it was given in place of a key."""
        return re.search(r"(?:sk-placeholder-|sk_test_placeholder_|SG\.placeholder-)\w+", read(HERE / "services" / self.script)).group()


class Claviger:
    """A hub or an edge: a configuration that can be changed, and one process after the other."""

    def __init__(self, machine, key_log):
        self.machine, self.key_log = machine, key_log
        self.process = None
        self.starts = 0
        for place in ("/etc/claviger/keys", "/var/lib/claviger", "/var/log/claviger"):
            machine.sh(f"mkdir -p -m 0750 {place}")

    def command(self, *words, **options):
        return self.machine.run(built("claviger"), *words, **options)

    def configure(self, text):
        self.machine.write("/etc/claviger/claviger.toml", text, mode=0o640)
        self.command("check")

    def write_key(self, name, key):
        """As an operator's tool does: whole, by renaming."""
        self.machine.write(f"/etc/claviger/keys/{name}.new", key + "\n", mode=0o640)
        self.machine.run("mv", f"/etc/claviger/keys/{name}.new", f"/etc/claviger/keys/{name}")

    def root(self):
        """The root of its CA, as its operator exports it."""
        said = self.command("ca", "export")
        return said[said.index("-----BEGIN"): said.rindex("-----") + 6]

    def start(self):
        self.process = self.machine.start(built("claviger"), "run", env={"SSLKEYLOGFILE": self.key_log}, log="log")
        self.await_serving()

    def await_serving(self):
        self.starts += 1
        try:
            until(f"{self.machine.name} serves", lambda: len(self._serving()) >= self.starts, seconds=60)
        except Failed as failed:
            raise Failed(f"{failed}\n{read(self.machine.home / 'log')[-2000:]}") from None

    def _serving(self):
        """The processes that have said that they serve, in their order."""
        found = []
        for line in read(self.machine.home / "log").splitlines():
            with contextlib.suppress(ValueError):
                said = json.loads(line)
                fields = said.get("fields", said)
                if fields.get("message", said.get("message")) == "serving":
                    found.append(int(fields["pid"]))
        return found

    def pid(self):
        """Of the process that serves, which after a hand-over is not the one that was started."""
        return self._serving()[-1]

    def hand_over(self):
        """To a new process, as an upgrade does; returns when the old one has ended."""
        old = self.pid()
        os.kill(old, signal.SIGURG)
        self.await_serving()
        until(f"the old process of {self.machine.name} ends", lambda: not runs(old) or self.process.poll() is not None, seconds=60)

    def stop(self):
        """As the service manager stops it: what is under way may finish."""
        pid = self.pid()
        os.kill(pid, signal.SIGTERM)
        until(f"{self.machine.name} ends", lambda: not runs(pid) or self.process.poll() is not None, seconds=60)

    def audit(self):
        return [json.loads(line) for line in read(self.machine.path("/var/log/claviger/audit.ndjson")).splitlines(keepends=True)
                if line.endswith("\n")]


def read(path):
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


class Company:
    """All of it, made in this order, ended with the world."""

    def __init__(self, world):
        self.world = world
        self.tls = world.place("public-ca")
        self.key_logs = world.place("key-logs")
        self.bin = world.place("bin")
        for name in ("claviger", "mock-upstream", "loadgen"):
            shutil.copy(built(name), self.bin / name)
        world.visible += [self.bin, self.key_logs]
        self.ca = PublicCa(self.tls)
        self.internet = Router(world, "internet", "203.0.113.1")
        self._on_the_internet()
        self._azure()
        self._google()

    def key_log(self, of):
        return self.key_logs / of

    def _machine(self, router, name, *addresses, image=None, dns=None):
        machine = Machine(self.world, name, image)
        router.attach(machine, *addresses)
        machine.resolve_with(dns or PUBLIC_DNS)
        return machine

    # ---- The Internet ----

    def _on_the_internet(self):
        # The DNS provider's API, at which a hub's operator may set records of the company's zone.
        self.public_dns = self._machine(self.internet, "public-dns", PUBLIC_DNS)
        records = [(vendor.host, vendor.address) for vendor in VENDORS] + [(HUB_NAME, AZURE), (HUB2_NAME, AZURE2), (ACME_NAME, ACME)]
        # For these it is the authority: what they have not, they have not.
        dns(self.public_dns, ["local=/com/", "local=/example/"] + [f"host-record={name},{address}" for name, address in records]
            + [f"server=/_acme-challenge.{name}/127.0.0.1#8053" for name in (HUB_NAME, HUB2_NAME)])
        self.public_dns.start(
            "pebble-challtestsrv", "-dns01", "127.0.0.1:8053", "-management", ":8055", "-http01", "", "-https01", "", "-tlsalpn01", "",
            "-defaultIPv4", "", "-defaultIPv6", "", log="records")
        public_trust = self.ca.root.read_text() + self._public_authority()
        self.public_trust = public_trust
        self.public = Image(self.world, "image-public", lambda builder: trust_in(builder, "public", public_trust))
        self.stranger = self._machine(self.internet, "stranger", STRANGER, image=self.public)
        self.apis = {}
        for vendor in VENDORS:
            machine = self._machine(self.internet, vendor.name, vendor.address, image=self.public)
            self.apis[vendor.name] = Api(machine, vendor, self.ca)

    def _public_authority(self):
        """Let's Encrypt's own test server, which validates for real; its root."""
        machine = self._machine(self.internet, "public-authority", ACME)
        certificate, key = self.ca.issue(ACME_NAME, machine.home)
        config = machine.home / "pebble.json"
        config.write_text(json.dumps({"pebble": {
            "listenAddress": "0.0.0.0:443", "managementListenAddress": "127.0.0.1:15000", "certificate": str(certificate),
            "privateKey": str(key), "httpPort": 80, "tlsPort": 443, "ocspResponderURL": "", "externalAccountBindingRequired": False}}))
        # Every seventh good nonce is refused, as it happens out there.
        machine.start("pebble", "-config", config, "-dnsserver", f"{PUBLIC_DNS}:53", "-strict",
                      env={"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "15"}, log="pebble")
        asked = ["curl", "-sk", "https://127.0.0.1:15000/roots/0"]
        until("the public authority serves", lambda: "BEGIN" in machine.run(*asked, code=None))
        return machine.run(*asked)

    # ---- The clouds ----

    def _azure(self):
        self.azure = Router(self.world, "azure", "10.10.0.1")
        self.internet.join(self.azure, AZURE, AZURE2)
        # The machines of the network have its resolver, the hubs' own among them.
        self.hub, self.hub2 = (Claviger(self._machine(self.azure, name, address, image=self.public, dns=AZURE_DNS), self.key_log(name))
                               for name, address in (("hub", HUB), ("hub2", HUB2)))
        private_dns(self._machine(self.azure, "azure-dns", AZURE_DNS), HUB)
        self.security_group()

    def security_group(self, admits=(GOOGLE,)):
        """What Azure's network security group and NAT do: from outside, the edge's address alone, and port 443 alone;
        from inside, no HTTPS and no DNS past the hub."""
        self.azure.filter(f"""
table ip cloud {{
    chain in {{ type nat hook prerouting priority dstnat;
        iifname wan ip daddr {AZURE} tcp dport 443 dnat to {HUB}
        iifname wan ip daddr {AZURE2} tcp dport 443 dnat to {HUB2}
    }}
    chain out {{ type nat hook postrouting priority srcnat;
        oifname wan ip saddr {HUB2} snat to {AZURE2}
        oifname wan snat to {AZURE}
    }}
    chain pass {{ type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname wan ip saddr {{ {", ".join(admits)} }} ip daddr {{ {HUB}, {HUB2} }} tcp dport 443 accept
        iifname wan drop
        oifname wan ip saddr 10.10.1.0/24 meta l4proto {{ tcp, udp }} th dport {{ 53, 443, 853 }} reject
        accept
    }}
}}""")

    def _google(self):
        self.google = Router(self.world, "google", "10.20.0.1")
        self.internet.join(self.google, GOOGLE)
        self.edge = Claviger(self._machine(self.google, "edge", EDGE, image=self.public, dns=GOOGLE_DNS), self.key_log("edge"))
        private_dns(self._machine(self.google, "google-dns", GOOGLE_DNS), EDGE)
        self.google_rules = """
table ip cloud {
    chain out { type nat hook postrouting priority srcnat; oifname wan masquerade; }
    chain pass { type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname wan drop
        oifname wan ip saddr 10.20.1.0/24 meta l4proto { tcp, udp } th dport { 53, 443, 853 } reject
        accept
    }
}"""
        self.google.filter(self.google_rules)

    # ---- The services ----

    def services(self, *roots):
        """The base image with the company's CAs, and 24 machines made of it."""
        def prepare(builder):
            trust_in(builder, "public", self.public_trust)
            shutil.copytree(TARGET / "it-clients", builder.path(CLIENTS), symlinks=True, ignore=shutil.ignore_patterns(*NOT_NEEDED))
            # The public roots are part of every client already; the company's own are what the kit brings.
            trust_in(builder, "public", self.public_trust, "--search", CLIENTS)
            trust_in(builder, "claviger", "".join(roots), "--search", CLIENTS)
        image = Image(self.world, "image-services", prepare)
        made = []
        for cloud, router, network, resolver in (("Azure", self.azure, "10.10.1", AZURE_DNS), ("Google", self.google, "10.20.1", GOOGLE_DNS)):
            for number, script in enumerate(SERVICES):
                name = f"{cloud[0].lower()}-{script.replace('.', '-')}"
                machine = self._machine(router, name, f"{network}.{number + 11}", image=image, dns=resolver)
                made.append(Service(machine, cloud, script))
        return made


def trust_in(builder, name, pem, *options):
    """As every image of the company is made: deploy/install-ca."""
    builder.write(f"/tmp/{name}.crt", pem)
    builder.write("/tmp/install-ca", (HERE.parent / "install-ca").read_bytes(), mode=0o755)
    builder.run("/tmp/install-ca", "--quiet", "--without", "java,nss", "--name", name, *options, f"/tmp/{name}.crt")


def dns(machine, lines):
    machine.write("/etc/two-clouds-dns.conf", "\n".join(
        ["no-resolv", "no-hosts", "port=53", "user=root", "keep-in-foreground", "log-queries", "log-facility=-", *lines, ""]))
    machine.start("dnsmasq", "--conf-file=/etc/two-clouds-dns.conf", log="dns")
    until(f"{machine.name} answers", lambda: "started" in read(machine.home / "dns"))


def private_dns(machine, address):
    """What the cloud's private zones do: the vendors' names are Claviger's, with no record but the address."""
    lines = [f"server={PUBLIC_DNS}"]
    for vendor in VENDORS:
        lines += [f"local=/{vendor.host}/", f"host-record={vendor.host},{address}"]
    dns(machine, lines)
