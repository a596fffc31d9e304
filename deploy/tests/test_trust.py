"""`deploy/install-ca`: on a Debian, on imitations of other distributions, and with real clients."""

import hashlib
import http.server
import os
import stat
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path

from machine import KIT, STOCK, TARGET, Authority, Machine, free_port, needs_root, run

INSTALL_CA = (KIT / "install-ca").read_bytes()
SITE = "/opt/app/lib/python3.11/site-packages"
BUNDLE = f"{SITE}/certifi/cacert.pem"
HOST = "api.example.com"

AUTHORITY = SUCCESSOR = None


def setUpModule():
    global AUTHORITY, SUCCESSOR
    AUTHORITY = Authority("example.com")
    SUCCESSOR = Authority("example.com")


def tearDownModule():
    AUTHORITY.close()
    SUCCESSOR.close()


class Trusting(Machine):
    """A machine with the script in it, and a Python environment of an application."""

    def __init__(self, lower=None):
        super().__init__(lower or STOCK / "bookworm")
        self.write("/root/install-ca", INSTALL_CA, 0o755)
        self.write("/root/root.crt", AUTHORITY.pem)

    def with_bundle(self, content=None):
        self.write(BUNDLE, content or self.path("/etc/ssl/certs/ca-certificates.crt").read_bytes())
        return self

    def install_ca(self, *arguments, code=0, **options):
        return self.run("/root/install-ca", *arguments, code=code, **options)

    def snapshot(self):
        """Every file that may be changed: its kind, mode, owner and content."""
        seen = {}
        for top in ("etc", "usr/local", "usr/share/ca-certificates", "var/lib", "opt", "home", "root"):
            for directory, names, files in os.walk(self.path(top)):
                for name in names + files:
                    path = Path(directory, name)
                    status = path.lstat()
                    if path.is_symlink():
                        content = os.readlink(path)
                    elif stat.S_ISREG(status.st_mode):
                        content = hashlib.sha256(path.read_bytes()).hexdigest()
                    else:
                        content = ""
                    seen[str(path.relative_to(self.root))] = (stat.filemode(status.st_mode), status.st_uid, status.st_gid, content)
        return seen


def trusts_with_curl(machine, port, **options):
    return machine.run("curl", "-sS", "-o", "/dev/null", "--connect-to", f"{HOST}:{port}:127.0.0.1:{port}",
                       f"https://{HOST}:{port}/", code=None, **options) == ""


def trusts_bundle(bundle, port):
    with tempfile.NamedTemporaryFile() as copy:
        copy.write(bundle)
        copy.flush()
        return subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", HOST, "-verify_hostname", HOST, "-CAfile", copy.name,
             "-no-CApath", "-no-CAstore", "-verify_return_error", "-brief"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


