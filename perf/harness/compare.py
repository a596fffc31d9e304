"""perf/compare: the full table, one command.

Starts a mock API and the contenders, each with one worker on one core, and lets them take turns under the same load,
scenario by scenario. Each result is a line in perf/history.ndjson as soon as its scenario is done, so an interrupted
run keeps what it has. perf/README.md tells the method.

Exit code: 0 all was measured, 2 something could not be (all else was).
"""

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path

from harness import contender as contenders
from harness import history, machine, measures, reckoning, scenario as scenarios, tables
from harness.bench import Options
from harness.contender import CannotMeasure


def main():
    arguments = parse_args()
    machine.end_on_signals()
    try:
        return compare(arguments)
    except CannotMeasure as reason:
        print(f"perf/compare: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nperf/compare: interrupted; finished scenarios are kept", file=sys.stderr)
        return 2


def compare(arguments):
    chosen = choose(arguments)
    many = len(arguments.contenders)
    if arguments.list:
        for one in chosen:
            print(f"{one.name:20} {one.kind:10} {reckoning.shown(reckoning.seconds(one, many)):>7}  {one.description}")
        print(f"about {reckoning.shown(reckoning.run(chosen, many))} with {', '.join(arguments.contenders)}")
        return 0
    options = prepare(arguments)
    changed_size = arguments.quick or arguments.rounds is not None or arguments.seconds is not None
    common = {"time": history.now(), **machine.describe(), "size": "quick" if changed_size else "full",
              "binaries": machine.binaries(contenders.target_dir() / "release", ("claviger", "loadgen", "mock-upstream"))}
    if stale := machine.older_than_source(common["binaries"]):
        print(f"older than the newest source file: {', '.join(stale)}; cargo build --release brings them up to date",
              file=sys.stderr)
    print(f"{common['machine']}\ncommit {common['commit']}{' with changes' if common['dirty'] else ''}")
    print(f"about {reckoning.shown(reckoning.run(chosen, many))}")
    incomplete, began = [], time.monotonic()
    for number, one in enumerate(chosen, 1):
        print(f"\n{one.name} ({number} of {len(chosen)}, about {reckoning.shown(reckoning.seconds(one, many))}, "
              f"{(time.monotonic() - began) / 60:.0f} min so far): {one.description}", flush=True)
        rows, whole = [], False
        try:
            for row in measures.measure(options, one, teller(options)):
                rows.append(row)
            whole = True
        except CannotMeasure as reason:
            print(f"  could not be measured: {reason}", file=sys.stderr)
            incomplete.append(one.name)
            rows += measures.unmeasured(one, options.contenders, rows, str(reason))
        finally:
            # Also when interrupted: what was yielded is complete.
            lines = history.lines(rows, common if whole else {**common, "partial": True})
            if lines and not arguments.no_history:
                history.append(arguments.history, lines)
        if any("failed_because" in line for line in lines):
            incomplete.append(one.name)
        show(lines)
    print(f"\n{(time.monotonic() - began) / 60:.1f} minutes")
    if incomplete:
        print(f"not complete: {', '.join(dict.fromkeys(incomplete))}", file=sys.stderr)
    return 2 if incomplete else 0


def show(lines):
    """A table for each of a scenario's parts."""
    for label in dict.fromkeys(line["scenario"] for line in lines):
        part = [line for line in lines if line["scenario"] == label]
        print(f"\n  {label}")
        print(tables.terminal(part), flush=True)


def teller(options):
    """Tells each turn, on a terminal or when asked to."""
    def tell(label, number, rounds, name, result):
        if sys.stderr.isatty() or options.verbose:
            shown = ", ".join(f"{key} {value:.4g}" for key, value in result.items()
                              if isinstance(value, (int, float)) and not isinstance(value, bool)
                              and key in SHOWN_PER_TURN or key.startswith(("added", "kb_")))
            print(f"  {label} {number + 1}/{rounds} {name:9} {shown}", file=sys.stderr, flush=True)

    return tell


SHOWN_PER_TURN = {
    "cpu_us_per_request", "rps", "p99_us", "load_core_busy", "errors", "cpu_us_per_connection", "handshakes_per_s",
    "cpu_ms_per_gb", "mb_per_s", "syscalls_per_request", "event_delay_p50_us", "event_delay_p99_us", "failed",
    "max_us", "ms_until_used", "ms_until_last_old",
}


def prepare(arguments):
    """Makes this process ready to measure, and says with what. Shared with the gate."""
    if arguments.target_dir:
        os.environ["CARGO_TARGET_DIR"] = str(arguments.target_dir.resolve())
    allowed = os.sched_getaffinity(0)
    for cpu in (arguments.proxy_cpu, arguments.load_cpu):
        if cpu not in allowed:
            raise CannotMeasure(f"there is no CPU {cpu} for us; name two with --proxy-cpu and --load-cpu")
    if arguments.proxy_cpu == arguments.load_cpu:
        raise CannotMeasure("the load would share its core with the contenders; two cores are needed")
    if arguments.priority:
        machine.take_priority()
    machine.allow_descriptors()
    missing = []
    for name in arguments.contenders:
        try:
            contenders.load(name).find()
        except CannotMeasure as reason:
            missing.append(str(reason))
    if missing:
        raise CannotMeasure("\n".join(missing) + "\nor leave them out with --contenders")
    extra = {"claviger": ["--driver", arguments.driver]} if arguments.driver else {}
    return Options(contenders=arguments.contenders, proxy_cpu=arguments.proxy_cpu, load_cpu=arguments.load_cpu,
                   extra=extra, lock=arguments.lock, sustain=arguments.sustain, verbose=arguments.verbose)


