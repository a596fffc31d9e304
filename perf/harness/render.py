"""perf/render: the report, and the tables of README.md and docs/performance.md, out of perf/history.ndjson.

  perf/render              writes the report to target/perf/report.html
  perf/render --write      also writes the tables between their markers in the documents
  perf/render --check      writes nothing; exit code 1 if the documents' tables are not what the history says

All figures are of one machine and the same programs, the newest that were measured in full with nothing changed; of each
scenario the last run counts, and only that. Figures of different runs do not compare.
"""

import argparse
import re
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

from harness import history, markdown, plots, scenario as scenarios, tables
from harness.contender import PERF, ROOT, CannotMeasure, target_dir
from harness.figures import FIGURES
from harness.measures import BUSY

DOCUMENTS = [ROOT / "README.md", ROOT / "docs" / "performance.md"]
STYLE = Path(__file__).with_name("report.css")

# Rows of the summary: what they say, and a figure of a scenario, or two; `at` for what grows.
SUMMARY = [
    ("CPU per request, saturated, 32 connections, us", [("saturated", None, "cpu_us_per_request")]),
    ("requests per second, saturated", [("saturated", None, "rps")]),
    ("CPU per request at 10,000/s, us", [("open-10000", None, "cpu_us_per_request")]),
    ("CPU per request at 1,000/s, us", [("open-1000", None, "cpu_us_per_request")]),
    ("system calls per request, saturated", [("syscalls", None, "syscalls_per_request")]),
    ("added latency at 2,000/s, p50 / p99, us", [("added-2000", None, "added:p50"), ("added-2000", None, "added:p99")]),
    ("added latency at 10,000/s, p50 / p99, us", [("added-10000", None, "added:p50"), ("added-10000", None, "added:p99")]),
    ("CPU per TLS handshake, full / resumed, us",
     [("handshake-full", None, "cpu_us_per_handshake"), ("handshake-resumed", None, "cpu_us_per_handshake")]),
    ("TLS handshakes per second, full / resumed",
     [("handshake-full", None, "handshakes_per_s"), ("handshake-resumed", None, "handshakes_per_s")]),
    ("CPU per GB, 10 MiB bodies down / up, ms", [("download", None, "cpu_ms_per_gb"), ("upload", None, "cpu_ms_per_gb")]),
    ("MB/s, 10 MiB bodies down / up", [("download", None, "mb_per_s"), ("upload", None, "mb_per_s")]),
    ("CPU per request, 1,000 connections at 2,000/s, us", [("tail", None, "cpu_us_per_request")]),
    ("CPU per request in churn, 100 new connections/s, us", [("churn", None, "cpu_us_per_request")]),
    ("1,000 connections at 2,000/s, p99 / p99.9, us", [("tail", None, "p99_us"), ("tail", None, "p999_us")]),
    ("event delay over SSE, p50 / p99, us", [("sse", None, "event_delay_p50_us"), ("sse", None, "event_delay_p99_us")]),
    ("memory per idle TLS connection, 2,000 / 8,000, kB",
     [("idle", 2000, "kb_per_connection"), ("idle", 8000, "kb_per_connection")]),
    ("memory at rest, kB", [("idle", 2000, "rest_kb")]),
    ("CPU per request with 1 / 10,000 routes, us",
     [("growth-routes", 1, "cpu_us_per_request"), ("growth-routes", 10000, "cpu_us_per_request")]),
    ("CPU per request with 5 / 80 header fields, us",
     [("growth-headers", 5, "cpu_us_per_request"), ("growth-headers", 80, "cpu_us_per_request")]),
    ("CPU per request over 1 / 1,000 connections, us",
     [("growth-connections", 1, "cpu_us_per_request"), ("growth-connections", 1000, "cpu_us_per_request")]),
    ("failed requests: three reloads / a rotation", [("reload", None, "failed"), ("rotation", None, "failed")]),
    ("rotated key in use after, ms", [("rotation", None, "ms_until_used")]),
]
# Rows of which the first cell decides which contender is best. These only inform: nobody is.
INFORM_ONLY = {"p99_us", "p999_us", "max_us"}
# Kinds of scenarios in which the judges themselves are measured.
JUDGED = {"judge", "mock"}


