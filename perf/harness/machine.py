"""What the kernel knows: who we are, where processes run, what they have used."""

import atexit
import contextlib
import ctypes
import fcntl
import hashlib
import os
import platform
import random
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

from harness.contender import ROOT
from harness.keeper import Keeper

# Descriptors that we and all that we start may open: 8,000 idle connections have two ends, and some contenders
# reserve descriptors for every connection they might have.
DESCRIPTORS = 65_536

# Of prctl(2).
PR_SET_PDEATHSIG = 1

# What decides the figures. Documents and other results do not.
MEASURED_PATHS = ["Cargo.toml", "Cargo.lock", "proxy", "loadgen", "mock-upstream", "perf/harness", "perf/contenders",
                  "perf/scenarios"]


def describe():
    """What stands on every line of the history."""
    return {**commit(), "machine": summary(), "kernel": platform.release(), "cpu_model": cpu_model(),
            "cores": os.cpu_count(), "cmdline_flags": mitigations()}


def summary():
    return f"{cpu_model()}, {os.cpu_count()} cores, Linux {platform.release()}"


def cpu_model():
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return "unknown CPU"


def mitigations():
    """Whether the kernel's defences against its CPU are switched off: they cost each system call."""
    with contextlib.suppress(OSError):
        words = Path("/proc/cmdline").read_text().split()
        return [word for word in words if word.startswith(("mitigations=", "isolcpus=", "nohz_full=", "idle="))]
    return []


def commit():
    def git(*words):
        try:
            done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
        except OSError:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    return {
        "commit": git("rev-parse", "--short=12", "HEAD") or "unknown",
        "dirty": bool(git("status", "--porcelain", "--", *MEASURED_PATHS)),
    }


def binaries(directory, names):
    """Which programs are measured: name -> the first digits of their SHA-256 and when they were built."""
    found = {}
    for name in names:
        path = Path(directory) / name
        with contextlib.suppress(OSError):
            found[name] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:12], "built": int(path.stat().st_mtime)}
    return found


def older_than_source(built, root=ROOT):
    """Names of those that were built before some source file of this tree was last changed."""
    newest = max((int(path.stat().st_mtime) for part in ("proxy", "loadgen", "mock-upstream")
                  for path in (Path(root) / part).rglob("*.rs")), default=0)
    return [name for name, one in built.items() if one["built"] < newest]


def allow_descriptors():
    """Raises our limit, and so that of everything we start, as far as we may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in ((DESCRIPTORS, max(hard, DESCRIPTORS)), (min(DESCRIPTORS, hard), hard)):
        with contextlib.suppress(OSError, ValueError):
            if soft < wanted[0]:
                resource.setrlimit(resource.RLIMIT_NOFILE, wanted)
            return


def take_priority():
    """The scheduler weighs sessions against each other first: give ours all the weight, until we end.

    Not a session of our own: it would have no terminal, and Ctrl-C would not reach us. Whoever else is in this session
    shares the weight meanwhile.
    """
    autogroup = Path("/proc/self/autogroup")
    with contextlib.suppress(OSError):
        before = autogroup_nice(autogroup.read_text())
        autogroup.write_text("-20")
        atexit.register(restore_autogroup, autogroup, before)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    except OSError as error:
        print(f"--priority: {error}; run as root", file=sys.stderr)


def restore_autogroup(path, nice):
    # The kernel refuses a second change within a tenth of a second to those who may not do everything.
    with contextlib.suppress(OSError):
        path.write_text(str(nice))


def autogroup_nice(text):
    """Out of `/autogroup-123 nice 0`."""
    words = text.split()
    return int(words[words.index("nice") + 1]) if "nice" in words else 0


def end_on_signals():
    """SIGTERM and a terminal that went away end us as Ctrl-C does, so that what we started is stopped."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(2))


# Ends what is left of our processes when we are not there to do it.
KEEPER = Keeper()


def dies_with_us():
    """A function to call in a child: if we are killed and cannot end it, it ends all the same, with all its children."""
    libc = ctypes.CDLL(None)
    KEEPER.start()

    def ask():
        KEEPER.enter()
        # Should the keeper be killed too: of no use to the child's children.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    return ask


def stop(process, patience_s):
    """Ends a process that was started with `dies_with_us`, and all that it started: asks, waits so long, then kills."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    KEEPER.end(process.pid)


@contextlib.contextmanager
def alone(lock):
    """Holds a lock file meanwhile, so that several who measure on one machine take turns."""
    if lock is None:
        yield
        return
    with open(lock, "a", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def free_port():
    """A port that is free, outside of the range from which the kernel hands out ports by itself.

    Within it a connect to a port on which nothing listens yet may get that very port as its own, and be connected with
    itself: then a program that has not started seems to accept.
    """
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as given:
        first, last = map(int, given.read().split())
    candidates = [port for port in range(10_000, 65_000) if not first <= port <= last] or [0]
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", random.choice(candidates)))
            return probe.getsockname()[1]


def pin(pid, cpus):
    """Moves all threads of a process."""
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                os.sched_setaffinity(int(task), set(cpus))


def cpu_seconds(pids):
    """User and system time of all threads of these processes, in nanoseconds' resolution."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(OSError):
                    total += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
    return total / 1e9


def thread_seconds(pids):
    """The same, of each thread by itself: (pid, tid) -> seconds."""
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(OSError):
                    found[pid, task] = int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0]) / 1e9
    return found


def pss_kb(pids):
    """Proportional set size in kB: pages that several of these processes share count once."""
    return sum(parse_pss(Path(f"/proc/{pid}/smaps_rollup").read_text()) for pid in pids)


def parse_pss(text):
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise ValueError("smaps_rollup has no Pss")


def tcp_memory_kb():
    """What all TCP sockets' buffers of this network namespace hold, in kB."""
    return parse_sockstat(Path("/proc/net/sockstat").read_text()) * resource.getpagesize() // 1024


def parse_sockstat(text):
    """Pages of the `TCP:` line."""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["TCP:"]:
            return int(words[words.index("mem") + 1])
    raise ValueError("sockstat has no TCP memory")
