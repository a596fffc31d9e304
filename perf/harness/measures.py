"""How each kind of scenario is measured.

Every measure is a generator of rows, so that what is finished is kept when the rest is interrupted. Contenders take
turns within one bench, A B C .. then C B A .., all of them up and warm: machines drift, and what drifts then drifts
for all. A contender that fails loses its place in that scenario, and the report says why.
"""

import collections
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from harness import machine, scenario as scenarios, slowdown
from harness.bench import DIRECT, HOST, KEY, NEXT_KEY, Bench, before, complete_answer, fingerprint, request, stop
from harness.contender import CannotMeasure, NotSupported, fill, find_program, first_line

# A core busier than this is at its limit: what it drives or measures is then its own figure.
BUSY = 0.90
# A contender that gets less of its core than this, in a closed loop, shares it with something else.
STARVED = 0.80
# A rate is held if this share of it is answered, without errors.
HELD = 0.98
# Rates tried in turn until every contender holds one.
RATES = [10_000, 8_000, 5_000, 2_000, 1_000]
# How long a load may take until all its connections are open.
READY_SECONDS = 15
# The load itself sends these: Host, User-Agent, Accept and Authorization.
OWN_HEADERS = 4
# Of a reason that goes into the history and into a table.
REASON_CHARACTERS = 300
# Connections of the judges' own measures end by themselves; a server that hangs must not hold us forever.
JUDGE_GRACE_SECONDS = 30


class NotPermitted(CannotMeasure):
    """This machine does not allow what it takes, whatever is measured."""


@dataclass
class Row:
    """What came of one contender in one scenario."""

    scenario: str  # with the rate, where there are several: open-10000
    kind: str
    contender: str
    version: str
    parameters: dict
    at: int | None = None  # the value of what grows
    figures: dict = field(default_factory=dict)  # name -> a value of each round
    marks: dict = field(default_factory=dict)  # `valid`, `judge_bound`, `note`, ...


def measure(options, scenario, tell):
    """Runs a scenario. Yields rows; tells each turn."""
    names = [name for name in options.contenders if not scenario.contenders or name in scenario.contenders]
    with machine.alone(options.lock):
        yield from MEASURES[scenario.kind](options, scenario, names, tell)


# ---- Turns ------------------------------------------------------------------


def interleave(bench, scenario, turn, tell, label, warm=True, direct=None):
    """Lets all take turns; returns name -> the figures of each round."""
    everyone = lambda: bench.names + ([DIRECT] if (scenario.direct if direct is None else direct) else [])
    results = {name: [] for name in everyone()}

    def or_drop(name, work):
        try:
            result = work(name)
            # Workers may go on without their master for a while; what they answer then is nobody's figure.
            bench.check_alive([name])
            return result
        except (CannotMeasure, OSError) as reason:
            bench.drop(name, reason)
            results.pop(name)
            return None

    if warm:
        for name in everyone():
            or_drop(name, lambda name: bench.loadgen([name], "--concurrency", getattr(scenario, "connections", 32),
                                                     "--duration", "500ms", "--warmup", "0ms"))
    for number in range(scenario.rounds):
        order = everyone()
        for name in order if number % 2 == 0 else reversed(order):
            if (result := or_drop(name, turn)) is not None:
                results[name].append(result)
                tell(label, number, scenario.rounds, name, result)
    return results


def rows(bench, scenario, results, label=None, at=None, **more):
    """Turns rounds into rows, those that dropped out last."""
    found = []
    for name, rounds in results.items():
        if not rounds:
            continue
        figures = {}
        for key in rounds[0]:
            if key not in NOT_FIGURES:
                figures[key] = [one[key] for one in rounds if key in one]
        marks = {"valid": all(one.get("valid", True) for one in rounds)}
        if lagging := sum(not one.get("valid", True) for one in rounds):
            marks["invalid_rounds"] = lagging
        if "load_core_busy" in figures:
            marks["judge_bound"] = statistics.median(figures["load_core_busy"]) > BUSY
        # In a closed loop somebody is at the limit. If neither the contender nor the judge is, others had the core.
        if scenario.kind in ("saturated", "growth") and not marks.get("judge_bound") and "proxy_core_busy" in figures \
                and name != DIRECT and statistics.median(figures["proxy_core_busy"]) < STARVED:
            marks["starved"] = True
        notes = sorted({one["note"] for one in rounds if one.get("note")})
        if errors := sum((collections.Counter(one.get("error_kinds", {})) for one in rounds), collections.Counter()):
            notes.append("errors: " + ", ".join(f"{count} {kind}" for kind, count in sorted(errors.items())))
        if cut := sum(one.get("cut_off", 0) for one in rounds):
            notes.append(f"the judge's end cut off {cut} requests")
        if notes:
            marks["note"] = "; ".join(notes)
        if name == DIRECT:
            # Its process is the mock API: nobody's figure.
            for key in ("cpu_us_per_request", "cpu_us_per_connection", "cpu_us_per_handshake", "cpu_ms_per_gb",
                        "cpu_us_per_event", "proxy_core_busy"):
                figures.pop(key, None)
        one = bench.running[name]
        found.append(Row(label or scenario.name, scenario.kind, name, one.version, scenario.shown(), at, figures,
                         {**marks, "tls": one.tls, "upstream_tls": one.upstream_tls, **more}))
    for name, reason in bench.failed.items():
        found.append(Row(label or scenario.name, scenario.kind, name, "", scenario.shown(), at, {},
                         {"failed_because": first_sentence(reason)}))
    return found


