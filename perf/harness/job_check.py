"""Whether a contender does the job, before anything about it is timed.

`check` asks a running contender, as a caller would, for everything that the scenarios lean on, and looks at what
reached the API. `refuses` starts it in front of an API that must not be trusted. Each failure is a sentence; what a
contender cannot do (an upgrade, say) is for its FAIRNESS.md and not asked of it.

`perf/check-contenders` runs both for all that are installed. The client here is a plain one on `ssl` and `socket`: it
shares no code with loadgen, so that what one of them overlooks the other may see.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import machine
from harness.contender import (
    CannotMeasure, Job, NotSupported, current_user, find_built, known, load, write_private,
)

HOST = "api.example.com"
KEY = "perf-real-key-" + "0123456789abcdef" * 2
NEW_KEY = "perf-next-key-" + "fedcba9876543210" * 2
CALLERS_KEY = "perf-callers-own-key-0123456789"
# Where callers' keys may stand. Every contender takes these out.
STRIPPED = [
    "Authorization", "Proxy-Authorization", "X-API-Key", "Api-Key", "X-Goog-Api-Key", "Ocp-Apim-Subscription-Key",
]

# How long anything may take that has to happen: a start with 10,000 routes is the longest.
PATIENCE_S = 300.0
# How long a process may take to end when it is asked to; then it is killed.
STOP_S = 5.0
# Time between the events of a stream.
EVENT_GAP_S = 0.1
# An event that comes so much closer to the one before it was held back, as one that waits for the next is.
EVENT_DELAY_MAX_S = 0.09
# Streams of which one has to arrive as it was sent.
STREAMS_TRIED_MAX = 5


# What everybody has to speak on both sides, so that no one's figure is another cipher's: the first that loadgen offers
# and that mock-upstream takes, in rustls's words.
TLS = ["TLSv1_3", "TLS13_AES_128_GCM_SHA256", "X25519"]


class Failed(Exception):
    """The contender does not do the job; the text says in which way."""


def check(port, ca, key=KEY, host=HOST, name="it", mock_stats=None, workers=1):
    """Asks for everything that the scenarios lean on. Returns what was seen of TLS; raises Failed.

    `mock_stats` returns the API's counters, if its control port is known: then it is also looked at whether the request
    that the scenarios time is answered by the API each time.
    """
    caller = Caller(port, ca, host, name)
    caller.workers = workers
    if mock_stats:
        asks_the_api(caller, mock_stats)
    for part in (replaces_key, keeps_upstream, passes_status, echoes_upload, takes_chunks, streams_events, upgrades,
                 resumes):
        try:
            part(caller, key)
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise Failed(f"{name}: {part.__name__}: {type(error).__name__}: {error}") from error
    return caller.seen


def replaces_key(caller, key):
    """The caller's key in every place, in unusual spellings, and the right one exactly once."""
    head = "".join(f"{field}: Bearer {CALLERS_KEY}\r\n" for field in STRIPPED)
    head += "X-Kept: yes\r\n"
    shouted = caller.json("GET", "/echo", f"AUTHORIZATION: Basic {CALLERS_KEY}\r\nx-API-key: {CALLERS_KEY}\r\n")
    if shouted["authorized"] is not True or CALLERS_KEY in json.dumps(shouted):
        raise Failed(f"{caller.name} knows the caller's key by one spelling of its place only")
    seen = caller.json("GET", "/echo?keep=this", head)
    fields = [(name.lower(), value) for name, value in seen["headers"]]
    names = [name for name, _ in fields]
    if seen["authorized"] is not True or seen["auth_sha256"] != hashlib.sha256(key.encode()).hexdigest():
        raise Failed(f"{caller.name} did not write the key: the API says `{seen['auth']}`")
    if names.count("authorization") != 1:
        raise Failed(f"{caller.name} sent Authorization {names.count('authorization')} times")
    for field in STRIPPED[1:]:
        if field.lower() in names and dict(fields)[field.lower()]:
            raise Failed(f"{caller.name} passed on the caller's {field}")
    # The mock shows credential-like values as digests, so the caller's key is looked for as one too.
    if CALLERS_KEY in json.dumps(seen):
        raise Failed(f"{caller.name} passed on the caller's key")
    if dict(fields).get("x-kept") != "yes" or seen["target"] != "/echo?keep=this":
        raise Failed(f"{caller.name} changed what it had to pass on: {seen['target']}")
    if dict(fields).get("host", "").split(":")[0] != caller.host:
        raise Failed(f"{caller.name} sent Host {dict(fields).get('host')}")
    if seen["version"] != "HTTP/1.1" or seen["tls"]["sni"] != caller.host:
        raise Failed(f"{caller.name} reached the API with {seen['version']}, SNI {seen['tls']['sni']}")
    caller.seen["upstream_tls"] = [seen["tls"].get(fact, "unknown") for fact in ("version", "cipher_suite", "group")]


