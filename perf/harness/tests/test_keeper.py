"""What the harness started is gone when the harness is, however it ended."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import unittest

from harness import contender, machine

# Until it is killed: a child with a child of its own, as contenders with workers are.
WITH_CHILDREN = ["/bin/sh", "-c", "sleep 600 & echo $!; wait"]
# A harness that starts them, tells their numbers, and waits to be ended.
HARNESS = """
import subprocess, sys
from harness import machine
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, preexec_fn=machine.dies_with_us())
print(child.pid, int(child.stdout.readline()), flush=True)
sys.stdin.read()
"""
PATIENCE_S = 20


class Watched:
    """A process that may be no child of ours, by a descriptor: numbers are given out again."""

    def __init__(self, pid):
        self.pid, self.descriptor = pid, os.pidfd_open(pid)

    def ends_within(self, seconds):
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def end(self):
        if not self.ends_within(0):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.descriptor, signal.SIGKILL)
        os.close(self.descriptor)


class Keeping(unittest.TestCase):
    def watch(self, *pids):
        found = [Watched(pid) for pid in pids]
        for one in found:
            self.addCleanup(one.end)
        return found

    def harness(self, program=HARNESS):
        """A harness, and the two that it started."""
        process = subprocess.Popen([sys.executable, "-B", "-c", program, *WITH_CHILDREN], cwd=contender.PERF, text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process, self.watch(*map(int, process.stdout.readline().split()))

    def test_nothing_outlives_a_harness_that_was_killed(self):
        process, started = self.harness()
        process.kill()
        for one in started:
            self.assertTrue(one.ends_within(PATIENCE_S), one.pid)

    def test_the_kernels_own_means_would_not_do(self):
        """Without the keeper the child ends, and its child goes on: that is what it is for."""
        process, (child, grandchild) = self.harness(HARNESS.replace(
            "child = ", "machine.KEEPER.enter = machine.KEEPER.start = lambda: None\nchild = "))
        process.kill()
        self.assertTrue(child.ends_within(PATIENCE_S))
        self.assertFalse(grandchild.ends_within(0))

    def test_nothing_outlives_a_harness_that_ended_by_itself(self):
        process, started = self.harness()
        process.stdin.close()
        process.stdin = None
        for one in started:
            self.assertTrue(one.ends_within(PATIENCE_S), one.pid)

    def test_stop_ends_what_a_process_left_behind(self):
        process = subprocess.Popen(WITH_CHILDREN, stdout=subprocess.PIPE, preexec_fn=machine.dies_with_us())
        left = self.watch(int(process.stdout.readline()))[0]
        machine.stop(process, PATIENCE_S)
        process.stdout.close()
        self.assertTrue(left.ends_within(PATIENCE_S))

    def test_one_that_does_not_listen_is_killed(self):
        process = subprocess.Popen(["/bin/sh", "-c", "trap '' TERM; echo; while :; do sleep 0.1; done"],
                                   stdout=subprocess.PIPE, preexec_fn=machine.dies_with_us())
        process.stdout.readline()
        machine.stop(process, 0.1)
        process.stdout.close()
        self.assertEqual(process.returncode, -signal.SIGKILL)


if __name__ == "__main__":
    unittest.main()
