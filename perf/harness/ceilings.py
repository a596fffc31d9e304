"""Ceilings: the figures in `perf/ceilings.toml` that no commit may exceed, each with the noise it was set by."""

import math
import re
import statistics
import tomllib
from dataclasses import dataclass
from pathlib import Path

from harness import scenario as scenarios
from harness import stats
from harness.contender import PERF, CannotMeasure
from harness.figures import FIGURES

PATH = PERF / "ceilings.toml"
# A ceiling stands so many standard deviations above the mean of the study, and at least this share of it: machines
# differ in more than what one of them shows in twenty runs.
MARGIN_DEVIATIONS = 3.0
MARGIN_LEAST = 0.03


@dataclass(frozen=True)
class Noise:
    """What a study saw."""

    runs: int
    mean: float
    deviation: float
    low: float
    high: float

    @classmethod
    def of(cls, values):
        return cls(len(values), statistics.fmean(values), statistics.stdev(values), min(values), max(values))

    def margin(self):
        return max(MARGIN_DEVIATIONS * self.deviation, MARGIN_LEAST * self.mean)


@dataclass(frozen=True)
class Ceiling:
    name: str
    scenario: str  # one that has a [gate] size
    contender: str
    figure: str
    against: str | None  # if given, the figure is a ratio to this one's, round by round
    at: int | None  # of an idle scenario: the number of connections
    ceiling: float
    noise: Noise | None
    reason: str

    def value(self, lines):
        """The figure out of the history's lines of one run."""
        ours = self.find(lines, self.contender)
        if self.against is None:
            return statistics.median(ours)
        ratios = stats.ratios(ours, self.find(lines, self.against))
        if not ratios:
            raise CannotMeasure(f"{self.name}: {self.against} has no {self.figure} to compare with")
        return statistics.median(ratios)

    def find(self, lines, contender):
        for line in lines:
            if line["contender"] == contender and line.get("at") == self.at and self.figure in line:
                return line[self.figure]["all"]
        raise CannotMeasure(f"{self.name}: {contender} has no {self.figure}: {problem(lines, contender)}")

    def shown(self, value):
        unit = f" x {self.against}'s" if self.against else f" {FIGURES[self.figure].unit}".rstrip()
        return f"{value:.3f}{unit}"


def problem(lines, contender):
    for line in lines:
        if line["contender"] == contender:
            for key in ("failed_because", "not_supported", "not_held", "note"):
                if key in line:
                    return f"{key.replace('_', ' ')}: {line[key]}"
    return "it was not measured"


KEYS = {
    "name": str, "scenario": str, "contender": str, "figure": str, "against": str, "at": int, "ceiling": float,
    "noise": dict, "reason": str,
}
OPTIONAL = {"against", "at", "noise"}


def parse(text, where, known_scenarios=None):
    """Reads all ceilings. Raises CannotMeasure with every problem found."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CannotMeasure(f"{where}: {error}") from None
    problems, found = [], []
    for key in set(table) - {"ceiling"}:
        problems.append(f"unknown key `{key}`; only [[ceiling]] tables stand here")
    for number, one in enumerate(table.get("ceiling", []), 1):
        label = f"ceiling {number} ({one.get('name', 'without a name')})"
        trouble = check(one, known_scenarios)
        problems += [f"{label}: {sentence}" for sentence in trouble]
        if not trouble:
            noise = Noise(**one["noise"]) if "noise" in one else None
            found.append(Ceiling(**{key: one.get(key) for key in KEYS if key != "noise"}, noise=noise))
    names = [one.name for one in found]
    problems += [f"`{name}` stands twice" for name in sorted({name for name in names if names.count(name) > 1})]
    if not found and not problems:
        problems.append("there is no ceiling: a gate without one could not fail")
    if problems:
        raise CannotMeasure("\n".join(f"{where}: {sentence}" for sentence in problems))
    return found


def check(one, known_scenarios):
    trouble = []
    for key in one:
        if key not in KEYS:
            trouble.append(f"unknown key `{key}`; there are {', '.join(KEYS)}")
    for key, kind in KEYS.items():
        if key not in one:
            if key not in OPTIONAL:
                trouble.append(f"`{key}` is missing")
        elif not isinstance(one[key], (int, float) if kind is float else kind) or isinstance(one[key], bool):
            trouble.append(f"`{key}` must be {scenarios.TYPES[kind]}")
    if trouble:
        return trouble
    if one["figure"] not in FIGURES:
        trouble.append(f"there is no figure `{one['figure']}`; there are {', '.join(FIGURES)}")
    if not one["ceiling"] > 0:
        trouble.append("`ceiling` must be above zero")
    known = known_scenarios if known_scenarios is not None else gate_scenarios()
    if one["scenario"] not in known:
        trouble.append(f"`{one['scenario']}` is no scenario with a [gate] size; there are {', '.join(sorted(known))}")
    if "against" in one and not {"nginx", "wrk"} & {one["against"]}:
        trouble.append(f"`against` must be nginx or wrk; found `{one['against']}`")
    if "noise" in one:
        wanted = set(Noise.__dataclass_fields__)
        if set(one["noise"]) != wanted:
            trouble.append(f"`noise` must have {', '.join(sorted(wanted))}, and nothing else")
        elif any(type(value) not in (int, float) or not math.isfinite(value) for value in one["noise"].values()):
            trouble.append("`noise` must have finite numbers only")
        elif one["noise"]["mean"] + MARGIN_DEVIATIONS * one["noise"]["deviation"] > one["ceiling"] * 1.0005:
            trouble.append(f"the ceiling is within {MARGIN_DEVIATIONS:g} deviations of the mean: it would go red by chance")
    return trouble


def gate_scenarios():
    return {one.name for one in scenarios.load_all() if "gate" in one.sizes}


def load(path=PATH):
    return parse(Path(path).read_text(), path)


def updated(text, studied):
    """The file's text with new noise and new ceilings, all else as it stands. `studied`: name -> Noise."""
    blocks = re.split(r"(?m)^(?=\[\[ceiling\]\])", text)
    for at, block in enumerate(blocks):
        name = re.search(r'(?m)^name = "(.*)"', block)
        if not name or name[1] not in studied:
            continue
        noise = studied[name[1]]
        line = (f"noise = {{ runs = {noise.runs}, mean = {noise.mean:.4f}, deviation = {noise.deviation:.4f}, "
                f"low = {noise.low:.4f}, high = {noise.high:.4f} }}")
        block = re.sub(r"(?m)^noise = .*\n", "", block)
        block = re.sub(r"(?m)^ceiling = .*$", f"ceiling = {above(noise):.3f}\n{line}", block)
        blocks[at] = block
    return "".join(blocks)


def above(noise):
    """The ceiling that a study asks for, rounded up to three decimals."""
    return math.ceil(round((noise.mean + noise.margin()) * 1000, 6)) / 1000
