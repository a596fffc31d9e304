"""The Debian package: made, installed, upgraded and removed by the real apt and dpkg; first boot; backup and restore."""

import gzip
import hashlib
import http.server
import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
import threading
import unittest
from pathlib import Path

from machine import KIT, STOCK, Machine, claviger, free_port, needs_root, run
from test_first_boot import filled

DIRECTORY = None
PACKAGES = {}

# What an upgrade does to a running service, told to a systemctl that writes it down.
SYSTEMCTL = """#!/bin/sh
echo "$*" >>/systemctl-calls
case "$*" in *is-active*) [ -e /active ] ;; esac
"""


def setUpModule():
    global DIRECTORY
    DIRECTORY = Path(tempfile.mkdtemp(prefix="claviger-packages-"))
    for revision in ("1", "2"):
        PACKAGES[revision] = Path(run(KIT / "package", "--binary", claviger(), "--out", DIRECTORY, "--revision", revision).strip())


def tearDownModule():
    shutil.rmtree(DIRECTORY)


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


class Installed(Machine):
    def __init__(self, revision="1"):
        super().__init__(STOCK / "bookworm")
        if revision:
            self.install(revision)

    def install(self, revision):
        self.write("/tmp/claviger.deb", PACKAGES[revision].read_bytes())
        return self.run("apt-get", "-q", "-y", "--no-install-recommends", "install", "/tmp/claviger.deb", env={"DEBIAN_FRONTEND": "noninteractive"})

    def as_claviger(self, *command, **options):
        return self.run("runuser", "-u", "claviger", "--", *command, **options)

    def set_up(self, port=None):
        """As docs/installing.md has it: a CA, a key, a route."""
        self.as_claviger("claviger", "ca", "init", "--permit", "example.com")
        # A test asks nobody on the Internet; on loopback there is no resolver.
        settings = self.read("/etc/claviger/claviger.toml")
        self.path("/etc/claviger/claviger.toml").write_text(settings.replace('["8.8.8.8", "1.1.1.1"]', '["127.0.0.1"]'))
        self.run("install", "-m", "0640", "-o", "root", "-g", "claviger", "/dev/stdin", "/etc/claviger/keys/api", input="sk-a-made-up-key-0123456789\n")
        self.write("/etc/claviger/conf.d/api.toml", f"""
[credential.api]
source = "file:///etc/claviger/keys/api"
inject = "bearer"
[[listener]]
name = "https"
address = ["127.0.0.1:{port or 443}"]
[[route]]
host = "api.example.com"
credential = "api"
""", 0o640)
        self.run("chown", "root:claviger", "/etc/claviger/conf.d/api.toml")

    def tree(self, *tops):
        found = {}
        for top in tops:
            for directory, names, files in os.walk(self.path(top)):
                for name in names + files:
                    path = Path(directory, name)
                    owner = self.run("stat", "-c", "%U:%G", "/" + str(path.relative_to(self.root))).strip()
                    content = path.read_bytes() if path.is_file() else b""
                    found[str(path.relative_to(self.root))] = (mode(path), owner, content)
        return found


