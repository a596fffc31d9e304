"""Cuts an edge off from its hub and mends that, and says how long everything took.

Arguments: host, the edge's address and port, its CA's certificate, the hub's address, rounds.
Prints one JSON object. Runs in a network namespace of its own, whose packets it drops.
"""

import json
import socket
import ssl
import subprocess
import sys
import time

HOST, ADDRESS, PORT, CA, HUB, ROUNDS = sys.argv[1:]
CONTEXT = ssl.create_default_context(cafile=CA)


def nft(rules):
    subprocess.run(["nft", "-f", "-"], input=rules.encode(), check=True)


def ask():
    """One request on a connection of its own: status, reason, seconds."""
    begun = time.monotonic()
    with socket.create_connection((ADDRESS, int(PORT)), timeout=30) as plain:
        with CONTEXT.wrap_socket(plain, server_hostname=HOST) as tls:
            tls.sendall(f"GET /ok HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while part := tls.recv(65536):
                answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    reason = json.loads(body)["reason"] if status >= 400 else ""
    return status, reason, time.monotonic() - begun


def until(wanted, what, patience=30):
    begun = time.monotonic()
    while not wanted():
        if time.monotonic() - begun > patience:
            raise SystemExit(f"waited in vain for {what}")
        time.sleep(0.01)


nft("table inet cut {\nchain out {\n type filter hook output priority 0;\n}\n}\n")
rounds = []
for number in range(int(ROUNDS)):
    until(lambda: ask()[0] == 200, "an answer before the cut")
    nft(
        f"add rule inet cut out ip daddr {HUB} drop\n"
        f"add rule inet cut out ip saddr {HUB} drop\n"
    )
    cut = time.monotonic()
    first = ask()
    # From then on nobody waits: each of these is refused at once.
    later = [ask() for _ in range(20)]
    # At another phase of the edge's questions in each round.
    time.sleep(0.07 * number)
    nft("flush chain inet cut out")
    mended = time.monotonic()
    until(lambda: ask()[0] == 200, "an answer after the cut")
    rounds.append(
        {
            "first": first,
            "later_statuses": sorted({answer[0] for answer in later}),
            "later_reasons": sorted({answer[1] for answer in later}),
            "later_worst_s": max(answer[2] for answer in later),
            "recovered_s": time.monotonic() - mended,
        }
    )
print(json.dumps(rounds))
