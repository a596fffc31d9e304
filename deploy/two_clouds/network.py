"""Machines and the wires between them: network and mount namespaces of this kernel.

A `Machine` has a network, a name and a file system of its own: a layer of memory above a file system that is there (this
machine's, or an `Image` made from it). A `Router` is a machine that forwards. Machines hang on a router by a wire each,
with one address and no neighbour: what goes from one to another passes the router, where it can be captured.

All of it lives in processes that end with the one that made them, and in mounts of its mount namespace: nothing is left
on this machine, however it ends. It has no switch, no IPv6 and no MTU below 1,500.
"""

import contextlib
import os
import shlex
import signal
import subprocess
from pathlib import Path

from harness.machine import dies_with_us
from two_clouds.wait import Failed, until

# A command in a machine takes at most this long; far more than any needs on a busy machine.
COMMAND_SECONDS_MAX = 300
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class World:
    """Where everything is: a directory in memory, and what has to be ended. Its mounts are seen from here alone."""

    def __init__(self, directory, visible):
        self.directory = Path(directory)
        # Directories of this machine that look the same in every machine: the repository, and what was built.
        self.visible = [Path(path) for path in visible]
        self.machines = []
        # The networks that were made, by number.
        self.networks = set()
        self.ends = contextlib.ExitStack()
        run("mount", "-t", "tmpfs", "-o", "mode=755", "two-clouds", self.directory)
        self.ends.callback(run, "umount", "--lazy", self.directory)
        # When all machines have ended.
        self.ends.callback(until, "every process of the stage has ended", lambda: not any(network(pid) in self.networks for pid in processes()))

    def close(self):
        self.ends.close()

    def place(self, name):
        made = self.directory / name
        made.mkdir(parents=True)
        return made


class Image:
    """A file system made once, for many machines: `prepare` gets a command runner, whose changes are what is kept."""

    def __init__(self, world, name, prepare):
        self.layer, work, root = world.place(f"{name}/layer"), world.place(f"{name}/work"), world.place(f"{name}/root")
        with Machine(world, f"{name}-builder", layers=(self.layer, work, root)) as builder:
            prepare(builder)

    @property
    def lower(self):
        return f"{self.layer}:/"