def unmeasured(scenario, names, rows_so_far, reason):
    """A row for each contender that has none when a whole scenario could not go on."""
    names = {"judge": ["loadgen", "wrk"], "mock": ["mock-upstream", "nginx"]}.get(scenario.kind, names)
    lacking = [name for name in names if name not in {row.contender for row in rows_so_far}]
    return [Row(scenario.name, scenario.kind, name, "", scenario.shown(), None, {},
                {"failed_because": first_sentence(reason)}) for name in lacking]


# What a turn tells beside its figures.
NOT_FIGURES = {"valid", "note", "error_kinds", "cut_off"}


def first_sentence(text):
    """A reason in one line. One that ends in a colon has a log below it, of which the last line says most."""
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        return "no reason given"
    first = found[0]
    if first.endswith(":"):
        first = f"{first} {found[-1]}" if len(found) > 1 else first.removesuffix(":")
    return first[:REASON_CHARACTERS]


def figures(name, document):
    """What every turn of loadgen tells."""
    target = document["targets"][0]
    own, upstream = document["generator"], document["watched"][DIRECT]
    watched = document["watched"][name]
    latency = target["latency"]
    kinds = own_errors(target, document["connections"])
    found = {
        "rps": target["rps"],
        "p50_us": latency["p50"], "p90_us": latency["p90"], "p99_us": latency["p99"],
        "p999_us": latency["p99.9"], "max_us": latency["max"],
        "errors": sum(kinds.values()),
        "requests": target["requests"],
        "valid": document["valid"],
        "load_core_busy": load_core_busy(document),
        "loadgen_us_per_request": own["cpu_us_per_request"],
        "upstream_us_per_request": upstream["cpu_us_per_request"],
        "lag_p99_us": own["lag"]["p99"],
    }
    if watched["cpu_s"] is not None and target["good"]:
        found["cpu_us_per_request"] = watched["cpu_s"] * 1e6 / target["good"]
        found["proxy_core_busy"] = watched["cpu_s"] / document["duration_s"]
    if kinds:
        found["error_kinds"] = kinds
    if cut := cut_off(target, document["connections"]):
        found["cut_off"] = cut
    return found


# loadgen's name for a request that was due, but had no free connection before the run ended.
UNSENT = "unsent"


def cut_off(target, connections):
    """Requests that the end of the run cut off: the judge's, and no error of the contender. Any server that keeps up has
    a queue at a given moment, of one request per connection at most; a backlog, which is more, is its own."""
    unsent = target["errors"].get(UNSENT, 0)
    return unsent if unsent <= connections else 0


def own_errors(target, connections):
    """A contender's errors by kind: all that loadgen counted but what the end of the run cut off."""
    return {kind: count for kind, count in target["errors"].items()
            if count and not (kind == UNSENT and cut_off(target, connections))}


def load_core_busy(document):
    """The share of the measured time in which load and API worked, on the core that they have together."""
    own, upstream = document["generator"], document["watched"][DIRECT]
    # Spinning towards a due time leaves the core to nobody, but it is no work.
    return (own["cpu_user_s"] + own["cpu_system_s"] - own["spun_s"] + (upstream["cpu_s"] or 0)) / document["duration_s"]


def timing(scenario, seconds=None):
    return ["--duration", f"{int((seconds or scenario.seconds) * 1000)}ms", "--warmup", f"{int(scenario.warmup * 1000)}ms"]


def extra_headers(count):
    """So many header fields in all, those of the load itself included."""
    words = []
    for number in range(1, count - OWN_HEADERS + 1):
        words += ["-H", f"X-Perf-{number:03}: a value of an ordinary length, {number:03}"]
    return words


# ---- Requests ---------------------------------------------------------------


def saturated(options, scenario, names, tell, label=None, at=None, **shape):
    """Closed loop: as much as the contender's core gives."""
    shape = {"connections": scenario.connections, "headers": getattr(scenario, "headers", OWN_HEADERS),
             "routes": getattr(scenario, "routes", 1), "workers": getattr(scenario, "workers", 1), **shape}
    with Bench(options, names, routes=shape["routes"], workers=shape["workers"]) as bench:
        def turn(name):
            return figures(name, bench.loadgen([name], "--concurrency", shape["connections"],
                                               *timing(scenario), *extra_headers(shape["headers"])))

        results = interleave(bench, scenario, turn, tell, label or scenario.name)
        more = {"shared_core": True} if shape["workers"] > 1 and os.cpu_count() <= shape["workers"] else {}
        yield from rows(bench, scenario, results, label, at, **more)


