"""The processes under test: starts them, pins them, checks that each does its job, drives load at them.

A bench stands for one scenario and is torn down after it, so that what one scenario leaves in a contender (pools,
arenas, a crash) is not measured in the next.
"""

import contextlib
import hashlib
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from harness import contender as contenders
from harness import job_check, machine, slowdown
from harness.contender import CannotMeasure, Job, tree, write_private

HOST = "api.example.com"
KEY = "perf-real-key-" + "0123456789abcdef" * 2
NEXT_KEY = "perf-next-key-" + "fedcba9876543210" * 2
SHORT_KEY = "perf-short-key"
CALLERS_KEY = "perf-callers-own-key"
# The way without a proxy, in every place where a contender's name may stand.
DIRECT = "direct"
# How long a contender may take until it accepts. Ten thousand routes take the slowest a while.
START_SECONDS = 120
# Times that a contender may try to show that it does the job.
JOB_CHECKS = 3
# Of the load that is counted and not timed: long enough for every connection to be used many times.
COUNTED = ["--concurrency", 8, "--duration", "300ms", "--warmup", "0ms"]
# How long a contender may take to end when it is asked to; then it is killed.
STOP_SECONDS = 10
# How long a log may take until it has a line for each request: some write once in a second.
LOG_SECONDS = 10
# The API ends by itself after so long, if we cannot end it. The longest scenario takes a quarter of an hour.
UPSTREAM_SECONDS = 4 * 3600
# Bytes of a contender's output that go into an error.
OUTPUT_BYTES_SHOWN = 3_000


@dataclass
class Options:
    """What the command line decides for all scenarios alike."""

    contenders: list
    proxy_cpu: int = 0
    load_cpu: int = 1
    extra: dict = field(default_factory=dict)  # contender -> words added to its command line
    slow: dict = field(default_factory=dict)  # program -> the Slowdown of its twin, for the gate's proof
    adjust: dict = field(default_factory=dict)  # contender -> a function of its job that changes what `start` wrote
    lock: Path | None = None  # taken around each scenario
    sustain: bool = False  # open loop: only at the highest rate that all hold
    sustained_by: str = ""  # open loop: at the highest rate that this one holds, whether the others do or not
    verbose: bool = False
    checked: set = field(default_factory=set)  # contenders that have shown in this run that they do the whole job


@dataclass
class Running:
    """One contender, or the API itself under the name `direct`."""

    name: str
    title: str
    version: str
    port: int
    process: subprocess.Popen
    contender: object = None
    job: Job | None = None
    tls: str = ""  # towards callers, as negotiated
    upstream_tls: str = ""

    def pids(self):
        return self.contender.pids(self.process) if self.contender else tree(self.process.pid)


