"""perf/gate: holds this tree against the ceilings in perf/ceilings.toml. What CI runs.

Claviger is measured next to nginx, the load generator next to wrk, the mock API next to nginx's fixed answer, all in
turns within one run. A figure above its ceiling is measured again with twice the rounds, and only then is it red:
machines that others use too have bad minutes.

  perf/gate                    the gate; about two minutes
  perf/gate --study 20         how steady it is: runs it so often and says whether it would flap or sleep
  perf/gate --prove            makes Claviger, loadgen and mock-upstream dearer on purpose, and expects red

Exit code: 0 all ceilings hold (or, with --prove, the slow-down was seen), 1 red, 2 could not measure.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from harness import ceilings, compare, history, machine, measures, scenario as scenarios, slowdown, stats
from harness.contender import CannotMeasure

# What takes part; the judges' scenarios bring their own.
CONTENDERS = ["claviger", "nginx"]
# The rate of an open loop is one that this one holds; the others must hold it too.
BASELINE = "nginx"
# A deliberate slow-down's size, in the CPU of a saturated request.
PROVED_PERCENT = 12.0
# Instructions of the first try, from which the cost of more is reckoned.
TRIED_INSTRUCTIONS = 3_000


@dataclass
class Verdict:
    ceiling: ceilings.Ceiling
    value: float | None
    errors: int = 0
    attempts: int = 1
    why_not: str = ""  # if nothing could be measured
    failed: str = ""  # what is red whatever the figure is
    rate: int | None = None  # requests per second offered, in an open loop

    @property
    def red(self):
        return bool(self.failed) or self.value is not None and (self.value > self.ceiling.ceiling or self.errors > 0)

    def shown(self):
        one = self.ceiling
        if self.failed:
            return f"RED      {one.name}: {self.failed}, attempt {self.attempts}"
        if self.value is None:
            return f"NOT HELD {one.name}: {self.why_not}"
        word = "RED     " if self.red else "held    "
        more = f", {self.errors} errors" if self.errors else ""
        rate = f", at {self.rate:,}/s" if self.rate else ""
        again = f", attempt {self.attempts}" if self.attempts > 1 else ""
        provisional = "" if one.noise else " (provisional)"
        return f"{word} {one.name}: {one.shown(self.value)}, ceiling {one.ceiling:.3f}{provisional}{rate}{more}{again}"


def main():
    arguments = parse_args()
    machine.end_on_signals()
    try:
        options = compare.prepare(arguments)
        held = chosen(ceilings.load(), arguments.only)
        if arguments.study:
            return study(options, held, arguments)
        if arguments.prove is not None:
            return prove(options, held, arguments.prove)
        return gate(options, held)
    except CannotMeasure as reason:
        print(f"perf/gate: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 2


def chosen(held, only):
    """The ceilings that were asked for. A name that is misspelt must not leave one out unseen."""
    unknown = sorted(set(only or []) - {one.name for one in held})
    if unknown:
        raise CannotMeasure(f"no ceiling is called {', '.join(unknown)}; there are {', '.join(one.name for one in held)}")
    return [one for one in held if not only or one.name in only]


def gate(options, held, run=None):
    run = run or measurer(options, held)
    print(machine.summary())
    verdicts = judge(held, run)
    red = [one for one in verdicts if one.red]
    lacking = [one for one in verdicts if one.value is None and not one.failed]
    if lacking:
        print(f"{len(lacking)} of {len(verdicts)} ceilings could not be held here; see NOT HELD above")
    if red:
        print("If this change is meant to cost that, raise the ceiling in perf/ceilings.toml in the same commit and "
              "say there why. If not: perf/compare --scenarios "
              + ",".join(dict.fromkeys(one.ceiling.scenario for one in red)) + " --contenders claviger,nginx --verbose")
        return 1
    print(f"{len(verdicts) - len(lacking)} ceilings hold")
    return 0


def judge(held, run, retry=True, say=print):
    """Measures each scenario once for all of its ceilings; one that is red is measured again with twice the rounds."""
    verdicts = []
    for name in dict.fromkeys(one.scenario for one in held):
        ours = [one for one in held if one.scenario == name]
        first = verdicts_of(ours, lambda: run(name, 1))
        if retry and any(one.red for one in first):
            for one in first:
                if one.red:
                    say(one.shown() + "; measured again with twice the rounds")
            # The second verdict stands for all of the scenario's ceilings: it is the better one.
            first = verdicts_of(ours, lambda: run(name, 2), attempts=2)
        for one in first:
            say(one.shown())
        verdicts += first
    return verdicts


def verdicts_of(ours, run, attempts=1):
    try:
        lines = run()
    except measures.NotPermitted as reason:
        return [Verdict(one, None, attempts=attempts, why_not=str(reason)) for one in ours]
    found = []
    for one in ours:
        rate = next((line["rate"] for line in lines if "rate" in line), None)
        if failed := failure(one, lines):
            found.append(Verdict(one, None, attempts=attempts, failed=failed, rate=rate))
            continue
        errors = sum(sum((line.get("errors") or {}).get("all", [])) for line in lines
                     if line["contender"] == one.contender and isinstance(line.get("errors"), dict))
        found.append(Verdict(one, one.value(lines), errors, attempts, rate=rate))
    return found


def failure(ceiling, lines):
    """What speaks against the run itself, or nothing. A rate that nginx holds and Claviger does not is a failure of
    Claviger's, and no reason to judge it at a lower one. A figure of which most rounds were lagging proves nothing."""
    for line in lines:
        if line["contender"] == ceiling.contender and "not_held" in line:
            return f"answers {line['not_held']:,}/s of {line.get('rate', 0):,}/s offered, which {BASELINE} holds"
        if line["contender"] in (ceiling.contender, ceiling.against) \
                and line.get("invalid_rounds", 0) * 2 > line.get("rounds", 1):
            return f"the load lagged in {line['invalid_rounds']} of {line['rounds']} rounds with {line['contender']}"
    return ""