def main():
    arguments = parse_args()
    try:
        everything = history.read(arguments.history)
        lines = history.published(everything, arguments.commit, scenarios.names())
        if not lines:
            raise CannotMeasure(f"{arguments.history} has no results"
                                + (f" of commit {arguments.commit}" if arguments.commit else ""))
        if others := left_out(everything, lines):
            print(f"perf/render: not of {lines[0]['machine']} with the programs of {lines[0]['commit']}, and so left out: "
                  f"{', '.join(others)}", file=sys.stderr)
        if arguments.check or arguments.write:
            stale = documents(lines, write=arguments.write)
            if arguments.check:
                for path in stale:
                    print(f"{path.relative_to(ROOT)} does not say what the history says; run: perf/render --write")
                return 1 if stale else 0
            for path in stale:
                print(f"written: {path.relative_to(ROOT)}")
        output = arguments.output or target_dir() / "perf" / "report.html"
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(page(lines))
        print(output)
        return 0
    except CannotMeasure as reason:
        print(f"perf/render: {reason}", file=sys.stderr)
        return 2


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--history", type=Path, default=history.PATH)
    parser.add_argument("--commit", help="only results of this commit (its first digits)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the report goes")
    parser.add_argument("--write", action="store_true", help="also write the tables of the documents")
    parser.add_argument("--check", action="store_true", help="only look whether the documents are up to date")
    return parser.parse_args()


# ---- Markdown for the documents ---------------------------------------------

MARKER = re.compile(r"(<!-- perf:(?P<what>[a-z0-9-]+) -->\n).*?(<!-- /perf -->)", re.DOTALL)


def documents(lines, write, paths=None):
    """The documents whose tables differ from what the history says; brought up to date with `write`."""
    stale = []
    for path in paths or DOCUMENTS:
        text = path.read_text()
        new = filled(text, lines, path)
        if new != text:
            stale.append(path)
            if write:
                path.write_text(new)
    return stale


def filled(text, lines, where):
    """A document's text with everything between markers made anew."""
    if "<!-- perf:" not in text:
        raise CannotMeasure(f"{where} has no `<!-- perf:NAME -->` marker")

    def block(match):
        what = match["what"]
        body = {"summary": summary_table, "machine": machine_lines, "losses": losses_table}.get(what)
        if body is None and what not in {one.name for one in scenarios.load_all()}:
            raise CannotMeasure(f"{where}: `perf:{what}` is neither a scenario nor `summary`, `machine` or `losses`")
        made = body(lines) if body else scenario_tables(lines, what)
        return f"{match[1]}{made}\n{match[3]}"

    return MARKER.sub(block, text)


def left_out(everything, lines):
    """Scenarios that were measured, but not where and when the lines were."""
    shown = {line["scenario"] for line in lines}
    return sorted({line["scenario"] for line in everything if history.whole(line)} - shown)