def asks_the_api(caller, mock_stats):
    """The request that is timed reaches the API each time, whatever key the caller has: nothing answers in its place."""
    for callers_key in (CALLERS_KEY, CALLERS_KEY[::-1]):
        before = mock_stats()
        status, _, _ = caller.call("GET", "/ok", f"Authorization: Bearer {callers_key}\r\n")
        after = mock_stats()
        arrived = after["endpoints"].get("ok", 0) - before["endpoints"].get("ok", 0)
        if status != 200 or arrived != 1 or after["unauthorized"] != before["unauthorized"]:
            raise Failed(f"{caller.name} answers {status} to /ok, and the API saw {arrived} good requests of it")


def keeps_upstream(caller, key):
    """Callers, one after the other, arrive over one upstream connection; each worker has its own."""
    used = {caller.json("GET", "/echo")["connection"] for _ in range(2 * caller.workers)}
    if len(used) > caller.workers:
        raise Failed(f"{caller.name} does not keep its upstream connections")
    with caller.connect() as stream:
        numbers = [json.loads(caller.exchange(stream, "GET", "/echo", close=False)[2])["connection"] for _ in range(2)]
    if numbers[0] != numbers[1]:
        raise Failed(f"{caller.name} changes its upstream connection within one caller's")


def passes_status(caller, key):
    for status in (204, 404, 500):
        got, _, _ = caller.call("GET", f"/status/{status}")
        if got != status:
            raise Failed(f"{caller.name} answers {got} where the API says {status}")


def echoes_upload(caller, key):
    """1 MiB each way, byte for byte."""
    body = bytes(pattern(1024 * 1024))
    seen = json.loads(caller.call("POST", "/upload", body=body)[2])
    expect_digest(caller, seen, body, "an upload of 1 MiB")
    got = caller.call("GET", f"/bytes/{len(body)}")[2]
    if got != body:
        raise Failed(f"{caller.name} changed a download of 1 MiB: {len(got)} bytes")


def takes_chunks(caller, key):
    body = bytes(pattern(300_000))
    chunks = b"".join(
        b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (body[at : at + 7001] for at in range(0, len(body), 7001))
    )
    raw = chunks + b"0\r\n\r\n"
    _, _, answer = caller.call("POST", "/upload", "Transfer-Encoding: chunked\r\n", raw=raw)
    expect_digest(caller, json.loads(answer), body, "a chunked upload")
    got = caller.call("GET", f"/bytes/{len(body)}?chunked=1")[2]
    if got != body:
        raise Failed(f"{caller.name} changed a chunked download: {len(got)} bytes")


def expect_digest(caller, seen, body, what):
    size = seen.get("body_bytes", seen.get("bytes", seen.get("length")))
    digest = seen.get("body_sha256", seen.get("sha256"))
    if size != len(body) or digest != hashlib.sha256(body).hexdigest():
        raise Failed(f"{caller.name} changed {what}: {size} bytes arrived")


