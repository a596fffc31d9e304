"""Rows of a table out of lines of the history: which figures a kind of scenario shows, and how each is written.

The terminal, the README, docs/performance.md and the HTML report all take their tables from here.
"""

from harness.figures import FIGURES

# Figures of each kind, in the order of columns.
COLUMNS = {
    "saturated": ["cpu_us_per_request", "rps", "p50_us", "p99_us"],
    "open": ["cpu_us_per_request", "p50_us", "p99_us", "p999_us"],
    "added": ["added:p50", "added:p90", "added:p99", "added:p99.9", "p50_us", "p99_us"],
    "handshake": ["cpu_us_per_connection", "cpu_us_per_handshake", "handshakes_per_s", "p99_us"],
    "download": ["cpu_ms_per_gb", "mb_per_s"],
    "upload": ["cpu_ms_per_gb", "mb_per_s"],
    "idle": ["kb_per_connection", "kernel_kb_per_connection", "rest_kb", "lost"],
    "tail": ["cpu_us_per_request", "p50_us", "p99_us", "p999_us"],
    "churn": ["cpu_us_per_request", "p50_us", "p99_us", "p999_us"],
    "sse": ["event_delay_p50_us", "event_delay_p99_us", "event_delay_p999_us", "first_event_p99_us",
            "cpu_us_per_event"],
    "reload": ["failed", "max_us", "quiet_max_us", "p99_us"],
    "rotation": ["failed", "ms_until_used", "ms_until_last_old", "max_us"],
    "growth": ["cpu_us_per_request", "rps", "p99_us"],
    "spread": ["evenness", "rps", "p50_us", "p99_us"],
    "judge": ["cpu_us_per_request", "rps"],
    "mock": ["cpu_us_per_request", "rps"],
    "syscalls": ["syscalls_per_request"],
}
# What a load at its own limit measures of itself: how much it drives, and how long its answers wait for it.
JUDGES_OWN = {"rps", "mb_per_s", "handshakes_per_s", "p50_us", "p90_us", "p99_us", "p999_us", "max_us", "quiet_max_us",
              "event_delay_p50_us", "event_delay_p99_us", "event_delay_p999_us", "first_event_p99_us"}
# The order of contenders wherever they stand together. Others follow by name.
ORDER = ["claviger", "nginx", "haproxy", "envoy", "caddy", "pingora", "loadgen", "mock-upstream", "wrk", "direct"]
TITLES = {"claviger": "Claviger", "haproxy": "HAProxy", "envoy": "Envoy", "caddy": "Caddy", "pingora": "Pingora",
          "direct": "no proxy"}


def order(name):
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


def title(name):
    return TITLES.get(name, name)


def kind_of(line):
    """Lines from before there were kinds are told by their scenario's name."""
    return line.get("kind") or line["scenario"].partition("-")[0]


def median(line, figure):
    """A line's median of a figure, or None. `added:p99` is the added latency at p99."""
    if figure.startswith("added:"):
        one = (line.get("added_us") or {}).get(figure.partition(":")[2])
        return one["difference"] if one else None
    one = line.get(figure)
    return one["median"] if isinstance(one, dict) and "median" in one else None


def extent(line, figure):
    """The least and the greatest of all rounds; of an added latency its interval."""
    if figure.startswith("added:"):
        one = (line.get("added_us") or {}).get(figure.partition(":")[2])
        return (one["low"], one["high"]) if one and one["low"] is not None else None
    values = (line.get(figure) or {}).get("all") if isinstance(line.get(figure), dict) else None
    return (min(values), max(values)) if values else None


def repeated(line, figure):
    """Whether there is more than one round of it, or an interval over many slices: only then does it have a range."""
    return figure.startswith("added:") or len(line[figure]["all"]) > 1 if median(line, figure) is not None else False


def judges_own(line, figure):
    """Whether the load's core was too busy for this figure to say anything of the contender."""
    return bool(line.get("judge_bound")) and (figure in JUDGES_OWN or figure.startswith("added:"))


def head(figure):
    if figure.startswith("added:"):
        return f"added {figure.partition(':')[2]} us"
    one = FIGURES[figure]
    return f"{one.title} {one.unit}".strip() if one.unit and not one.title.endswith(one.unit) else one.title


def number(value, decimals=None):
    """A number as people read it: three digits or so, thousands set apart."""
    if value is None:
        return ""
    if decimals is None:
        decimals = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    shown = f"{value:,.{decimals}f}"
    return shown[1:] if shown.startswith("-") and not shown.strip("-0.,") else shown


def cell(line, figure):
    """A figure as it stands in a table. What supports no claim says so."""
    value = median(line, figure)
    if value is None:
        return ""
    if figure.startswith("added:"):
        shown = f"{value:+,.0f}"
        one = line["added_us"][figure.partition(":")[2]]
        if one["finding"] == "below the noise":
            shown = f"({shown})"
    else:
        shown = number(value, FIGURES[figure].decimals)
    return f"[{shown}]" if judges_own(line, figure) else shown


def remarks(line):
    """What has to be known about a line to read it."""
    found = []
    if "failed_because" in line:
        found.append(f"could not be measured: {line['failed_because']}")
    if "not_supported" in line:
        found.append(line["not_supported"])
    if "not_held" in line:
        found.append("does not hold this rate")
    if line.get("judge_bound"):
        found.append("judge-bound")
    if line.get("starved"):
        # One request at a time: everybody waits for the others, and nobody can be at a limit.
        alone = line["scenario"] == "growth-connections" and line.get("at") == 1
        found.append("one at a time: nobody is at a limit" if alone else "starved: its core was busy with others")
    if line.get("shared_core"):
        found.append("shares a core with the load")
    if line.get("valid") is False:
        found.append("the load lagged")
    if line.get("note"):
        found.append(line["note"])
    if sum((line.get("lost") or {}).get("all", [])):
        found.append("closed idle connections")
    return found


def ratio(line):
    """The line's ratio to its baseline and its range over the rounds, or None."""
    for key, value in line.items():
        if key.startswith("cpu_ratio_to_"):
            return value["median"], min(value["all"]), max(value["all"]), key.removeprefix("cpu_ratio_to_")
    return None


def terminal(lines):
    """A scenario's table as text."""
    lines = sorted(lines, key=lambda line: (line.get("at", 0), order(line["contender"])))
    columns = COLUMNS.get(kind_of(lines[0]), [])
    columns = [figure for figure in columns if any(median(line, figure) is not None for line in lines)]
    against = next((found[3] for found in map(ratio, lines) if found), None)
    heads = ["", *(head(figure) for figure in columns), *([f"CPU of {against}"] if against else []), "errors",
             "load core"]
    table = []
    for line in lines:
        name = title(line["contender"]) + (f" @{line['at']}" if "at" in line else "")
        found = ratio(line)
        held = f"{found[0]:.3f} ({found[1]:.2f}-{found[2]:.2f})" if found else ""
        busy = median(line, "load_core_busy")
        errors = sum((line.get("errors") or {}).get("all", [])) if isinstance(line.get("errors"), dict) else ""
        table.append([name, *(cell(line, figure) for figure in columns), *([held] if against else []), str(errors),
                      "" if busy is None else f"{busy:.0%}", ", ".join(remarks(line))])
    widths = [max(len(row[at]) for row in [heads, *table]) for at in range(len(heads))]
    shown = []
    for row in [heads, *table]:
        cells = [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:]))]
        shown.append(("  " + "  ".join(cells) + ("  " + row[len(heads)] if len(row) > len(heads) else "")).rstrip())
    return "\n".join(shown)