class Bench:
    """A context manager; everything that it started is gone when it ends."""

    def __init__(self, options, names, routes=1, workers=1):
        self.options, self.names, self.routes, self.workers = options, list(names), routes, workers
        self.load_cpu, self.proxy_cpu = options.load_cpu, options.proxy_cpu
        self.running = {}
        self.failed = {}  # name -> why it takes no part
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        try:
            self.loadgen_program = contenders.find_built("loadgen")
            self.upstream_program = contenders.find_built("mock-upstream")
            self.work = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="claviger-perf-")))
            self.log = self.stack.enter_context(open(self.work / "output.log", "wb"))
            self.start_upstream()
            # A copy: one that is dropped leaves the list.
            for name in list(self.names):
                try:
                    self.start(name)
                    self.check_job(name)
                except CannotMeasure as reason:
                    self.drop(name, reason)
            return self
        except BaseException:
            self.stack.close()
            raise

    def __exit__(self, *_):
        self.stack.close()

    def drop(self, name, reason):
        """Goes on without a contender; what it could not do is told in the end. Only the API must work."""
        if name == DIRECT:
            raise reason
        self.failed[name] = str(reason)
        if name in self.names:
            self.names.remove(name)
        if running := self.running.pop(name, None):
            stop(running.process)
        print(f"  {name} takes no further part: {reason}", file=sys.stderr)

    # ---- Starting ----

    def start_upstream(self):
        """The mock API: answers behind any of three keys, on the load's core."""
        tls = self.work / "tls"
        process, port, self.control = self.spawn_upstream(tls)
        self.ca, self.cert, self.cert_key = tls / "ca.pem", tls / "cert.pem", tls / "key.pem"
        self.bundle = write_private(tls / "bundle.pem", self.cert.read_text() + self.cert_key.read_text())
        self.right_key = write_private(self.work / "right.header", f"Authorization: Bearer {KEY}\n")
        self.wrong_key = write_private(self.work / "wrong.header", f"Authorization: Bearer {CALLERS_KEY}\n")
        version = contenders.first_line([self.upstream_program, "--version"])
        self.running[DIRECT] = Running(DIRECT, "no proxy", version, port, process)

    def spawn_upstream(self, tls, slow=slowdown.NONE):
        """A mock API with certificates of its own below `tls`; returns its process, its port and that of its control."""
        tls.mkdir()
        keys = write_private(self.work / "keys", f"{KEY}\n{NEXT_KEY}\n{SHORT_KEY}\n")
        process = self.spawn(
            [
                self.upstream_program,
                "--listen", "127.0.0.1:0", "--self-signed", tls, "--name", HOST, "--name", f"*.{HOST.partition('.')[2]}",
                "--key-file", keys, "--auth", "bearer",
                # Nothing may close under a contender's pool in the measured time.
                "--idle-timeout", "3600", "--max-seconds", UPSTREAM_SECONDS, "--control", "127.0.0.1:0",
                "--workers", "1", "--cpus", self.load_cpu,
            ],
            [self.load_cpu],
            slow=slow,
            stdout=subprocess.PIPE,
        )
        port = control = None
        for line in process.stdout:
            words = line.decode().split()
            if words[:1] == ["listening"]:
                port = int(words[1].rsplit(":", 1)[1])
            if words[:1] == ["control"]:
                control = int(words[1].rsplit(":", 1)[1])
            if words == ["ready"]:
                break
        if port is None or control is None:
            raise CannotMeasure(f"mock-upstream did not start:\n{self.output()}")
        return process, port, control

    def start(self, name):
        program, slow = slowdown.plain(name), slowdown.of(self.options.slow, name)
        contender = contenders.load(program)
        contender.find()
        directory = self.work / name
        directory.mkdir(mode=0o700)
        key = key_of(contender)
        cpus = [self.proxy_cpu, self.load_cpu][: self.workers] if self.workers <= 2 else list(range(self.workers))
        job = Job(
            dir=directory, port=machine.free_port(), host=HOST, upstream_port=self.running[DIRECT].port,
            ca=self.ca, cert=self.cert, cert_key=self.cert_key, bundle=self.bundle,
            key=key, key_file=write_private(directory / "key", key),
            cpu=cpus[0], workers=self.workers, cpus=cpus, routes=self.routes,
            user=contenders.current_user() if os.geteuid() == 0 else None,
        )
        # A twin's own words stand for those of the command line: both could name the same setting.
        command = contender.start(job) + (list(slow.words) or self.options.extra.get(program, []))
        if program in self.options.adjust:
            self.options.adjust[program](job)
        process = self.spawn(command, cpus, slow=slow)
        self.running[name] = Running(name, contender.title, contender.version(), job.port, process, contender, job)
        self.await_accept(name)

    def await_accept(self, name):
        one = self.running[name]
        deadline = time.monotonic() + START_SECONDS
        while True:
            if one.process.poll() is not None:
                raise CannotMeasure(f"{name} ended with {one.process.returncode}:\n{self.output(name)}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", one.port), 1):
                return
            if time.monotonic() > deadline:
                raise CannotMeasure(f"{name} does not accept on port {one.port}:\n{self.output(name)}")
            time.sleep(0.02)

    def spawn(self, command, cpus, slow=slowdown.NONE, **more):
        """Starts a process pinned to cores, and stops it at the end."""
        more.setdefault("stdout", self.log)
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL, stderr=self.log,
            preexec_fn=before(cpus, slow), **more,
        )
        self.stack.callback(stop, process)
        return process

    # ---- Checking ----

    def check_job(self, name):
        """The contender must do the job: replace the caller's key, over verified TLS, on kept connections."""
        one = self.running[name]
        job_check.ask_control(self.control, "POST", "/__stats/reset")
        deadline = time.monotonic() + 10
        while True:
            # One that checks its upstreams' health answers 503 until it has found them.
            try:
                seen = self.call(name, "/echo")
                break
            except (CannotMeasure, OSError) as reason:
                if time.monotonic() > deadline:
                    raise CannotMeasure(str(reason)) from None
                time.sleep(0.1)
        if seen.get("authorized") is not True:
            raise CannotMeasure(f"{name} did not write the key: the API refuses what it sends")
        fields = [field for field, _ in seen["headers"]]
        if sum(field.lower() == "authorization" for field in fields) != 1:
            raise CannotMeasure(f"{name} sent these fields: {fields}")
        # Callers in turn; each worker has connections of its own, and any of them may be asked.
        used = {self.call(name, "/echo")["connection"] for _ in range(2 * self.workers)}
        if len(used) > self.workers:
            raise CannotMeasure(f"{name} does not keep its upstream connections")
        # A twin is the same program.
        if slowdown.plain(name) not in self.options.checked:
            self.check_whole_job(name)
            self.options.checked.add(slowdown.plain(name))
        # Last: behind it stand several pooled connections, and the check of the job looks for the one.
        self.check_counts(name)
        one.upstream_tls = " ".join(filter(None, (seen["tls"]["version"], seen["tls"]["cipher_suite"])))

    def stats(self):
        """The API's own counters."""
        return json.loads(job_check.ask_control(self.control, "GET", "/__stats"))

    def check_counts(self, name):
        """An untimed load: the API has seen just the requests that were answered, and the log has a line for each."""
        earlier = self.stats()["endpoints"].get("ok", 0)  # by the check of the job
        target = self.loadgen([name], *COUNTED)["targets"][0]
        seen = self.stats()
        arrived = seen["endpoints"].get("ok", 0)
        if target["errors_total"] or seen["unauthorized"] or arrived != target["good"]:
            raise CannotMeasure(f"{name} gave {target['good']} good answers and {target['errors_total']} errors, and the "
                                f"API saw {arrived} requests, {seen['unauthorized']} of them without its key")
        directory = self.running[name].job.dir
        deadline = time.monotonic() + LOG_SECONDS
        while (logged := log_lines(directory, "/ok")) != earlier + arrived:
            if time.monotonic() > deadline:
                raise CannotMeasure(f"{name} logged {logged} of {earlier + arrived} requests")
            time.sleep(0.1)

    def check_whole_job(self, name):
        """Everything that the scenarios lean on. Some of it is a matter of time, so a busy moment is forgiven."""
        key = key_of(contenders.load(slowdown.plain(name)))
        for attempt in range(JOB_CHECKS):
            try:
                job_check.check(self.running[name].port, self.ca, key=key, host=HOST, name=name, mock_stats=self.stats,
                                workers=self.workers)
                with tempfile.TemporaryDirectory(prefix="claviger-perf-wrong-") as wrong:
                    job_check.refuses_the_wrong(contenders.load_found(slowdown.plain(name)), Path(wrong), self)
                return
            except job_check.Failed as reason:
                if attempt + 1 == JOB_CHECKS:
                    raise CannotMeasure(f"does not do the job: {reason}") from None

    def check_alive(self, names=None):
        for name in list(names or self.running):
            one = self.running[name]
            if one.process.poll() is not None:
                raise CannotMeasure(f"{name} ended during the run:\n{self.output(name)}")

    def call(self, name, path):
        """One request with a wrong key, as a service would send it. Returns the JSON body."""
        with self.connect(name) as stream:
            stream.sendall(request(path, close=True))
            answer = b""
            while piece := stream.recv(65536):
                answer += piece
        head, _, body = answer.partition(b"\r\n\r\n")
        if b" 200" not in head.split(b"\r\n")[0]:
            shown = head.split(b"\r\n")[0].decode(errors="replace")
            raise CannotMeasure(f"{name} answers {shown}\n{self.output(name)}")
        if b"transfer-encoding: chunked" in head.lower():
            body = dechunk(body)
        return json.loads(body)

    def connect(self, name):
        """A caller's TLS connection."""
        context = ssl.create_default_context(cafile=self.ca)
        raw = socket.create_connection(("127.0.0.1", self.running[name].port), 10)
        stream = context.wrap_socket(raw, server_hostname=HOST)
        self.running[name].tls = f"{stream.version()} {stream.cipher()[0]}"
        return stream

    def output(self, name=None):
        """The last that was printed, and the last lines of the contender's own logs."""
        self.log.flush()
        text = (self.work / "output.log").read_text(errors="replace").strip()[-OUTPUT_BYTES_SHOWN:]
        one = self.running.get(name)
        for path in one.contender.logs(one.job) if one and one.contender else []:
            with contextlib.suppress(OSError):
                text += "\n" + Path(path).read_text(errors="replace").strip()[-OUTPUT_BYTES_SHOWN:]
        return text

    # ---- Load ----

    def loadgen(self, names, *options, path="/ok", wrap=(), **more):
        """Drives one target or several to the end; returns loadgen's report."""
        return self.loadgen_start(names, *options, path=path, wrap=wrap, **more).report()

    def loadgen_start(self, names, *options, path="/ok", wrap=()):
        """The same in the background."""
        command = [*wrap, self.loadgen_program, "--json", "--cpus", self.load_cpu, "--cacert", self.ca]
        # A scenario says for each request what it expects.
        if "--scenario" not in options:
            command += ["--expect-status", "200"]
        for name in names:
            header = self.right_key if name == DIRECT else self.wrong_key
            command += [
                "--target", f"{name}=https://{HOST}{path}",
                "--connect", f"{name}=127.0.0.1:{self.running[name].port}",
                "--target-header", f"{name}=@{header}",
            ]
            for pid in self.running[name].pids():
                command += ["--watch", f"{name}={pid}"]
        if DIRECT not in names:
            command += ["--watch", f"{DIRECT}={self.running[DIRECT].process.pid}"]
        endpoint = "sse" if "--scenario" in options else path.split("/")[1]
        return Load(self, list(names), [str(word) for word in [*command, *options]], endpoint)


