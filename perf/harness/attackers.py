"""Callers that mean ill: run as a process of its own, pinned to the load's core and nicer than the judge.

    python3 attackers.py KIND HOST PORT CA HEADER-FILE COUNT

Does what `KIND` says on COUNT connections, opens each anew that the other side ends, and prints `ready N` once as many
as it could get are open. When its input ends it prints a line of JSON (how many connections were opened, refused and
ended by the other side, and after how many seconds), and ends. It borrows nothing from whoever it attacks: sockets and
`ssl` of the standard library.
"""

import contextlib
import json
import os
import random
import select
import socket
import ssl
import statistics
import struct
import sys
import time

# How often the slow ones send or read a little.
STEP_SECONDS = 0.5
# Answers that are asked for and not read.
UNREAD_BYTES = 16 << 20
# A receive buffer as small as the kernel makes it: the other side sees a tiny window.
TINY_WINDOW_BYTES = 2048
# Those who ask again do so after this time.
AGAIN_SECONDS = (1, 3)
# Of a head that is too large: field lines of so many bytes each, so many of them.
BOMB_LINE_BYTES, BOMB_LINES = 1000, 200
# A step must not go on for ever, however many connections are to be opened anew in it.
REOPEN_SECONDS = 0.4
# How long one connection may take to open. An attacker that is kept waiting is not one.
OPEN_SECONDS = 2


class Target:
    def __init__(self, host, port, ca, header_file):
        self.host, self.port = host, int(port)
        with open(header_file, encoding="ascii") as file:
            self.header = file.read().strip()
        self.context = ssl.create_default_context(cafile=ca)

    def head(self, line, *fields):
        lines = [f"{line} HTTP/1.1", f"Host: {self.host}", self.header, "Accept: */*", *fields]
        return "".join(f"{line}\r\n" for line in lines).encode()

    def connect(self, tiny=False):
        raw = socket.socket()
        raw.settimeout(OPEN_SECONDS)
        if tiny:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, TINY_WINDOW_BYTES)
        # Closed by a reset: no port of ours waits for a minute after each connection.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            raw.connect(("127.0.0.1", self.port))
        except OSError:
            raw.close()
            raise
        return raw

    def tls(self, tiny=False):
        return self.context.wrap_socket(self.connect(tiny), server_hostname=self.host)

    def client_hello(self):
        """A ClientHello that any server would answer, to be sent again and again."""
        out = ssl.MemoryBIO()
        session = self.context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=self.host)
        with contextlib.suppress(ssl.SSLWantReadError):
            session.do_handshake()
        return out.read()


class Held:
    """One connection of an attacker that is in no hurry."""

    reads = True  # what is received is taken in; the end is seen by it

    def __init__(self, target):
        self.target, self.began = target, time.monotonic()
        self.stream = self.open(target)
        self.began = time.monotonic()
        self.stream.setblocking(False)

    def open(self, target):
        return target.tls()

    def step(self):
        """A little more of it."""


class SlowHead(Held):
    def open(self, target):
        stream = target.tls()
        stream.sendall(target.head("GET /ok") + b"X-Slow: ")
        return stream

    def step(self):
        self.stream.send(b"x")


class SlowBody(Held):
    def open(self, target):
        stream = target.tls()
        stream.sendall(target.head("POST /upload", "Content-Length: 1000000") + b"\r\n")
        return stream

    def step(self):
        self.stream.send(b"x")


class SlowRead(Held):
    reads = False

    def open(self, target):
        stream = target.tls(tiny=True)
        stream.sendall(target.head(f"GET /bytes/{UNREAD_BYTES}") + b"\r\n")
        return stream

    def step(self):
        # Some bytes each time, so that the other side's sends go on and on.
        self.stream.recv(64)


class ReadAgain(SlowRead):
    """Gives up by itself, and asks for as much again: whoever cuts slow readers off meets it anyway."""

    def __init__(self, target):
        super().__init__(target)
        self.until = self.began + random.uniform(*AGAIN_SECONDS)

    def step(self):
        if time.monotonic() > self.until:
            raise ConnectionAbortedError
        super().step()


class NeverRead(SlowRead):
    def step(self):
        pass


class Idle(Held):
    def open(self, target):
        stream = target.tls()
        stream.sendall(target.head("GET /ok") + b"\r\n")
        stream.recv(4096)
        return stream


class Silent(Held):
    def open(self, target):
        return target.connect()


class HalfHello(Held):
    def open(self, target):
        raw = target.connect()
        self.rest = target.client_hello()
        raw.send(self.rest[:6])
        self.rest = self.rest[6:-1]
        return raw

    def step(self):
        self.stream.send(self.rest[:1])
        self.rest = self.rest[1:]


class NoAnswer(Held):
    def open(self, target):
        stream = target.tls()
        stream.sendall(target.head("GET /delay/600000") + b"\r\n")
        return stream


class Drip(Held):
    def open(self, target):
        stream = target.tls()
        stream.sendall(target.head("GET /sse?n=6000&ms=100") + b"\r\n")
        return stream


class Account:
    """What became of connections."""

    def __init__(self):
        self.opened = self.refused = self.ended = 0
        self.ages = []

    def end(self, one):
        self.ended += 1
        self.ages.append(time.monotonic() - one.began)
        with contextlib.suppress(OSError):
            one.stream.close()

    def summary(self):
        told = {"opened": self.opened, "refused": self.refused, "ended": self.ended}
        if self.ages:
            told["ended_after_s"] = round(statistics.median(self.ages), 2)
        return told