def streams_events(caller, key):
    """Each event arrives when it is sent, not with the next one and not at the end.

    One who holds events back does so every time; a machine that is busy for a moment does not.
    """
    for _ in range(STREAMS_TRIED_MAX):
        gaps = gaps_between_events(caller)
        if min(gaps) >= EVENT_GAP_S - EVENT_DELAY_MAX_S:
            return
    raise Failed(
        f"{caller.name} holds events back: gaps of {[round(gap, 3) for gap in gaps]} s where {EVENT_GAP_S} was sent"
    )


def gaps_between_events(caller):
    with caller.connect() as stream:
        caller.send(stream, "GET", f"/sse?n=5&ms={EVENT_GAP_S * 1000:.0f}", "Accept: text/event-stream\r\n")
        arrivals, held, chunk = [], b"", b" "
        while chunk and b"[DONE]" not in held:
            chunk = stream.recv(65536)
            held += chunk
            arrivals += [time.monotonic()] * (held.count(b"data:") - len(arrivals))
    if len(arrivals) < 5:
        raise Failed(f"{caller.name} passed on {len(arrivals)} of 5 events")
    return [later - earlier for earlier, later in zip(arrivals[:5], arrivals[1:5])]


def upgrades(caller, key):
    """A WebSocket: the handshake passes, with the key written, and a frame comes back."""
    nonce = base64.b64encode(os.urandom(16)).decode()
    with caller.connect() as stream:
        caller.send(
            stream, "GET", "/ws",
            f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {nonce}\r\n",
            close=None,
        )
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += receive(stream)
        head, _, rest = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101"):
            raise Failed(f"{caller.name} answers a WebSocket handshake with {head.splitlines()[0].decode()}")
        # A masked text frame (RFC 6455, 5.2), with a mask of zeros.
        stream.sendall(b"\x81\x85\0\0\0\0hello")
        while len(rest) < 7:
            rest += receive(stream)
        if rest[:7] != b"\x81\x05hello":
            raise Failed(f"{caller.name} changed a WebSocket frame")


def resumes(caller, key):
    """A caller that comes back resumes its TLS session."""
    with caller.connect() as stream:
        caller.exchange(stream, "GET", "/echo", close=True)
        session = stream.session
    with caller.connect(session) as stream:
        caller.exchange(stream, "GET", "/echo", close=True)
        caller.seen["resumes"] = stream.session_reused
    if not caller.seen["resumes"]:
        raise Failed(f"{caller.name} does not resume TLS sessions")


