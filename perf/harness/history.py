"""The history: a line of JSON for each result, each complete in itself."""

import datetime
import json
import re
from pathlib import Path

from harness import stats
from harness.contender import PERF, CannotMeasure

PATH = PERF / "history.ndjson"
# The contender that all others are held against.
BASELINE = "nginx"
# Pairs of which the ratio is kept beside the figure: (kind, ours, theirs). Elsewhere the baseline is theirs.
JUDGES = {"judge": "wrk", "mock": "nginx"}


def now():
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def lines(rows, common):
    """The history's lines of a scenario's rows. `common` says when and where all were measured."""
    found = []
    for row in rows:
        line = {**common, **{key: value for key, value in row.parameters.items() if value is not None},
                "scenario": row.scenario, "kind": row.kind, "contender": row.contender, "version": row.version}
        if row.at is not None:
            line["at"] = row.at
        line.update({key: value for key, value in row.marks.items() if value not in ("", None)})
        for key, values in row.figures.items():
            if values:
                line[key] = stats.summarize(values)
        theirs = baseline_of(rows, row)
        if theirs:
            values = stats.ratios(row.figures.get("cpu_us_per_request", []), theirs)
            if values:
                line[f"cpu_ratio_to_{JUDGES.get(row.kind, BASELINE)}"] = stats.summarize(values)
        found.append(line)
    return found


def baseline_of(rows, row):
    """CPU per request of what a row is held against, in the same turns; None if there is none."""
    baseline = JUDGES.get(row.kind, BASELINE)
    if row.contender in (baseline, "direct"):
        return None
    for other in rows:
        if (other.scenario, other.at, other.contender) == (row.scenario, row.at, baseline):
            return other.figures.get("cpu_us_per_request")
    return None


def append(path, new):
    # A line that was cut off must not swallow the first of these.
    with open(path, "ab+") as file:
        file.seek(0, 2)
        if file.tell() and (file.seek(-1, 2), file.read(1))[1] != b"\n":
            file.write(b"\n")
    with open(path, "a", encoding="utf-8") as history:
        for line in new:
            history.write(json.dumps(line) + "\n")


def read(path=PATH):
    """All lines. The last may be cut off in the middle, and is left out then; any other must be whole."""
    found = []
    shown = Path(path).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(shown, 1):
        try:
            one = json.loads(line)
            if not isinstance(one, dict):
                raise ValueError("no object")
        except ValueError as error:
            if number == len(shown):
                break
            raise CannotMeasure(f"{path}, line {number}: {error}; take the line out, or put it right") from None
        found.append(one)
    return found


def published(all_lines, commit=None, needed=()):
    """The lines that tables are made of: all of one machine and the same programs, of each scenario its last run.

    Figures of different machines do not compare, nor do those of different programs. So one machine and set of programs
    is chosen, and all else is left out: the newest with which each scenario of `needed` was measured from a clean tree;
    or else the newest from a clean tree; or else the newest, whose lines are `dirty` and shown to be. Runs of another
    size, and scenarios that were interrupted, count nowhere. With `commit` only those of that commit are looked at.
    """
    places = {}
    for line in all_lines:
        if whole(line) and (commit is None or line["commit"].startswith(commit)):
            places.setdefault((line["machine"], programs(line), line["dirty"]), []).append(line)

    def merit(place):
        labels = {line["scenario"] for line in places[place]}
        complete = all(any(belongs(label, name) for label in labels) for name in needed)
        clean = not place[2]
        return clean, clean and complete, max(line["time"] for line in places[place])

    return latest(places[max(places, key=merit)]) if places else []


def programs(line):
    """What was measured: the programs that were built, byte for byte. A commit that mends a measure and leaves these
    alone needs no new run of all others. Lines from before the programs were noted have their commit."""
    built = line.get("binaries")
    return tuple(sorted((name, one["sha256"]) for name, one in built.items())) if built else line["commit"]


def whole(line):
    """Whether it is of a full run, and its scenario was finished. Lines from before sizes were noted count as full."""
    return line.get("size", "full") == "full" and not line.get("partial")


def belongs(label, name):
    """Whether a line's scenario, which may end in its rate, is of this file."""
    return label == name or re.fullmatch(re.escape(name) + r"-\d+", label) is not None


def latest(lines):
    """Of each scenario the lines of the last run that has it: ratios hold within one run only."""
    runs = {}
    for line in lines:
        runs[line["scenario"]] = max(runs.get(line["scenario"], ""), line["time"])
    return [line for line in lines if runs[line["scenario"]] == line["time"]]