def hold(kind, target, count):
    """Keeps `count` connections of this kind open, whatever the other side does about it."""
    account, held = Account(), {}
    poll = select.poll()

    def fill_up(seconds):
        until = time.monotonic() + seconds
        while len(held) < count and time.monotonic() < until:
            try:
                one = kind(target)
            except OSError:
                account.refused += 1
                continue
            account.opened += 1
            held[one.stream.fileno()] = one
            poll.register(one.stream.fileno(), (select.POLLIN if one.reads else 0) | select.POLLRDHUP)

    def drop(descriptor):
        poll.unregister(descriptor)
        account.end(held.pop(descriptor))

    fill_up(60)
    print(f"ready {len(held)}", flush=True)
    while not input_ended(STEP_SECONDS):
        for descriptor, events in poll.poll(0):
            one = held[descriptor]
            gone = bool(events & (select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL))
            if not gone and one.reads:
                gone = has_ended(one.stream)
            if gone:
                drop(descriptor)
        for descriptor, one in list(held.items()):
            try:
                one.step()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
                pass
            except OSError:
                drop(descriptor)
        fill_up(REOPEN_SECONDS)
    return {**account.summary(), "held": len(held)}


def has_ended(stream):
    """Takes in what is there; whether the other side has ended it."""
    try:
        while data := stream.recv(65536):
            # An answer to somebody who is too slow: what follows is the end.
            if data.startswith(b"HTTP/1.1 4"):
                return True
        return True
    except (ssl.SSLWantReadError, BlockingIOError):
        return False
    except OSError:
        return True


def flood(target, count, message):
    """Connects, sends, waits for whatever comes back, is gone: as fast as one process can, `count` at a time."""
    epoll = select.epoll()
    under_way, answered, refused, began = {}, 0, 0, time.monotonic()

    def start():
        raw = socket.socket()
        raw.setblocking(False)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.connect_ex(("127.0.0.1", target.port))
        under_way[raw.fileno()] = raw
        epoll.register(raw.fileno(), select.EPOLLOUT)

    def end(descriptor):
        epoll.unregister(descriptor)
        under_way.pop(descriptor).close()

    for _ in range(count):
        start()
    print(f"ready {count}", flush=True)
    looked = time.monotonic()
    while True:
        for descriptor, events in epoll.poll(0.1):
            raw = under_way[descriptor]
            if events & select.EPOLLOUT and not events & (select.EPOLLERR | select.EPOLLHUP):
                with contextlib.suppress(OSError):
                    raw.send(message)
                    epoll.modify(descriptor, select.EPOLLIN)
                    continue
            if events & select.EPOLLIN:
                answered += 1
            else:
                refused += 1
            end(descriptor)
            start()
        if time.monotonic() - looked > 0.2:
            looked = time.monotonic()
            if input_ended(0):
                seconds = time.monotonic() - began
                return {"opened": answered + refused, "refused": refused, "per_second": round(answered / seconds)}


def bombs(target, _count):
    """Heads that are much too large, one connection after the other."""
    line = b"X-Bomb: " + b"x" * (BOMB_LINE_BYTES - 10) + b"\r\n"
    bomb = target.head("GET /ok") + line * BOMB_LINES + b"\r\n"
    return repeat(target, bomb)


def informational(target, _count):
    """Asks for answers with a hundred interim ones in front."""
    return repeat(target, target.head("GET /hints/100") + b"\r\n")


def repeat(target, message):
    print("ready 1", flush=True)
    answers, refused, began = {}, 0, time.monotonic()
    while not input_ended(0):
        try:
            with target.tls() as stream:
                with contextlib.suppress(OSError):
                    stream.sendall(message)
                answer = stream.recv(65536)
                status = answer[9:12].decode(errors="replace") or "end"
                answers[status] = answers.get(status, 0) + 1
        except OSError:
            refused += 1
    seconds = time.monotonic() - began
    return {"opened": sum(answers.values()) + refused, "refused": refused, "answers": answers,
            "per_second": round(sum(answers.values()) / seconds)}


def input_ended(wait):
    ready, _, _ = select.select([sys.stdin], [], [], wait)
    return bool(ready) and not os.read(sys.stdin.fileno(), 64)


HOLDING = {
    "slow-head": SlowHead, "slow-body": SlowBody, "slow-read": SlowRead, "read-again": ReadAgain, "never-read": NeverRead, "idle": Idle,
    "silent": Silent, "half-hello": HalfHello, "no-answer": NoAnswer, "upstream-drip": Drip,
}


FLOODS = {
    "hello-flood": lambda target, count: flood(target, count, target.client_hello()),
    "garbage": lambda target, count: flood(target, count, os.urandom(1024)),
    "head-bombs": bombs,
    "informational": informational,
}


def main():
    kind, host, port, ca, header_file, count = sys.argv[1:]
    target, count = Target(host, port, ca, header_file), int(count)
    if kind in HOLDING:
        told = hold(HOLDING[kind], target, count)
    elif kind in FLOODS:
        told = FLOODS[kind](target, count)
    else:
        sys.exit(f"there is no attack `{kind}`")
    print(json.dumps(told), flush=True)
    # Without taking leave of thousands of connections one by one.
    os._exit(0)


if __name__ == "__main__":
    main()
