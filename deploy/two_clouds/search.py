"""Looking for keys: in the memory of processes, and in what was captured, decrypted.

A search that finds nothing shows nothing until it has found something: each comes with what it must find.
"""

import re
import subprocess
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from harness.soak import forms
from two_clouds.wait import Failed

# Bytes of a process's memory read at once.
PIECE_BYTES = 1 << 20


class Patterns:
    """Words by name, each in all its forms."""

    def __init__(self, words):
        self.names = {form: name for name, word in words.items() for form in forms(word)}
        self.file = tempfile.NamedTemporaryFile(prefix="two-clouds-patterns-")
        self.file.write(b"\n".join(self.names) + b"\n")
        self.file.flush()
        self.pattern = re.compile(b"|".join(re.escape(form) for form in sorted(self.names, key=len, reverse=True)))

    def grep(self):
        """One that reads memory as it comes: many times faster than Python. NUL ends a line; no pattern has one."""
        # A file, since nobody reads what it says before it has been told everything.
        self.said = tempfile.TemporaryFile()
        return subprocess.Popen(["grep", "-zaoF", "-f", self.file.name], stdin=subprocess.PIPE, stdout=self.said,
                                env={"LC_ALL": "C", "PATH": "/bin:/usr/bin"})

    def found_by(self, grep):
        """What it found, when all was given to it."""
        grep.communicate()
        if grep.returncode not in (0, 1):
            raise Failed(f"grep ended with {grep.returncode}")
        self.said.seek(0)
        return {self.names[form] for form in self.said.read().split(b"\0") if form}

    def of(self, data):
        return {self.names[match.group()] for match in self.pattern.finditer(data)}


def in_memory(pid, patterns):
    """The names of what stands in a process's memory, but for pages that are a file's and nothing else; and the bytes."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        regions = Path(f"/proc/{pid}/maps").read_text().splitlines()
        looked = 0
        with patterns.grep() as grep:
            for line in regions:
                words = line.split()
                if "r" not in words[1] or words[-1] in ("[vvar]", "[vsyscall]") or "w" not in words[1] and words[4] != "0":
                    continue
                begin, end = (int(word, 16) for word in words[0].split("-"))
                while begin < end:
                    try:
                        memory.seek(begin)
                        piece = memory.read(min(PIECE_BYTES, end - begin))
                    except (OSError, ValueError):
                        # What is mapped and cannot be read: past the end of a file, or a device's.
                        break
                    if not piece:
                        break
                    grep.stdin.write(piece)
                    looked += len(piece)
                    begin += len(piece)
                # What ends here and what begins there are no neighbours.
                grep.stdin.write(b"\0")
            return patterns.found_by(grep), looked


@dataclass
class Link:
    """What went over the wires between two addresses, in one direction."""

    packets: int = 0
    decrypted_bytes: int = 0
    found: set = field(default_factory=set)


def in_capture(pcap, key_logs, patterns):
    """What every packet of a capture holds, as it went over the wire and decrypted: `{(from, to): Link}`.

    tshark decrypts with the endpoints' key logs. Each direction of a connection is searched as one text, so that a word
    that is cut by a packet or a record is found.
    """
    joined = pcap.with_suffix(".keys")
    joined.write_bytes(b"".join(log.read_bytes() for log in key_logs))
    links = defaultdict(Link)
    texts = defaultdict(list)
    command = ["tshark", "-n", "-r", pcap, "-o", f"tls.keylog_file:{joined}", "-o", "tcp.desegment_tcp_streams:TRUE",
               # Sequence numbers decide, and not the order in which a busy kernel let them pass.
               "-o", "tcp.reassemble_out_of_order:TRUE", "-P", "-x", "-o",
               'gui.column.format:"s","%us","d","%ud"']
    tshark = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    link, kind, block = None, "raw", bytearray()

    def finish():
        nonlocal block
        if link is not None and block:
            if kind == "decrypted":
                links[link].decrypted_bytes += len(block)
            texts[link, kind].append(bytes(block))
        block = bytearray()

    for line in tshark.stdout:
        hexadecimal = re.match(r"^[0-9a-f]{4,8}  ((?:[0-9a-f]{2} {1,2}){1,16})", line)
        if hexadecimal:
            block += bytes.fromhex(hexadecimal.group(1))
            continue
        named = re.match(r"^(Frame|Decrypted TLS|Reassembled TCP|[A-Z][^(]*) \((\d+) bytes\):", line)
        if named:
            finish()
            kind = "decrypted" if named.group(1) == "Decrypted TLS" else "raw"
            continue
        addresses = re.findall(r"\d+\.\d+\.\d+\.\d+", line)
        if len(addresses) >= 2:
            finish()
            link, kind = (addresses[0], addresses[1]), "raw"
            links[link].packets += 1
    finish()
    if tshark.wait() != 0:
        raise Failed(f"tshark cannot read {pcap.name}:\n{tshark.stderr.read()[-1000:]}")
    for (link, _), blocks in texts.items():
        links[link].found |= patterns.of(b"".join(blocks))
    return dict(links)
