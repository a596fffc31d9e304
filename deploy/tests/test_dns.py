"""What docs/dns.md shows, given to the real dnsmasq and the real nftables, in a network of the test's own."""

import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path

from machine import REPOSITORY, free_port, needs_root, wait_for

TYPES = {"A": 1, "CNAME": 5, "TXT": 16, "AAAA": 28, "SVCB": 64, "HTTPS": 65}


def shown(name):
    """The block after `<!-- name -->`."""
    return re.search(rf"<!-- {name} -->\n```text\n(.*?)```", (REPOSITORY / "docs/dns.md").read_text(), re.S)[1]


def question(name, type_):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
    return struct.pack("!HHHHHH", 0x5151, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!HH", TYPES[type_], 1)


class Internet:
    """A resolver that knows an answer to everything: what comes from here has slipped past."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while True:
            try:
                asked, peer = self.socket.recvfrom(4096)
            except OSError:
                return
            if not asked:
                return
            end = asked.index(b"\0", 12) + 5
            record = b"\xc0\x0c" + struct.pack("!HHIH", 16, 1, 60, 5) + b"\x04past"
            type_ = asked[end - 4:end - 2]
            record = b"\xc0\x0c" + type_ + record[4:]
            if type_ == b"\0\1":
                record = b"\xc0\x0c" + struct.pack("!HHIH4s", 1, 1, 60, 4, bytes([203, 0, 113, 1]))
            if type_ == b"\0\x1c":
                record = b"\xc0\x0c" + struct.pack("!HHIH16s", 28, 1, 60, 16, bytes([0x20, 1, 0xd, 0xb8]) + bytes(12))
            self.socket.sendto(asked[:2] + struct.pack("!HHHHH", 0x8180, 1, 1, 0, 0) + asked[12:end] + record, peer)

    def close(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", ("127.0.0.1", self.port))
        self.thread.join()
        self.socket.close()


class Dnsmasq(unittest.TestCase):
    def serve(self, lines):
        internet = Internet()
        self.addCleanup(internet.close)
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.port = free_port()
        config = Path(directory.name, "conf")
        config.write_text(f"port={self.port}\nlisten-address=127.0.0.1\nbind-interfaces\nno-resolv\nno-hosts\nuser=\n"
                          f"server=127.0.0.1#{internet.port}\n{lines}")
        process = subprocess.Popen(["dnsmasq", "--keep-in-foreground", f"--conf-file={config}", "--pid-file="], stderr=subprocess.PIPE)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.terminate)

        def up():
            if process.poll() is not None:
                raise AssertionError(process.stderr.read().decode())
            try:
                return self.ask("up.example", "A")
            except (TimeoutError, OSError):
                return False
        wait_for(up, "dnsmasq answers")

    def ask(self, name, type_):
        """(code of the answer, data of each record)"""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(2)
            client.connect(("127.0.0.1", self.port))
            client.send(question(name, type_))
            answer = client.recv(4096)
        _, flags, _, count, _, _ = struct.unpack("!HHHHHH", answer[:12])
        at, records = answer.index(b"\0", 12) + 5, []
        for _ in range(count):
            length = struct.unpack("!H", answer[at + 10:at + 12])[0]
            records.append(answer[at + 12:at + 12 + length])
            at += 12 + length
        return flags & 15, records

    def test_nothing_slips_past(self):
        self.serve(shown("dnsmasq"))
        self.assertEqual(self.ask("api.sendgrid.com", "A"), (0, [bytes([10, 0, 0, 5])]))
        for type_ in ("AAAA", "HTTPS", "SVCB", "CNAME", "TXT"):
            self.assertEqual(self.ask("api.sendgrid.com", type_), (0, []), type_)
        # What is not ours goes on being found.
        for name in ("sendgrid.com", "www.sendgrid.com", "notapi.sendgrid.com"):
            self.assertEqual(self.ask(name, "A"), (0, [bytes([203, 0, 113, 1])]), name)

    def test_with_less_it_would(self):
        """The mistake that the page warns of, so that the test above is known to see it."""
        self.serve("".join(line for line in shown("dnsmasq").splitlines(keepends=True) if not line.startswith("local=")))
        self.assertEqual(self.ask("api.sendgrid.com", "A"), (0, [bytes([10, 0, 0, 5])]))
        self.assertEqual(self.ask("api.sendgrid.com", "HTTPS")[1], [b"\x04past"])


# In a network namespace: addresses on its loopback interface stand for Claviger and for the Internet. The rules let
# loopback pass, so the test takes that line out; a dummy interface does not route to itself otherwise.
REACH = """
import socket, subprocess, sys
rules = sys.stdin.read()
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
for address in ("10.0.0.5", "203.0.113.1", "10.0.0.2", "192.0.2.53"):
    subprocess.run(["ip", "address", "add", address + "/32", "dev", "lo"], check=True)
keep = []
for address, port in (("10.0.0.5", 443), ("203.0.113.1", 443), ("203.0.113.1", 80), ("10.0.0.2", 53), ("192.0.2.53", 53), ("192.0.2.53", 853)):
    server = socket.create_server((address, port))
    keep.append(server)
def reached():
    result = []
    for server in keep:
        with socket.socket() as client:
            client.settimeout(5)
            try:
                client.connect(server.getsockname())
                result.append(True)
            except ConnectionRefusedError:
                result.append(False)
    return result
def udp(address, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        try:
            client.sendto(b"x", (address, port))
            return True
        except PermissionError:
            return False
print(reached(), udp("203.0.113.1", 443), udp("10.0.0.5", 443))
subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
print(reached(), udp("203.0.113.1", 443), udp("10.0.0.5", 443))
"""


@needs_root
class Nftables(unittest.TestCase):
    def test_the_way_around_is_closed(self):
        rules = shown("nftables")
        self.assertIn('oifname "lo" accept\n', rules)
        finished = subprocess.run(["unshare", "--net", sys.executable, "-c", REACH], input=rules.replace('oifname "lo" accept\n', ""),
                                  text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
        self.assertEqual(finished.returncode, 0, finished.stdout)
        self.assertEqual(finished.stdout.splitlines(), [
            "[True, True, True, True, True, True] True True",
            "[True, False, True, True, False, False] False True"])
        # As it is shown, it loads.
        subprocess.run(["unshare", "--net", "nft", "--file", "-"], input=rules, text=True, check=True)


if __name__ == "__main__":
    unittest.main()