def summary_table(lines):
    """Measures down, contenders across; the best of each row that supports a claim is bold."""
    names = contenders_of(lines)
    rows = [["", *map(tables.title, names)], ["---", *["---:"] * len(names)]]
    for text, parts in SUMMARY:
        cells = summary_cells(lines, names, parts)
        if any(shown for shown, _ in cells):
            rows.append([text, *(f"**{shown}**" if best else shown for shown, best in cells)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def contenders_of(lines):
    return sorted({line["contender"] for line in lines if tables.kind_of(line) not in JUDGED} - {"direct"},
                  key=tables.order)


def summary_cells(lines, names, parts):
    """What each contender shows in a row, and whether it is the best, beyond what its rounds and the others' vary by."""
    found = []
    limited = False
    figure = parts[0][2]
    for name in names:
        ours = [pick(lines, scenario, at, name) for scenario, at, _ in parts]
        cells = [tables.cell(line, figure) if line else "" for line, (_, _, figure) in zip(ours, parts)]
        missing = next((word for line in ours if line for word in absent(line)), "")
        shown = " / ".join(cell or "-" for cell in cells) if any(cells) else missing
        limited = limited or bool(ours[0] and tables.judges_own(ours[0], figure))
        found.append((shown, tables.extent(ours[0], figure) if ours[0] and tables.repeated(ours[0], figure) else None,
                      tables.median(ours[0], figure) if ours[0] else None))
    measured = [(value, extent) for _, extent, value in found if value is not None]
    # Nobody is the best where the judge held one back: it might have been.
    if limited or figure in INFORM_ONLY:
        measured = []
    lower = figure.startswith("added:") or FIGURES[figure].lower_is_better
    return [(shown, value is not None and stands_out(value, extent, measured, lower)) for shown, extent, value in found]


def stands_out(value, extent, measured, lower):
    """Whether a value is the best of all measured, and its whole range, or interval, is better than any other's.

    A single round has no range (None), and then nobody stands out: the next might say the opposite. Nor does one alone.
    """
    others = [one for one in measured if one != (value, extent)]
    if len(others) != len(measured) - 1 or not others:
        return False
    if any(range_of is None for _, range_of in measured):
        return False
    sign = 1 if lower else -1
    worst = max(sign * end for end in extent)
    return all(worst < min(sign * end for end in range_of) for _, range_of in others)


@dataclass(frozen=True)
class Loss:
    """A figure that supports claims, in which another is better than Claviger."""

    figure: str
    where: str  # the scenario, with what grows
    ours: str
    best: str  # who, and its figure
    ratio: float  # ours over theirs, or theirs over ours where more is better
    sure: bool  # the ranges of both, or the intervals, lie apart


def losses(lines):
    """Everything in which somebody is better than Claviger, worst first; and what Claviger could not do, before all."""
    known = sorted(scenarios.load_all(), key=lambda one: len(one.name), reverse=True)
    found = []
    for label, at in dict.fromkeys((line["scenario"], line.get("at")) for line in lines):
        one = next((one for one in known if history.belongs(label, one.name)), None)
        if one is None or one.kind in JUDGED:
            continue
        these = {line["contender"]: line for line in lines if (line["scenario"], line.get("at")) == (label, at)}
        ours = these.pop("claviger", None)
        these.pop("direct", None)
        where = f"`{label}`" + (f", {at:,}" if at is not None else "")
        if ours and absent(ours):
            found.append(Loss("all of it", where, absent(ours)[0], "", float("inf"), True))
        for figure in map(claimed(one), one.supports) if ours else ():
            found += loss(ours, these, figure, where)
    return sorted(found, key=lambda one: -one.ratio)


def claimed(one):
    """How a scenario's supported figures are called in its lines: those of `added` are of what is added."""
    return lambda figure: f"added:{figure.removesuffix('_us')}" if one.kind == "added" else figure


def loss(ours, others, figure, where):
    """The one that is the furthest ahead of Claviger in a figure, if there is one."""
    lower = figure.startswith("added:") or FIGURES[figure].lower_is_better
    mine = tables.median(ours, figure)
    if mine is None or tables.judges_own(ours, figure):
        return []
    values = {name: tables.median(line, figure) for name, line in others.items() if not tables.judges_own(line, figure)}
    values = {name: value for name, value in values.items()
              if value is not None and (value < mine if lower else value > mine)}
    if not values:
        return []
    best = (min if lower else max)(values, key=values.get)
    under, over = (values[best], mine) if lower else (mine, values[best])
    extents = [tables.extent(line, figure) if tables.repeated(line, figure) else None for line in (others[best], ours)]
    sure = None not in extents and stands_out(values[best], extents[0], [(values[best], extents[0]), (mine, extents[1])], lower)
    return [Loss(tables.head(figure), where, tables.cell(ours, figure), f"{tables.title(best)} {tables.cell(others[best], figure)}",
                 over / under if under > 0 else float("inf"), sure)]


def losses_table(lines):
    """Where somebody is better, in Markdown."""
    found = losses(lines)
    if not found:
        return "In none of the figures that were measured and support a claim."
    rows = [["figure", "scenario", "Claviger", "best", "apart by", "beyond the rounds' ranges"],
            ["---", "---", "---:", "---:", "---:", "---"]]
    for one in found:
        apart = f"{(one.ratio - 1):.0%}" if one.ratio < 10 else f"{one.ratio:,.0f} x" if one.ratio < float("inf") else ""
        rows.append([one.figure, one.where, one.ours, one.best, apart, "yes" if one.sure else "no"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def absent(line):
    if "not_held" in line:
        return ["cannot"]
    if "not_supported" in line:
        return ["no means"]
    if "failed_because" in line:
        return ["failed"]
    return []


def pick(lines, scenario, at, name):
    for line in lines:
        if line["scenario"] == scenario and line["contender"] == name and (at is None or line.get("at") == at):
            return line
    return None


def machine_lines(lines):
    """Where and when: the one machine that all figures come from, and the programs."""
    first = lines[0]
    commits = list(dict.fromkeys(line["commit"] for line in sorted(lines, key=lambda line: line["time"])))
    days = sorted({line["time"][:10] for line in lines})
    shown = [f"- {first['machine']}; commit {' and '.join(f'`{commit}`' for commit in commits)}"
             f"{' with changes that no commit has' if first['dirty'] else ''}, "
             f"{days[0] if len(days) == 1 else f'{days[0]} to {days[-1]}'}"]
    versions = {}
    for line in lines:
        if line.get("version"):
            versions.setdefault(tables.title(line["contender"]), set()).add(line["version"])
    shown.append("- " + ", ".join(", ".join(sorted(found)) for name, found in sorted(versions.items())
                                  if name != "no proxy"))
    ways = sorted({line["upstream_tls"] for line in lines if line.get("upstream_tls")})
    if ways:
        shown.append(f"- TLS towards the API, as negotiated: {', '.join(ways)}")
    return "\n".join(shown)


def scenario_tables(lines, name):
    """A scenario's tables in Markdown."""
    labels = [label for label in dict.fromkeys(line["scenario"] for line in lines) if history.belongs(label, name)]
    if not labels:
        return "Not measured yet."
    made = []
    for label in labels:
        these = sorted((line for line in lines if line["scenario"] == label),
                       key=lambda line: (line.get("at", 0), tables.order(line["contender"])))
        heads, body = grid(these)
        if len(labels) > 1:
            made.append(f"`{label}`:\n")
        rows = [heads, ["---", *["---:"] * (len(heads) - 2), "---"], *body]
        made.append("\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n")
    return "\n".join(made).rstrip()


def grid(lines):
    """Heads and rows of a scenario's table, remarks last."""
    kind = tables.kind_of(lines[0])
    columns = [figure for figure in tables.COLUMNS.get(kind, [])
               if any(tables.median(line, figure) is not None for line in lines)]
    against = next((found[3] for found in map(tables.ratio, lines) if found), None)
    at = next((line.get("over") or "connections" for line in lines if "at" in line), None)
    heads = ["", *([at] if at else []), *(tables.head(figure) for figure in columns),
             *([f"CPU, of {against}'s"] if against else []), "remarks"]
    body = []
    for line in lines:
        found = tables.ratio(line)
        held = f"{found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f})" if found else ""
        body.append([tables.title(line["contender"]), *([f"{line.get('at', ''):,}"] if at else []),
                     *(tables.cell(line, figure) for figure in columns), *([held] if against else []),
                     ", ".join(tables.remarks(line))])
    return heads, body


# ---- The report -------------------------------------------------------------


def page(lines):
    names = contenders_of(lines)
    parts = [
        header(lines), verdict(lines), legend(names), summary_html(lines, names), losses_html(lines),
        section("cpu", "CPU per request", "User and system time of all of a contender's processes, over good answers. "
                "It depends on the rate, so each rate stands by itself.",
                [bar_card(lines, "saturated", None, "cpu_us_per_request", "saturated, 32 connections"),
                 bar_card(lines, "open-10000", None, "cpu_us_per_request", "10,000/s, evenly spaced"),
                 line_card(lines, "open-", "cpu_us_per_request", "over the rate", "requests per second", "us per request"),
                 bar_card(lines, "syscalls", None, "syscalls_per_request", "system calls per request, saturated")]),
        section("rate", "Requests per second", "Hatched bars are the judge's limit and no claim: the core that load and "
                f"API share was more than {BUSY:.0%} busy with work.",
                [bar_card(lines, "saturated", None, "rps", "saturated, 32 connections"),
                 bar_card(lines, "handshake-full", None, "handshakes_per_s", "new connections per second, full handshakes")]),
        section("added", "Added latency", "What each adds to going direct: all ways in one run, in alternating slices. "
                "Whiskers are 95 % intervals.",
                [line_card(lines, "added-", "added:p50", "p50, evenly spaced", "requests per second", "us added"),
                 line_card(lines, "added-", "added:p99", "p99, evenly spaced", "requests per second", "us added"),
                 line_card(lines, "added-poisson-", "added:p50", "p50, random arrivals", "requests per second", "us added"),
                 line_card(lines, "added-poisson-", "added:p99", "p99, random arrivals", "requests per second", "us added")]),
        section("latency", "Latency as callers see it", "From when a request was due, through each contender and without "
                "a proxy. On two shared cores p99 and above inform only.",
                [line_card(lines, "open-", "p50_us", "p50", "requests per second", "us"),
                 line_card(lines, "open-", "p99_us", "p99", "requests per second", "us"),
                 bar_card(lines, "tail", None, "p99_us", "p99, 1,000 connections at 2,000/s"),
                 bar_card(lines, "tail", None, "p999_us", "p99.9, 1,000 connections at 2,000/s")]),
        section("connections", "Connections", "What a new one costs, and what one costs that nobody uses.",
                [bar_card(lines, "handshake-full", None, "cpu_us_per_handshake", "CPU per full handshake"),
                 bar_card(lines, "handshake-resumed", None, "cpu_us_per_handshake", "CPU per resumed handshake"),
                 bar_card(lines, "churn", None, "cpu_us_per_request", "CPU per request in churn"),
                 bar_card(lines, "idle", 8000, "kb_per_connection", "memory per idle connection, of 8,000")
                 or bar_card(lines, "idle", 2000, "kb_per_connection", "memory per idle connection, of 2,000"),
                 bar_card(lines, "idle", 2000, "rest_kb", "memory at rest")]),
        section("bodies", "Bodies and events", "10 MiB each way, and server-sent events.",
                [bar_card(lines, "download", None, "cpu_ms_per_gb", "CPU per GB down"),
                 bar_card(lines, "upload", None, "cpu_ms_per_gb", "CPU per GB up"),
                 bar_card(lines, "sse", None, "event_delay_p50_us", "event delay p50"),
                 bar_card(lines, "sse", None, "event_delay_p99_us", "event delay p99")]),
        section("growth", "Growth", "CPU per request, saturated, as one thing grows. Flat is good.",
                [growth_card(lines, "growth-connections", "connections"),
                 growth_card(lines, "growth-routes", "virtual hosts and routes"),
                 growth_card(lines, "growth-headers", "header fields of a request"),
                 growth_card(lines, "growth-cores", "workers")]),
        section("changes", "Changes under load", "2,000 requests per second go on while the configuration is read again "
                "three times, or a new key is put in service.",
                [bar_card(lines, "reload", None, "max_us", "longest wait, three reloads"),
                 bar_card(lines, "reload", None, "failed", "failed requests, three reloads"),
                 bar_card(lines, "rotation", None, "ms_until_used", "new key in use after"),
                 bar_card(lines, "rotation", None, "failed", "failed requests, rotation")]),
        section("judges", "The judges", "What the load and the API cost themselves, next to the usual ones.",
                [bar_card(lines, "judge-direct", None, "cpu_us_per_request", "load: CPU per request, at its limit"),
                 bar_card(lines, "mock", None, "cpu_us_per_request", "API: CPU per request")]),
        all_tables(lines), fairness(names), repeat(),
    ]
    parts = [part for part in parts if part]
    parts.insert(1, navigation("".join(parts)))
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<title>Claviger: performance</title><style>{STYLE.read_text()}</style></head>\n<body>{HATCH}<main>'
            + "\n".join(parts) + "</main></body></html>\n")


# One pattern for all plots of the page.
HATCH = ('<svg width="0" height="0" aria-hidden="true" style="position:absolute"><defs><pattern id="hatch" width="6" '
         'height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect class="hatch-line" width="2.4" '
         'height="6"/></pattern></defs></svg>')


def header(lines):
    facts = "".join(f"<li>{markdown.inline(line[2:])}</li>" for line in machine_lines(lines).splitlines())
    return (f'<header><h1>Claviger: performance</h1><p class="lead">An API-key proxy next to others doing the same job: '
            f'TLS in, the caller\'s key stripped, the real one written, TLS out over kept connections, an access log '
            f'written. One worker on one core each, in turns within one run.</p><ul class="facts">{facts}</ul></header>')


def navigation(text):
    """Links to those sections that the page has."""
    links = [("summary", "summary"), ("losses", "losses"), ("cpu", "CPU"), ("added", "latency"), ("connections", "connections"),
             ("bodies", "bodies"), ("growth", "growth"), ("changes", "changes"), ("judges", "judges"),
             ("tables", "all figures"), ("fairness", "fairness"), ("repeat", "repeat")]
    return ("<nav>" + "".join(f'<a href="#{anchor}">{words}</a>' for anchor, words in links if f'id="{anchor}"' in text)
            + "</nav>")


def verdict(lines):
    """The four figures that people look for first."""
    tiles = []
    for scenario, at, figure, text in [
        ("saturated", None, "cpu_us_per_request", "CPU per request, saturated"),
        ("added-2000", None, "added:p50", "added at p50, 2,000/s"),
        ("idle", 8000, "kb_per_connection", "per idle TLS connection"),
        ("syscalls", None, "syscalls_per_request", "system calls per request"),
    ]:
        ours = pick(lines, scenario, at, "claviger") or (scenario == "idle" and pick(lines, scenario, 2000, "claviger"))
        theirs = pick(lines, scenario, ours.get("at") if ours else at, history.BASELINE)
        value, other = (tables.median(line, figure) if line else None for line in (ours, theirs))
        if value is None or tables.judges_own(ours, figure):
            continue
        unit = "us" if figure.startswith("added:") else FIGURES[figure].unit
        beside = f"nginx: {tables.number(other)} {unit}" if other is not None else ""
        tiles.append(f'<div class="tile"><div class="big">{tables.number(value)} <small>{escape(unit)}</small></div>'
                     f'<div>{escape(text)}</div><div class="quiet">{escape(beside)}</div></div>')
    return f'<div class="tiles">{"".join(tiles)}</div>'


def legend(names):
    entries = "".join(f'<span class="c-{escape(name)}"><i></i>{escape(tables.title(name))}</span>'
                      for name in [*names, "direct"])
    return (f'<div class="legend">{entries}<span class="note">line on a bar: least to greatest of all rounds</span>'
            f'<span class="note hatched"><i></i>judge-bound: no claim</span></div>')


def summary_html(lines, names):
    rows = []
    for text, parts in SUMMARY:
        cells = summary_cells(lines, names, parts)
        if any(shown for shown, _ in cells):
            rows.append(f"<tr><th>{escape(text)}</th>" + "".join(
                f'<td class="{"best" if best else ""}">{escape(shown)}</td>' for shown, best in cells) + "</tr>")
    heads = "".join(f"<th>{escape(tables.title(name))}</th>" for name in names)
    return (f'<section id="summary"><h2>Summary</h2><div class="scroll"><table class="summary"><thead><tr><th></th>{heads}'
            f'</tr></thead><tbody>{"".join(rows)}</tbody></table></div><p class="quiet">Medians of all rounds. In bold '
            f'the best of a row, where the figure supports a claim and the ranges over all rounds do not touch. [In '
            f'brackets] what says more of the judge; (in round ones) a difference below the noise.</p></section>')


def losses_html(lines):
    """Where somebody is better: folded, since it is long where much was measured."""
    found = losses(lines)
    sure = sum(one.sure for one in found)
    words = (f"figures that support a claim: {len(found)}; beyond the rounds' ranges: {sure}" if found
             else "no figure that was measured and supports a claim")
    made = markdown.table(losses_table(lines).splitlines()) if found else ""
    return (f'<section id="losses"><h2>Where others are better</h2><details><summary>{escape(words)}</summary>{made}'
            f'</details></section>')


def section(anchor, heading, text, cards):
    cards = [card for card in cards if card]
    if not cards:
        return ""
    return (f'<section id="{anchor}"><h2>{escape(heading)}</h2><p>{escape(text)}</p>'
            f'<div class="cards">{"".join(cards)}</div></section>')


def card(heading, plot, unit=""):
    return f'<figure><figcaption>{escape(heading)}{f" <small>{escape(unit)}</small>" if unit else ""}</figcaption>{plot}</figure>'


def bar_card(lines, scenario, at, figure, heading):
    these = [line for line in lines if line["scenario"] == scenario and (at is None or line.get("at") == at)
             and tables.median(line, figure) is not None]
    # Going direct is no contender, but says what load and API manage alone.
    these.sort(key=lambda line: tables.order(line["contender"]))
    if not these:
        return ""
    one = FIGURES[figure]
    items = []
    for line in these:
        low, high = tables.extent(line, figure)
        value = tables.median(line, figure)
        weak = tables.judges_own(line, figure)
        shown = tables.number(value, one.decimals)
        label = tables.title(line["contender"])
        tip = (f"{label}: {shown} {one.unit}; {tables.number(low)} to {tables.number(high)} over "
               f"{len(line[figure]['all'])} rounds" + (f"; {', '.join(tables.remarks(line))}" if tables.remarks(line) else ""))
        items.append(plots.Bar(line["contender"], label, value, low, high, weak, shown, tip))
    better = "lower is better" if one.lower_is_better else "higher is better"
    return card(heading, plots.bars(items, heading), f"{one.unit}, {better}" if one.unit else better)


def line_card(lines, prefix, figure, heading, x_label, y_label):
    series = {}
    for line in lines:
        rate = re.fullmatch(re.escape(prefix) + r"(\d+)", line["scenario"])
        value = tables.median(line, figure)
        if rate is None or value is None:
            continue
        low, high = tables.extent(line, figure) or (None, None)
        weak = tables.judges_own(line, figure) or figure.startswith("added:") and low is not None and low <= 0 <= high
        series.setdefault(line["contender"], []).append(plots.Point(int(rate[1]), value, low, high, weak))
    if not any(len(points) > 1 for points in series.values()):
        return ""
    return line_figure(heading, series, x_label, y_label)


def growth_card(lines, scenario, x_label):
    series = {}
    for line in lines:
        value = tables.median(line, "cpu_us_per_request") if line["scenario"] == scenario else None
        if value is not None and line["contender"] != "direct":
            low, high = tables.extent(line, "cpu_us_per_request")
            series.setdefault(line["contender"], []).append(
                plots.Point(line["at"], value, low, high, bool(line.get("shared_core"))))
    if not any(len(points) > 1 for points in series.values()):
        return ""
    return line_figure(f"over {x_label}", series, x_label, "us per request")


# Beyond this ratio of the greatest to the least a linear axis shows one contender and a bundle of all others.
LINEAR_MAX = 5


def line_figure(heading, series, x_label, y_label):
    values = [point.y for points in series.values() for point in points]
    wide = min(values) > 0 and max(values) / min(values) > LINEAR_MAX
    made = plots.lines(named(series), x_label, y_label, y_log=wide)
    return card(heading, made, "us" + (", logarithmic" if wide else ""))


def named(series):
    return [plots.Series(name, tables.title(name), points)
            for name, points in sorted(series.items(), key=lambda one: tables.order(one[0]))]


def all_tables(lines):
    """Every figure, with what its scenario says about itself."""
    known = {one.name: one for one in scenarios.load_all()}
    made = []
    for label in dict.fromkeys(line["scenario"] for line in lines):
        these = sorted((line for line in lines if line["scenario"] == label),
                       key=lambda line: (line.get("at", 0), tables.order(line["contender"])))
        heads, body = grid(these)
        one = next((known[name] for name in sorted(known, key=len, reverse=True) if history.belongs(label, name)), None)
        words = (f"<p>{escape(one.description)}"
                 + (f" Supports claims: {escape(', '.join(one.supports))}." if one.supports else "")
                 + (f" <em>{escape(one.caution)}</em>" if one.caution else "") + "</p>") if one else ""
        first = these[0]
        size = ", ".join(f"{first[key]} {key}" for key in ("rounds", "seconds", "connections")
                         if isinstance(first.get(key), (int, float)))
        rows = "".join(f'<tr class="{"weak" if line.get("judge_bound") else ""}"><th>{escape(row[0])}</th>'
                       + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:-1])
                       + f'<td class="remarks">{escape(row[-1])}</td></tr>' for row, line in zip(body, these))
        made.append(f'<details id="t-{escape(label)}"><summary>{escape(label)} <small>{escape(size)}; commit '
                    f'{escape(first["commit"])}{" with changes" if first["dirty"] else ""}, {escape(first["time"][:16])}'
                    f'</small></summary>{words}<div class="scroll"><table><thead><tr>'
                    + "".join(f"<th>{escape(head)}</th>" for head in heads)
                    + f'</tr></thead><tbody>{rows}</tbody></table></div></details>')
    return f'<section id="tables"><h2>All figures</h2>{"".join(made)}</section>'


def fairness(names):
    """Each contender's own note, as its directory has it."""
    made = []
    for name in names:
        path = PERF / "contenders" / name / "FAIRNESS.md"
        if path.exists():
            made.append(f'<details id="f-{escape(name)}"><summary>{escape(tables.title(name))} '
                        f'<small>perf/contenders/{escape(name)}/FAIRNESS.md</small></summary>'
                        f'{markdown.html(path.read_text())}</details>')
    if not made:
        return ""
    return (f'<section id="fairness"><h2>Fairness</h2><p>What each configuration does and why, line by line; what one '
            f'does that the others do not.</p>{"".join(made)}</section>')


def repeat():
    commands = ("perf/contenders/install\ncargo build --release --locked -p claviger -p loadgen -p mock-upstream\n"
                "perf/compare --priority                     # everything; as root\n"
                "perf/compare --scenarios idle,churn         # some of it\n"
                "perf/gate                                   # the ceilings\n"
                "perf/render --write                         # this page, and the documents' tables")
    return (f'<section id="repeat"><h2>Repeat it</h2><pre>{escape(commands)}</pre><p class="quiet">Method and limits: '
            f'docs/performance.md and perf/README.md. Every round of every figure: perf/history.ndjson.</p></section>')
