"""perf/fire: what a well-behaved caller notices while others attack, and what is still answered beyond capacity.

Each contender in turn, one worker on one core, with the same limits. The judge is `loadgen` in an open loop over kept
connections, and a second one of few new connections (the newcomers), first in peace and then while `attackers.py`, or a
second loadgen, does its worst from the load's core, nicer than the judge. A third judge goes past the proxy, to the API itself:
what it feels is the attacker's and the API's doing, on the core that they share with the judges, and no proxy's. Told
are latency and errors of the judges, CPU and memory of the proxy, and what became of the attacker.

With --rounds the contenders take turns so often; told are medians, and the least and the most. A whole run takes more
than an hour: --attacks cuts it into pieces, --keep puts each piece in the place of what was measured of the same before,
and --add adds rounds to what is kept of the same build.

Exit code: 0 all was measured, 2 something could not be.
"""

import argparse
import contextlib
import dataclasses
import itertools
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
from harness import history, job_check, machine, slowdown
from harness.bench import DIRECT, HOST, Bench, Options, before, stop
from harness.contender import CannotMeasure

ATTACKERS = Path(__file__).resolve().parent / "attackers.py"
# What was measured last, and the documents that show it.
KEPT = contenders.PERF / "fire.ndjson"
DOCUMENTS = [contenders.ROOT / "README.md", contenders.ROOT / "docs" / "hardening.md"]
TITLES = {"claviger": "Claviger", "nginx": "nginx", "haproxy": "HAProxy"}
# Seconds for each phase that ends a slow caller: of a handshake, of a head, between two reads or writes.
LIMIT_SECONDS = 5
# The judge: a rate that every contender holds with ease, over kept connections.
RATE, CONNECTIONS = 1_000, 32
# Callers that come anew, each with a full handshake.
NEWCOMERS_RATE = 20
# Callers who go past the proxy.
PAST_RATE, PAST_CONNECTIONS = 200, 4
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
# An answer later than this is of no use to its caller, where the API is what limits; where the core does, callers wait.
USEFUL, PATIENT = "1s", "60s"
# The API that limits: so many connections, and so long for each answer. A thousand answers in a second.
API_CONNECTIONS, API_MS = 20, 20
# Callers' connections.
CALLERS = 1_000
# Where a proxy's core is what limits: what each of its system calls is made to count through, and busy loops that it
# shares the core with. Four times what is left must be little for the judge.
CORE_INSTRUCTIONS, CORE_NEIGHBOURS = 20_000, 4


@dataclass(frozen=True)
class Attack:
    name: str
    count: int
    what: str
    loadgen: tuple = ()  # a second loadgen with these options, in place of attackers.py
    path: str = "/ok"  # what that one asks for


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
    Attack("read-again", 200, "the same, given up after some 2 s and asked for again"),
    Attack("downloads", 64, "64 downloads of 1 MiB at once, over and over", ("--concurrency", "64"), "/bytes/1048576"),
    Attack("never-read", 200, "200 of 16 MiB answers, not read"),
    Attack("idle", IDLE_CONNECTIONS, "10,000 connections kept idle after a request"),
    Attack("no-answer", 500, "500 requests that the API does not answer"),
    Attack("upstream-drip", 500, "500 answers of which the API sends a little ten times a second"),
    Attack("informational", 1, "answers behind a hundred interim ones"),
]