def open_loop(options, scenario, names, tell):
    """Open loop: the same offered load for all. Those that cannot hold a rate are told so, and left out of it."""
    rates = scenario.rates
    if options.sustained_by in names or options.sustain:
        deciding = [options.sustained_by] if options.sustained_by in names else names
        rates = [sustainable_rate(options, deciding, scenario)]
    with Bench(options, names) as bench:
        everyone = list(bench.names)
        for rate in rates:
            label = f"{scenario.name}-{rate}" if len(scenario.rates) > 1 or scenario.name == "open" else scenario.name
            bench.names = [name for name in everyone if name not in bench.failed]
            beyond = {}
            for name in list(bench.names):
                answered = probe_or_drop(bench, scenario, name, rate)
                if answered is not None and answered < HELD * rate:
                    beyond[name] = answered
                    bench.names.remove(name)
                    print(f"  {name} answers {answered:.0f}/s of {rate}/s offered", file=sys.stderr)

            def turn(name):
                return figures(name, bench.loadgen([name], *offered(scenario, rate), *timing(scenario)))

            results = interleave(bench, scenario, turn, tell, label, warm=False)
            yield from rows(bench, scenario, results, label, rate=rate)
            for name, answered in beyond.items():
                yield Row(label, scenario.kind, name, bench.running[name].version, scenario.shown(), None, {},
                          {"rate": rate, "not_held": round(answered)})


def probe(bench, scenario, name, rate):
    """What a contender answers of a rate, errors not counted: the better of two tries, since machines have bad moments."""
    first = probe_once(bench, scenario, name, rate)
    return first if first >= HELD * rate else max(first, probe_once(bench, scenario, name, rate))


def probe_once(bench, scenario, name, rate):
    # Evenly spaced, whatever the scenario's arrivals: of random ones so many may be due in a second that a rate
    # which is held looks short by 3 %.
    document = bench.loadgen([name], "--rps", rate, "--connections", scenario.connections, "--arrivals", "constant",
                             "--duration", "1s", "--warmup", "500ms", "--timeout", "2s")
    target = document["targets"][0]
    return target["rps"] if not target["errors_total"] else min(target["rps"], target["good_in_time"])


def probe_or_drop(bench, scenario, name, rate):
    """The same; one that fails takes no further part, and None tells so."""
    try:
        return probe(bench, scenario, name, rate)
    except CannotMeasure as reason:
        bench.drop(name, reason)
        return None


def offered(scenario, rate=None):
    return ["--rps", rate or scenario.rate, "--connections", scenario.connections, "--arrivals", scenario.arrivals]


def sustainable_rate(options, names, scenario):
    """The highest of the usual rates that all hold, from the scenario's own downwards: all are measured at that."""
    with Bench(options, names) as bench:
        tried = [rate for rate in RATES if rate <= max(scenario.rates)]
        for rate in tried:
            if all(probe(bench, scenario, name, rate) >= HELD * rate for name in bench.names):
                return rate
            print(f"  {rate}/s is more than all of them hold here; trying less", file=sys.stderr)
    raise CannotMeasure(f"not even {RATES[-1]}/s can be held; is the machine busy with something else?")


def added(options, scenario, names, tell):
    """All contenders and the direct way within one run of loadgen, in alternating slices: the difference counts."""
    with Bench(options, names) as bench:
        for rate in scenario.rates:
            label = f"{scenario.name}-{rate}"
            answered = {name: probe_or_drop(bench, scenario, name, rate) for name in list(bench.names)}
            holding = [name for name in bench.names if answered[name] >= HELD * rate]
            document = side_by_side(bench, scenario, rate, holding)
            by_name = {target["name"]: target for target in document["targets"]}
            # Of the run as a whole: each way offers the load's core the same work in its slices.
            busy = load_core_busy(document)
            marks = {"valid": document["valid"], "rate": rate, "judge_bound": busy > BUSY}
            for comparison in document["comparisons"]:
                name = comparison["subject"]
                differences = {
                    f"p{one['quantile'] * 100:g}": {
                        "difference": round(one["difference"], 3),
                        "low": one["low"] and round(one["low"], 3), "high": one["high"] and round(one["high"], 3),
                        "finding": one["finding"],
                    }
                    for one in comparison["quantiles"]
                }
                one = bench.running[name]
                tell(label, 0, 1, name, {"added_p50_us": differences["p50"]["difference"],
                                         "added_p99_us": differences["p99"]["difference"]})
                yield Row(label, scenario.kind, name, one.version,
                          {**scenario.shown(), "rounds": comparison["rounds"]}, None,
                          {**absolute(by_name[name], document["connections"]), "load_core_busy": [busy]},
                          {**marks, "added_us": differences, "tls": one.tls, "upstream_tls": one.upstream_tls})
            yield Row(label, scenario.kind, DIRECT, bench.running[DIRECT].version, scenario.shown(), None,
                      {**absolute(by_name[DIRECT], document["connections"]), "load_core_busy": [busy]}, marks)
            # Those that take no part, and why.
            yield from rows(bench, scenario, {}, label, rate=rate)
            for name in bench.names:
                if answered[name] < HELD * rate:
                    yield Row(label, scenario.kind, name, bench.running[name].version, scenario.shown(), None, {},
                              {"rate": rate, "not_held": round(answered[name])})