@needs_root
class Package(unittest.TestCase):
    def test_installs_serves_and_goes(self):
        port = free_port()
        with Installed() as machine:
            for path, owner, bits in [("/etc/claviger", "root:claviger", 0o750), ("/etc/claviger/keys", "root:claviger", 0o750),
                                      ("/etc/claviger/claviger.toml", "root:claviger", 0o640), ("/var/lib/claviger", "claviger:claviger", 0o700),
                                      ("/var/log/claviger", "claviger:claviger", 0o750)]:
                self.assertEqual(machine.run("stat", "-c", "%U:%G", path).strip(), owner, path)
                self.assertEqual(mode(machine.path(path)), bits, path)
            self.assertIn("no route", machine.as_claviger("claviger", "check", code=1), "nothing else is wrong with what is shipped")

            machine.set_up(port)
            self.assertIn("is good", machine.as_claviger("claviger", "check"))
            machine.as_claviger("claviger", "ca", "export", "--out", "/tmp/root.crt")
            machine.run("/usr/share/claviger/install-ca", "/tmp/root.crt")
            said = machine.run("sh", "-c", f"""
runuser -u claviger -- claviger run >/tmp/log 2>&1 & pid=$!
trap 'kill $pid; wait $pid' EXIT
curl -sS -i --retry 100 --retry-delay 0 --retry-connrefused --max-time 60 --connect-to api.example.com:{port}:127.0.0.1:{port} \
    https://api.example.com:{port}/v1/things || cat /tmp/log""")
            # No resolver is reachable from here, and it says so itself: it serves, with a certificate that is trusted.
            self.assertIn("Claviger-Answer: claviger; reason=upstream_address_unknown", said)
            self.assertIn('"reason":"upstream_address_unknown"', machine.read("/var/log/claviger/audit.ndjson"))

            machine.run("apt-get", "-q", "-y", "remove", "claviger")
            self.assertFalse(machine.path("/usr/bin/claviger").exists())
            self.assertTrue(machine.path("/etc/claviger/keys/api").exists() and machine.path("/var/lib/claviger/ca/root.key").exists())
            said = machine.run("dpkg", "--purge", "claviger")
            self.assertFalse(machine.path("/etc/claviger").exists() or machine.path("/var/lib/claviger").exists())
            self.assertTrue(machine.path("/var/log/claviger/audit.ndjson").exists(), "who used which key does not go with a package")
            self.assertIn("the audit trail stays", said)

    def test_an_upgrade_hands_over_and_asks_nothing(self):
        with Installed() as machine:
            machine.set_up()
            before = machine.tree("/etc/claviger", "/var/lib/claviger")
            machine.write("/usr/bin/systemctl", SYSTEMCTL, 0o755)
            machine.path("/run/systemd/system").mkdir(parents=True)
            machine.write("/active", "")
            machine.install("2")
            self.assertEqual(machine.read("/systemctl-calls").splitlines(), [
                "--system daemon-reload", "--quiet is-active claviger.service", "kill --kill-who=main --signal=URG claviger.service"])
            self.assertEqual(machine.tree("/etc/claviger", "/var/lib/claviger"), before)
            # A configuration that the new version refuses: the old process is left alone.
            machine.path("/systemctl-calls").unlink()
            machine.write("/etc/claviger/conf.d/api.toml", "nonsense = 1\n")
            machine.write("/tmp/claviger.deb", PACKAGES["1"].read_bytes())
            self.assertIn("the old one serves on", machine.run("dpkg", "--install", "--force-downgrade", "/tmp/claviger.deb"))
            self.assertNotIn("URG", machine.read("/systemctl-calls"))
            # One that is not running is not started.
            machine.path("/active").unlink()
            machine.install("2")
            self.assertNotIn("URG", machine.read("/systemctl-calls"))
            machine.path("/systemctl-calls").unlink()
            machine.run("apt-get", "-q", "-y", "remove", "claviger")
            self.assertEqual(machine.read("/systemctl-calls").splitlines(), [
                "--quiet stop claviger.service claviger.socket", "--quiet disable claviger.service claviger.socket", "--system daemon-reload"])

    def test_what_is_in_it(self):
        with tempfile.TemporaryDirectory() as directory:
            run("dpkg-deb", "-x", PACKAGES["1"], directory)
            run("dpkg-deb", "-e", PACKAGES["1"], f"{directory}/DEBIAN")
            dropin = Path(directory, "usr/lib/systemd/system/claviger.service.d/10-package.conf").read_text()
            unit = (KIT / "claviger.service").read_text()
            commands = lambda text: [line for line in text.splitlines() if re.match(r"Exec\w+=.", line)]
            self.assertEqual(commands(dropin), [line.replace("/usr/local/bin/", "/usr/bin/") for line in commands(unit)])
            self.assertEqual(Path(directory, "DEBIAN/conffiles").read_text(), "/etc/claviger/claviger.toml\n")
            self.assertIn("claviger (0", gzip.decompress(Path(directory, "usr/share/doc/claviger/changelog.Debian.gz").read_bytes()).decode())
            # systemd's own judge, of the unit with its drop-in.
            Path(directory, "bin").symlink_to("usr/bin")
            Path(directory, "usr/bin/kill").write_text("")
            Path(directory, "usr/bin/kill").chmod(0o755)
            for target in ("network-online.target", "multi-user.target", "sysinit.target", "basic.target", "shutdown.target", "sockets.target"):
                Path(directory, "usr/lib/systemd/system", target).write_text("[Unit]\nDescription=for the test\n")
            finished = subprocess.run(["systemd-analyze", f"--root={directory}", "--man=no", "verify", "claviger.service"], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            complaints = [line for line in finished.stdout.splitlines() if "claviger" in line]
            self.assertEqual(complaints, [], finished.stdout)


@needs_root
class FirstBootRuns(unittest.TestCase):
    def test_the_setup_installs_what_was_pinned_and_can_be_repeated(self):
        package = PACKAGES["1"].read_bytes()

        class Server(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(package)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        values = {"package_url": f"http://127.0.0.1:{server.server_port}/claviger.deb", "package_sha256": hashlib.sha256(package).hexdigest()}
        for name in ("hub.yaml", "edge.yaml"):
            with self.subTest(name), Installed(None) as machine:
                self.write_files(machine, filled(name))
                machine.run("/usr/local/sbin/claviger-setup", code=None)
                self.assertFalse(machine.path("/usr/bin/claviger").exists(), "another package than the one that was pinned")
                self.write_files(machine, filled(name, **values))
                machine.run("/usr/local/sbin/claviger-setup")
                root = machine.read("/etc/claviger/root.crt")
                self.assertEqual(root, machine.read("/var/lib/claviger/ca/root.pem"))
                text = machine.run("openssl", "x509", "-in", "/etc/claviger/root.crt", "-noout", "-text")
                self.assertIn("DNS:example.com", text)
                self.assertIn("DNS:example.org", text)
                machine.run("/usr/local/sbin/claviger-setup")
                self.assertEqual(machine.read("/etc/claviger/root.crt"), root, "the CA stays")

    def write_files(self, machine, text):
        """As cloud-init's module does; its own parser reads the file."""
        machine.write("/tmp/config.yaml", text)
        said = machine.run("python3", "-c", """
import json, yaml
config = yaml.safe_load(open("/tmp/config.yaml"))
print(json.dumps([(file["path"], file["content"], file.get("permissions", "0644")) for file in config["write_files"]]))
""")
        for path, content, permissions in json.loads(said):
            machine.write(path, content, int(permissions, 8))


@needs_root
class Backup(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.age = Path(run("sh", "-c", "command -v age").strip()).read_bytes()
        cls.keys = {}
        for name in ("ours", "theirs"):
            path = DIRECTORY / name
            if not path.exists():
                run("age-keygen", "-o", path)
            cls.keys[name] = (path.read_text(), re.search(r"public key: (\S+)", path.read_text())[1])

    def machine(self, revision="1"):
        machine = Installed(revision)
        self.addCleanup(machine.close)
        machine.write("/usr/bin/age", self.age, 0o755)
        machine.write("/root/ours", self.keys["ours"][0], 0o600)
        machine.write("/root/theirs", self.keys["theirs"][0], 0o600)
        return machine

    def test_there_and_back_on_another_machine(self):
        old = self.machine()
        old.set_up()
        old.write("/var/log/claviger/audit.ndjson", '{"one":1}\n{"half', 0o640)
        kept = old.tree("/etc/claviger", "/var/lib/claviger")
        old.run("claviger-backup", "--to", "/root/backup.age", "--recipient", self.keys["ours"][1], "--with-audit")
        backup = old.path("/root/backup.age").read_bytes()
        self.assertEqual(mode(old.path("/root/backup.age")), 0o600)
        for secret in (b"sk-a-made-up-key", b"PRIVATE KEY", b"api.example.com"):
            self.assertNotIn(secret, backup)
        self.assertIn("is there already", old.run("claviger-backup", "--to", "/root/backup.age", "--recipient", self.keys["ours"][1], code=1))

        new = self.machine(None)
        # Other numbers for the same names.
        new.run("adduser", "--system", "--group", "--quiet", "somebody")
        new.install("1")
        self.assertNotEqual(new.run("id", "-u", "claviger"), old.run("id", "-u", "claviger"))
        new.write("/root/backup.age", backup)
        listed = new.run("claviger-restore", "--from", "/root/backup.age", "--identity", "/root/ours", "--list")
        self.assertIn("var/lib/claviger/ca/root.key\n", listed)
        said = new.run("claviger-restore", "--from", "/root/backup.age", "--identity", "/root/ours")
        self.assertIn("restored  /var/lib/claviger", said)
        self.assertEqual(new.tree("/etc/claviger", "/var/lib/claviger"), kept)
        self.assertEqual(new.read("/var/log/claviger/audit.ndjson"), '{"one":1}\n', "whole lines")
        self.assertIn("is good", new.as_claviger("claviger", "check"))
        # A second time only when told so, and nothing is lost then.
        again = ("claviger-restore", "--from", "/root/backup.age", "--identity", "/root/ours")
        self.assertIn("set up here already", new.run(*again, code=3))
        new.write("/etc/claviger/keys/later", "x\n")
        new.run(*again, "--force")
        self.assertFalse(new.path("/etc/claviger/keys/later").exists())
        aside = [path.name for path in new.path("/etc").iterdir() if path.name.startswith("claviger.before-restore-")]
        self.assertEqual([name for name in aside if new.path(f"/etc/{name}/keys/later").exists()], [max(aside, key=lambda name: new.path(f"/etc/{name}").stat().st_ctime_ns)])
        self.assertEqual([path.name for path in new.path("/var/lib").iterdir() if "restore." in path.name], [], "nothing half-way is left")

    def test_without_keys(self):
        old = self.machine()
        old.set_up()
        old.run("claviger-backup", "--to", "/root/backup.age", "--recipient", self.keys["ours"][1], "--without-keys")
        listed = old.run("claviger-restore", "--from", "/root/backup.age", "--identity", "/root/ours", "--list")
        self.assertIn("etc/claviger/keys/\n", listed)
        self.assertNotIn("etc/claviger/keys/api", listed)
        self.assertIn("etc/claviger/conf.d/api.toml", listed)

    def test_refusals(self):
        machine = self.machine()
        machine.set_up()
        ours = self.keys["ours"][1]
        machine.run("claviger-backup", "--to", "/root/good.age", "--recipient", ours)
        good = machine.path("/root/good.age").read_bytes()
        machine.write("/root/cut.age", good[:-100])
        machine.write("/root/flipped.age", good[:-50] + bytes([good[-50] ^ 1]) + good[-49:])
        machine.write("/root/text", "hello\n")
        machine.run("sh", "-c", f"tar -C / -cf - etc/hostname | age -r {ours} -o /root/other.age")
        before = machine.tree("/etc/claviger", "/var/lib/claviger")
        restore = ("claviger-restore", "--force", "--identity", "/root/ours", "--from")
        for command, code, words in [
            (("claviger-backup", "--to", "/root/x"), 1, "no backup that is not encrypted"),
            (("claviger-backup", "--recipient", ours), 1, "--to is missing"),
            (("claviger-backup", "--to", "/root/x", "--recipient", "AGE-SECRET-KEY-1ABC"), 1, "private key"),
            (("claviger-backup", "--to", "/root/x", "--recipient", "me"), 1, "no public key"),
            (("claviger-backup", "--to", "/root/x", "--recipient", "age1nonsense"), 4, "age failed"),
            (("claviger-backup", "--to", "/missing/x", "--recipient", ours), 4, "age failed"),
            (("claviger-restore", "--force", "--identity", "/root/theirs", "--from", "/root/good.age"), 2, "for this key"),
            ((*restore, "/root/cut.age"), 2, "whole"),
            ((*restore, "/root/flipped.age"), 2, "whole"),
            ((*restore, "/root/text"), 2, "is it a backup"),
            ((*restore, "/root/other.age"), 2, "does not hold what backup writes"),
            ((*restore, "/root/missing"), 1, "cannot be read"),
        ]:
            with self.subTest(command=command[0], words=words):
                self.assertIn(words, machine.run(*command, code=code))
                self.assertFalse(machine.path("/root/x").exists() or machine.path("/root/x.partial").exists())
        self.assertEqual(machine.tree("/etc/claviger", "/var/lib/claviger"), before)


class Settings(unittest.TestCase):
    def test_each_kernel_setting_exists_and_is_explained(self):
        lines = (KIT / "sysctl.d/60-claviger.conf").read_text().splitlines()
        keys = []
        for number, line in enumerate(lines):
            if line and not line.startswith("#"):
                key, value = (part.strip() for part in line.split("="))
                self.assertRegex(" ".join(lines[max(0, number - 5):number]), r"\((admin-guide|networking)/[\w/.-]+\.rst", key)
                self.assertTrue(value)
                if not key.startswith("kernel.yama"):
                    self.assertTrue(Path("/proc/sys", key.replace(".", "/")).exists(), key)
                keys.append((key, value))
        self.assertGreater(len(keys), 7)
        if os.geteuid() == 0:
            # Those of a network, in one of the test's own: the kernel takes the value.
            network = [(key, value) for key, value in keys if key.startswith("net.")]
            script = "".join(f"echo '{value}' >/proc/sys/{key.replace('.', '/')}\n" for key, value in network)
            run("unshare", "--net", "sh", "-ec", script)

    def test_limits_are_the_unit_s(self):
        unit = (KIT / "claviger.service").read_text()
        limits = dict(re.findall(r"^claviger - (\w+) (\w+)$", (KIT / "limits.d/claviger.conf").read_text(), re.M))
        self.assertEqual(limits, {"nofile": re.search(r"LimitNOFILE=(\d+)", unit)[1], "memlock": "unlimited", "core": re.search(r"LimitCORE=(\d+)", unit)[1]})
        self.assertIn("LimitMEMLOCK=infinity", unit)

    def test_every_script_of_the_kit_passes_shellcheck(self):
        scripts = [path for path in [*KIT.iterdir(), *(KIT / "debian").iterdir(), *(KIT / "images").iterdir()]
                   if path.is_file() and path.read_bytes().startswith(b"#!/bin/sh")]
        self.assertGreaterEqual(len(scripts), 6)
        run("shellcheck", "--shell=sh", *scripts)


if __name__ == "__main__":
    unittest.main()