def choose(arguments):
    """The scenarios of this run, at their size, with what the command line changes."""
    if arguments.scenarios:
        everything = scenarios.load_all()
        chosen = []
        for word in arguments.scenarios:
            # A name, or all of a kind.
            found = [one for one in everything if one.name == word] or [one for one in everything if one.kind == word]
            if not found:
                raise CannotMeasure(f"there is no scenario `{word}`; there are {', '.join(scenarios.names())}")
            chosen += [one for one in found if one not in chosen]
        # One that the quick size leaves out is measured in full if it is asked for by name.
        chosen = [one.sized("quick") or one if arguments.quick else one for one in chosen]
    else:
        chosen = [one.sized("quick" if arguments.quick else "full") for one in scenarios.load_all()]
        chosen = [one for one in chosen if one]
    if arguments.syscalls and all(one.kind != "syscalls" for one in chosen):
        chosen.append(scenarios.load("syscalls"))
    return [changed(one, arguments) for one in chosen]


def changed(one, arguments):
    changes = {key: getattr(arguments, key) for key in ("rounds", "seconds") if getattr(arguments, key) is not None}
    parameters = dict(one.parameters)
    if arguments.rates and "rates" in parameters:
        parameters["rates"] = tuple(arguments.rates)
    return dataclasses.replace(one, **changes, parameters=parameters)


def parse_args(given=None):
    default = [name for name in tables.ORDER if name in contenders.known() and name != "direct"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="list the scenarios and end")
    parser.add_argument("--scenarios", type=words, metavar="NAME,...",
                        help="names of files in perf/scenarios, or kinds (default: all)")
    parser.add_argument("--contenders", type=words, default=default, metavar="NAME,...",
                        help=f"(default: {','.join(default)})")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, shorter, and some scenarios left out")
    parser.add_argument("--rounds", type=int, help="rounds of every scenario, instead of its own")
    parser.add_argument("--seconds", type=float, help="measured time of each turn, instead of the scenario's")
    parser.add_argument("--rates", type=lambda text: [int(n) for n in text.split(",")], metavar="N,...",
                        help="rates of the open loops and of the added latency, instead of the scenario's")
    parser.add_argument("--sustain", action="store_true",
                        help="open loop: only at the highest rate that all contenders hold")
    parser.add_argument("--syscalls", action="store_true", help="also count system calls, whatever --scenarios says")
    parser.add_argument("--driver", help="run Claviger with this --driver")
    parser.add_argument("--verbose", action="store_true", help="a line per turn, also when not on a terminal")
    parser.add_argument("--history", type=Path, default=history.PATH)
    parser.add_argument("--no-history", action="store_true", help="write nothing to the history")
    machine_options(parser)
    arguments = parser.parse_args(given)
    if wrong := mistakes(arguments):
        parser.error(wrong)
    return arguments


def mistakes(arguments):
    """What is wrong with the arguments, told before anything is started; or nothing. As strict as scenarios' files."""
    for key, field in (("rounds", scenarios.COMMON["rounds"]), ("seconds", scenarios.COMMON["seconds"])):
        value = getattr(arguments, key)
        if value is not None and (problem := field.problem(value)):
            return f"--{key}: {problem}"
    if arguments.rates is not None and (problem := scenarios.RATES["rates"].problem(arguments.rates)):
        return f"--rates: {problem}"
    if not arguments.contenders or "direct" in arguments.contenders:
        return "--contenders: name at least one, and not `direct`, which the scenarios bring themselves"
    if len(set(arguments.contenders)) != len(arguments.contenders):
        return "--contenders: a name stands twice"
    if not arguments.no_history and not arguments.list:
        # Before an hour of load, and not after it.
        try:
            open(arguments.history, "a", encoding="utf-8").close()
        except OSError as error:
            return f"--history: {error}"
    return ""


def machine_options(parser):
    """What the gate takes too."""
    parser.add_argument("--target-dir", type=Path, metavar="DIR",
                        help="cargo's target directory (default: $CARGO_TARGET_DIR or target)")
    parser.add_argument("--proxy-cpu", type=int, default=0, help="core of the contenders (default 0)")
    parser.add_argument("--load-cpu", type=int, default=1, help="core of the load and the API (default 1)")
    parser.add_argument("--lock", type=Path, metavar="FILE",
                        help="hold this lock file during each scenario, where several measure on one machine")
    parser.add_argument("--priority", action="store_true",
                        help="as root: run before everything else on this machine, when it is not idle")


def words(text):
    return [word for word in text.split(",") if word]
