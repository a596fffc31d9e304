"""How long a scenario takes, before it has been run: so that nobody starts an hour without knowing.

A sum of what the scenario's file asks for and of what starting and stopping cost; the constants are rounded up from
runs on two cores. A machine that is slower, or busy, takes longer. Contenders that fail early make it shorter.
"""

# Of a contender in each bench: start, accept, one request, the counted load.
START_SECONDS = 1.6
# Of a contender once in a run: whether it does the whole job.
JOB_CHECK_SECONDS = 3.0
# Of a turn, beside its load: loadgen's start, handshakes, its report.
TURN_SECONDS = 0.35
# Of a load that warms a contender up, and of one that asks whether it holds a rate.
WARM_SECONDS = 0.5 + TURN_SECONDS
PROBE_SECONDS = 1.5 + TURN_SECONDS
# Of a configured virtual host with its route, over all contenders' starts.
ROUTE_SECONDS = 0.000_6
# Of an idle connection, to open and use it.
IDLE_CONNECTION_SECONDS = 0.001_5


def seconds(scenario, contenders):
    """What a scenario takes with so many contenders, in seconds."""
    return KINDS.get(scenario.kind, turns)(scenario, contenders)


def run(chosen, contenders):
    """A whole run of scenarios."""
    return sum(seconds(one, contenders) for one in chosen) + JOB_CHECK_SECONDS * contenders


def shown(length):
    """Seconds as people read them."""
    return f"{length / 60:.0f} min" if length >= 90 else f"{length:.0f} s"


def turns(scenario, contenders, each=0.0, warm=True):
    """All start, are warmed up, and take their turns; `each` is what a turn has beside its own load."""
    everyone = contenders + scenario.direct
    turn = scenario.warmup + scenario.seconds + TURN_SECONDS + each
    return contenders * START_SECONDS + everyone * (WARM_SECONDS * warm + scenario.rounds * turn)


def open_loop(scenario, contenders):
    once = turns(scenario, contenders, warm=False) - contenders * START_SECONDS
    return contenders * START_SECONDS + len(scenario.rates) * (once + contenders * PROBE_SECONDS)


def added(scenario, contenders):
    ways = contenders + 1
    once = contenders * PROBE_SECONDS + scenario.warmup + scenario.seconds * ways + TURN_SECONDS
    return contenders * START_SECONDS + len(scenario.rates) * scenario.rounds * once


def handshake(scenario, contenders):
    kept = max(0.5, scenario.seconds * 0.3) + 0.3 + TURN_SECONDS
    return turns(scenario, contenders, each=kept)


def idle(scenario, contenders):
    each = START_SECONDS + WARM_SECONDS + scenario.settle * (1 + len(scenario.steps))
    return scenario.rounds * contenders * (each + max(scenario.steps) * IDLE_CONNECTION_SECONDS)


def reload(scenario, contenders):
    return turns(scenario, contenders, each=scenario.warmup + scenario.seconds + TURN_SECONDS)


def growth(scenario, contenders):
    routes = sum(scenario.values) if scenario.over == "routes" else 0
    return len(scenario.values) * turns(scenario, contenders) + contenders * routes * ROUTE_SECONDS


def spread(scenario, contenders):
    return len(scenario.values) * turns(scenario, contenders)


def judge(scenario, _contenders):
    # wrk knows whole seconds only, and stops late.
    return 2 * START_SECONDS + 2 * scenario.rounds * (max(1, round(scenario.seconds)) + TURN_SECONDS)


KINDS = {
    "open": open_loop, "added": added, "handshake": handshake, "idle": idle, "reload": reload, "growth": growth,
    "spread": spread, "judge": judge, "mock": judge,
}