class Machine:
    """A network, a name, a file system."""

    # Makes the file system, says so, and then waits until its standard input ends. What the machine sees of this one
    # beside its own layer: devices, processes, and the directories that are given as further arguments.
    INIT = """
set -e
name=$1 lower=$2 upper=$3 work=$4 root=$5
shift 5
hostname "$name"
mount -t overlay -o "lowerdir=$lower,upperdir=$upper,workdir=$work" overlay "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mount -t tmpfs -o mode=755 run "$root/run"
for seen; do mkdir -p "$root$seen"; mount --bind "$seen" "$root$seen"; done
ip link set lo up
echo up
read -r nothing || true
"""

    def __init__(self, world, name, image=None, layers=None):
        self.world, self.name = world, name
        upper, work, self.root = layers or (world.place(f"{name}/layer"), world.place(f"{name}/work"), world.place(f"{name}/root"))
        self.home = world.place(f"home/{name}")
        self.started = []
        self.address = None
        seen = [*world.visible, self.home]
        # The image's builder is a layer below: overlayfs does not take one directory as both.
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--net", "--uts", "--propagation", "private", "sh", "-c", self.INIT, "sh",
             name, image.lower if image else "/", upper, work, self.root, *seen],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=dies_with_us())
        world.ends.callback(self.close)
        world.machines.append(self)
        if self.process.stdout.readline() != "up\n":
            raise Failed(f"the machine {name} could not be made (overlay, tmpfs, namespaces)")
        world.networks.add(network(self.process.pid))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Ends what was started in it, and then it. May be called twice."""
        for process in reversed(self.started):
            if process.poll() is None:
                process.terminate()
        for process in self.started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.started.clear()
        # Who was made by these and outlived them: the process that took over from another one, say.
        for pid in self._left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not self.process.stdin.closed:
            self.process.stdin.close()
            self.process.stdout.close()
            self.process.wait()

    def _left(self):
        """The processes in its network, but for the one that holds it."""
        own = network(self.process.pid)
        # Nobody is looked for before it has a network of its own.
        if own is None or own == network(os.getpid()):
            return []
        return [pid for pid in processes() if pid != self.process.pid and network(pid) == own]

    def path(self, path):
        """Where one of its files is seen from outside."""
        return Path(f"/proc/{self.process.pid}/root{self.root}") / str(path).lstrip("/")

    def write(self, path, content, mode=0o644):
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())
        target.chmod(mode)
        return path

    def _command(self, command):
        enter = ["nsenter", f"--target={self.process.pid}", "--mount", "--net", "--uts", "--", "chroot", str(self.root)]
        return enter + [str(word) for word in command]

    def _environment(self, more):
        return {"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", **{name: str(value) for name, value in (more or {}).items()}}

    def run(self, *command, env=None, code=0, input=None, remarks=True):
        """Runs it to its end, and returns what it wrote, without its `remarks` (standard error) if these are not wanted.
        `code` is the exit code that is expected; None for any."""
        finished = subprocess.run(
            self._command(command), env=self._environment(env), text=True, input=input, errors="replace",
            stdin=None if input is not None else subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if remarks else subprocess.DEVNULL, timeout=COMMAND_SECONDS_MAX)
        if code is not None and finished.returncode != code:
            raise Failed(f"{self.name}: {shlex.join(map(str, command))[:300]}\nended with {finished.returncode} and not {code}:\n{finished.stdout[-4000:]}")
        return finished.stdout

    def start(self, *command, env=None, log=None):
        """Starts it, to be ended with the machine. What it writes goes to the file `log` of its home."""
        out = open(self.home / log, "ab") if log else subprocess.DEVNULL
        process = subprocess.Popen(self._command(command), env=self._environment(env), stdin=subprocess.DEVNULL, stdout=out,
                                   stderr=subprocess.STDOUT, preexec_fn=dies_with_us())
        if log:
            out.close()
        self.started.append(process)
        return process

    def resolve_with(self, *servers):
        self.write("/etc/resolv.conf", "".join(f"nameserver {server}\n" for server in servers) + "options timeout:1 attempts:2\n")
        # What this machine may have of its own must not answer in DNS's place.
        self.write("/etc/hosts", f"127.0.0.1 localhost {self.name}\n")

    def sh(self, script, **options):
        return self.run("sh", "-ec", script, **options)


class Router(Machine):
    """A machine that forwards between its wires, and can keep what passes."""

    def __init__(self, world, name, address):
        super().__init__(world, name)
        self.address = address
        self.sh("echo 1 >/proc/sys/net/ipv4/ip_forward")

    def attach(self, machine, *addresses, wire=None):
        """A wire to `machine`, over which it has these addresses and reaches everything else."""
        wire = wire or machine.name[:15]
        self.run("ip", "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", machine.process.pid)
        self.sh(f"ip addr add {self.address}/32 dev {wire}; ip link set {wire} up;"
                + "".join(f"ip route add {one}/32 dev {wire};" for one in addresses))
        machine.sh("".join(f"ip addr add {one}/32 dev eth0;" for one in addresses)
                   + f"ip link set eth0 up; ip route add {self.address} dev eth0; ip route add default via {self.address} src {addresses[0]}")
        machine.address = addresses[0]

    def join(self, other, *addresses):
        """A wire between two routers: `other` is reached under `addresses`, and has this one for everything it does not know."""
        self.run("ip", "link", "add", other.name[:15], "type", "veth", "peer", "name", "wan", "netns", other.process.pid)
        self.sh(f"ip addr add {self.address}/32 dev {other.name[:15]}; ip link set {other.name[:15]} up;"
                + "".join(f"ip route add {one}/32 dev {other.name[:15]};" for one in addresses))
        other.sh("".join(f"ip addr add {one}/32 dev wan;" for one in addresses)
                 + f"ip link set wan up; ip route add {self.address} dev wan; ip route add default via {self.address} src {addresses[0]}")

    def filter(self, rules):
        """nftables in place of what was there."""
        self.run("nft", "-f", "-", input=f"flush ruleset\n{rules}")

    def capture(self):
        """Keeps every packet that passes, whole, until `close`; the file's place on this machine."""
        place = self.home / f"{self.name}.pcap"
        log = self.home / "tcpdump.log"
        process = self.start("tcpdump", "-i", "any", "-s", "0", "-n", "-U", "-Z", "root", "-B", "32768", "-w", place, "tcp", "or", "udp", log="tcpdump.log")
        return Capture(process, place, log)


class Capture:
    def __init__(self, process, place, log):
        self.process, self.place, self.log = process, place, log

    def begun(self):
        return "listening on" in self.log.read_text()

    def end(self):
        """Ends it; fails if the kernel had to drop packets, since then something was not seen."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)
        text = self.log.read_text()
        if "\n0 packets dropped by kernel" not in text:
            raise Failed(f"the capture {self.place.name} is not whole:\n{text[-500:]}")
        return self.place


def processes():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def network(pid):
    """The number of a process's network; None if it has ended."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return None


def run(*command):
    finished = subprocess.run([str(word) for word in command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              stdin=subprocess.DEVNULL, timeout=COMMAND_SECONDS_MAX)
    if finished.returncode != 0:
        raise Failed(f"{shlex.join(str(word) for word in command)[:300]}\nended with {finished.returncode}:\n{finished.stdout[-4000:]}")
    return finished.stdout