def side_by_side(bench, scenario, rate, holding):
    """One run with all ways in alternating slices. Those that end in it are dropped, and it is run again without them."""
    while True:
        targets = [name for name in holding if name not in bench.failed] + [DIRECT]
        try:
            return bench.loadgen(targets, *offered(scenario, rate), "--slice", f"{scenario.slice_ms}ms",
                                 *timing(scenario, scenario.seconds * len(targets)))
        except CannotMeasure as reason:
            ended = [name for name in targets if bench.running[name].process.poll() is not None]
            if not ended:
                raise
            for name in ended:
                bench.drop(name, reason)


def absolute(target, connections):
    latency = target["latency"]
    return {"p50_us": [latency["p50"]], "p90_us": [latency["p90"]], "p99_us": [latency["p99"]],
            "p999_us": [latency["p99.9"]], "max_us": [latency["max"]],
            "errors": [sum(own_errors(target, connections).values())]}


def tail(options, scenario, names, tell, *more):
    """Many connections at a modest rate: what waits for what."""
    with Bench(options, names) as bench:
        def turn(name):
            return figures(name, bench.loadgen([name], *offered(scenario), *timing(scenario), *more))

        yield from rows(bench, scenario, interleave(bench, scenario, turn, tell, scenario.name))


def churn(options, scenario, names, tell):
    """Connections that end after so many requests and are opened anew."""
    each = max(1, round(scenario.rate / scenario.reconnects_per_second))
    yield from tail(options, scenario, names, tell, "--requests-per-connection", each)


# ---- Connections ------------------------------------------------------------


def handshake(options, scenario, names, tell):
    """A new connection for each request; in the same turn kept ones, so that the request's share can be taken off."""
    with Bench(options, names) as bench:
        resume = ["--resume"] if scenario.resume else []

        def turn(name):
            kept = figures(name, bench.loadgen([name], "--concurrency", scenario.connections,
                                               "--duration", f"{max(500, int(scenario.seconds * 300))}ms",
                                               "--warmup", "300ms"))
            if "cpu_us_per_request" not in kept:
                raise CannotMeasure(f"{name} answered nothing over kept connections")
            document = bench.loadgen([name], "--concurrency", scenario.connections, "--new-connection", *resume,
                                     *timing(scenario))
            found = figures(name, document)
            found["handshakes_per_s"] = found.pop("rps")
            if "cpu_us_per_request" in found:
                found["cpu_us_per_connection"] = found.pop("cpu_us_per_request")
                found["cpu_us_per_handshake"] = found["cpu_us_per_connection"] - kept["cpu_us_per_request"]
            opened = document["targets"][0]["connections"]
            found["resumed_share"] = opened["resumed"] / opened["opened"] if opened["opened"] else 0.0
            return found

        yield from rows(bench, scenario, interleave(bench, scenario, turn, tell, scenario.name))


def idle(options, scenario, names, tell):
    """Memory at rest and for each idle connection. One contender after the other, each fresh in every round.

    The connections are opened by a process of its own, each has been used once, and is then left alone.
    """
    results = {name: [] for name in names}
    benches = {}
    for number in range(scenario.rounds):
        for name in names if number % 2 == 0 else list(reversed(names)):
            with Bench(options, [name]) as bench:
                benches[name] = bench
                if name in bench.failed:
                    continue
                try:
                    result = hold_idle(bench, scenario, name)
                except CannotMeasure as reason:
                    bench.drop(name, reason)
                    continue
            results[name].append(result)
            tell(scenario.name, number, scenario.rounds, name,
                 {f"kb_{step}": result[step]["kb_per_connection"] for step in scenario.steps})
    for name in names:
        for step in scenario.steps:
            rounds = [{"rest_kb": one["rest_kb"], **one[step]} for one in results[name]]
            yield from rows(benches[name], scenario, {name: rounds}, at=step)


def hold_idle(bench, scenario, name):
    one = bench.running[name]
    # The first requests allocate what stays whatever comes: pools, caches, log buffers.
    bench.loadgen([name], "--concurrency", 8, "--duration", "300ms", "--warmup", "0ms")
    holder = subprocess.Popen(
        [sys.executable, "-S", str(Path(__file__).with_name("idle.py")), HOST, str(one.port), str(bench.ca),
         str(bench.wrong_key)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {bench.load_cpu}),
    )
    bench.stack.callback(stop, holder)
    time.sleep(scenario.settle)
    rest, kernel_rest = machine.pss_kb(one.pids()), machine.tcp_memory_kb()
    found = {"rest_kb": rest}
    for step in scenario.steps:
        holder.stdin.write(f"{step} {min(step, slowdown.of(bench.options.slow, name).unread)}\n")
        holder.stdin.flush()
        answer = holder.stdout.readline().split()
        if answer[:1] != ["held"]:
            bench.check_alive([name])
            raise CannotMeasure(f"{name} did not take {step} connections: {holder.stderr.read().strip()[-300:]}")
        time.sleep(scenario.settle)
        found[step] = {
            "kb_per_connection": (machine.pss_kb(one.pids()) - rest) / step,
            "kernel_kb_per_connection": (machine.tcp_memory_kb() - kernel_rest) / step,
            "lost": int(answer[3]),
        }
    return found


# ---- Bodies -----------------------------------------------------------------


