"""Builds the company, shows what is promised of it, and prints the figures."""

import argparse
import signal
import sys
import tempfile
import time

from two_clouds.network import World
from two_clouds.proofs import Stage
from two_clouds.wait import Failed


# In this order: the last ones bend what the others rely on.
PROOFS = ["captures_begin", "all_24_work", "a_key_is_replaced", "wires_have_no_key", "memory_has_no_key", "the_trails_join",
          "stolen_proofs_are_worth_nothing", "upgrades_lose_nothing", "a_hub_goes", "the_edge_is_cut_off", "no_loop", "each_hop_is_measured"]
# Without these there is nothing to be shown.
ALWAYS = {"captures_begin", "all_24_work"}


def main():
    parser = argparse.ArgumentParser(prog="scripts/two-clouds", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end by itself when all is shown")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="NAME,...", help=f"only some of: {', '.join(PROOFS)}")
    parser.add_argument("--rps", type=int, default=500, metavar="N", help="at how many requests per second latency is measured (500)")
    options = parser.parse_args()
    begun = time.monotonic()
    # A signal ends it as an error does: with everything taken down.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def say(what):
        print(f"{time.monotonic() - begun:6.1f} s  {what}", flush=True)

    with tempfile.TemporaryDirectory(prefix="two-clouds-") as directory:
        world = World(directory, [])
        try:
            stage = Stage(world, say, options.rps)
            for proof in PROOFS:
                if options.only is None or proof in options.only or proof in ALWAYS:
                    getattr(stage, proof)()
            print("\n" + "\n".join(f"{claim}:\n    {figure}" for claim, figure in stage.shown))
            if not options.once:
                stay(stage)
        except Failed as failed:
            print(f"two-clouds: {failed}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
        finally:
            world.close()
    return 0


def stay(stage):
    """Says where to look, and waits."""
    print("\nIt stays up until Ctrl-C. To look around, as root:")
    for machine in stage.company.world.machines:
        if machine.address and machine.process.poll() is None:
            print(f"    nsenter --target {machine.process.pid} --mount --net --uts chroot {machine.root} sh    # {machine.name}, {machine.address}")
    signal.pause()