@needs_root
class OnDebian(unittest.TestCase):
    def test_installs_once_and_leaves_no_trace(self):
        port = AUTHORITY.serve(HOST)
        with Trusting().with_bundle() as machine:
            before = machine.snapshot()
            self.assertFalse(trusts_with_curl(machine, port), "the test proves nothing if it is trusted already")
            self.assertFalse(trusts_bundle(machine.path(BUNDLE).read_bytes(), port))

            said = machine.install_ca("--dry-run", "/root/root.crt")
            self.assertIn(f"would add    bundle {BUNDLE}", said)
            self.assertEqual(machine.snapshot(), before, "--dry-run changes nothing")

            machine.install_ca("/root/root.crt")
            self.assertTrue(trusts_with_curl(machine, port))
            self.assertTrue(trusts_bundle(machine.path(BUNDLE).read_bytes(), port))
            self.assertEqual(machine.read("/etc/claviger-ca/claviger.pem"), AUTHORITY.pem)
            installed = machine.snapshot()

            again = machine.install_ca("/root/root.crt")
            self.assertEqual({line.split("  ")[0] for line in again.splitlines()}, {"is there"}, again)
            self.assertEqual(machine.install_ca("--quiet", "--reapply"), "")
            self.assertEqual(machine.snapshot(), installed, "a second time changes nothing")

            said = machine.install_ca("--verify", f"{HOST}:{port}", "--connect", "127.0.0.1")
            self.assertIn("ok           curl\n", said)
            self.assertIn("all verified", said)

            machine.install_ca("--uninstall", "--dry-run")
            self.assertEqual(machine.snapshot(), installed)
            machine.install_ca("--uninstall")
            self.assertFalse(trusts_with_curl(machine, port))
            self.assertEqual(machine.snapshot(), before, "byte for byte as it was")
            machine.install_ca("--uninstall")

    def test_a_successor_overlaps_and_takes_over(self):
        old, new = AUTHORITY.serve(HOST), SUCCESSOR.serve(HOST)
        with Trusting().with_bundle() as machine:
            machine.install_ca("/root/root.crt")
            self.assertEqual((trusts_with_curl(machine, old), trusts_with_curl(machine, new)), (True, False))
            machine.write("/root/both.crt", AUTHORITY.pem + SUCCESSOR.pem)
            machine.install_ca("/root/both.crt")
            bundle = machine.path(BUNDLE).read_bytes()
            self.assertTrue(trusts_with_curl(machine, old) and trusts_with_curl(machine, new))
            self.assertTrue(trusts_bundle(bundle, old) and trusts_bundle(bundle, new))
            machine.write("/root/new.crt", SUCCESSOR.pem)
            machine.install_ca("/root/new.crt")
            bundle = machine.path(BUNDLE).read_bytes()
            self.assertEqual((trusts_with_curl(machine, old), trusts_with_curl(machine, new)), (False, True))
            self.assertEqual((trusts_bundle(bundle, old), trusts_bundle(bundle, new)), (False, True))

    def test_two_names_do_not_disturb_each_other(self):
        with Trusting().with_bundle() as machine:
            machine.install_ca("/root/root.crt")
            one = machine.snapshot()
            machine.write("/root/other.crt", SUCCESSOR.pem)
            machine.path("/root/other.crt").rename(machine.path("/opt/other.crt"))
            machine.install_ca("--name", "other", "/opt/other.crt")
            self.assertIn("begin other ", machine.read(BUNDLE))
            machine.install_ca("--name", "other", "--uninstall")
            machine.path("/opt/other.crt").unlink()
            self.assertEqual(machine.snapshot(), one)

    def test_how_a_bundle_is_edited(self):
        """Content before; what becomes of it."""
        public = "# A public CA\n-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"
        for what, content in [("ends with a newline", public + "\n"), ("ends without", public), ("is empty", "\n"),
                              ("has other people's remarks", f"# gr\xfc\xdfe\n\n{public}\n\n\n")]:
            with self.subTest(what), Trusting() as machine:
                machine.write(BUNDLE, content.encode("latin-1"))
                machine.install_ca("--without", "system,node,java,nss", "/root/root.crt")
                edited = machine.path(BUNDLE).read_bytes()
                self.assertTrue(edited.startswith(content.encode("latin-1")))
                self.assertIn(AUTHORITY.pem.encode(), edited)
                machine.install_ca("--without", "system", "--uninstall")
                self.assertEqual(machine.path(BUNDLE).read_bytes(), content.encode("latin-1"))

    def test_a_bundle_that_trusts_it_already_is_left_alone(self):
        with Trusting() as machine:
            by_hand = f"# by hand\n{AUTHORITY.pem}"
            machine.write(BUNDLE, by_hand)
            self.assertIn(f"is there     bundle {BUNDLE}", machine.install_ca("/root/root.crt"))
            machine.install_ca("--uninstall")
            self.assertEqual(machine.read(BUNDLE), by_hand, "what was added by hand is not ours to remove")

    def test_every_bundle_that_is_known_and_no_other(self):
        ours = [f"{SITE}/{path}" for path in (
            "certifi/cacert.pem", "pip/_vendor/certifi/cacert.pem", "botocore/cacert.pem", "httplib2/cacerts.txt",
            "stripe/data/ca-certificates.crt", "braintree/ssl/api_braintreegateway_com.ca.crt", "grpc/_cython/_credentials/roots.pem")]
        ours += ["/srv/ruby/gems/stripe-13.0.0/lib/data/ca-certificates.crt", "/srv/php/vendor/composer/ca-bundle/res/cacert.pem",
                 "/opt/conda/ssl/cacert.pem", "/home/deploy/.venv/lib/python3.12/site-packages/certifi/cacert.pem"]
        others = ["/opt/app/config/cacert.pem", "/srv/data/roots.pem", "/home/deploy/.cache/uv/certifi/cacert.pem",
                  "/var/lib/docker/overlay2/x/certifi/cacert.pem"]
        with Trusting() as machine:
            for path in ours + others:
                machine.write(path, "# a bundle\n")
            linked = f"{SITE}/linked/certifi/cacert.pem"
            machine.path(linked).parent.mkdir(parents=True)
            machine.path(linked).symlink_to("/etc/ssl/certs/ca-certificates.crt")
            machine.install_ca("/root/root.crt")
            for path in ours:
                self.assertIn("claviger-ca begin", machine.read(path), path)
            for path in others:
                self.assertEqual(machine.read(path), "# a bundle\n", path)
            self.assertTrue(machine.path(linked).is_symlink())
            # Elsewhere only when asked; and remembered from then on.
            elsewhere = machine.write("/data/venv/lib/python3.9/site-packages/certifi/cacert.pem", "# a bundle\n")
            machine.install_ca("--search", "/data", "/root/root.crt")
            self.assertIn("claviger-ca begin", machine.read(elsewhere))
            machine.write(elsewhere, "# upgraded\n")
            machine.install_ca("--reapply")
            self.assertIn("claviger-ca begin", machine.read(elsewhere))
            machine.install_ca("--uninstall")
            self.assertEqual(machine.read(elsewhere), "# upgraded\n")

    def test_a_linked_file_s_other_names_keep_their_content(self):
        """uv and conda link a package's files from their cache."""
        with Trusting().with_bundle("# a bundle\n") as machine:
            cache = machine.path("/opt/cached.pem")
            cache.hardlink_to(machine.path(BUNDLE))
            machine.path(BUNDLE).chmod(0o640)
            os.chown(machine.path(BUNDLE), 0, 33)
            machine.install_ca("/root/root.crt")
            self.assertEqual(cache.read_text(), "# a bundle\n")
            status = machine.path(BUNDLE).stat()
            self.assertEqual((stat.S_IMODE(status.st_mode), status.st_gid), (0o640, 33))

    def test_users_files_are_edited_with_their_rights(self):
        """Who owns a directory can exchange what is in it while root looks: root must write nothing there."""
        home = "/home/eve/venv/lib/python3.11/site-packages"
        with Trusting() as machine:
            machine.write(f"{home}/certifi/cacert.pem", "# a bundle\n")
            machine.write(f"{home}/httplib2/cacerts.txt", "# a bundle\n")
            machine.run("chown", "-R", "1234:1234", "/home/eve")
            # Root's own directory below Eve's: Eve may not write there, so neither do we.
            machine.run("chown", "-R", "0:0", f"{home}/httplib2")
            machine.write(f"{home}/certifi/sitecustomize", "")
            said = machine.install_ca("/root/root.crt", code=4)
            self.assertIn(f"FAILED       bundle {home}/httplib2/cacerts.txt", said)
            self.assertEqual(machine.read(f"{home}/httplib2/cacerts.txt"), "# a bundle\n")
            self.assertIn("claviger-ca begin", machine.read(f"{home}/certifi/cacert.pem"))
            self.assertEqual(machine.path(f"{home}/certifi/cacert.pem").stat().st_uid, 1234, "written by Eve, not for her")

    def test_without_root_it_serves_one_s_own_environments(self):
        with Trusting() as machine:
            machine.write("/home/eve/install-ca", INSTALL_CA, 0o755)
            machine.write("/home/eve/root.crt", AUTHORITY.pem)
            machine.write("/home/eve/venv/certifi/cacert.pem", "# a bundle\n")
            machine.run("chown", "-R", "1234:1234", "/home/eve")
            eve = {"user": "1234:1234", "env": {"HOME": "/home/eve"}}
            self.assertIn("--without system", machine.run("/home/eve/install-ca", "/home/eve/root.crt", code=3, **eve))
            machine.run("/home/eve/install-ca", "--without", "system,node,java,nss", "/home/eve/root.crt", **eve)
            self.assertIn("claviger-ca begin", machine.read("/home/eve/venv/certifi/cacert.pem"))
            machine.run("/home/eve/install-ca", "--uninstall", "--without", "system,node,java,nss", **eve)
            self.assertEqual(machine.read("/home/eve/venv/certifi/cacert.pem"), "# a bundle\n")

    def test_kept_through_an_upgrade(self):
        """A package that brings a bundle is upgraded by the real apt, whose hook applies the CA again."""
        with Trusting() as machine:
            def package(version):
                machine.write("/tmp/p/DEBIAN/control", f"Package: app\nVersion: {version}\nArchitecture: all\n"
                              "Maintainer: Test <test@example.com>\nDescription: an application\n")
                machine.write(f"/tmp/p{BUNDLE}", f"# bundle of {version}\n")
                machine.run("dpkg-deb", "--build", "/tmp/p", f"/tmp/app-{version}.deb")
                machine.run("apt-get", "-q", "-y", "install", f"/tmp/app-{version}.deb", env={"DEBIAN_FRONTEND": "noninteractive"})

            package("1")
            before = machine.snapshot()
            machine.install_ca("--keep", "/root/root.crt")
            package("2")
            self.assertIn("bundle of 2", machine.read(BUNDLE))
            self.assertIn("claviger-ca begin", machine.read(BUNDLE))
            machine.install_ca("--uninstall")
            left = {path for path in set(machine.snapshot()) - set(before) if "dpkg" not in path and "apt" not in path}
            self.assertEqual(left, set())

    def test_node_without_the_system_s_store(self):
        """A Node of nodejs.org has its roots compiled in; this one says so, as the real one does."""
        with Trusting() as machine:
            machine.write("/usr/local/bin/node", "#!/bin/sh\necho false\n", 0o755)
            machine.write("/etc/environment", "LANG=C.UTF-8")
            machine.path("/etc/systemd").mkdir(exist_ok=True)
            said = machine.install_ca("/root/root.crt")
            self.assertIn("NODE_EXTRA_CA_CERTS", said)
            self.assertEqual(machine.read("/etc/environment"), "LANG=C.UTF-8\nNODE_EXTRA_CA_CERTS=/etc/claviger-ca/claviger.pem\n")
            self.assertIn("\nDefaultEnvironment=NODE_EXTRA_CA_CERTS=/etc/claviger-ca/claviger.pem\n",
                          machine.read("/etc/systemd/system.conf.d/claviger-ca-claviger.conf"))
            machine.install_ca("--uninstall")
            self.assertEqual(machine.read("/etc/environment"), "LANG=C.UTF-8\n")
            self.assertFalse(machine.path("/etc/systemd/system.conf.d/claviger-ca-claviger.conf").exists())
            # Debian's own is built to read the system's store.
            machine.write("/usr/local/bin/node", "#!/bin/sh\necho true\n", 0o755)
            self.assertNotIn("NODE_EXTRA_CA_CERTS", machine.install_ca("/root/root.crt"))
            machine.install_ca("--uninstall")
            # Somebody else's file is added to, not replaced.
            machine.write("/usr/local/bin/node", "#!/bin/sh\necho false\n", 0o755)
            machine.write("/etc/environment", 'NODE_EXTRA_CA_CERTS="/etc/corp.pem"\n')
            machine.write("/etc/corp.pem", SUCCESSOR.pem)
            machine.install_ca("/root/root.crt")
            self.assertEqual(machine.read("/etc/environment"), 'NODE_EXTRA_CA_CERTS="/etc/corp.pem"\n')
            self.assertIn(AUTHORITY.pem, machine.read("/etc/corp.pem"))
            machine.install_ca("--uninstall")
            self.assertEqual(machine.read("/etc/corp.pem"), SUCCESSOR.pem)

    def test_verification_that_fails_says_what_and_why(self):
        port, other = AUTHORITY.serve(HOST), SUCCESSOR.serve(HOST)
        with Trusting().with_bundle() as machine:
            to = ("--connect", "127.0.0.1")
            self.assertIn("nothing is installed", machine.install_ca("--verify", f"{HOST}:{port}", *to, code=1))
            machine.install_ca("/root/root.crt")
            # Another CA's server: a handshake would say nothing about ours.
            self.assertIn("shows no certificate of this CA", machine.install_ca("--verify", f"{HOST}:{other}", *to, code=5))
            self.assertIn("shows no certificate of this CA", machine.install_ca("--verify", f"{HOST}:{free_port()}", *to, code=5))
            # An upgrade has replaced one bundle: that client is named, the others are well.
            machine.write(BUNDLE, machine.path("/usr/share/ca-certificates/mozilla/ISRG_Root_X1.crt").read_bytes())
            said = machine.install_ca("--verify", f"{HOST}:{port}", *to, code=5)
            self.assertIn(f"FAILED       openssl with {BUNDLE}: ", said)
            self.assertIn("ok           curl\n", said)
            machine.install_ca("--reapply", "--verify", f"{HOST}:{port}", *to)


