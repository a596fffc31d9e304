"""perf/fire: what a well-behaved caller notices while others attack, and what is still answered beyond capacity.

Each contender in turn, one worker on one core, with the same limits. The judge is `loadgen` in an open loop over kept
connections, and a second one of few new connections (the newcomers), first in peace and then while `attackers.py`, or a
second loadgen, does its worst from the load's core, nicer than the judge. Told are latency and errors of both judges,
CPU and memory of the proxy, and what became of the attacker.

Exit code: 0 all was measured, 2 something could not be.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from harness import contender as contenders
from harness import machine
from harness.bench import HOST, Bench, Options, before, stop
from harness.contender import CannotMeasure

ATTACKERS = Path(__file__).resolve().parent / "attackers.py"
# Seconds for each phase that ends a slow caller: of a handshake, of a head, between two reads or writes.
LIMIT_SECONDS = 5
# The judge: a rate that every contender holds with ease, over kept connections.
RATE, CONNECTIONS = 1_000, 32
# Callers that come anew, each with a full handshake.
NEWCOMERS_RATE = 20
# How much nicer than the judge the attacker is: the load's core is theirs together.
ATTACKER_NICE = 5
# Memory is looked at so often.
LOOK_SECONDS = 0.25
# An attacker may take so long to open what it holds.
READY_SECONDS = 90
# Idle connections are as many as one worker has to bear.
IDLE_CONNECTIONS = 10_000
# Overload: times the rate that was found to be the peak.
OVERLOADS = [1.0, 2.0, 4.0]
# An answer later than this is of no use to its caller.
USEFUL = "1s"


@dataclass(frozen=True)
class Attack:
    name: str
    count: int
    what: str
    loadgen: tuple = ()  # a second loadgen with these options, in place of attackers.py


ATTACKS = [
    Attack("silent", 1_000, "1,000 connect and say nothing"),
    Attack("half-hello", 1_000, "1,000 send a ClientHello byte by byte"),
    Attack("hello-flood", 500, "ClientHellos over and over, the server's flight awaited, then a reset"),
    Attack("garbage", 500, "1 kB of chance over and over, then a reset"),
    Attack("handshakes", 16, "full TLS handshakes without end, a request on each", ("--new-connection", "--concurrency", "16")),
    Attack("churn", 16, "a new connection for each 5 requests", ("--requests-per-connection", "5", "--concurrency", "16")),
    Attack("slow-head", 1_000, "1,000 heads, a byte every half second"),
    Attack("head-bombs", 1, "heads of 200 kB, one after the other"),
    Attack("slow-body", 500, "500 bodies, a byte every half second"),
    Attack("slow-read", 200, "200 of 16 MiB answers, read through a tiny window"),
    Attack("never-read", 200, "200 of 16 MiB answers, not read"),
    Attack("idle", IDLE_CONNECTIONS, "10,000 connections kept idle after a request"),
    Attack("no-answer", 500, "500 requests that the API does not answer"),
    Attack("upstream-drip", 500, "500 answers of which the API sends a little ten times a second"),
    Attack("informational", 1, "answers behind a thousand interim ones"),
]


def main():
    arguments = parse_args()
    machine.end_on_signals()
    machine.allow_descriptors()
    if arguments.priority:
        machine.take_priority()
    options = Options(contenders=arguments.contenders, adjust=ADJUST, lock=arguments.lock)
    found, failed = [], []
    try:
        for name in arguments.contenders:
            work = [overload] if arguments.overload else [fire]
            for one in work:
                for row in one(options, name, arguments, failed):
                    found.append({"contender": name, **row})
                    tell(found[-1])
    except CannotMeasure as reason:
        print(f"perf/fire: {reason}", file=sys.stderr)
        return 2
    finally:
        if arguments.json and found:
            arguments.json.write_text("".join(json.dumps(row) + "\n" for row in found))
    print(overload_table(found) if arguments.overload else table(found))
    for reason in failed:
        print(f"not measured: {reason}", file=sys.stderr)
    return 2 if failed else 0


def parse_args():
    parser = argparse.ArgumentParser(prog="perf/fire", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", type=lambda text: text.split(","), default=["claviger", "nginx", "haproxy"])
    parser.add_argument("--attacks", type=lambda text: text.split(","), default=[one.name for one in ATTACKS])
    parser.add_argument("--seconds", type=float, default=8, help="of each attack")
    parser.add_argument("--overload", action="store_true", help="measure what is answered at 1, 2 and 4 times the peak")
    parser.add_argument("--priority", action="store_true", help="go before everything else on this machine (as root)")
    parser.add_argument("--lock", type=Path, help="take turns with others who measure here")
    parser.add_argument("--json", type=Path, help="also write each row as a line of JSON")
    return parser.parse_args()


# ---- Attacks ----------------------------------------------------------------


def fire(options, name, arguments, failed):
    """The attacks on one contender, each beside the peace before it."""
    for attack in ATTACKS:
        if attack.name not in arguments.attacks:
            continue
        with machine.alone(options.lock):
            try:
                with Bench(options, [name]) as bench:
                    if bench.failed:
                        raise CannotMeasure(bench.failed[name])
                    yield {"attack": attack.name, **under(bench, name, attack, arguments.seconds)}
            except CannotMeasure as reason:
                failed.append(f"{name} under {attack.name}: {reason}")


def under(bench, name, attack, seconds):
    """One attack: what the judges saw in peace, and under it."""
    bench.loadgen([name], "--concurrency", CONNECTIONS, "--duration", "500ms", "--warmup", "0ms")
    peace = judge(bench, name, seconds / 2)
    with attacker(bench, name, attack) as ill:
        under_fire = judge(bench, name, seconds)
    bench.check_alive([name])
    return {"peace": peace, "fire": under_fire, "attacker": ill}


def judge(bench, name, seconds):
    """Both judges at once, and the proxy's CPU and memory meanwhile."""
    one = bench.running[name]
    with watching(one) as used:
        duration = f"{int(seconds * 1000)}ms"
        steady = bench.loadgen_start([name], "--rps", RATE, "--connections", CONNECTIONS, "--duration", duration,
                                     "--warmup", "300ms", "--timeout", "5s", "--quiet")
        new = bench.loadgen_start([name], "--rps", NEWCOMERS_RATE, "--new-connection", "--duration", duration,
                                  "--warmup", "300ms", "--timeout", "5s", "--quiet")
        seen, newcomers = steady.report(), new.report()
    return {**judged(seen), "valid": seen["valid"], "newcomers": judged(newcomers), **used}