class Load:
    """One run of loadgen. The API counts along: good answers that it did not give are not the contender's work."""

    def __init__(self, bench, names, command, endpoint):
        self.bench, self.names, self.endpoint = bench, names, endpoint
        job_check.ask_control(bench.control, "POST", "/__stats/reset")
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, preexec_fn=machine.dies_with_us())
        bench.stack.callback(stop, self.process)
        self.lines, self.ready = [], threading.Event()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stderr:
            self.lines.append(line.strip())
            if line.startswith("ready:"):
                self.ready.set()
        self.ready.set()

    def report(self, codes=(0, 3)):
        output = self.process.stdout.read()
        code = self.process.wait()
        self.reader.join()
        if code not in codes:
            self.bench.check_alive(self.names)
            raise CannotMeasure(f"loadgen ended with {code}: {chr(10).join(self.lines[-5:])}")
        document = json.loads(output)
        check_answers(document, self.bench.stats(), self.endpoint)
        return document


def check_answers(document, seen, endpoint):
    """Each good answer must be the API's own. It sees more than those: the warm-up, and what was cut off at the end."""
    good = sum(target["good"] for target in document["targets"])
    arrived = seen["endpoints"].get(endpoint, 0) - seen["unauthorized"]
    if arrived < good:
        names = ", ".join(target["name"] for target in document["targets"])
        raise CannotMeasure(f"{good} good answers came through {names}, but the API gave {max(arrived, 0)} of them")


