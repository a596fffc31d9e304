"""perf/gate: holds this tree against the ceilings in perf/ceilings.toml. What CI runs.

Claviger is measured next to nginx, the load generator next to wrk, the mock API next to nginx's fixed answer, all in
turns within one run. A figure above its ceiling is measured again with twice the rounds, and only then is it red:
machines that others use too have bad minutes.

  perf/gate                    the gate; about two minutes
  perf/gate --study 20         how steady it is: runs it so often and says whether it would flap or sleep
  perf/gate --prove            makes dearer on purpose what each ceiling is about, and expects red; and green without

Exit code: 0 all ceilings hold (or, with --prove, each was proved), 1 red (or not proved), 2 could not measure.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness import ceilings, compare, history, machine, measures, reckoning, scenario as scenarios, slowdown, stats
from harness.contender import CannotMeasure
from harness.slowdown import Slowdown

# What takes part; the judges' scenarios bring their own.
CONTENDERS = ["claviger", "nginx"]
# The rate of an open loop is one that this one holds; the others must hold it too.
BASELINE = "nginx"
# How far above its ceiling a slow-down is meant to lift a figure, in percent of the ceiling.
PROVED_PERCENT = 10.0
# Of the first try, from which the effect of more is reckoned: some tenths of a request.
TRIED_INSTRUCTIONS = 5_000
# Rounds of each try, or as many as the gate has.
TRY_ROUNDS = 3


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


def measurer(options, held, rounds=None):
    """Measures a scenario at the gate's size, or with no more rounds than given, with those that ceilings are about."""
    def run(name, more_rounds):
        one = scenarios.load(name).sized("gate")
        one = dataclasses.replace(one, rounds=min(one.rounds, rounds or one.rounds) * more_rounds, direct=False)
        needed = {who for ceiling in held if ceiling.scenario == name for who in (ceiling.contender, ceiling.against)}
        these = dataclasses.replace(options, sustain=False, sustained_by=BASELINE, contenders=[who for who in options.contenders if who in needed])
        return history.lines(list(measures.measure(these, one, compare.teller(options))), {})

    return run


# ---- Is it steady, and does it see? -----------------------------------------


# Runs of a study that may fail, and are repeated, before it is given up.
STUDY_FAILURES_MAX = 3


def study(options, held, arguments):
    """Runs the gate many times, and says of each ceiling whether it would go red by chance, and what it would miss."""
    values = {one.name: [] for one in held}
    kept = Path(arguments.values) if arguments.values else None
    if kept and kept.exists():
        # It was cut off: what was measured counts.
        values.update({name: found for name, found in json.loads(kept.read_text()).items() if name in values})
    times = []
    failures = 0
    for number in range(max(map(len, values.values())), arguments.study):
        began = time.monotonic()
        while True:
            try:
                verdicts = list(judge(held, measurer(options, held), retry=False, say=lambda _: None))
                break
            except CannotMeasure as reason:
                failures += 1
                print(f"  run {number + 1} could not be measured: {reason}", flush=True)
                if failures > STUDY_FAILURES_MAX:
                    raise
        for verdict in verdicts:
            if verdict.value is not None:
                values[verdict.ceiling.name].append(verdict.value)
            if verdict.errors:
                print(f"  run {number + 1}: {verdict.shown()}")
        times.append(time.monotonic() - began)
        if kept:
            kept.write_text(json.dumps(values, indent=1) + "\n")
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


@dataclass(frozen=True)
class Means:
    """How a ceiling's figure is driven up on purpose."""

    words: str  # what was done, with the amount in it
    slowdown: Callable[[int], slowdown.Slowdown]
    tried: int  # the amount of the first try
    most: int  # the greatest amount that is possible
    tries: int  # before the run that counts, each nearer to what is wanted; none where there is nothing to choose