@needs_root
class Refusals(unittest.TestCase):
    def test_what_is_refused_changes_nothing(self):
        certificate, key = AUTHORITY.issue(HOST)
        leaf = certificate.read_text().split("-----END CERTIFICATE-----\n")[0] + "-----END CERTIFICATE-----\n"
        expired = self.self_signed("-days", "-1")
        lines = AUTHORITY.pem.splitlines()
        damaged = "\n".join([lines[0], "!!!!", *lines[2:]]) + "\n"
        cut = "\n".join(lines[:3] + lines[-1:]) + "\n"
        good = AUTHORITY.fingerprint
        cases = [
            # (content of the file or None, arguments, exit code, words of the refusal)
            (None, [], 1, "nothing to do"),
            (None, ["/root/missing.crt"], 2, "no file that can be read"),
            ("", ["F"], 2, "no certificate in PEM"),
            ("hello\n", ["F"], 2, "no certificate in PEM"),
            (key.read_text(), ["F"], 2, "holds a private key"),
            (AUTHORITY.pem + key.read_text(), ["F"], 2, "holds a private key"),
            (leaf, ["F"], 2, "not that of a CA"),
            (expired, ["F"], 2, "has expired"),
            (damaged, ["F"], 2, "damaged"),
            (cut, ["F"], 2, "malformed"),
            (AUTHORITY.pem * 9, ["F"], 2, "more than 8"),
            (AUTHORITY.pem + "x" * 70_000, ["F"], 2, "more than 65536 bytes"),
            (AUTHORITY.pem, ["F", "--sha256", "ab"], 1, "no SHA-256 fingerprint"),
            (AUTHORITY.pem, ["F", "--sha256", SUCCESSOR.fingerprint], 2, "none of those given"),
            (AUTHORITY.pem + SUCCESSOR.pem, ["F", "--sha256", good], 2, "certificate 2"),
            (AUTHORITY.pem, ["F", "--name", "../x"], 1, "only a-z"),
            (AUTHORITY.pem, ["F", "--search", "relative"], 1, "not absolute"),
            (AUTHORITY.pem, ["F", "--without", "everything"], 1, "no such part"),
            (AUTHORITY.pem, ["F", "--uninstall"], 1, "takes no certificate"),
            (AUTHORITY.pem, ["F", "--frobnicate"], 1, "unknown option"),
            (AUTHORITY.pem, ["F", "--connect", "10.0.0.5"], 1, "--connect without --verify"),
            (AUTHORITY.pem, ["F", "--verify", "a b"], 1, "HOST[:PORT]"),
            (None, ["--url", "https://example.com/x"], 1, "--url without --sha256"),
            (None, ["--url", "ftp://example.com/x", "--sha256", good], 1, "neither https:// nor http://"),
            (None, ["--url", f"http://127.0.0.1:{free_port()}/x", "--sha256", good], 2, "could not be fetched"),
            (None, ["--reapply"], 1, "nothing is installed"),
        ]
        with Trusting().with_bundle() as machine:
            before = None
            for content, arguments, code, words in cases:
                with self.subTest(words=words, arguments=arguments):
                    if content is not None:
                        machine.write("/tmp/file", content)
                    before = before or machine.snapshot()
                    said = machine.install_ca(*["/tmp/file" if word == "F" else word for word in arguments], code=code)
                    self.assertIn(words, said)
                    kept = {path: entry for path, entry in machine.snapshot().items() if "claviger-ca" not in path}
                    self.assertEqual(kept, before)
            # A root without constraints is accepted, with a warning.
            machine.write("/tmp/file", self.self_signed("-days", "2"))
            self.assertIn("no name constraints", machine.install_ca("--dry-run", "/tmp/file"))
            machine.write("/tmp/file", AUTHORITY.pem)
            self.assertNotIn("warning", machine.install_ca("--dry-run", "--sha256", good, "/tmp/file"))

    def self_signed(self, *options):
        with tempfile.TemporaryDirectory() as directory:
            if options == ("-days", "-1"):
                # `req` knows no date in the past; `x509 -days -1` does.
                run("openssl", "req", "-new", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=Old",
                    "-keyout", f"{directory}/key", "-out", f"{directory}/csr")
                Path(directory, "ext").write_text("basicConstraints=critical,CA:TRUE\n")
                run("openssl", "x509", "-req", "-in", f"{directory}/csr", "-signkey", f"{directory}/key", "-days", "-1",
                    "-extfile", f"{directory}/ext", "-out", f"{directory}/crt")
            else:
                run("openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=Free",
                    "-addext", "basicConstraints=critical,CA:TRUE", *options, "-keyout", f"{directory}/key", "-out", f"{directory}/crt")
            return Path(directory, "crt").read_text()

    def test_a_url_with_its_fingerprint(self):
        class Server(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(SUCCESSOR.pem.encode() if self.path == "/forged" else AUTHORITY.pem.encode())

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        url = f"http://127.0.0.1:{server.server_port}"
        with Trusting().with_bundle() as machine:
            before = machine.snapshot()
            said = machine.install_ca("--url", f"{url}/forged", "--sha256", AUTHORITY.fingerprint, code=2)
            self.assertIn("none of those given", said)
            kept = {path: entry for path, entry in machine.snapshot().items() if "claviger-ca" not in path}
            self.assertEqual(kept, before)
            machine.install_ca("--url", f"{url}/root.crt", "--sha256", AUTHORITY.fingerprint.replace(":", "").lower())
            self.assertIn("claviger-ca begin", machine.read(BUNDLE))


@needs_root
class OnOtherDistributions(unittest.TestCase):
    """Imitations: busybox for every program, and a stand-in for the distribution's own tool that joins the anchors as
    the real one does. They show that the script runs there and what it puts where; not that the real tool takes it."""

    def busybox(self, *files, anchors=None, tool=None, bundle="/etc/ssl/certs/ca-certificates.crt"):
        machine = Machine("none")
        self.addCleanup(machine.close)
        binary = Path(run("sh", "-c", "command -v busybox").strip())
        machine.write("/bin/busybox", binary.read_bytes(), 0o755)
        for name in run(binary, "--list").split():
            target = machine.path(f"/bin/{name}")
            if not target.exists():
                target.symlink_to("/bin/busybox")
        machine.write("/root/install-ca", INSTALL_CA, 0o755)
        machine.write("/root/root.crt", AUTHORITY.pem)
        machine.write("/etc/passwd", "root:x:0:0::/root:/bin/sh\neve:x:1234:1234::/home/eve:/bin/sh\n")
        machine.write("/etc/group", "root:x:0:\neve:x:1234:\n")
        for path in files:
            machine.write(path, "# public\n")
        if anchors:
            machine.path(anchors).mkdir(parents=True)
        if tool:
            machine.write(f"/sbin/{tool}", f"#!/bin/sh\necho {tool} \"$@\" >>/called\n{{ echo '# public'; cat {anchors}/*.crt 2>/dev/null || true; }} >{bundle}\n", 0o755)
            machine.path(bundle).parent.mkdir(parents=True, exist_ok=True)
        machine.write(BUNDLE, "# a bundle\n")
        return machine

    def check(self, machine, bundle, anchor, called):
        target = f"{anchor}/claviger-{AUTHORITY.alias}.crt"
        machine.run("/root/install-ca", "/root/root.crt")
        self.assertEqual(machine.read(target), AUTHORITY.pem)
        self.assertIn(AUTHORITY.pem, machine.read(bundle))
        self.assertIn(AUTHORITY.pem, machine.read(BUNDLE))
        again = machine.run("/root/install-ca", "/root/root.crt")
        self.assertEqual({line.split("  ")[0] for line in again.splitlines()}, {"is there"}, again)
        machine.run("/root/install-ca", "--uninstall")
        self.assertFalse(machine.path(target).exists())
        self.assertEqual(machine.read(bundle), "# public\n")
        self.assertEqual(machine.read(BUNDLE), "# a bundle\n")
        self.assertEqual(machine.read("/called").splitlines() if called else [], called)

    def test_alpine(self):
        anchors = "/usr/local/share/ca-certificates"
        machine = self.busybox(anchors=anchors, tool="update-ca-certificates")
        self.check(machine, "/etc/ssl/certs/ca-certificates.crt", anchors, ["update-ca-certificates"] * 2)

    def test_alpine_without_its_package(self):
        machine = self.busybox("/etc/ssl/certs/ca-certificates.crt")
        self.check(machine, "/etc/ssl/certs/ca-certificates.crt", "/usr/local/share/ca-certificates", [])

    def test_rhel(self):
        anchors, bundle = "/etc/pki/ca-trust/source/anchors", "/etc/pki/tls/certs/ca-bundle.crt"
        machine = self.busybox(anchors=anchors, tool="update-ca-trust", bundle=bundle)
        self.check(machine, bundle, anchors, ["update-ca-trust extract"] * 2)

    def test_suse(self):
        anchors, bundle = "/etc/pki/trust/anchors", "/var/lib/ca-certificates/ca-bundle.pem"
        machine = self.busybox(anchors=anchors, tool="update-ca-certificates", bundle=bundle)
        self.check(machine, bundle, anchors, ["update-ca-certificates"] * 2)

    def test_users_files_with_busybox_su(self):
        machine = self.busybox("/etc/ssl/certs/ca-certificates.crt")
        machine.write("/home/eve/it's mine/certifi/cacert.pem", "# a bundle\n")
        machine.run("chown", "-R", "1234:1234", "/home/eve")
        machine.run("/root/install-ca", "/root/root.crt")
        self.assertIn("claviger-ca begin", machine.read("/home/eve/it's mine/certifi/cacert.pem"))
        self.assertEqual(machine.path("/home/eve/it's mine/certifi/cacert.pem").stat().st_uid, 1234)

    def test_nothing_that_is_known(self):
        machine = self.busybox()
        self.assertIn("install the package ca-certificates", machine.run("/root/install-ca", "/root/root.crt", code=3))


JAVA = """
public class Get {
    public static void main(String[] a) throws Exception {
        javax.net.ssl.HttpsURLConnection c = (javax.net.ssl.HttpsURLConnection) new java.net.URL(a[0]).openConnection();
        System.out.println(c.getResponseCode());
    }
}
"""


@needs_root
class ClientsOfThisMachine(unittest.TestCase):
    """The clients that are installed here, in a layer above this machine's own files. None is told anything."""

    def test_each_client_before_and_after(self):
        port = AUTHORITY.serve(HOST)
        url = f"https://{HOST}:{port}/"
        venv = (TARGET / "it-clients/venv").resolve()
        python = venv / "bin/python"
        clients = {
            "curl": ["curl", "-sS", "-o", "/dev/null", url],
            "python, requests": [python, "-c", f"import requests; requests.get('{url}').raise_for_status()"],
            "python, httplib2": [python, "-c", f"import httplib2; httplib2.Http().request('{url}')"],
            "python, stripe's own bundle": [python, "-c", "import os, ssl, sys, stripe, urllib.request as u; "
                                            "c = ssl.create_default_context(cafile=stripe.ca_bundle_path); "
                                            f"u.urlopen('{url}', context=c)"],
            "node, fetch": ["sh", "-c", "set -a; . /etc/environment; exec node -e \"fetch(process.argv[1]).then(r => r.text(), e => { console.error(e); process.exit(1); })\" "
                            f"{url}"],
        }
        if Path("/usr/bin/javac").exists():
            clients["java, HttpsURLConnection"] = ["java", "/tmp/Get.java", url]
        with Trusting("/") as machine:
            machine.write("/etc/hosts", f"127.0.0.1 localhost {HOST}\n")
            machine.write("/tmp/Get.java", JAVA)
            machine.path("/etc/environment").touch()
            # A browser's database, if the tool for it is here.
            nss = machine.run("sh", "-c", "command -v certutil", code=None) != ""
            if nss:
                machine.path("/root/.pki/nssdb").mkdir(parents=True, exist_ok=True)
                machine.run("certutil", "-d", "sql:/root/.pki/nssdb", "-N", "--empty-password")

            def outcome():
                results = {}
                for name, command in clients.items():
                    said = machine.run("sh", "-c", '"$@" && echo REACHED', "sh", *command, code=None)
                    results[name] = said.rstrip().endswith("REACHED")
                return results

            self.assertEqual(outcome(), dict.fromkeys(clients, False))
            # Far away from what is looked through by default.
            machine.install_ca("--search", venv, "/root/root.crt")
            self.assertEqual(outcome(), dict.fromkeys(clients, True))
            if nss:
                listed = machine.run("certutil", "-d", "sql:/root/.pki/nssdb", "-L")
                self.assertRegex(listed, f"claviger-{AUTHORITY.alias} +C,,")
            said = machine.install_ca("--verify", f"{HOST}:{port}")
            self.assertIn(f"ok           {python}3 with", said)
            self.assertIn("all verified", said)
            machine.install_ca("--uninstall")
            self.assertEqual(outcome(), dict.fromkeys(clients, False))
            if nss:
                self.assertNotIn("claviger-", machine.run("certutil", "-d", "sql:/root/.pki/nssdb", "-L"))

    def test_a_jdk_with_a_keystore_of_its_own(self):
        """Not Debian's, whose hook follows the system's store: as of a tar file."""
        keytool = "/usr/bin/keytool"
        if not Path(keytool).exists():
            self.fail("keytool is missing: deploy/tests/setup installs it")
        port = AUTHORITY.serve(HOST)
        with Trusting("/") as machine:
            machine.write("/etc/hosts", f"127.0.0.1 localhost {HOST}\n")
            store = "/opt/jdk/lib/security/cacerts"
            public = "/etc/ssl/certs/ca-certificates.crt"
            machine.path("/opt/jdk/lib/security").mkdir(parents=True)
            machine.run(keytool, "-importcert", "-noprompt", "-alias", "public", "-file", public, "-keystore", store, "-storepass", "changeit")
            entries = lambda: sorted(line.split(",")[0] for line in machine.run(
                keytool, "-list", "-keystore", store, "-storepass", "changeit").splitlines() if "trustedCertEntry" in line)
            get = ["java", f"-Djavax.net.ssl.trustStore={store}", "-Djavax.net.ssl.trustStorePassword=changeit", "/tmp/Get.java", f"https://{HOST}:{port}/"]
            machine.write("/tmp/Get.java", JAVA)
            self.assertEqual(entries(), ["public"])
            self.assertIn("PKIX path building failed", machine.run(*get, code=1))
            only = ("--without", "system,bundles,node,nss")
            machine.install_ca(*only, "/root/root.crt")
            self.assertEqual(entries(), [f"claviger-{AUTHORITY.alias}", "public"])
            self.assertEqual(machine.run(*get), "200\n")
            self.assertIn("is there", machine.install_ca(*only, "/root/root.crt"))
            machine.write("/root/new.crt", SUCCESSOR.pem)
            machine.install_ca(*only, "/root/new.crt")
            self.assertEqual(entries(), [f"claviger-{SUCCESSOR.alias}", "public"])
            machine.install_ca(*only, "--uninstall")
            self.assertEqual(entries(), ["public"])
            # Another password.
            machine.run(keytool, "-storepasswd", "-keystore", store, "-storepass", "changeit", "-new", "another")
            self.assertIn("password", machine.install_ca(*only, "/root/root.crt", code=4))
            machine.write("/root/password", "another\n")
            machine.install_ca(*only, "--java-password", "/root/password", "/root/root.crt")


class Form(unittest.TestCase):
    def test_help_names_every_option(self):
        said = run("sh", KIT / "install-ca", "--help")
        text = INSTALL_CA.decode()
        parsed = text.split("while [ $# -gt 0 ]; do\n    case $1 in", 1)[1].split("\ndone\n", 1)[0]
        options = {word for line in parsed.splitlines() for word in line.split(")")[0].replace("|", " ").split()
                   if word.startswith("--") and line.startswith("    --")}
        self.assertGreater(len(options), 12)
        for option in options:
            self.assertIn(option, said)

    def test_it_is_not_run_from_a_pipe(self):
        finished = subprocess.run(["sh", "-s", "--", "--reapply"], input=INSTALL_CA, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.assertEqual(finished.returncode, 1)
        self.assertIn(b"not piped", finished.stdout)


if __name__ == "__main__":
    sys.exit(unittest.main())