def speaks_the_same_tls(port, ca, upstream_tls, host=HOST, name="it"):
    """The records of both handshakes: loadgen's own with the contender, and `upstream_tls`, the API's with it.

    The callers here cannot stand for loadgen: which suite is taken depends on what is offered first.
    """
    done = subprocess.run(
        [str(word) for word in (
            find_built("loadgen"), "--json", "--quiet", "--cacert", ca, "--target", f"{name}=https://{host}/ok",
            "--connect", f"{name}=127.0.0.1:{port}", "--concurrency", 1, "--duration", "50ms", "--warmup", "0ms",
        )], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S, preexec_fn=machine.dies_with_us())
    if done.returncode not in (0, 3):
        raise Failed(f"{name}: loadgen ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    callers = json.loads(done.stdout)["targets"][0]["tls"].split()
    for side, spoken in (("callers", callers), ("the API", upstream_tls)):
        if spoken != TLS:
            raise Failed(f"{name} speaks {' '.join(spoken)} with {side}, and not {' '.join(TLS)} as the others do")


def refuses(port, ca, api_requests, host=HOST, name="it"):
    """In front of an API whose certificate must not be trusted: 5xx, and nothing reaches the API."""
    before = api_requests()
    status, _, _ = Caller(port, ca, host, name).call("GET", "/echo", f"Authorization: Bearer {CALLERS_KEY}\r\n")
    if not 500 <= status <= 599:
        raise Failed(f"{name} answers {status} although the API's certificate is wrong")
    if api_requests() != before:
        raise Failed(f"{name} sent a request to an API whose certificate is wrong")


def uses_its_key(port, ca, mock_stats, host=HOST, name="it"):
    """With a key that the API does not know: the API is asked and says no, and no good answer comes."""
    before = mock_stats()["unauthorized"]
    status, _, _ = Caller(port, ca, host, name).call("GET", "/ok", f"Authorization: Bearer {CALLERS_KEY}\r\n")
    if 200 <= status <= 299:
        raise Failed(f"{name} answers {status} to /ok although its key is wrong")
    if mock_stats()["unauthorized"] != before + 1:
        raise Failed(f"{name} did not ask the API with the key that it was given")


def refuses_the_wrong(contender, work, tls):
    """Starts the contender as it is measured, in front of three APIs that must not answer through it: one of a CA that
    it was not given, one under another name, and one that does not know its key. `tls` is what callers see of it."""
    with contextlib.ExitStack() as stack:
        stranger = Mock(stack, work / "stranger")
        misnamed = Mock(stack, work / "misnamed", name="api.example.net")
        for place, api, ca, key in (("ca", stranger, tls.ca, KEY), ("name", misnamed, misnamed.ca, KEY),
                                    ("key", stranger, stranger.ca, NEW_KEY)):
            job = job_for(work / place, api, tls, key=key)
            object.__setattr__(job, "ca", ca)
            with running(contender, job):
                if place == "key":
                    uses_its_key(job.port, tls.ca, api.stats, name=contender.name)
                else:
                    refuses(job.port, tls.ca, api.requests, name=contender.name)


class Caller:
    """A caller of one contender; one connection for each call unless it holds one itself."""

    def __init__(self, port, ca, host, name):
        # Of the contender: each has upstream connections of its own.
        self.workers = 1
        self.port, self.host, self.name, self.seen = port, host, name, {}
        self.context = ssl.create_default_context(cafile=ca)

    def connect(self, session=None):
        with contextlib.ExitStack() as undo:
            raw = undo.enter_context(socket.create_connection(("127.0.0.1", self.port), 10))
            stream = self.context.wrap_socket(raw, server_hostname=self.host, session=session)
            undo.pop_all()
        self.seen["tls"] = [stream.version(), stream.cipher()[0]]
        return stream

    def send(self, stream, method, target, more="", body=b"", close=True):
        head = f"{method} {target} HTTP/1.1\r\nHost: {self.host}\r\n{more}"
        if body or (method == "POST" and "chunked" not in more.lower()):
            head += f"Content-Length: {len(body)}\r\n"
        if close is not None:
            head += "Connection: close\r\n" if close else ""
        stream.sendall(head.encode() + b"\r\n" + body)

    def exchange(self, stream, method, target, more="", body=b"", raw=b"", close=True):
        """One request and its answer: status, head, body."""
        self.send(stream, method, target, more, body, close)
        if raw:
            stream.sendall(raw)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += receive(stream)
        head, _, rest = answer.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        status = int(lines[0].split()[1])
        if status in (204, 304):
            return status, fields, b""
        if "chunked" in fields.get("transfer-encoding", "").lower():
            return status, fields, read_chunks(stream, rest)
        length = fields.get("content-length")
        while len(rest) < int(length) if length is not None else True:
            piece = stream.recv(65536)
            if not piece:
                if length is not None:
                    raise Failed(f"{self.name} cut an answer short: {len(rest)} of {length} bytes")
                break
            rest += piece
        return status, fields, rest

    def call(self, method, target, more="", body=b"", raw=b""):
        with self.connect() as stream:
            return self.exchange(stream, method, target, more, body, raw)

    def json(self, method, target, more=""):
        if not more:
            more = f"Authorization: Bearer {CALLERS_KEY}\r\n"
        status, _, body = self.call(method, target, more)
        if status != 200:
            raise Failed(f"{self.name} answers {status} to {target}")
        return json.loads(body)


def receive(stream):
    piece = stream.recv(65536)
    if not piece:
        raise Failed("the connection ended before the answer did")
    return piece


def read_chunks(stream, held):
    whole = bytearray()
    while True:
        while b"\r\n" not in held:
            held += receive(stream)
        size, _, held = held.partition(b"\r\n")
        length = int(size.split(b";")[0], 16)
        while len(held) < length + 2:
            held += receive(stream)
        if length == 0:
            return bytes(whole)
        whole += held[:length]
        held = held[length + 2 :]


def pattern(length):
    """The bytes of mock-upstream's /bytes/N."""
    period = bytes(((i * 2654435761) & 0xFFFFFFFF) >> 24 for i in range(65521))
    return (period * (length // len(period) + 1))[:length]


# ---- perf/check-contenders --------------------------------------------------


class Mock:
    """A mock API with a key, and its control port."""

    def __init__(self, stack, work, name=HOST, keys=(KEY,)):
        work.mkdir()
        key_file = write_private(work / "keys", "".join(f"{key}\n" for key in keys))
        command = [
            find_built("mock-upstream"), "--listen", "127.0.0.1:0", "--self-signed", work / "tls", "--name", name,
            # For the routes' names.
            "--name", "*." + name.partition(".")[2],
            "--key-file", key_file, "--auth", "bearer", "--control", "127.0.0.1:0", "--max-seconds", "1800",
        ]
        self.process = spawn(stack, command, stdout=subprocess.PIPE)
        found = {}
        for line in self.process.stdout:
            words = line.decode().split()
            if words == ["ready"]:
                break
            found[words[0]] = words[1]
        if "control" not in found:
            raise CannotMeasure("mock-upstream did not start")
        self.port = int(found["listening"].rsplit(":", 1)[1])
        self.control = int(found["control"].rsplit(":", 1)[1])
        self.ca, self.cert, self.cert_key = (work / "tls" / name for name in ("ca.pem", "cert.pem", "key.pem"))
        self.bundle = write_private(work / "bundle.pem", self.cert.read_text() + self.cert_key.read_text())

    def stats(self):
        return json.loads(ask_control(self.control, "GET", "/__stats"))

    def requests(self):
        return self.stats()["requests"]


def ask_control(port, method, path):
    """One request to a mock API's control port; returns the body."""
    return tell_control(port, method, path, "")


def tell_control(port, method, path, document):
    """The same with a document."""
    with socket.create_connection(("127.0.0.1", port), 5) as stream:
        stream.sendall(f"{method} {path} HTTP/1.1\r\nHost: control\r\nContent-Length: {len(document)}\r\n"
                       f"Connection: close\r\n\r\n{document}".encode())
        answer = b""
        while piece := stream.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 2" not in head[:12]:
        raise CannotMeasure(f"mock-upstream answers {head[:40]!r} to {method} {path}")
    return body


def spawn(stack, command, **more):
    process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL,
                               preexec_fn=machine.dies_with_us(), **more)
    stack.callback(stop, process)
    return process


def stop(process):
    machine.stop(process, STOP_S)
    if process.stdout:
        process.stdout.close()


def job_for(work, api, tls, routes=1, key=KEY, cpu=None):
    """A job whose API is `api` and whose own certificate is the one of `tls`."""
    work.mkdir(mode=0o700)
    cpu = min(os.sched_getaffinity(0)) if cpu is None else cpu
    return Job(
        dir=work, port=machine.free_port(), host=HOST, upstream_port=api.port, ca=api.ca, cert=tls.cert, cert_key=tls.cert_key,
        bundle=tls.bundle, key=key, key_file=write_private(work / "key", key), cpu=cpu, workers=1, cpus=[cpu],
        routes=routes, user=current_user() if os.geteuid() == 0 else None,
    )


@contextlib.contextmanager
def running(contender, job):
    """The contender, from accepting its first connection to its end."""
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(open(job.dir / "output.log", "wb"))
        process = spawn(stack, contender.start(job), stdout=output, stderr=output)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", job.port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                said = (job.dir / "output.log").read_text(errors="replace")
                for log in contender.logs(job):
                    with contextlib.suppress(OSError):
                        said += log.read_text(errors="replace")
                raise CannotMeasure(f"{contender.name} did not start:\n{said[-3000:]}")
            time.sleep(0.02)
        yield process


def eventually(what, holds):
    """Waits until something is so that has to become so."""
    deadline = time.monotonic() + 20
    while not holds():
        if time.monotonic() > deadline:
            raise Failed(f"{what} within 20 s")
        time.sleep(0.05)


def check_all(contender, work, api):
    """Everything about one contender; returns lines about what it does not support."""
    notes = []
    job = job_for(work / "job", api, api)
    with running(contender, job) as process:
        seen = check(job.port, api.ca, name=contender.name, mock_stats=api.stats)
        speaks_the_same_tls(job.port, api.ca, seen["upstream_tls"], name=contender.name)
        notes.append(f"{' '.join(TLS)} on both sides")
        caller = Caller(job.port, api.ca, HOST, contender.name)
        before = contender.pids(process)
        if process.pid not in before:
            raise Failed(f"{contender.name} does not count the process that was started")
        try:
            contender.reload(job, process)
            for _ in range(20):
                caller.json("GET", "/echo")
                time.sleep(0.02)
        except NotSupported as reason:
            notes.append(str(reason))
        try:
            contender.rotate(job, process, NEW_KEY)
            wanted = hashlib.sha256(NEW_KEY.encode()).hexdigest()
            eventually(
                f"{contender.name} does not send the new key",
                lambda: caller.json("GET", "/echo").get("auth_sha256") == wanted,
            )
        except NotSupported as reason:
            notes.append(str(reason))
    logged = [path for path in job.dir.rglob("*") if path.is_file() and b'"/echo' in path.read_bytes()]
    if not logged:
        raise Failed(f"{contender.name} wrote no access log below its directory")
    for path in logged:
        if KEY.encode() in path.read_bytes():
            raise Failed(f"{contender.name} wrote the key to {path.name}")
    wrong = work / "wrong"
    wrong.mkdir()
    refuses_the_wrong(contender, wrong, api)
    return notes


def check_routes(contender, work, api, routes):
    """Starts with many routes, and serves the last of them; returns seconds to the first connection."""
    job = job_for(work / f"routes-{routes}", api, api, routes=routes)
    began = time.monotonic()
    with running(contender, job):
        took = time.monotonic() - began
        Caller(job.port, api.ca, HOST, contender.name).json("GET", "/echo")
    return took


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="perf/check-contenders",
        description="Starts each contender and checks that it does the job. Exit code 1 if one does not.",
    )
    parser.add_argument("names", nargs="*", help=f"of {', '.join(known())} (default: all that are installed)")
    parser.add_argument("--routes", type=int, default=100, help="also start with so many routes (default 100)")
    args = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
    failed = False
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="claviger-contenders-")))
        try:
            api = Mock(stack, work / "api", keys=(KEY, NEW_KEY))
        except CannotMeasure as reason:
            print(f"perf/check-contenders: {reason}", file=sys.stderr)
            return 2
        for name in args.names or [name for name in known() if name != "direct"]:
            contender = load(name)
            place = work / name
            place.mkdir()
            try:
                contender.find()
                notes = check_all(contender, place, api)
                took = check_routes(contender, place, api, args.routes)
                print(f"{name}: does the job ({contender.version()}); {'; '.join(notes)}; "
                      f"{args.routes} routes in {took:.1f} s", flush=True)
            except CannotMeasure as reason:
                print(f"{name}: {reason}", flush=True)
                # Not installed is no failure unless it was asked for.
                failed = failed or bool(args.names)
            except Failed as reason:
                print(f"{name}: FAILED: {reason}", flush=True)
                failed = True
    return 1 if failed else 0
