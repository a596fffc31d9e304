"""The history: a line of JSON for each result, each complete in itself."""

import datetime
import json
from pathlib import Path

from harness import stats
from harness.contender import PERF

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
    with open(path, "a", encoding="utf-8") as history:
        for line in new:
            history.write(json.dumps(line) + "\n")


def read(path=PATH):
    """All lines. One that was cut off in the middle, as the last may be, is left out."""
    found = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def latest(all_lines, commit=None):
    """Of each scenario the lines of the last run that has it: ratios hold within one run only."""
    runs = {}
    for line in all_lines:
        if commit is None or line["commit"].startswith(commit):
            runs[line["scenario"]] = max(runs.get(line["scenario"], ""), line["time"])
    return [line for line in all_lines if runs.get(line["scenario"]) == line["time"]]
