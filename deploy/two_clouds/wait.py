"""Waiting for what must come about, and the error when it does not."""

import time


class Failed(Exception):
    """What was to be shown does not hold, or could not be set up. The text says which."""


def until(what, condition, seconds=30):
    """Asks ten times a second until `condition` returns something true, which is returned."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise Failed(f"not within {seconds} s: {what}")
        time.sleep(0.1)
