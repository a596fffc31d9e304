"""Soak: the real program under mixed, faulty traffic for as long as one likes, and nothing of it may grow.

Two Clavigers, one on each driver, stand in front of one mock-upstream whose faults are on. `loadgen` drives small
requests, checked downloads and uploads, event streams and WebSockets at a low rate, replaces connections and holds idle
ones; callers of our own ask where the key comes back, break off, do not read, and send what is malformed, and search
every byte that they get for every key in every usual form. Keys are replaced and configurations re-read all the while.
It begins and ends with a hand-over to a new process. Crowds that nobody could wish for come while it warms up, so that
what is kept for re-use has its size before anything is compared.

It fails if a figure is not flat (see `is_flat`), a verified body was wrong, an answer was no HTTP, a key came out, a
process logged a panic or lost a record, or something stays open when everybody has left.

What it lacks: it tells that something grows, not what; and it says nothing about speed.
"""

import argparse
import base64
import contextlib
import itertools
import json
import os
import random
import re
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from harness import job_check, machine
from harness.contender import CannotMeasure, target_dir, write_private

HOST = "api.example.com"
DRIVERS = ("io_uring", "epoll")

# --- The rule -----------------------------------------------------------------------------------------------------

# Of the time, so much is for warming up: pools fill, tables and arenas reach the size that the traffic asks for.
WARM_UP_SHARE = 0.25
# With fewer samples in a third a median says nothing.
SAMPLES_MIN = 8


@dataclass(frozen=True)
class Bound:
    """How far the last third may lie above the first one: a share, or so much, whichever is more."""

    share: float
    least: float
    why: str


# What is not here may be any size.
BOUNDS = {
    "private_kb": Bound(0.08, 4096, "the allocator takes 2 MiB at a time, and keeps what a burst needed"),
    "descriptors": Bound(0.15, 24, "connections come and go at random, on both sides"),
    "threads": Bound(0.0, 2, "the control plane starts threads for files and names, and ends them"),
    "connections_open": Bound(0.15, 24, "callers come and go at random"),
    "exchanges_open": Bound(0.5, 16, "what is under way at a moment, stalls among it"),
    "upstream_idle": Bound(0.3, 16, "the pool follows the traffic"),
    "audit_waiting": Bound(0.5, 64, "records in the lanes at a moment"),
}


def thirds(series):
    """The medians of the first and of the last third of `(time, value)` behind the warm-up."""
    if not series:
        raise CannotMeasure("there is not one sample")
    begun, ended = series[0][0], series[-1][0]
    warm = begun + (ended - begun) * WARM_UP_SHARE
    third = (ended - warm) / 3
    first = [value for at, value in series if warm <= at < warm + third]
    last = [value for at, value in series if at >= ended - third]
    if min(len(first), len(last)) < SAMPLES_MIN:
        raise CannotMeasure(f"{len(first)} and {len(last)} samples are too few to judge by: let it run for longer")
    return statistics.median(first), statistics.median(last)


def is_flat(series, bound):
    """Whether the last third is not above the first by more than the bound. What shrinks is flat."""
    first, last = thirds(series)
    return last - first <= max(first * bound.share, bound.least)


# --- What callers got ---------------------------------------------------------------------------------------------