def main():
    arguments = parse_args()
    machine.end_on_signals()
    machine.allow_descriptors()
    if arguments.priority:
        machine.take_priority()
    options = Options(contenders=arguments.contenders, adjust=ADJUST, lock=arguments.lock)
    found, failed = [], []
    where = {"commit": machine.commit()["commit"], "machine": machine.summary()}
    builds = {}
    try:
        for name, what, measured in (overloads if arguments.overload else attacks)(options, arguments, failed):
            builds[name] = builds.get(name) or build(name)
            row = {"contender": name, **what, "build": builds[name], **where, "rounds": [{**measured, "time": history.now()}]}
            tell(row)
            merge(found, row, adds=True)
    except CannotMeasure as reason:
        print(f"perf/fire: {reason}", file=sys.stderr)
        return 2
    finally:
        if arguments.keep and found:
            keep(found, arguments.add)
    for table in tables(found).values():
        if table.count("\n") > 1:
            print(f"\n{table}")
    if arguments.keep:
        for path in DOCUMENTS:
            path.write_text(written(path.read_text(), kept()))
    for reason in failed:
        print(f"not measured: {reason}", file=sys.stderr)
    return 2 if failed else 0


def parse_args():
    parser = argparse.ArgumentParser(prog="perf/fire", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", type=lambda text: text.split(","), default=["claviger", "nginx", "haproxy"])
    parser.add_argument("--attacks", type=lambda text: text.split(","), default=[one.name for one in ATTACKS])
    parser.add_argument("--seconds", type=float, default=8, help="of each attack")
    parser.add_argument("--rounds", type=int, default=1, help="of each attack; the contenders take turns")
    parser.add_argument("--overload", action="store_true", help="measure what is answered at 1, 2 and 4 times the peak")
    parser.add_argument("--priority", action="store_true", help="go before everything else on this machine (as root)")
    parser.add_argument("--lock", type=Path, help="take turns with others who measure here")
    parser.add_argument("--keep", action="store_true", help="keep what was measured in perf/fire.ndjson, and write it into the documents")
    parser.add_argument("--add", action="store_true", help="with --keep: to what is kept of the same build, not in its place")
    return parser.parse_args()


# ---- Attacks ----------------------------------------------------------------


def attacks(options, arguments, failed):
    """One attack after the other, on all contenders in turn; each beside the peace before it."""
    wanted = [attack for attack in ATTACKS if attack.name in arguments.attacks]
    for attack, _, name in itertools.product(wanted, range(arguments.rounds), arguments.contenders):
        with machine.alone(options.lock):
            try:
                with started(options, name) as bench:
                    yield name, {"attack": attack.name}, under(bench, name, attack, arguments.seconds)
            except CannotMeasure as reason:
                failed.append(f"{name} under {attack.name}: {reason}")


def under(bench, name, attack, seconds):
    """One attack: what the judges saw in peace, and under it."""
    bench.loadgen([name], "--concurrency", CONNECTIONS, "--duration", "500ms", "--warmup", "0ms")
    overflows = listen_overflows()
    peace = judge(bench, name, seconds / 2)
    with attacker(bench, name, attack) as ill:
        under_fire = judge(bench, name, seconds)
    bench.check_alive([name])
    return {"peace": peace, "fire": under_fire, "attacker": ill, "listen_overflows": listen_overflows() - overflows}


def listen_overflows():
    """Connections that this machine's kernel has dropped so far because a listening socket's queue was full."""
    names, values = [line.split() for line in Path("/proc/net/netstat").read_text().splitlines() if line.startswith("TcpExt:")][:2]
    return int(dict(zip(names, values))["ListenOverflows"])


def judge(bench, name, seconds):
    """All judges at once, and the proxy's CPU and memory meanwhile."""
    one = bench.running[name]
    with watching(one) as used:
        duration = f"{int(seconds * 1000)}ms"
        steady = bench.loadgen_start([name], "--rps", RATE, "--connections", CONNECTIONS, "--duration", duration,
                                     "--warmup", "300ms", "--timeout", "5s", "--quiet")
        new = bench.loadgen_start([name], "--rps", NEWCOMERS_RATE, "--new-connection", "--duration", duration,
                                  "--warmup", "300ms", "--timeout", "5s", "--quiet")
        past = bench.loadgen_start([DIRECT], "--rps", PAST_RATE, "--connections", PAST_CONNECTIONS, "--duration", duration,
                                   "--warmup", "300ms", "--timeout", "5s", "--quiet")
        seen, newcomers, direct = steady.report(), new.report(), past.report()
    return {**judged(seen), "valid": seen["valid"], "newcomers": judged(newcomers), "past": judged(direct), **used}


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
        load = bench.loadgen_start([name], *attack.loadgen, "--duration", "300s", "--warmup", "0ms", "--quiet",
                                   path=attack.path)
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


def overloads(options, arguments, failed):
    """What is answered in time beyond capacity, where the API is what limits it, and where the proxy's core does."""
    bounds = [("API", beyond_the_api), ("core", beyond_the_core)]
    for (bound, measure), _, name in itertools.product(bounds, range(arguments.rounds), arguments.contenders):
        with machine.alone(options.lock):
            try:
                for times, measured in measure(options, name, arguments.seconds):
                    yield name, {"bound": bound, "times": times}, measured
            except CannotMeasure as reason:
                failed.append(f"{name}, bound by the {bound}: {reason}")


def beyond_the_api(options, name, seconds):
    """An API that takes so long for each answer, over so many connections: more than that it cannot give."""
    options = dataclasses.replace(options, adjust=FEW_CONNECTIONS)
    with started(options, name) as bench:
        rule = {"rules": [{"path": "/ok", "model": f"fixed:{API_MS}ms"}]}
        job_check.tell_control(bench.control, "PUT", "/__latency", json.dumps(rule))
        capacity = API_CONNECTIONS * 1000 / API_MS
        # Its connections are open.
        bench.loadgen([name], "--concurrency", API_CONNECTIONS, "--duration", "500ms", "--warmup", "0ms")
        for times in OVERLOADS:
            yield times, beyond(bench, name, capacity, times, seconds, CALLERS, USEFUL)


def beyond_the_core(options, name, seconds):
    """A proxy whose core is shared and whose system calls are made dearer, so that it is short and not the judge. Callers wait
    for as long as it takes: who gives up and connects anew is another attack, and in the table of those."""
    options = dataclasses.replace(options, adjust={}, slow={name: slowdown.Slowdown(instructions=CORE_INSTRUCTIONS)})
    twin = slowdown.twin(name)
    with started(options, twin) as bench:
        for _ in range(CORE_NEIGHBOURS):
            bench.spawn(["/bin/sh", "-c", "while :; do :; done"], [bench.proxy_cpu])
        closed = bench.loadgen([twin], "--concurrency", CALLERS, "--duration", "3s", "--quiet")
        capacity = closed["targets"][0]["good"] / closed["duration_s"]
        for times in OVERLOADS:
            yield times, beyond(bench, twin, capacity, times, seconds, CALLERS, PATIENT)


@contextlib.contextmanager
def started(options, name):
    with Bench(options, [name]) as bench:
        if bench.failed:
            raise CannotMeasure(bench.failed[name])
        yield bench


def beyond(bench, name, capacity, times, seconds, connections, timeout):
    load = bench.loadgen_start([name], "--rps", round(capacity * times), "--connections", connections, "--timeout", timeout,
                               "--duration", f"{int(seconds * 1000)}ms", "--warmup", "0ms", "--quiet")
    report = load.report(codes=(0, 1, 3))  # 1: not one answer was good
    target = report["targets"][0]
    return {"capacity": round(capacity), "goodput": round(target["good"] / report["duration_s"]),
            **judged(report), "kinds": {kind: count for kind, count in target.get("errors", {}).items() if count},
            "judge": round(report["generator"]["cpu_share"], 2), "valid": report["valid"]}


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


def few_of_claviger(job):
    path = job.dir / "claviger.toml"
    path.write_text(path.read_text().replace("connections_max = 16384", f"connections_max = {API_CONNECTIONS}", 1)
                    .replace("idle_max = 2048", f"idle_max = {API_CONNECTIONS}", 1))


def few_of_nginx(job):
    path = job.dir / "nginx.conf"
    path.write_text(path.read_text().replace(f"server 127.0.0.1:{job.upstream_port};",
                                             f"server 127.0.0.1:{job.upstream_port} max_conns={API_CONNECTIONS} max_fails=0;", 1))


def few_of_haproxy(job):
    path = job.dir / "haproxy.cfg"
    text = path.read_text().replace("pool-purge-delay 1h", f"pool-purge-delay 1h maxconn {API_CONNECTIONS} maxqueue 256", 1)
    path.write_text(text.replace("    timeout connect 10s\n", "    timeout connect 10s\n    timeout queue 1s\n", 1))


FEW_CONNECTIONS = {"claviger": few_of_claviger, "nginx": few_of_nginx, "haproxy": few_of_haproxy}


# ---- Telling ----------------------------------------------------------------


def tell(row):
    one = row["rounds"][-1]
    if "attack" in row:
        peace, under_fire, ill = one["peace"], one["fire"], one["attacker"]
        print(f"{row['contender']:9} {row['attack']:14} p99 {milliseconds(peace['p99_us']):>7} -> "
              f"{milliseconds(under_fire['p99_us']):>7} ms, newcomers {milliseconds(peace['newcomers']['p99_us']):>7} -> "
              f"{milliseconds(under_fire['newcomers']['p99_us']):>7} ms, past it {milliseconds(peace['past']['p99_us']):>7} -> "
              f"{milliseconds(under_fire['past']['p99_us']):>7} ms, failed {failures(one)}, core {under_fire['cpu_share']:.0%}, "
              f"{under_fire['private_kb'] / 1024:,.0f} MiB, {one['listen_overflows']} overflows, {ill}"
              f"{'' if under_fire['valid'] else ' INVALID'}", flush=True)
    else:
        print(f"{row['contender']:9} {row['bound']:4} x{row['times']} of {one['capacity']:,}/s: goodput {one['goodput']:,}/s, "
              f"p99 {milliseconds(one['p99_us'])} ms, {one['kinds']} judge busy {one['judge']:.0%}"
              f"{'' if one['valid'] else ' INVALID'}", flush=True)


def names_of(rows):
    return list(dict.fromkeys(row["contender"] for row in rows))


def attack_table(rows, cell):
    """A line for each attack, the contenders beside each other."""
    names = names_of(rows)
    lines = ["| Attack | " + " | ".join(TITLES.get(name, name) for name in names) + " |", "|---|" + "---:|" * len(names)]
    for attack in ATTACKS:
        of = {row["contender"]: row for row in rows if row["attack"] == attack.name}
        if of:
            lines.append(f"| {attack.what} | " + " | ".join(cell(of[name]) if name in of else "not measured" for name in names) + " |")
    return "\n".join(lines)


def short(row):
    """For those who read one figure."""
    failed = sum(failures(one) for one in row["rounds"])
    return (f"{before_and_under(row)}{mark(row)}{f', {failed:,} failed' if failed else ''}")


def whole(row):
    """All that was measured."""
    rounds = row["rounds"]
    parts = [f"kept {before_and_under(row)} ms{mark(row)}", f"new {before_and_under(row, 'newcomers')} ms",
             *([f"past it {before_and_under(row, 'past')} ms"] if all("past" in one["fire"] for one in rounds) else []),
             f"{sum(failures(one) for one in rounds):,} failed", f"{median(one['fire']['cpu_share'] for one in rounds):.0%} of the core",
             f"{median(one['fire']['private_kb'] for one in rounds) / 1024:,.0f} MiB"]
    ills = [one["attacker"] for one in rounds]
    if all(ill.get("per_second") for ill in ills):
        parts.append(f"{median(ill['per_second'] for ill in ills):,.0f} attacks/s")
    elif all("ended_after_s" in ill for ill in ills):
        parts.append(f"cut off after {median(ill['ended_after_s'] for ill in ills):.2f} s")
    elif all(ill.get("good") for ill in ills):
        parts.append(f"{median(ill['good'] for ill in ills):,.0f} served to the attacker")
    else:
        parts.append("not cut off")
    return "; ".join(parts)


def before_and_under(row, judge=None):
    """A judge's p99 in peace and under fire: the median of the rounds, and what they vary by."""
    def p99s(when):
        return [(one[when][judge] if judge else one[when])["p99_us"] for one in row["rounds"]]

    under_fire = p99s("fire")
    varies = f" ({milliseconds(min(under_fire))}–{milliseconds(max(under_fire))})" if len(under_fire) > 1 else ""
    return f"{milliseconds(median(p99s('peace')))} → {milliseconds(median(under_fire))}{varies}"


def median(values):
    return statistics.median(values)


def mark(row):
    """A judge that was late itself has measured nothing."""
    return "" if all(one["peace"]["valid"] and one["fire"]["valid"] for one in row["rounds"]) else "*"


def failures(one):
    return one["fire"]["errors"] + one["fire"]["newcomers"]["errors"]


def milliseconds(us):
    return f"{us / 1000:,.1f}"


def overload_table(rows):
    lines = ["| What limits | | capacity | " + " | ".join(f"at {times:g}x" for times in OVERLOADS) + " |",
             "|---|---|---:|" + "---:|" * len(OVERLOADS)]
    for bound in dict.fromkeys(row["bound"] for row in rows):
        for name in names_of(rows):
            of = {row["times"]: row for row in rows if row["contender"] == name and row["bound"] == bound}
            if of:
                capacity = spread(of[min(of)], "capacity")
                cells = [spread(of[times], "goodput") if times in of else "-" for times in OVERLOADS]
                lines.append(f"| the {bound} | {TITLES.get(name, name)} | {capacity} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(row, of):
    """Requests per second: the median of the rounds, and what they vary by."""
    values = [one[of] for one in row["rounds"]]
    varies = f" ({min(values):,}–{max(values):,})" if len(values) > 1 else ""
    late = "" if all(one["valid"] for one in row["rounds"]) else "*"
    return f"{median(values):,.0f}/s{varies}{late}"


def tables(rows):
    """What the documents show: marker -> table."""
    attacks, overloads = [row for row in rows if "attack" in row], [row for row in rows if "bound" in row]
    return {"summary": attack_table(attacks, short), "attacks": attack_table(attacks, whole), "overload": overload_table(overloads)}


def written(text, rows):
    """A document with its tables brought up to date."""
    for name, table in tables(rows).items():
        begin, end = f"<!-- fire:{name} -->", f"<!-- /fire:{name} -->"
        if begin in text:
            before_it, rest = text.split(begin, 1)
            text = before_it + f"{begin}\n{table}\n{end}" + rest.split(end, 1)[1]
    return text


def kept():
    return [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []


def keep(rows, adds):
    """Puts what was measured in the place of what was measured of the same before, or adds to it."""
    all_of_them = kept()
    for row in rows:
        merge(all_of_them, row, adds)
    KEPT.write_text("".join(json.dumps(row) + "\n" for row in all_of_them))


def merge(rows, row, adds):
    """Puts a row into those of its kind. Rounds of another build are never added to."""
    def key(row):
        return row["contender"], row.get("attack"), row.get("bound"), row.get("times")

    for at, other in enumerate(rows):
        if key(other) == key(row):
            same = adds and other.get("build") == row["build"] and other["machine"] == row["machine"]
            rows[at] = {**row, "rounds": (other["rounds"] if same else []) + row["rounds"]}
            return
    rows.append(row)


def build(name):
    """Which program it was: its version, and for ours the file's digest, since a version stands for many builds."""
    contender = contenders.load(slowdown.plain(name))
    contender.find()
    version = contender.version()
    if slowdown.plain(name) != "claviger":
        return version
    program = Path(contender.program)
    return f"{version} {machine.binaries(program.parent, [program.name])[program.name]['sha256']}"


if __name__ == "__main__":
    sys.exit(main())
