"""deploy/images: each recipe's steps, executed in a Debian without a container engine."""

import subprocess
import tempfile
import unittest
from pathlib import Path

from machine import KIT, STOCK, Authority, Machine, needs_root

IMAGES = KIT / "images"
KINDS = ("python", "node", "java", "go", "distroless")
HOST = "api.example.com"

AUTHORITY = None


def setUpModule():
    global AUTHORITY
    AUTHORITY = Authority("example.com")


def tearDownModule():
    AUTHORITY.close()


def instructions(kind):
    """(instruction, words) of each stage: a list of lists."""
    stages = []
    for line in (IMAGES / f"{kind}.Dockerfile").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        name, rest = line.split(" ", 1)
        assert name in ("ARG", "FROM", "USER", "COPY", "RUN", "ENV"), line
        if name == "FROM":
            stages.append([])
        if stages:
            stages[-1].append((name, rest))
    return stages


def execute(machine, stage):
    """What an engine would do, on a Debian in the place of the base image. Returns the environment of the image."""
    arguments, environment = {"ROOT_SHA256": AUTHORITY.fingerprint}, {}
    for name, rest in stage:
        if name == "COPY":
            source, target = rest.split()
            content = {"install-ca": (KIT / "install-ca").read_bytes(), "claviger-root.crt": AUTHORITY.pem}[source]
            machine.write(target, content, 0o755 if source == "install-ca" else 0o644)
        elif name == "RUN":
            machine.run("sh", "-c", rest, env=arguments | environment)
        elif name == "ENV":
            key, value = rest.split("=", 1)
            environment[key] = value
    return environment


@needs_root
class Recipes(unittest.TestCase):
    # A bundle that the base image is known to have.
    BUNDLES = {"python": "/usr/local/lib/python3.12/site-packages/pip/_vendor/certifi/cacert.pem"}

    def check(self, kind):
        port = AUTHORITY.serve(HOST)
        stage = instructions(kind)[0]
        with Machine(STOCK / "bookworm") as machine:
            bundle = self.BUNDLES.get(kind)
            if bundle:
                machine.write(bundle, machine.path("/etc/ssl/certs/ca-certificates.crt").read_bytes())
            curl = ("curl", "-sS", "-o", "/dev/null", "--connect-to", f"{HOST}:{port}:127.0.0.1:{port}", f"https://{HOST}:{port}/")
            machine.run(*curl, code=60)
            environment = execute(machine, stage)
            machine.run(*curl)
            if bundle:
                machine.run(*curl, env={"CURL_CA_BUNDLE": bundle})
            # A package of the application's brings another bundle; the image's user does what the recipe says.
            own = "/app/venv/lib/python3.12/site-packages/certifi/cacert.pem"
            machine.write(own, "# a bundle\n")
            machine.run("install-ca", "--reapply")
            self.assertIn("claviger-ca begin", machine.read(own))
            self.assertNotIn("NODE_EXTRA", machine.read("/etc/environment") if machine.path("/etc/environment").exists() else "")
            if kind == "node":
                self.assertEqual(machine.read(environment["NODE_EXTRA_CA_CERTS"]), AUTHORITY.pem)
            # What another stage copies from this one is there.
            for stage in instructions(kind)[1:]:
                for name, rest in stage:
                    if name == "COPY":
                        source = rest.split()[1]
                        self.assertTrue(rest.startswith("--from=trust ") and AUTHORITY.pem in machine.read(source), rest)

    def test_python(self):
        self.check("python")

    def test_node(self):
        self.check("node")

    def test_java(self):
        self.check("java")

    def test_go(self):
        self.check("go")

    def test_distroless(self):
        self.assertEqual(len(instructions("distroless")), 2)
        self.check("distroless")

    def test_another_root_than_the_one_that_is_pinned(self):
        with Machine(STOCK / "bookworm") as machine:
            stage = instructions("python")[0]
            other = Authority("example.com")
            self.addCleanup(other.close)
            with self.assertRaisesRegex(AssertionError, "none of those given"):
                for name, rest in stage:
                    if name == "COPY" and rest.startswith("install-ca"):
                        machine.write(rest.split()[1], (KIT / "install-ca").read_bytes(), 0o755)
                    elif name == "COPY":
                        machine.write(rest.split()[1], other.pem)
                    elif name == "RUN":
                        machine.run("sh", "-c", rest, env={"ROOT_SHA256": AUTHORITY.fingerprint})


class Build(unittest.TestCase):
    def build(self, *arguments, code=0):
        finished = subprocess.run([IMAGES / "build", *map(str, arguments)], text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.assertEqual(finished.returncode, code, finished.stdout)
        return finished.stdout

    def test_what_the_engine_is_told(self):
        with tempfile.TemporaryDirectory() as directory:
            engine = Path(directory, "engine")
            # It notes its arguments, and what it would have been sent.
            engine.write_text(f"#!/bin/sh\nfor last; do :; done\necho \"$*\" >>{directory}/calls\nls \"$last\" >>{directory}/calls\n")
            engine.chmod(0o755)
            good = ("--root", AUTHORITY.root, "--sha256", AUTHORITY.fingerprint, "--engine", engine)
            self.build(*good, "--prefix", "registry.corp.example/base/")
            calls = Path(directory, "calls").read_text()
            for kind in KINDS:
                self.assertRegex(calls, rf"build --file \S+/{kind}\.Dockerfile --tag registry\.corp\.example/base/{kind} "
                                 rf"--build-arg ROOT_SHA256={AUTHORITY.fingerprint} \S+\nclaviger-root\.crt\ninstall-ca\n")
            Path(directory, "calls").unlink()
            self.build(*good, "--base", "python:3.13-slim", "python")
            self.assertIn("--build-arg BASE=python:3.13-slim", Path(directory, "calls").read_text())
            self.assertEqual(len(self.build(*good, "--dry-run").splitlines()), len(KINDS))
            engine.write_text("#!/bin/sh\nexit 1\n")
            self.assertIn("was not built", self.build(*good, "go", code=4))

    def test_refusals(self):
        for arguments, code, words in [
            ([], 1, "--root and --sha256 are needed"),
            (["perl"], 1, "there is no kind perl"),
            (["--root", AUTHORITY.root, "--sha256", AUTHORITY.fingerprint, "--base", "x"], 1, "--base goes with one KIND"),
            (["--root", AUTHORITY.root, "--sha256", "00" * 32], 2, "none of those given"),
            (["--root", AUTHORITY.root, "--sha256", AUTHORITY.fingerprint, "--engine", "no-such-engine"], 3, "is not installed"),
            (["--root", AUTHORITY.root, "--sha256", AUTHORITY.fingerprint, "--prefix", "a b"], 1, "no part of an image's name"),
        ]:
            with self.subTest(arguments=arguments):
                self.assertIn(words, self.build(*arguments, code=code))


if __name__ == "__main__":
    unittest.main()
