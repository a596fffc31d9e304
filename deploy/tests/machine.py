"""Machines for tests of the kit: a file system that looks like a machine's, in which everything may be changed.

A `Machine` is a root directory with a layer of memory above it, in a mount namespace of its own: what a test writes,
installs or removes there is gone with it, and the machine that runs the tests is not touched. It shares the network,
so that programs in it reach servers on loopback. It has no process manager and no kernel of its own.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

KIT = Path(__file__).resolve().parent.parent
REPOSITORY = KIT.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
# What deploy/tests/setup has made.
STOCK = TARGET / "deploy"

# A command in a machine takes at most this long; far more than any needs on a busy machine.
COMMAND_SECONDS_MAX = 300


def claviger():
    """The binary under test: the one named by CLAVIGER, or what was built last."""
    named = os.environ.get("CLAVIGER")
    candidates = [Path(named)] if named else [TARGET / profile / "claviger" for profile in ("debug", "release")]
    built = [path for path in candidates if path.is_file()]
    if not built:
        raise AssertionError("no claviger is built: cargo build --locked -p claviger, or CLAVIGER=/path/to/claviger")
    return max(built, key=lambda path: path.stat().st_mtime)


def needs_root(case):
    """Root can run every test, so it does; somebody else runs those that need no machine."""
    return unittest.skipUnless(os.geteuid() == 0, "needs root, for a mount namespace")(case)


class Machine:
    """`lower` is the root that is looked like: a directory, or "/" for this machine itself."""

    # Mounts, then waits until its standard input ends; the namespace, and all of it, goes with the process.
    INIT = """
set -e
mount -t tmpfs -o mode=755 claviger-test "$1"
mkdir "$1/upper" "$1/work" "$1/root"
if [ "$2" = none ]; then mount --bind "$1/root" "$1/root"
else mount -t overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"; fi
mkdir -p "$1/root/proc" "$1/root/dev" "$1/root/tmp" "$1/root/run"
mount -t proc proc "$1/root/proc"
mount --rbind /dev "$1/root/dev"
mount -t tmpfs -o mode=1777 tmp "$1/root/tmp"
mount -t tmpfs -o mode=755 run "$1/root/run"
echo up
read -r nothing || true
"""

    def __init__(self, lower):
        self.mountpoint = Path(tempfile.mkdtemp(prefix="claviger-machine-"))
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", self.INIT, "sh", self.mountpoint, str(lower)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline() != "up\n":
            self.close()
            raise AssertionError("a machine for the test could not be mounted (overlay, tmpfs)")
        # From outside of the namespace, its files are seen through the process.
        self.root = Path(f"/proc/{self.process.pid}/root{self.mountpoint}/root")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        self.mountpoint.rmdir()

    def path(self, path):
        return self.root / str(path).lstrip("/")

    def read(self, path):
        return self.path(path).read_text()

    def write(self, path, content, mode=0o644):
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())
        target.chmod(mode)
        return path

    def run(self, *command, code=0, env=None, user=None, input=None):
        """Runs it, and returns all that it wrote. `code` is the exit code that is expected; None for any."""
        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
        environment.update(env or {})
        enter = ["nsenter", f"--target={self.process.pid}", "--mount", "--", "chroot"]
        if user:
            enter.append(f"--userspec={user}")
        # The working directory of nsenter is the outer one.
        finished = subprocess.run([*enter, f"{self.mountpoint}/root", *map(str, command)], env=environment, text=True, input=input,
                                  stdin=None if input is not None else subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=COMMAND_SECONDS_MAX)
        if code is not None and finished.returncode != code:
            raise AssertionError(f"{' '.join(map(str, command))[:300]}\nended with {finished.returncode} and not {code}:\n{finished.stdout[-4000:]}")
        return finished.stdout


class Authority:
    """A CA of `claviger ca`, and servers with its certificates."""

    def __init__(self, *domains):
        self.directory = Path(tempfile.mkdtemp(prefix="claviger-ca-"))
        self.servers = []
        run(claviger(), "ca", "init", "--dir", self.directory / "ca", *[f"--permit={domain}" for domain in domains])
        run(claviger(), "ca", "export", "--dir", self.directory / "ca", "--out", self.root)

    @property
    def root(self):
        return self.directory / "root.crt"

    @property
    def pem(self):
        return self.root.read_text()

    @property
    def fingerprint(self):
        """As openssl prints it, with colons."""
        return run("openssl", "x509", "-in", self.root, "-noout", "-fingerprint", "-sha256").split("=")[1].strip()

    @property
    def alias(self):
        """What install-ca makes of it."""
        return self.fingerprint.replace(":", "").lower()[:8]

    def issue(self, host):
        out = self.directory / "leaves"
        out.mkdir(exist_ok=True)
        run(claviger(), "ca", "issue", "--dir", self.directory / "ca", "--out", out, "--force", host)
        return out / f"{host}.pem", out / f"{host}.key"

    def serve(self, host):
        """OpenSSL's own server, with a leaf and the intermediate; its port on 127.0.0.1."""
        certificate, key = self.issue(host)
        port = free_port()
        server = subprocess.Popen(
            ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", certificate, "-cert_chain", certificate, "-key", key, "-www", "-quiet"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.servers.append(server)
        wait_for(lambda: listens(port), "openssl s_server listens")
        return port

    def close(self):
        for server in self.servers:
            server.terminate()
            server.wait()
        shutil.rmtree(self.directory)


def run(*command, **options):
    finished = subprocess.run([str(word) for word in command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              stdin=subprocess.DEVNULL, timeout=COMMAND_SECONDS_MAX, **options)
    if finished.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))[:300]}\nended with {finished.returncode}:\n{finished.stdout[-4000:]}")
    return finished.stdout


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition, what, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.01)