def download(options, scenario, names, tell):
    """Large answers. Bytes are counted by what arrived."""
    def turn(bench, name):
        document = bench.loadgen([name], "--concurrency", scenario.connections, *timing(scenario),
                                 "--timeout", "60s", path=f"/bytes/{scenario.bytes}")
        target = document["targets"][0]
        return bulk(name, document, target.get("bytes_received") or target["body_bytes"])

    yield from bodies(options, scenario, names, tell, turn)


def upload(options, scenario, names, tell):
    """Large requests. Bytes are counted by what was answered in full."""
    def turn(bench, name):
        body = bench.work / "body"
        if not body.exists():
            body.write_bytes(os.urandom(scenario.bytes))
        document = bench.loadgen([name], "--concurrency", scenario.connections, *timing(scenario),
                                 "--timeout", "60s", "-X", "POST", "--data-file", body, path="/upload")
        target = document["targets"][0]
        return bulk(name, document, target.get("bytes_sent") or target["good"] * scenario.bytes)

    yield from bodies(options, scenario, names, tell, turn)


def bodies(options, scenario, names, tell, turn):
    with Bench(options, names) as bench:
        yield from rows(bench, scenario,
                        interleave(bench, scenario, lambda name: turn(bench, name), tell, scenario.name))


def bulk(name, document, body_bytes):
    found = figures(name, document)
    found["mb_per_s"] = body_bytes / 1e6 / document["duration_s"]
    if not body_bytes:
        raise CannotMeasure(f"{name} relayed no whole body in {document['duration_s']:g} s")
    cpu = document["watched"][name]["cpu_s"]
    if cpu is not None:
        found["cpu_ms_per_gb"] = cpu * 1e3 / (body_bytes / 1e9)
    # A request is 10 MiB here: none of these says anything.
    for key in ("cpu_us_per_request", "loadgen_us_per_request", "upstream_us_per_request"):
        found.pop(key, None)
    return found


def sse(options, scenario, names, tell):
    """Server-sent events: how much later than sent each arrives, by the machine's one monotonic clock."""
    with Bench(options, names) as bench:
        plan = bench.work / "events.toml"
        plan.write_text(
            "[[request]]\nname = \"events\"\nkind = \"sse\"\nexpect_status = \"200\"\n"
            f"path = \"/sse?n={scenario.events}&ms={scenario.every_ms}\"\n"
        )

        def turn(name):
            document = bench.loadgen([name], "--scenario", plan, "--concurrency", scenario.connections,
                                     *timing(scenario), "--timeout", "60s")
            found = figures(name, document)
            events = document["targets"][0]["sse"]
            for quantile in ("p50", "p99", "p99.9"):
                found[f"event_delay_{quantile.replace('.', '')}_us"] = events["delay"][quantile]
            found["first_event_p99_us"] = events["first_event"]["p99"]
            found["events"] = events["delay"]["count"]
            cpu = document["watched"][name]["cpu_s"]
            if cpu is not None and events["delay"]["count"]:
                found["cpu_us_per_event"] = cpu * 1e6 / events["delay"]["count"]
            for key in ("cpu_us_per_request", "p50_us", "p90_us", "p99_us", "p999_us", "max_us"):
                found.pop(key, None)
            return found

        yield from rows(bench, scenario, interleave(bench, scenario, turn, tell, scenario.name))


# ---- Changes under load -----------------------------------------------------


def reload(options, scenario, names, tell):
    """A new configuration read while requests come in, next to the same load left alone."""
    with Bench(options, names) as bench:
        def turn(name):
            one = bench.running[name]
            quiet = figures(name, bench.loadgen([name], *offered(scenario), *timing(scenario)))
            load = start_load(bench, scenario, name)
            for number in range(scenario.times):
                time.sleep(scenario.seconds / (scenario.times + 1))
                one.contender.reload(one.job, one.process)
            found = figures(name, load.report())
            return {"failed": found["errors"], "max_us": found["max_us"], "p99_us": found["p99_us"],
                    "p999_us": found["p999_us"], "quiet_max_us": quiet["max_us"], "quiet_p99_us": quiet["p99_us"],
                    "rps": found["rps"], "load_core_busy": found["load_core_busy"], "valid": found["valid"],
                    "error_kinds": found.get("error_kinds", {})}

        yield from changes(bench, scenario, turn, tell)


def rotation(options, scenario, names, tell):
    """A new real key put in service while requests come in. The API takes either key and tells which it saw."""
    with Bench(options, names) as bench:
        current = {name: KEY for name in bench.names}

        def turn(name):
            one = bench.running[name]
            new = NEXT_KEY if current[name] == KEY else KEY
            load = start_load(bench, scenario, name)
            watch = KeyWatch(bench, name)
            try:
                time.sleep(scenario.seconds / 3)
                began = time.monotonic()
                one.contender.rotate(one.job, one.process, new)
                current[name] = new
                found = figures(name, load.report())
            finally:
                watch.end()
            used, last_old = watch.since(began, fingerprint(new))
            if used is None:
                raise CannotMeasure(f"{name} did not use the new key within {scenario.seconds * 2 / 3:.1f} s")
            return {"failed": found["errors"], "max_us": found["max_us"], "p99_us": found["p99_us"],
                    "ms_until_used": used * 1e3, "ms_until_last_old": last_old * 1e3, "rps": found["rps"],
                    "load_core_busy": found["load_core_busy"], "valid": found["valid"],
                    "error_kinds": found.get("error_kinds", {})}

        yield from changes(bench, scenario, turn, tell)