def measurer(options, held):
    """Measures a scenario at the gate's size, with those in it that some ceiling is about."""
    def run(name, more_rounds):
        one = scenarios.load(name).sized("gate")
        one = dataclasses.replace(one, rounds=one.rounds * more_rounds, direct=False)
        needed = {who for ceiling in held if ceiling.scenario == name for who in (ceiling.contender, ceiling.against)}
        these = dataclasses.replace(options, sustain=False, sustained_by=BASELINE, contenders=[who for who in options.contenders if who in needed])
        return history.lines(list(measures.measure(these, one, compare.teller(options))), {})

    return run


# ---- Is it steady, and does it see? -----------------------------------------


def study(options, held, arguments):
    """Runs the gate many times, and says of each ceiling whether it would go red by chance, and what it would miss."""
    values = {one.name: [] for one in held}
    times = []
    for number in range(arguments.study):
        began = time.monotonic()
        for verdict in judge(held, measurer(options, held), retry=False, say=lambda _: None):
            if verdict.value is not None:
                values[verdict.ceiling.name].append(verdict.value)
            if verdict.errors:
                print(f"  run {number + 1}: {verdict.shown()}")
        times.append(time.monotonic() - began)
        print(f"  run {number + 1} of {arguments.study}, {times[-1]:.0f} s: "
              + ", ".join(f"{name} {found[-1]:.3f}" for name, found in values.items() if found), flush=True)
    print(f"\n{machine.summary()}, {arguments.study} runs of {statistics.median(times):.0f} s\n")
    studied = {name: ceilings.Noise.of(found) for name, found in values.items() if len(found) > 1}
    for one in held:
        if one.name in studied:
            print(steadiness(one, values[one.name]))
        else:
            print(f"{one.name}: not measured here")
    if arguments.update:
        text = ceilings.PATH.read_text()
        ceilings.PATH.write_text(ceilings.updated(text, studied))
        print(f"\nwritten to {ceilings.PATH}")
    if arguments.values:
        Path(arguments.values).write_text(json.dumps(values, indent=1) + "\n")
    return 0