def judged(report):
    target = report["targets"][0]
    latency = target["latency"]
    return {"p50_us": latency["p50"], "p99_us": latency["p99"], "max_us": latency["max"],
            "good": target["good"], "errors": target["errors_total"] + report["in_flight"]}


@contextlib.contextmanager
def watching(one):
    """Fills in, at its end, which share of a core and how much memory the contender used."""
    used, ended = {}, threading.Event()
    peak = [0]

    def look():
        while True:
            with contextlib.suppress(OSError):
                peak[0] = max(peak[0], private_kb(one.pids()))
            if ended.wait(LOOK_SECONDS):
                return

    watcher = threading.Thread(target=look, daemon=True)
    cpu, began = machine.cpu_seconds(one.pids()), time.monotonic()
    watcher.start()
    try:
        yield used
    finally:
        ended.set()
        watcher.join()
        used["cpu_share"] = round((machine.cpu_seconds(one.pids()) - cpu) / (time.monotonic() - began), 3)
        used["private_kb"] = peak[0]


def private_kb(pids):
    """What these processes hold for themselves."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean:", "Private_Dirty:")):
                total += int(line.split()[1])
    return total


@contextlib.contextmanager
def attacker(bench, name, attack):
    """Attacks meanwhile; yields what is filled in at its end: what became of the attacker."""
    told = {}
    if attack.loadgen:
        load = bench.loadgen_start([name], *attack.loadgen, "--duration", "300s", "--warmup", "0ms", "--quiet")
        os.setpriority(os.PRIO_PROCESS, load.process.pid, os.getpriority(os.PRIO_PROCESS, 0) + ATTACKER_NICE)
        time.sleep(0.5)
        try:
            yield told
        finally:
            load.process.terminate()
            told.update(from_loadgen(load))
        return
    start = before([bench.load_cpu])

    def nicer():
        os.nice(ATTACKER_NICE)
        start()

    process = subprocess.Popen(
        [sys.executable, str(ATTACKERS), attack.name, HOST, str(bench.running[name].port), str(bench.ca),
         str(bench.wrong_key), str(attack.count)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=nicer,
    )
    bench.stack.callback(stop, process)
    line = process.stdout.readline().split()
    if line[:1] != ["ready"]:
        raise CannotMeasure(f"the attacker `{attack.name}` did not start")
    told["held_at_first"] = int(line[1])
    try:
        yield told
    finally:
        process.stdin.close()
        with contextlib.suppress(json.JSONDecodeError):
            told.update(json.loads(process.stdout.readline() or "{}"))
        process.wait(10)


def from_loadgen(load):
    output = load.process.stdout.read()
    load.process.wait()
    with contextlib.suppress(json.JSONDecodeError, KeyError, IndexError):
        target = json.loads(output)["targets"][0]
        return {"opened": target.get("connections_opened", target["good"]), "good": target["good"], "refused": target["errors_total"]}
    return {}


# ---- Overload ---------------------------------------------------------------


def overload(options, name, arguments, failed):
    """What is answered in time at the peak, at twice and at four times it."""
    with machine.alone(options.lock):
        try:
            with Bench(options, [name]) as bench:
                if bench.failed:
                    raise CannotMeasure(bench.failed[name])
                closed = bench.loadgen([name], "--concurrency", 64, "--duration", "3s", "--quiet")
                peak = closed["targets"][0]["good"] / closed["duration_s"]
                for times in OVERLOADS:
                    yield {"times": times, "peak": round(peak), **beyond(bench, name, peak * times, arguments.seconds)}
        except CannotMeasure as reason:
            failed.append(f"{name}: {reason}")


def beyond(bench, name, rate, seconds):
    report = bench.loadgen([name], "--rps", round(rate), "--connections", 512, "--duration", f"{int(seconds * 1000)}ms",
                           "--warmup", "1s", "--timeout", USEFUL, "--quiet")
    target = report["targets"][0]
    return {"rate": round(rate), "goodput": round(target["good"] / report["duration_s"]), **judged(report),
            "kinds": {kind: count for kind, count in target.get("errors", {}).items() if count}, "valid": report["valid"]}


# ---- The same limits for all --------------------------------------------------


def adjust_claviger(job):
    path = job.dir / "claviger.toml"
    limits = "".join(f'{name} = "{LIMIT_SECONDS}s"\n' for name in ("handshake_timeout", "head_timeout", "read_timeout"))
    path.write_text(path.read_text().replace("[server]\n", f"[server]\n{limits}", 1))


def adjust_nginx(job):
    path = job.dir / "nginx.conf"
    limits = "".join(f"    {name} {LIMIT_SECONDS}s;\n" for name in ("client_header_timeout", "client_body_timeout", "send_timeout"))
    path.write_text(path.read_text().replace("http {\n", f"http {{\n{limits}", 1))


def adjust_haproxy(job):
    path = job.dir / "haproxy.cfg"
    text = path.read_text()
    for name in ("timeout client", "timeout http-request"):
        lines = [line for line in text.splitlines() if line.strip().startswith(name + " ")]
        for line in lines:
            text = text.replace(line, f"    {name} {LIMIT_SECONDS}s")
    path.write_text(text)


ADJUST = {"claviger": adjust_claviger, "nginx": adjust_nginx, "haproxy": adjust_haproxy}


# ---- Telling ----------------------------------------------------------------


def tell(row):
    if "attack" in row:
        peace, under_fire, ill = row["peace"], row["fire"], row["attacker"]
        print(f"{row['contender']:9} {row['attack']:14} p99 {peace['p99_us']:>9,.0f} -> {under_fire['p99_us']:>11,.0f} us, "
              f"errors {under_fire['errors']}, newcomers p99 {under_fire['newcomers']['p99_us']:>11,.0f} us errors "
              f"{under_fire['newcomers']['errors']}, core {under_fire['cpu_share']:.0%}, {under_fire['private_kb'] / 1024:,.0f} MiB, "
              f"{ill}{'' if under_fire['valid'] else ' INVALID'}", flush=True)
    else:
        print(f"{row['contender']:9} x{row['times']} of {row['peak']:,}/s: goodput {row['goodput']:,}/s, p99 {row['p99_us']:,.0f} us, "
              f"{row['kinds']}{'' if row['valid'] else ' INVALID'}", flush=True)


def table(rows):
    """A line for each attack, the contenders beside each other."""
    names = list(dict.fromkeys(row["contender"] for row in rows))
    what = {attack.name: attack.what for attack in ATTACKS}
    lines = ["| Attack | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for attack in dict.fromkeys(row["attack"] for row in rows):
        cells = []
        for name in names:
            of = [row for row in rows if row["contender"] == name and row["attack"] == attack]
            cells.append(cell(of) if of else "-")
        lines.append(f"| {what[attack]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(rows):
    middle = lambda pick: statistics.median(pick(row) for row in rows)
    peace, under_fire = middle(lambda row: row["peace"]["p99_us"]), middle(lambda row: row["fire"]["p99_us"])
    errors = sum(row["fire"]["errors"] + row["fire"]["newcomers"]["errors"] for row in rows)
    memory = max(row["fire"]["private_kb"] for row in rows) / 1024
    return f"{milliseconds(peace)} → {milliseconds(under_fire)}, {errors} failed, {memory:,.0f} MiB"


def milliseconds(us):
    return f"{us / 1000:,.1f}"


def overload_table(rows):
    lines = ["| | peak | " + " | ".join(f"{times:g}x" for times in OVERLOADS) + " |", "|---|---:|" + "---:|" * len(OVERLOADS)]
    for name in dict.fromkeys(row["contender"] for row in rows):
        of = {row["times"]: row for row in rows if row["contender"] == name}
        cells = [f"{of[times]['goodput'] / of[times]['peak']:.0%}, p99 {milliseconds(of[times]['p99_us'])}" if times in of else "-"
                 for times in OVERLOADS]
        lines.append(f"| {name} | {next(iter(of.values()))['peak']:,}/s | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