def changes(bench, scenario, turn, tell):
    """Like any turns, but a contender may have no means for this."""
    unsupported = {}

    def supported(name):
        try:
            return turn(name)
        except NotSupported as reason:
            unsupported[name] = str(reason)
            raise CannotMeasure(str(reason)) from None

    results = interleave(bench, scenario, supported, tell, scenario.name, direct=False)
    for row in rows(bench, scenario, results):
        if row.contender in unsupported:
            row.marks = {"not_supported": unsupported[row.contender]}
        yield row


def start_load(bench, scenario, name):
    load = bench.loadgen_start([name], *offered(scenario), *timing(scenario))
    # It says so when all connections are open and the warm-up begins.
    if not load.ready.wait(READY_SECONDS) or not any(line.startswith("ready:") for line in load.lines):
        raise CannotMeasure(f"the load on {name} did not say that it is ready: {' '.join(load.lines[-3:])}")
    time.sleep(scenario.warmup)
    return load


class KeyWatch:
    """Asks the API through a contender, over a kept and a new connection in turn, which key it was sent."""

    # Fine enough for what takes milliseconds, and a fraction of the load.
    EVERY_SECONDS = 0.004

    def __init__(self, bench, name):
        self.bench, self.name = bench, name
        self.seen = []  # (when asked, when answered, fingerprint)
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        kept = None
        while not self.stopping.is_set():
            try:
                kept = kept or self.bench.connect(self.name)
                self.ask(kept)
            except (OSError, ValueError):
                # Closed under us, as it may be between requests: the next turn opens another.
                kept = None
            with contextlib.suppress(OSError, ValueError):
                with self.bench.connect(self.name) as fresh:
                    self.ask(fresh)
            self.stopping.wait(self.EVERY_SECONDS)

    def ask(self, stream):
        asked = time.monotonic()
        stream.sendall(request("/echo"))
        answer = b""
        while (body := complete_answer(answer)) is None:
            piece = stream.recv(16384)
            if not piece:
                raise ValueError("closed")
            answer += piece
        self.seen.append((asked, time.monotonic(), json.loads(body)["auth_sha256"]))

    def end(self):
        self.stopping.set()
        self.thread.join()

    def since(self, began, new):
        """Seconds until the new key was first seen, and until a request was last begun that bore another."""
        first = next((answered - began for _, answered, key in self.seen if answered > began and key == new), None)
        last_old = max((asked - began for asked, _, key in self.seen if asked > began and key != new), default=0.0)
        return first, last_old


# ---- Growth -----------------------------------------------------------------


def growth(options, scenario, names, tell):
    """Saturated, over one thing that grows."""
    parameter = {"connections": "connections", "routes": "routes", "headers": "headers", "cores": "workers"}
    for value in scenario.values:
        if scenario.over == "cores" and value > os.cpu_count():
            print(f"  {scenario.name}: this machine has no {value} cores", file=sys.stderr)
            continue
        yield from saturated(options, scenario, names, lambda label, *rest: tell(f"{label} {value}", *rest),
                             scenario.name, value, **{parameter[scenario.over]: value})


# ---- Spread -----------------------------------------------------------------


def spread(options, scenario, names, tell):
    """Saturated, by a few callers: how evenly two workers share the work, after callers have come and gone."""
    for callers in scenario.values:
        with Bench(options, names, workers=2) as bench:
            draws = {name: random.Random(f"{scenario.name} {callers}") for name in names}

            def turn(name):
                with contextlib.ExitStack() as silent:
                    # As many leave as stay without a word. Which ones is drawn, the same way for each contender.
                    came = [bench.connect(name) for _ in range(2 * callers)]
                    draws[name].shuffle(came)
                    for number, stream in enumerate(came):
                        silent.enter_context(stream)
                        stream.sendall(request("/ok"))
                        if not stream.recv(16384):
                            raise CannotMeasure(f"{name} closed a new connection")
                        if number >= callers:
                            stream.close()
                    return spread_turn(bench, scenario, name, callers)

            results = interleave(bench, scenario, turn, lambda label, *rest: tell(f"{label} {callers}", *rest),
                                 scenario.name)
            more = {"shared_core": True} if os.cpu_count() <= 2 else {}
            yield from rows(bench, scenario, results, at=callers, **more)


def spread_turn(bench, scenario, name, callers):
    """Measured is what the workers do once the load has gone on for the time of the warm-up."""
    pids = bench.running[name].pids()
    load = bench.loadgen_start([name], "--concurrency", callers, *timing(scenario))
    load.ready.wait(READY_SECONDS)
    time.sleep(scenario.warmup)
    before = machine.thread_seconds(pids)
    time.sleep(scenario.seconds * 0.8)
    after = machine.thread_seconds(pids)
    used = sorted((after[thread] - before.get(thread, 0.0) for thread in after), reverse=True)
    return {"evenness": used[1] / used[0], **figures(name, load.report())}