def means(ceiling):
    """The means for a ceiling's figure. Raises CannotMeasure for one that nothing here drives up."""
    if ceiling.figure.startswith("cpu_"):
        return Means("{} instructions in each system call", lambda amount: Slowdown(instructions=amount),
                     TRIED_INSTRUCTIONS, slowdown.INSTRUCTIONS_MAX, tries=2)
    if ceiling.figure == "syscalls_per_request" and ceiling.contender == "claviger":
        return Means("--driver epoll", lambda _: Slowdown(words=("--driver", "epoll")), 1, 1, tries=0)
    if ceiling.figure == "kb_per_connection":
        # Fewer tried ones would drown in the noise of the whole process's memory.
        return Means("{} of the connections with an unread answer", lambda amount: Slowdown(unread=amount),
                     max(1, ceiling.at // 20), ceiling.at, tries=1)
    raise CannotMeasure(f"{ceiling.name}: nothing here drives {ceiling.figure} up on purpose; "
                        "harness/slowdown.py tells what there is")


def prove(options, held, percent):
    """Of each ceiling: what it is about stays below it, and its dearer twin, in turns with it, goes above."""
    ways = [(one, means(one)) for one in held]
    print(f"{machine.summary()}; {len(held)} ceilings, about {reckoning.shown(proof_seconds(held))}", flush=True)
    began = time.monotonic()
    proved = 0
    for one, way in ways:
        twin = dataclasses.replace(one, contender=slowdown.twin(one.contender))
        run = lambda amount, rounds: lambda: side_by_side(options, one, twin, way.slowdown(amount), rounds)
        proof = proof_of(one, twin, way, percent, run)
        print(proof.shown(), flush=True)
        proved += proof.good
    print(f"{proved} of {len(held)} ceilings proved in {reckoning.shown(time.monotonic() - began)}")
    return 0 if proved == len(held) else 1


@dataclass
class Proof:
    as_is: Verdict
    slowed: Verdict
    done: str

    @property
    def good(self):
        """Held as it is, red with the slow-down, and that because of the figure and nothing else."""
        return (self.as_is.value is not None and not self.as_is.red
                and self.slowed.value is not None and self.slowed.value > self.slowed.ceiling.ceiling)

    def shown(self):
        one = self.as_is.ceiling
        if self.as_is.value is None or self.slowed.value is None:
            verdict = self.as_is if self.as_is.value is None else self.slowed
            return f"MISSED {one.name}: nothing measured: {verdict.failed or verdict.why_not}"
        because = "" if self.good else "; it is red as it is" if self.as_is.red else "; the slow-down is not seen"
        rate = f", at {self.as_is.rate:,}/s" if self.as_is.rate else ""
        return (f"{'PROVED' if self.good else 'MISSED'} {one.name}: {one.shown(self.as_is.value)} as it is, "
                f"{one.shown(self.slowed.value)} ({self.slowed.value / self.as_is.value - 1:+.0%}) with {self.done}, "
                f"ceiling {one.ceiling:.3f}{rate}{because}")


def proof_of(one, twin, way, percent, run):
    """Reckons how much it takes to stand `percent` above the ceiling, out of short runs, and judges a run with that.

    `run(amount, rounds)` gives the function that measures both, in turns; no rounds are the gate's own.
    """
    amount, seen = way.tried, []
    for _ in range(way.tries):
        plain, tried = verdicts_of([one, twin], run(amount, TRY_ROUNDS))
        if plain.value is None or tried.value is None:
            return Proof(plain, tried, "")
        seen.append((amount, tried.value - plain.value))
        amount = amount_for(one.ceiling * (1 + percent / 100) - plain.value, seen, way.most)
    done = way.words.format(f"{amount:,}")
    as_is, slowed = verdicts_of([one, twin], run(amount, None))
    return Proof(as_is, slowed, done)


def amount_for(wanted, seen, most):
    """How much lifts a figure by `wanted`, out of what was seen: pairs of an amount and what it lifted by.

    Straight lines between them, since the effect is none: who is slower is asked for more at a time. Without an effect
    that can be seen, the most that is possible will tell.
    """
    before = (0, 0.0)
    for amount, lift in sorted(seen):
        if lift >= wanted:
            return max(1, round(before[0] + (amount - before[0]) * (wanted - before[1]) / (lift - before[1])))
        if lift > before[1]:
            before = (amount, lift)
    return min(most, round(wanted * before[0] / before[1])) if before[1] > 0 else most


def side_by_side(options, one, twin, slow, rounds):
    """The lines of one run in which a program and its dearer twin take turns, with what they are held against."""
    these = dataclasses.replace(options, slow={one.contender: slow}, contenders=[*options.contenders, twin.contender])
    return measurer(these, [one, twin], rounds)(one.scenario, 1)


def proof_seconds(held):
    """What the proof takes: short runs for each and one of the gate's size, with three in turns, or two."""
    total = 0.0
    for one in held:
        gate_size = scenarios.load(one.scenario).sized("gate")
        for rounds in [min(TRY_ROUNDS, gate_size.rounds)] * means(one).tries + [gate_size.rounds]:
            size = dataclasses.replace(gate_size, rounds=rounds, direct=False)
            # The judges' scenarios bring two; a twin is the third.
            total += reckoning.seconds(size, 3 if one.against else 2) * (1.5 if size.kind in ("judge", "mock") else 1)
    return total + reckoning.JOB_CHECK_SECONDS * len(CONTENDERS)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=compare.words, metavar="NAME,...", help="only these ceilings")
    parser.add_argument("--study", type=int, metavar="N", help="run N times, and report how steady each figure is")
    parser.add_argument("--update", action="store_true",
                        help="with --study: write noise and ceilings to perf/ceilings.toml")
    parser.add_argument("--values", metavar="FILE", help="with --study: all values, as JSON; a study that was cut off goes on from there")
    parser.add_argument("--prove", type=float, nargs="?", const=PROVED_PERCENT, metavar="PERCENT",
                        help="make each dearer on purpose, to so much above its ceiling "
                             f"({PROVED_PERCENT:g} unless told otherwise), and expect red")
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
        parser.error("--prove takes from above 0 to 1000 percent")
    return arguments