def steadiness(one, values):
    """What a study says about one ceiling, in a paragraph."""
    noise = ceilings.Noise.of(values)
    red_at_first = sum(value > one.ceiling for value in values)
    alarm = stats.alarm(one.ceiling, noise.mean, noise.deviation)
    caught = stats.caught(one.ceiling, noise.mean, noise.deviation)
    return (f"{one.name}: mean {noise.mean:.3f}, deviation {noise.deviation / noise.mean:.1%}, "
            f"{noise.low:.3f} to {noise.high:.3f}\n"
            f"  ceiling {one.ceiling:.3f}: {red_at_first} of {noise.runs} runs were above it at first; "
            f"false alarms, by a normal distribution: {odds(alarm)}\n"
            f"  caught 19 times of 20: {caught:.1%} more. This study asks for {ceilings.above(noise):.3f}")


def odds(probability):
    if probability < 1e-6:
        return "fewer than one in a million runs"
    return f"one in {1 / probability:,.0f} runs"


def prove(options, held, percent):
    """Makes what is measured dearer by a known amount, and expects each ceiling on CPU to go red; and to hold before."""
    ratios = [one for one in held if one.figure == "cpu_us_per_request" and one.against]
    if not ratios:
        raise CannotMeasure("there is no ceiling on CPU per request to prove")
    missed = 0
    for one in ratios:
        run = lambda instructions: value_with(options, one, instructions)
        plain = run(0)
        if plain > one.ceiling:
            raise CannotMeasure(f"{one.name}: cannot prove anything: {one.shown(plain)} as it is, and the ceiling is "
                                f"{one.ceiling:.3f}: it would be red without a slow-down")
        tried = run(TRIED_INSTRUCTIONS)
        cost = (tried / plain - 1) / TRIED_INSTRUCTIONS
        if cost <= 0:
            print(f"MISSED {one.name}: {TRIED_INSTRUCTIONS} instructions more in each system call change nothing")
            missed += 1
            continue
        instructions = min(slowdown.INSTRUCTIONS_MAX, max(1, round(percent / 100 / cost)))
        slow = dataclasses.replace(options, slow={one.contender: instructions})
        verdict, = judge([one], measurer(slow, [one]), say=lambda _: None)
        if verdict.value is None:
            print(f"MISSED {one.name}: red for another reason: {verdict.failed or verdict.why_not}")
            missed += 1
            continue
        print(f"{'SEEN  ' if verdict.red else 'MISSED'} {one.name}: {one.shown(plain)} as it is; "
              f"{verdict.value / plain - 1:+.1%} by {instructions} instructions in each of {one.contender}'s system "
              f"calls: {one.shown(verdict.value)}, ceiling {one.ceiling:.3f}, "
              f"{'red' if verdict.red else 'not red'} after {verdict.attempts} attempts", flush=True)
        missed += not verdict.red
    if others := [one.name for one in held if one not in ratios]:
        print(f"not proved, since a slow-down changes none of them: {', '.join(others)}")
    return 1 if missed else 0


def value_with(options, one, instructions):
    slow = dataclasses.replace(options, slow={one.contender: instructions} if instructions else {})
    return one.value(measurer(slow, [one])(one.scenario, 1))


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=compare.words, metavar="NAME,...", help="only these ceilings")
    parser.add_argument("--study", type=int, metavar="N", help="run N times, and report how steady each figure is")
    parser.add_argument("--update", action="store_true",
                        help="with --study: write noise and ceilings to perf/ceilings.toml")
    parser.add_argument("--values", metavar="FILE", help="with --study: all values, as JSON")
    parser.add_argument("--prove", type=float, nargs="?", const=PROVED_PERCENT, metavar="PERCENT",
                        help=f"slow down on purpose, by {PROVED_PERCENT:g} unless told otherwise, and expect red")
    parser.add_argument("--driver", help="run Claviger with this --driver")
    parser.add_argument("--verbose", action="store_true", help="a line per turn, also when not on a terminal")
    compare.machine_options(parser)
    arguments = parser.parse_args()
    arguments.contenders, arguments.sustain = CONTENDERS, False
    if arguments.study is not None and arguments.study < 2:
        parser.error("--study needs at least 2 runs to tell how steady a figure is")
    if arguments.update and not arguments.study:
        parser.error("--update goes with --study: it writes what a study saw")
    if arguments.prove is not None and not 0 < arguments.prove <= 1000:
        parser.error("--prove takes a slow-down from above 0 to 1000 percent")
    return arguments