# ---- System calls -----------------------------------------------------------


def syscalls(options, scenario, names, tell):
    """System calls per request, saturated. Counted by the kernel's tracepoint, or else by strace."""
    with Bench(options, names) as bench:
        count = counter()

        def turn(name):
            return {"syscalls_per_request": count.run(bench, scenario, name), "note": count.note}

        results = interleave(bench, scenario, turn, tell, scenario.name, direct=False)
        yield from rows(bench, scenario, results, counted_by=count.name)


def counter():
    """The best means that this machine permits."""
    reasons = []
    for means in (PerfCounter, StraceCounter):
        try:
            return means()
        except CannotMeasure as reason:
            reasons.append(str(reason))
    raise NotPermitted("system calls cannot be counted here: " + "; ".join(reasons))


class PerfCounter:
    name, note = "perf stat", ""

    def __init__(self):
        self.program = find_program("perf", "apt-get install linux-perf")
        tried = subprocess.run([self.program, "stat", "-e", "raw_syscalls:sys_enter", "true"], capture_output=True,
                               text=True)
        if tried.returncode != 0 or "not supported" in tried.stderr:
            raise CannotMeasure("perf may not use the tracepoint raw_syscalls:sys_enter (needs root, or "
                                "kernel.perf_event_paranoid = -1 and a readable tracefs)")

    def run(self, bench, scenario, name):
        counted = bench.work / "syscalls"
        pids = ",".join(map(str, bench.running[name].pids()))
        document = bench.loadgen(
            [name], "--concurrency", scenario.connections, "--duration", f"{int(scenario.seconds * 1000)}ms",
            "--warmup", "0ms",
            wrap=[self.program, "stat", "-x", ",", "-o", counted, "-e", "raw_syscalls:sys_enter", "-p", pids, "--"],
        )
        return parse_perf(counted.read_text()) / document["targets"][0]["good"]


class StraceCounter:
    name = "strace"
    note = "counted by strace, which slows the contender down: batches are smaller than they would be"

    def __init__(self):
        self.program = find_program("strace", "apt-get install strace")
        tried = subprocess.run([self.program, "-c", "-o", "/dev/null", "true"], capture_output=True, text=True)
        if tried.returncode != 0:
            raise CannotMeasure("strace may not trace here (ptrace is forbidden)")

    def run(self, bench, scenario, name):
        counted = bench.work / "syscalls"
        words = [self.program, "-f", "-c", "-o", str(counted)]
        for pid in bench.running[name].pids():
            words += ["-p", str(pid)]
        tracer = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        bench.stack.callback(stop, tracer)
        # It says so once for each thread; what it misses of the first is a matter of milliseconds.
        if "attached" not in tracer.stderr.readline():
            raise CannotMeasure(f"strace could not attach to {name}")
        document = bench.loadgen([name], "--concurrency", scenario.connections,
                                 "--duration", f"{int(scenario.seconds * 1000)}ms", "--warmup", "0ms")
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=20)
        return parse_strace(counted.read_text()) / document["targets"][0]["good"]


def parse_perf(text):
    for line in text.splitlines():
        if "raw_syscalls" in line:
            count = line.split(",")[0]
            if not count.isdigit():
                raise CannotMeasure(f"perf did not count: {line}")
            return int(count)
    raise CannotMeasure("perf printed no count")


def parse_strace(text):
    """The calls of the summary's last line: `100.00 0.41 9 44444 12 total`, the errors only where there are any."""
    for line in reversed(text.splitlines()):
        words = line.split()
        if words[-1:] == ["total"]:
            return int(words[3])
    raise CannotMeasure("strace printed no total")


# ---- The judges themselves --------------------------------------------------


def judge(options, scenario, names, tell):
    """loadgen next to wrk: the same requests, closed loop, the CPU of the whole process over its whole life.

    Against the API alone, which is faster than either or nearly so, and against nginx, which is slower than both and
    so gives both the same rate.
    """
    wrk = find_program("wrk", "apt-get install wrk")
    server = scenario.server
    with Bench(options, [] if server == DIRECT else [server]) as bench:
        if bench.failed:
            raise CannotMeasure(bench.failed[server])
        port = bench.running[server].port
        header = (bench.right_key if server == DIRECT else bench.wrong_key).read_text().strip()
        seconds = scenario.seconds
        commands = {
            "wrk": [wrk, "-t1", f"-c{scenario.connections}", f"-d{max(1, round(seconds))}s", "-H", f"Host: {HOST}",
                    "-H", "User-Agent: loadgen/0.1.0", "-H", "Accept: */*", "-H", header, f"https://127.0.0.1:{port}/ok"],
            "loadgen": [bench.loadgen_program, "--json", "--concurrency", scenario.connections,
                        "--duration", f"{int(seconds * 1000)}ms", "--warmup", "0ms", "--cacert", bench.ca, "-H", header,
                        "--connect", f"127.0.0.1:{port}", f"https://{HOST}/ok"],
        }
        # The API on the contenders' core, so that the judge under test has its own.
        if server == DIRECT:
            machine.pin(bench.running[DIRECT].process.pid, [bench.proxy_cpu])
        if "loadgen" in options.slow:
            commands[slowdown.twin("loadgen")] = commands["loadgen"]
        results = {name: [] for name in commands}
        for number in range(scenario.rounds):
            for name in list(commands) if number % 2 == 0 else reversed(list(commands)):
                result = run_judge(bench, name, commands[name], seconds)
                results[name].append(result)
                tell(scenario.name, number, scenario.rounds, name, result)
        versions = {"wrk": "wrk " + first_line([wrk, "--version"]).split(" ")[1],
                    "loadgen": first_line([bench.loadgen_program, "--version"])}
        for name, rounds in results.items():
            yield Row(scenario.name, scenario.kind, name, versions[slowdown.plain(name)], scenario.shown(), None,
                      {key: [one[key] for one in rounds] for key in rounds[0]})