def forms(key):
    """A key as it may stand in an answer: as it is, in hex, in base64 at any place, escaped."""
    raw = key.encode()
    found = {raw, raw.hex().encode(), raw.hex().upper().encode(), urllib.parse.quote(key, safe="").encode(),
             json.dumps(key).strip('"').encode(), json.dumps(key).strip('"').replace("/", "\\/").encode()}
    for shift in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            coded = encode(b"\0" * shift + raw).rstrip(b"=")
            # Without the characters that hang on what stands before and behind.
            found.add(coded[(shift * 8 + 5) // 6:][: (len(raw) * 8) // 6 - 1])
    return found


class Evidence:
    """Everything that a caller received passes through here."""

    def __init__(self):
        self.lock = threading.Lock()
        self.patterns = set()
        self.bytes = 0
        self.answers = 0
        self.found = []

    def know(self, key):
        with self.lock:
            self.patterns |= forms(key)

    def search(self, where, received):
        with self.lock:
            self.bytes += len(received)
            self.answers += received.count(b"HTTP/1.1 ")
            if any(pattern in received for pattern in self.patterns):
                self.found.append(where)


def control_of_the_search(key):
    """Each form of a planted key is found, and text without one is not taken for it."""
    evidence = Evidence()
    evidence.know(key)
    for pattern in forms(key):
        evidence.found.clear()
        evidence.search("planted", b"x" * 100 + pattern + b"y" * 100)
        if not evidence.found:
            raise CannotMeasure("the search does not find a key that was planted")
    evidence.found.clear()
    evidence.search("clean", b"HTTP/1.1 200 OK\r\n\r\nnothing to see")
    if evidence.found:
        raise CannotMeasure("the search finds keys where there are none")


def find_built(name):
    """A binary as the caller has built it: `SOAK_PROFILE` is release or debug."""
    path = target_dir() / os.environ.get("SOAK_PROFILE", "release") / name
    if not path.exists():
        raise CannotMeasure(f"{path} is missing; build it, or let scripts/soak do it")
    return path


# --- The API ------------------------------------------------------------------------------------------------------

# Where bodies are checked, what goes wrong must look wrong: whoever gets such an answer whole gets all of it.
BODY_FAULTS = [
    {"reset": {"at": 3000, "from": "body"}}, {"truncate": {"at": 5000, "from": "body"}},
    {"cut": {"at": 100, "from": "body"}}, {"stall": {"at": 2000, "from": "body", "time": "1s"}},
    {"drip": {"bytes": 700, "every": "5ms"}}, {"bad_record": {"at": 10, "from": "body"}},
    {"alert": {"at": 1000, "from": "body", "alert": "internal_error"}},
]
DEFECTS = ["length_short", "length_long", "length_and_chunked", "two_lengths", "negative_length", "plus_length",
           "unknown_coding", "bad_chunk_size", "huge_chunk_size", "missing_last_chunk", "missing_chunk_end", "obs_fold",
           "bare_lf", "nul_in_head", "bare_cr", "space_before_colon", "no_colon", "bad_status", "bad_status_line",
           "http2_status_line", "http2_preface", "no_head"]
ANY_FAULTS = [
    {"extra_bytes": {"text": "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nextra"}}, {"unasked": {"after": "20ms"}},
    {"flood": {"count": 40, "status": 103}}, "switch", {"large_head": {"bytes": 40000}}, {"cut": {}},
    {"reset": {"at": 5, "from": "head"}}, {"stall": {"at": 0, "time": "1s"}},
]
CONNECTION_FAULTS = [
    {"hang_up": {"how": "reset", "after": "accept"}}, {"hang_up": {"how": "close", "after": "hello"}}, "garbage_hello",
    {"hello_alert": {"alert": "handshake_failure"}}, {"slow_handshake": {"delay": "300ms"}},
    {"certificate": {"flaw": "expired"}},
]


def faults(seed):
    """Rules of mock-upstream: each fault now and then, where it belongs."""
    rules = [{"path": "/bytes/", "probability": 0.01, "action": action} for action in BODY_FAULTS]
    rules += [{"path": "/v1/", "probability": 0.01, "action": {"framing": {"defect": defect, "close": True}}} for defect in DEFECTS]
    rules += [{"path": "/v1/", "probability": 0.03, "action": action} for action in ANY_FAULTS]
    rules += [{"sni": HOST, "probability": 0.02, "action": action} for action in CONNECTION_FAULTS]
    return {"seed": seed, "rules": rules}


class Api:
    """mock-upstream, and the keys that it accepts."""

    def __init__(self, directory, seconds, seed):
        self.tls = directory / "tls"
        self.tls.mkdir()
        self.keys = []
        faulty = write_private(directory / "faults.json", json.dumps(faults(seed)))
        keys = write_private(directory / "keys", "none-yet\n")
        log = directory / "mock-upstream.log"
        self.process = subprocess.Popen(
            [find_built("mock-upstream"), "--listen", "127.0.0.1:0", "--self-signed", self.tls, "--name", HOST,
             "--key-file", keys, "--auth", "bearer", "--faults", faulty, "--seed", str(seed),
             "--control", "127.0.0.1:0", "--max-seconds", str(int(seconds)), "--idle-timeout", "5"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=open(log, "wb"), preexec_fn=machine.dies_with_us())
        self.port = self.control = None
        for line in self.process.stdout:
            words = line.decode().split()
            if words[:1] == ["listening"]:
                self.port = int(words[1].rsplit(":", 1)[1])
            if words[:1] == ["control"]:
                self.control = int(words[1].rsplit(":", 1)[1])
            if words == ["ready"]:
                break
        if self.port is None or self.control is None:
            raise CannotMeasure(f"mock-upstream did not start:\n{log.read_text(errors='replace')}")

    def accept(self, key):
        """This key as well. All stay valid: with an old one requests are under way."""
        self.keys.append(key)
        job_check.tell_control(self.control, "PUT", "/__keys", "".join(one + "\n" for one in self.keys))

    def stats(self):
        return json.loads(job_check.ask_control(self.control, "GET", "/__stats"))


# --- Claviger -----------------------------------------------------------------------------------------------------

CONFIG = """
[server]
workers = 1
driver = "{driver}"
state_dir = "{dir}/state"
head_timeout = "2s"
read_timeout = "3s"
idle_timeout = "30s"
drain_timeout = "10s"

[log]
format = "json"
status_interval = "1s"

[audit]
path = "{dir}/audit.ndjson"
rotate_bytes = "4MiB"
keep = 2

[[listener]]
name = "main"
address = "127.0.0.1:{port}"

[upstream.api]
host = "{host}"
port = {upstream_port}
addresses = ["127.0.0.1:{upstream_port}"]
ca_file = "{tls}/ca.pem"
connect_timeout = "2s"
response_head_timeout = "4s"
read_timeout = "4s"
connections_max = 64
idle_timeout = "4s"

[credential.api]
source = "file://{dir}/key"
inject = "bearer"

# What goes wrong behind an answer meets the next request on that connection: those whose bodies are
# checked have connections of their own.
[credential.faulty]
source = "file://{dir}/key"
inject = "bearer"

[host."{host}"]
certificate = "file://{tls}/cert.pem"
private_key = "file://{tls}/key.pem"

[[route]]
name = "api"
host = "{host}"
upstream = "api"
credential = "api"
callers = "open"
upgrades = ["websocket"]

[[route]]
name = "faulty"
host = "{host}"
path = "/v1"
upstream = "api"
credential = "faulty"
callers = "open"
# {comment}
"""


class Claviger:
    """One process after the other on one address, and what is sampled of the newest."""

    def __init__(self, directory, driver, api, key):
        self.driver, self.api, self.dir = driver, api, directory / driver
        self.dir.mkdir(mode=0o700)
        self.port = machine.free_port()
        self.configure("at the start")
        self.rotate(key)
        self.log_path = self.dir / "log"
        self.samples = []
        self.read_bytes = 0
        self.status = {}
        self.serving = []
        self.complaints = []
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [find_built("claviger"), "run", "--config", self.dir / "claviger.toml"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=machine.dies_with_us())
        self.await_serving(1)

    @property
    def pid(self):
        return self.serving[-1]

    def configure(self, comment):
        write_private(self.dir / "claviger.toml", CONFIG.format(
            driver=self.driver, dir=self.dir, port=self.port, upstream_port=self.api.port, host=HOST, tls=self.api.tls,
            comment=comment))

    def rotate(self, key):
        """As a secret manager's agent does: whole, by renaming."""
        os.replace(write_private(self.dir / "key.next", key + "\n"), self.dir / "key")

    def read_log(self):
        """Takes in what was logged since."""
        with open(self.log_path, "rb") as log:
            log.seek(self.read_bytes)
            text = log.read()
        end = text.rfind(b"\n") + 1
        self.read_bytes += end
        for line in text[:end].splitlines():
            try:
                said = json.loads(line)
            except ValueError:
                # A panic's own words are no JSON.
                self.complaints.append(line.decode(errors="replace")[:300])
                continue
            fields = said.get("fields", said)
            message = str(fields.get("message", said.get("message", "")))
            if message == "serving":
                self.serving.append(int(fields["pid"]))
            elif message.startswith("status "):
                # Of one process at a time: who was succeeded has ended before anybody looks.
                self.status = dict(re.findall(r'(\w+)=("[^"]*"|\S+)', message))
            elif said.get("level") == "ERROR" or "panic" in message:
                self.complaints.append(line.decode(errors="replace")[:300])

    def await_serving(self, count, seconds=60):
        deadline = time.monotonic() + seconds
        while len(self.serving) < count:
            if time.monotonic() > deadline or (count == 1 and self.process.poll() is not None):
                raise CannotMeasure(f"{self.driver}: it does not serve:\n{self.log_path.read_text(errors='replace')[-3000:]}")
            time.sleep(0.05)
            self.read_log()

    def hand_over(self):
        """A new process takes over under load, and the old one ends."""
        old, count = self.pid, len(self.serving)
        os.kill(old, signal.SIGURG)
        self.await_serving(count + 1)
        deadline = time.monotonic() + 60
        while runs(old):
            if time.monotonic() > deadline:
                raise CannotMeasure(f"{self.driver}: the process that was succeeded does not end")
            if self.process.pid == old:
                self.process.poll()
            time.sleep(0.1)

    def sample(self, at):
        self.read_log()
        proc = Path(f"/proc/{self.pid}")
        found = {
            "private_kb": private_kb((proc / "smaps_rollup").read_text()),
            "descriptors": len(os.listdir(proc / "fd")),
            "threads": len(os.listdir(proc / "task")),
        }
        for name in ("connections_open", "exchanges_open", "upstream_idle", "audit_waiting"):
            if name in self.status:
                found[name] = int(self.status[name])
        self.samples.append((at, found))
        return found

    def series(self, name):
        return [(at, found[name]) for at, found in self.samples if name in found]

    def counter(self, name):
        return int(self.status.get(name, 0))


def runs(pid):
    """Whether a process is there and not only its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def private_kb(smaps_rollup):
    """Pages that no other process has, swapped ones too. The program's own pages do not count: who else runs the same
    binary, and starts or ends meanwhile, would change each one's share of them."""
    return sum(int(line.split()[1]) for line in smaps_rollup.splitlines()
               if line.startswith(("Private_Clean:", "Private_Dirty:", "Swap:", "Private_Hugetlb:")))


# --- Traffic ------------------------------------------------------------------------------------------------------

SCENARIO = """
[defaults]
timeout = "10s"

[[request]]
name = "small"
weight = 10
path = "/ok"
expect_body = "ok\\n"

[[request]]
name = "completion"
weight = 6
method = "POST"
path = "/v1/chat/completions"
headers = ["Content-Type: application/json"]
body = '{"model":"m","stream":true,"messages":[{"role":"user","content":"Hello"}]}'

[[request]]
name = "models"
weight = 6
path = "/v1/models"

[[request]]
name = "download"
kind = "download"
weight = 5
path = "/bytes/{size}"
size = { log_normal = { median = "16KiB", sigma = 1.5, max = "4MiB" } }

[[request]]
name = "download-chunked"
kind = "download"
weight = 3
path = "/bytes/{size}?chunked=1"
size = { uniform = ["1KiB", "256KiB"] }

[[request]]
name = "upload"
kind = "upload"
weight = 4
method = "PUT"
path = "/upload"
body_size = { list = [0, "1KiB", "100KiB", "1MiB"] }

[[request]]
name = "events"
kind = "sse"
weight = 2
path = "/sse?n=10&ms=30"
expect_events = 10

[[request]]
name = "chat"
kind = "websocket"
weight = 2
path = "/ws"
messages = 10
message_size = "2KiB"
message_every = "10ms"
"""

# Requests per second and driver: both cores of a small machine have other things to do.
RATE, CHURN_RATE, IDLE = 40, 8, 100
# What a generator may report and a faulty API explains. The others may never be.
ALLOWED = {"connect", "tls", "timeout", "reset", "truncated", "bad_status", "unsent"}


def loadgen(claviger, name, seconds, *words):
    """A generator that drives `claviger`; its report is written to `NAME.json`."""
    report = open(claviger.dir / f"{name}.json", "wb")
    with report:
        return subprocess.Popen(
            [find_built("loadgen"), "--json", "--quiet", "--duration", f"{int(seconds)}s", "--warmup", "0s", "--slice", "10s",
             "--cacert", claviger.api.tls / "ca.pem", "--connect", f"127.0.0.1:{claviger.port}",
             # It is not latency that is measured: late is as good as in time.
             "--lag-bound", "60s", "--spin-us", "0", *map(str, words), f"https://{HOST}/ok"],
            stdin=subprocess.DEVNULL, stdout=report, stderr=open(claviger.dir / f"{name}.err", "wb"),
            preexec_fn=machine.dies_with_us())


def request(method, path, *fields, body=b"", close=True):
    head = [f"{method} {path} HTTP/1.1", f"Host: {HOST}", "Authorization: Bearer callers-own-key", *fields]
    if close:
        head.append("Connection: close")
    if body:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


# What is asked for where keys might come back, and what is no request at all.
ASKED = [
    ("leak", request("GET", "/leak")), ("leak in the body", request("GET", "/leak?body=1")),
    ("leak with an error", request("GET", "/leak?status=500&body=1")), ("echo", request("GET", "/echo?body=1")),
    ("echo of a body", request("POST", "/echo?body=1", body=b"hello")), ("trailers", request("GET", "/trailers")),
    ("hints", request("GET", "/hints/5")), ("redirect", request("GET", "/redirect?to=https://elsewhere.example/")),
    ("status", request("GET", "/status/404")), ("events", request("GET", "/sse?n=3&ms=10")),
    ("drop", request("GET", "/drop")), ("truncate", request("GET", "/truncate/50000")),
    ("early answer", request("POST", "/early/10", body=b"x" * 60_000)), ("hang-up", request("GET", "/hangup/50")),
    ("slow head", request("GET", "/slow-head/300")), ("completion", request("POST", "/v1/chat/completions", "Content-Type: application/json", body=b'{"model":"m","messages":[]}')),
    ("models", request("GET", "/v1/models")), ("pipelined", request("GET", "/ok", close=False) * 3 + request("GET", "/leak")),
    ("two lengths", request("POST", "/ok", "Content-Length: 1", "Content-Length: 2")),
    ("folded", request("GET", "/ok", "X: a\r\n b")), ("no such host", request("GET", "/ok").replace(HOST.encode(), b"other.example")),
    ("garbage", b"\x00\x01\x02 no request\r\n\r\n"), ("traced", request("TRACE", "/ok")),
    ("expectation", request("POST", "/upload", "Expect: 100-continue", body=b"x" * 2000)),
]
# How a caller may behave instead of reading to the end.
MANNERS = ["reads", "reads", "reads", "reads", "leaves", "resets", "half-closes", "never reads", "stops asking"]


class Caller(threading.Thread):
    """Asks one thing after the other, each on a connection of its own, and searches what it gets."""

    def __init__(self, claviger, evidence, seed, ended):
        super().__init__(daemon=True)
        self.claviger, self.evidence, self.ended = claviger, evidence, ended
        self.random = random.Random(seed)
        self.context = ssl.create_default_context(cafile=claviger.api.tls / "ca.pem")
        self.failure = None

    def run(self):
        try:
            while not self.ended.is_set():
                self.call(*self.random.choice(ASKED), self.random.choice(MANNERS))
                self.ended.wait(self.random.uniform(0, 0.4))
        except Exception as error:  # A thread's end must not go unnoticed.
            self.failure = error

    def call(self, name, asked, manner):
        received = b""
        # Whatever way a connection ends, it is what came before that counts.
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.claviger.port), 10) as raw:
            if manner == "resets":
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            with self.context.wrap_socket(raw, server_hostname=HOST) as tls:
                tls.settimeout(10)
                if manner == "stops asking":
                    tls.sendall(asked[: len(asked) // 2])
                    self.ended.wait(1)
                    return
                tls.sendall(asked)
                if manner == "never reads":
                    tls.sendall(request("GET", "/bytes/3000000"))
                    self.ended.wait(2)
                    return
                if manner == "half-closes":
                    raw_descriptor = socket.socket(fileno=os.dup(tls.fileno()))
                    with raw_descriptor:
                        raw_descriptor.shutdown(socket.SHUT_WR)
                while True:
                    try:
                        more = tls.recv(65536)
                    except (ssl.SSLError, OSError):
                        break
                    received += more
                    if not more or manner in ("leaves", "resets") or len(received) > 8 << 20:
                        break
        if received:
            self.evidence.search(f"{self.claviger.driver}: {name}, {manner}", received)


# At once, of each kind: more than the upstream has connections for.
CROWD = 96


class Crowds(threading.Thread):
    """Fills, in the time for warming up, what a process keeps for re-use: buffers, tables, arenas.

    How much is in use at once is decided by chance, and by whoever else uses the machine: each moment that is worse than
    all before makes the process a little larger. The worst ones are made here, so that what grows later is no such thing.
    """

    def __init__(self, claviger, seconds):
        super().__init__(daemon=True)
        self.claviger, self.until = claviger, time.monotonic() + seconds
        self.context = ssl.create_default_context(cafile=claviger.api.tls / "ca.pem")
        self.crowds = 0
        self.failure = None

    def run(self):
        try:
            while time.monotonic() < self.until:
                self.crowd()
                self.crowds += 1
        except Exception as error:  # As in `Caller`.
            self.failure = error

    def crowd(self):
        """Bodies that nobody reads, bodies that stop half-way, heads that do; held for a moment, then all are gone."""
        body = b"x" * 300_000
        asked = [request("GET", "/bytes/3000000"), request("GET", "/v1/models"), request("PUT", "/upload", body=body)[: -len(body) // 2],
                 request("GET", "/ok", "X-Long: " + "y" * 20_000)[:-3]]
        with contextlib.ExitStack() as held:
            for number in range(CROWD * len(asked)):
                with contextlib.suppress(OSError):
                    raw = held.enter_context(socket.create_connection(("127.0.0.1", self.claviger.port), 10))
                    tls = held.enter_context(self.context.wrap_socket(raw, server_hostname=HOST))
                    tls.settimeout(0.5)
                    tls.sendall(asked[number % len(asked)])
            time.sleep(0.5)


class Keeper(threading.Thread):
    """Replaces the key and has the configuration read again, all the while."""

    def __init__(self, clavigers, api, evidence, every, seed, ended):
        super().__init__(daemon=True)
        self.clavigers, self.api, self.evidence = clavigers, api, evidence
        self.every, self.ended, self.seed = every, ended, seed
        self.rotations = 0
        self.failure = None

    def run(self):
        try:
            for number in itertools.count(1):
                if self.ended.wait(self.every):
                    return
                key = new_key(self.seed, number)
                self.evidence.know(key)
                self.api.accept(key)
                for claviger in self.clavigers:
                    claviger.rotate(key)
                    if number % 2 == 0:
                        claviger.configure(f"for the {number}th time")
                    if number % 3 == 0:
                        os.kill(claviger.pid, signal.SIGHUP)
                self.rotations += 1
        except Exception as error:
            self.failure = error


def new_key(seed, number):
    """Long enough to be searched for, and with characters that other forms escape."""
    return f"soak-{number}/" + base64.b64encode(random.Random(f"{seed}-{number}").randbytes(27)).decode()


# --- The run ------------------------------------------------------------------------------------------------------


def soak(directory, seconds, seed, drivers, say):
    """Runs it all, and returns the problems that were found."""
    evidence = Evidence()
    first = new_key(seed, 0)
    control_of_the_search(first)
    evidence.know(first)
    api = Api(directory, seconds + 300, seed)
    api.accept(first)
    clavigers = [Claviger(directory, driver, api, first) for driver in drivers]
    ended = threading.Event()
    scenario = write_private(directory / "scenario.toml", SCENARIO)
    generators = []
    crowds = []
    for claviger in clavigers:
        generators += [
            (claviger, "mixed", loadgen(claviger, "mixed", seconds, "--scenario", scenario, "--rps", RATE, "--connections", 24,
                                        "--requests-per-connection", 60, "--seed", seed)),
            (claviger, "churn", loadgen(claviger, "churn", seconds, "--rps", CHURN_RATE, "--connections", 8, "--new-connection", "--resume")),
        ]
    callers = [Caller(claviger, evidence, f"{seed}-{claviger.driver}-{at}", ended) for claviger in clavigers for at in range(3)]
    keeper = Keeper(clavigers, api, evidence, max(2.0, seconds / 60), seed, ended)
    begun = time.monotonic()
    for thread in [*callers, keeper]:
        thread.start()
    # The process that is measured is one that has taken over, under load.
    time.sleep(min(5.0, seconds / 20))
    for claviger in clavigers:
        claviger.hand_over()
        # Behind it, for it ends what is idle.
        left = seconds - (time.monotonic() - begun)
        generators.append((claviger, "idle", loadgen(
            claviger, "idle", left, "--rps", 1, "--connections", 1, "--idle", IDLE, "--idle-every", "4s")))
        crowds.append(Crowds(claviger, seconds * WARM_UP_SHARE / 2))
        crowds[-1].start()
    every = max(0.5, seconds / 600)
    next_word = begun + 30
    while time.monotonic() < begun + seconds:
        at = time.monotonic() - begun
        found = {claviger.driver: claviger.sample(at) for claviger in clavigers}
        if time.monotonic() > next_word:
            next_word += 30
            say(f"{at:6.0f} s  " + "  ".join(f"{driver}: {one['private_kb']} kB, {one['descriptors']} descriptors" for driver, one in found.items()))
        time.sleep(every)
    ended.set()
    problems = []
    for thread in [*callers, keeper, *crowds]:
        thread.join(30)
        if thread.failure is not None or thread.is_alive():
            problems.append(f"a thread of ours failed: {thread.failure!r}")
    for claviger, name, process in generators:
        problems += judge_generator(claviger, name, process, say)
    stats = api.stats()
    for claviger in clavigers:
        problems += judge(claviger, say)
        problems += judge_rest(claviger)
        claviger.hand_over()
        os.kill(claviger.pid, signal.SIGTERM)
    for claviger in clavigers:
        deadline = time.monotonic() + 30
        while runs(claviger.pid):
            if time.monotonic() > deadline:
                problems.append(f"{claviger.driver}: it does not end")
                break
            time.sleep(0.1)
        claviger.read_log()
        problems += [f"{claviger.driver}: it logged: {line}" for line in claviger.complaints]
    problems += [f"a key came out: {where}" for where in sorted(set(evidence.found))]
    if stats["unauthorized"]:
        problems.append(f"the API refused {stats['unauthorized']} keys")
    say(f"{stats['requests']} requests reached the API, {sum(stats['faults'].values())} faults; {keeper.rotations} keys; "
        f"{evidence.answers} answers of {evidence.bytes} bytes were searched")
    if not evidence.answers or not keeper.rotations or not stats["faults"] or not all(crowd.crowds for crowd in crowds):
        problems.append("nothing was searched, replaced, broken or crowded: that shows nothing")
    machine.stop(api.process, 10)
    return problems


def judge(claviger, say):
    """Whether each figure was flat, and the counters that must be nothing are."""
    problems = []
    for name, bound in BOUNDS.items():
        first, last = thirds(claviger.series(name))
        allowed = max(first * bound.share, bound.least)
        flat = is_flat(claviger.series(name), bound)
        say(f"{claviger.driver:9} {name:17} {first:10.0f} -> {last:10.0f}  (at most {allowed:+.0f}) {'' if flat else 'NOT FLAT'}")
        if not flat:
            problems.append(f"{claviger.driver}: {name} rose from {first:.0f} to {last:.0f}; at most {allowed:+.0f} is noise, since {bound.why}")
    for name in ("exchanges_panicked", "audit_lost"):
        if claviger.counter(name):
            problems.append(f"{claviger.driver}: {name} is {claviger.counter(name)}")
    exchanges = claviger.counter("exchanges")
    # From the middle of one third to the middle of the other, in which two thirds of the judged time pass.
    between = max(1, exchanges * (1 - WARM_UP_SHARE) * 2 / 3)
    first, _ = thirds(claviger.series("private_kb"))
    shown = max(first * BOUNDS["private_kb"].share, BOUNDS["private_kb"].least) * 1024 / between
    say(f"{claviger.driver:9} {exchanges} exchanges, {claviger.counter('connections_accepted')} connections, driver {claviger.status.get('driver')}; "
        f"{shown:.0f} bytes lost with each exchange would have shown")
    return problems


def judge_rest(claviger, seconds=45):
    """When all have left, nothing may stay open."""
    deadline = time.monotonic() + seconds
    while True:
        claviger.read_log()
        left = {name: claviger.counter(name) for name in ("connections_open", "exchanges_open", "audit_waiting")}
        if not any(left.values()):
            return []
        if time.monotonic() > deadline:
            return [f"{claviger.driver}: {value} {name} when all have left" for name, value in left.items() if value]
        time.sleep(0.5)


def judge_generator(claviger, name, process, say):
    try:
        code = process.wait(120)
    except subprocess.TimeoutExpired:
        return [f"{claviger.driver}: loadgen ({name}) does not end"]
    text = (claviger.dir / f"{name}.json").read_text()
    if code != 0 or not text:
        return [f"{claviger.driver}: loadgen ({name}) ended with {code}: {(claviger.dir / f'{name}.err').read_text()[-1000:]}"]
    [target] = json.loads(text)["targets"]
    errors = {kind: count for kind, count in target["errors"].items() if kind != "total" and count}
    say(f"{claviger.driver:9} {name:6} {target['requests']} requests, errors: {errors or 'none'}")
    if target.get("idle", {}).get("lost", 0):
        # On a machine that stands still for longer than idle_timeout they are closed, as they should be.
        say(f"{claviger.driver:9} {target['idle']['lost']} idle connections were lost")
    return [f"{claviger.driver}: loadgen ({name}) saw {count} times {kind}" for kind, count in errors.items() if kind not in ALLOWED]


def working_directory(kept):
    if kept is None:
        return tempfile.TemporaryDirectory(prefix="claviger-soak-")
    kept.mkdir(mode=0o700)
    return contextlib.nullcontext(kept)


def main(words=None):
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (30)")
    parser.add_argument("--driver", choices=[*DRIVERS, "both"], default="both", help="both run beside each other")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="leaves logs, reports and records in this directory, which must not exist")
    options = parser.parse_args(words)
    machine.allow_descriptors()
    machine.end_on_signals()
    drivers = DRIVERS if options.driver == "both" else (options.driver,)
    try:
        with working_directory(options.keep) as directory:
            problems = soak(Path(directory), options.minutes * 60, options.seed, drivers, lambda line: print(line, flush=True))
    except CannotMeasure as reason:
        print(f"soak: {reason}", file=sys.stderr)
        return 2
    for problem in problems:
        print(f"  {problem}")
    print("flat" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0