def log_lines(directory, path):
    """Lines about a path in a contender's logs, wherever they lie below its directory."""
    wanted = f'"{path}"'.encode()
    files = [file for file in Path(directory).rglob("*") if file.is_file()]
    return sum(line.count(wanted) > 0 for file in files for line in file.read_bytes().splitlines())


def before(cpus, slow=slowdown.NONE):
    """What a child does before it becomes the program."""
    slow_down = slowdown.dearer_system_calls(slow.instructions) if slow.instructions else None
    die_with_us = machine.dies_with_us()

    def run():
        die_with_us()
        os.sched_setaffinity(0, set(cpus))
        if slow_down:
            slow_down()

    return run


def request(path, close=False, key=CALLERS_KEY):
    ending = "Connection: close\r\n" if close else ""
    return (f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {key}\r\nAccept: */*\r\n"
            f"{ending}\r\n").encode()


def key_of(contender):
    """The key that a contender writes."""
    return SHORT_KEY if contender.short_key else KEY


def fingerprint(key):
    """A key as the API reports it."""
    return hashlib.sha256(key.encode()).hexdigest()


def complete_answer(answer):
    """The body of an answer if all of it is there, by its length or its last chunk; or else None."""
    head, ended, body = answer.partition(b"\r\n\r\n")
    if not ended:
        return None
    for field_line in head.lower().split(b"\r\n")[1:]:
        name, _, value = field_line.partition(b":")
        if name == b"content-length":
            return body if len(body) >= int(value) else None
    return dechunk(body) if body.endswith(b"0\r\n\r\n") else None


def dechunk(body):
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size.split(b";")[0], 16)
        whole, body = whole + body[:length], body[length + 2 :]
        if length == 0:
            break
    return whole


def stop(process):
    machine.stop(process, STOP_SECONDS)