def run_judge(bench, name, command, seconds):
    """Runs one load generator and takes its CPU time from the kernel."""
    process = subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=bench.log,
        preexec_fn=before([bench.load_cpu], slowdown.of(bench.options.slow, name)),
    )
    alarm = threading.Timer(seconds + JUDGE_GRACE_SECONDS, process.kill)
    alarm.start()
    output = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    alarm.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise CannotMeasure(f"{name} ended with {process.returncode}: {output[-500:]}")
    if name == "wrk":
        requests, seconds = parse_wrk(output)
    else:
        target = json.loads(output)["targets"][0]
        requests = target["good"]
        if target["errors_total"]:
            raise CannotMeasure(f"loadgen counted errors: {target['errors']}")
    return {"cpu_us_per_request": (usage.ru_utime + usage.ru_stime) * 1e6 / requests, "rps": requests / seconds,
            "requests": requests}


def parse_wrk(output):
    """Requests and seconds. It stops late, now and then by a lot; its own clock tells."""
    counted = re.search(r"(\d+) requests in ([\d.]+)([sm]),", output)
    if not counted or "Non-2xx" in output or "Socket errors" in output:
        raise CannotMeasure(f"wrk was not answered as it should be: {output[-500:]}")
    return int(counted[1]), float(counted[2]) * (60 if counted[3] == "m" else 1)


def mock(options, scenario, names, tell):
    """mock-upstream's fixed answer next to nginx's `return 200`, on the contenders' core, wrk on the other."""
    wrk = find_program("wrk", "apt-get install wrk")
    nginx = find_program("nginx", "apt-get install nginx-light")
    with Bench(options, []) as bench:
        api = bench.running[DIRECT]
        machine.pin(api.process.pid, [bench.proxy_cpu])
        directory = bench.work / "return-200"
        directory.mkdir(mode=0o700)
        port = machine.free_port()
        config = directory / "nginx.conf"
        config.write_text(fill(Path(__file__).with_name("return-200.conf"), DIR=directory, PORT=port, CERT=bench.cert,
                               CERT_KEY=bench.cert_key))
        server = bench.spawn([nginx, "-p", directory, "-e", directory / "error.log", "-c", config], [bench.proxy_cpu])
        await_port(bench, port, server)
        header = bench.right_key.read_text().strip()
        servers = {"mock-upstream": (api.port, api.process.pid), "nginx": (port, server.pid)}
        if "mock-upstream" in options.slow:
            twin = slowdown.twin("mock-upstream")
            process, port, _ = bench.spawn_upstream(bench.work / "tls-slowed", slowdown.of(options.slow, twin))
            machine.pin(process.pid, [bench.proxy_cpu])
            servers[twin] = (port, process.pid)
        results = {name: [] for name in servers}
        for number in range(scenario.rounds):
            for name in list(servers) if number % 2 == 0 else reversed(list(servers)):
                port, pid = servers[name]
                before = machine.cpu_seconds([pid])
                result = run_judge(bench, "wrk", [
                    wrk, "-t1", f"-c{scenario.connections}", f"-d{max(1, round(scenario.seconds))}s",
                    "-H", f"Host: {HOST}", "-H", header, f"https://127.0.0.1:{port}/ok"], scenario.seconds)
                used = machine.cpu_seconds([pid]) - before
                # The handshakes are in it, for both: a thousandth of what a turn costs.
                results[name].append({"cpu_us_per_request": used * 1e6 / result["requests"], "rps": result["rps"]})
                tell(scenario.name, number, scenario.rounds, name, results[name][-1])
        versions = {"mock-upstream": api.version, "nginx": first_line([nginx, "-v"]).replace("nginx version: ", "")}
        for name, rounds in results.items():
            yield Row(scenario.name, scenario.kind, name, versions[slowdown.plain(name)], scenario.shown(), None,
                      {key: [one[key] for one in rounds] for key in rounds[0]})


def await_port(bench, port, process):
    deadline = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise CannotMeasure(f"nginx does not serve its fixed answer:\n{bench.output()}")


MEASURES = {
    "saturated": saturated, "open": open_loop, "added": added, "handshake": handshake, "download": download,
    "upload": upload, "idle": idle, "tail": tail, "churn": churn, "sse": sse, "reload": reload, "rotation": rotation,
    "growth": growth, "spread": spread, "judge": judge, "mock": mock, "syscalls": syscalls,
}
assert set(MEASURES) == set(scenarios.KINDS)
