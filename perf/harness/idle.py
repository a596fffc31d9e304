"""Holds idle TLS connections: run as a process of its own, so that it can be pinned to the load's core.

    python3 idle.py HOST PORT CA HEADER-FILE

Reads `CONNECTIONS UNREAD` from standard input, one pair a line. For each, opens connections until it holds that many,
sends one request on each and reads the answer, so that each has been in use; asks on UNREAD of them for a large answer
that it never reads; and prints `held N lost M`. Ends with its input.
"""

import select
import socket
import ssl
import sys

# More than all sockets on the way take while nobody reads, so that whoever relays it has to wait with a buffer full.
UNREAD_BYTES = 16 << 20


def main():
    host, port, ca, header_file = sys.argv[1:]
    with open(header_file, encoding="ascii") as file:
        header = file.read().strip()
    request, large = (f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{header}\r\nAccept: */*\r\n\r\n".encode()
                      for path in ("/ok", f"/bytes/{UNREAD_BYTES}"))
    context = ssl.create_default_context(cafile=ca)
    held, unread = [], 0
    for line in sys.stdin:
        wanted, wanted_unread = map(int, line.split())
        while len(held) < wanted:
            raw = socket.create_connection(("127.0.0.1", int(port)), 10)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream = context.wrap_socket(raw, server_hostname=host)
            stream.sendall(request)
            answer = b""
            while not complete(answer):
                piece = stream.recv(16384)
                if not piece:
                    sys.exit(f"connection {len(held)} was closed in the middle of an answer")
                answer += piece
            if not answer.startswith(b"HTTP/1.1 200"):
                sys.exit(f"connection {len(held)} was answered {answer[:40]!r}")
            held.append(stream)
        for stream in held[unread:wanted_unread]:
            stream.sendall(large)
        unread = max(unread, wanted_unread)
        print(f"held {len(held)} lost {lost(held)}", flush=True)


def complete(answer):
    """Whether a whole answer is there: by its length, or by its last chunk."""
    head, ended, body = answer.partition(b"\r\n\r\n")
    if not ended:
        return False
    for field in head.lower().split(b"\r\n")[1:]:
        name, _, value = field.partition(b":")
        if name == b"content-length":
            return len(body) >= int(value)
    return body.endswith(b"0\r\n\r\n")


def lost(held):
    """Connections that the other side has closed."""
    poll = select.poll()
    by_descriptor = {stream.fileno(): stream for stream in held}
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLIN | select.POLLRDHUP)
    gone = 0
    for descriptor, events in poll.poll(0):
        gone += bool(events & (select.POLLRDHUP | select.POLLHUP | select.POLLERR))
    return gone


if __name__ == "__main__":
    main()
