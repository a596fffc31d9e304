"""Ends what a harness started if the harness itself was ended in a way that it cannot answer, such as SIGKILL.

The kernel's own means (PR_SET_PDEATHSIG) reaches a child and not the child's children: nginx's workers would go on with
a port, a core and a key. So each process that the harness starts begins a process group, writes its number to this
program before it becomes what it is to be, and the end of that pipe, which nobody else holds, is the harness's end.

A program of its own, and not a fork: it lives as long as its standard input and needs nothing else. It lacks a defence
against children that leave their group; no contender does. Ports, files and directories are not its business.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path


class Keeper:
    """The harness's side. It starts the program with the first process that has to be known to it."""

    def __init__(self):
        self.process = self.pipe = None

    def start(self):
        if self.process is None or self.process.poll() is not None:
            # A group of its own: Ctrl-C is for the harness.
            self.process = subprocess.Popen([sys.executable, "-BIS", str(Path(__file__).resolve())],
                                            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, process_group=0, bufsize=0)
            self.pipe = self.process.stdin

    def enter(self):
        """In a child, between fork and exec: no moment is left in which it is unknown."""
        os.setpgid(0, 0)
        os.write(self.pipe.fileno(), b"+%d\n" % os.getpid())

    def end(self, pid):
        """The process has ended and was waited for: ends what it left behind, and forgets its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        if self.pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                os.write(self.pipe.fileno(), b"-%d\n" % pid)


def main():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups = set()
    for line in sys.stdin.buffer:
        (groups.add if line.startswith(b"+") else groups.discard)(int(line[1:]))
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
