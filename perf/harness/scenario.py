"""Scenarios: files in `perf/scenarios/` that say what to measure.

A scenario is read strictly. An unknown key, a wrong type or a value out of range is an error with the file, what
was expected, and the cure, because a scenario that is silently not what its file says would be worse than none.
"""

import dataclasses
import functools
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from harness.contender import PERF, CannotMeasure
from harness.figures import FIGURES

DIRECTORY = PERF / "scenarios"
# The sizes that a scenario may come in, beside the full one.
SIZES = ("quick", "gate")


@dataclass(frozen=True)
class Field:
    """What may stand for one key."""

    kind: type
    low: float = 0
    high: float = float("inf")
    default: object = None
    each: type | None = None  # of a list: the type of its members, to which `low` and `high` apply
    words: tuple = ()  # of a string or a list of strings: the only ones

    def problem(self, value):
        """Says what is wrong with a value, or nothing."""
        if self.kind is float and type(value) is int:
            value = float(value)
        # In Python True is an int; in a scenario it is not.
        if type(value) is not self.kind:
            return f"expected {TYPES[self.kind]}, found {TYPES.get(type(value), type(value).__name__)}"
        if self.kind is list:
            if not value:
                return "expected at least one value"
            for member in value:
                if problem := dataclasses.replace(self, kind=self.each, each=None).problem(member):
                    return problem
            if len(set(value)) != len(value):
                return "a value stands twice"
            return None
        if self.words and value not in self.words:
            return f"expected one of {', '.join(self.words)}; found `{value}`"
        if self.kind in (int, float) and not self.low <= value <= self.high:
            return f"expected a number from {self.low:g} to {self.high:g}, found {value:g}"
        return None


TYPES = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", list: "a list",
         dict: "a table"}


def whole(low, high, default):
    return Field(int, low, high, default)


def wholes(low, high, default):
    return Field(list, low, high, default, each=int)


# Every scenario has these.
COMMON = {
    "description": Field(str),
    "kind": Field(str),
    "supports": Field(list, each=str, words=tuple(FIGURES), default=()),
    "caution": Field(str, default=""),
    "contenders": Field(list, each=str, default=()),
    "direct": Field(bool, default=False),
    "rounds": whole(1, 50, 3),
    "seconds": Field(float, 0.5, 120, 3.0),
    "warmup": Field(float, 0, 30, 0.5),
}
CONNECTIONS = {"connections": whole(1, 20_000, 32)}
OPEN = {"rate": whole(1, 1_000_000, 2_000), "arrivals": Field(str, words=("constant", "poisson"), default="constant")}
RATES = {"rates": wholes(1, 1_000_000, (10_000,)), "arrivals": OPEN["arrivals"]}
BODY = {"bytes": whole(1, 1 << 30, 10 << 20)}
SHAPE = {"headers": whole(4, 200, 4), "routes": whole(1, 20_000, 1), "workers": whole(1, 64, 1)}

# What each kind may have beside it. `harness.measures` tells how each is measured.
KINDS = {
    "saturated": CONNECTIONS | SHAPE,
    "open": CONNECTIONS | RATES | SHAPE,
    "added": CONNECTIONS | RATES | {"slice_ms": whole(10, 10_000, 250)},
    "handshake": CONNECTIONS | {"resume": Field(bool, default=False)},
    "download": CONNECTIONS | BODY,
    "upload": CONNECTIONS | BODY,
    "idle": {"steps": wholes(1, 30_000, (2_000, 8_000)), "settle": Field(float, 0, 60, 1.0)},
    "tail": CONNECTIONS | OPEN,
    "churn": CONNECTIONS | OPEN | {"reconnects_per_second": whole(1, 100_000, 100)},
    "sse": CONNECTIONS | {"events": whole(1, 100_000, 50), "every_ms": whole(1, 10_000, 20)},
    "reload": CONNECTIONS | OPEN | {"times": whole(1, 20, 3)},
    "rotation": CONNECTIONS | OPEN,
    "growth": CONNECTIONS | {
        "over": Field(str, words=("connections", "routes", "headers", "cores")),
        "values": wholes(1, 20_000, None),
    },
    "spread": {"values": wholes(2, 1_000, None)},
    "judge": CONNECTIONS | {"server": Field(str, words=("direct", "nginx"), default="direct")},
    "mock": CONNECTIONS,
    "syscalls": CONNECTIONS,
}
# What a size may change: how much is measured, never what.
SIZEABLE = {"rounds", "seconds", "warmup", "rates", "values", "steps", "times"}


@dataclass(frozen=True)
class Scenario:
    name: str
    kind: str
    description: str
    supports: tuple  # figures that support a claim; all others only inform
    caution: str  # what to know before reading anything into the others
    contenders: tuple  # if not empty, only these take part
    direct: bool  # also measure the way without a proxy
    rounds: int
    seconds: float
    warmup: float
    parameters: dict
    sizes: dict = field(default_factory=dict)  # name -> what it changes; absent: the size leaves it out

    def __getattr__(self, name):
        # Only for what is no field: the kind's own parameters.
        try:
            return self.__dict__["parameters"][name]
        except KeyError:
            raise AttributeError(f"a scenario of kind `{self.__dict__.get('kind')}` has no `{name}`") from None

    def sized(self, size):
        """The scenario at another size, or None if that size leaves it out."""
        if size == "full":
            return self
        if size not in self.sizes:
            return None
        changes = dict(self.sizes[size])
        own = {key: changes.pop(key) for key in list(changes) if key in self.parameters}
        return dataclasses.replace(self, **changes, parameters={**self.parameters, **own})

    def shown(self):
        """What stands on each line of the history."""
        return {"connections": None, **self.parameters, "rounds": self.rounds, "seconds": self.seconds}


def parse(name, text, where):
    """Reads one scenario. Raises CannotMeasure with every problem found."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CannotMeasure(f"{where}: {error}") from None
    problems = []
    sizes = {size: table.pop(size) for size in SIZES if size in table}
    kind = table.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise CannotMeasure(f"{where}: `kind` must be one of {', '.join(sorted(KINDS))}")
    fields = COMMON | KINDS[kind]
    values = check(table, fields, problems, "")
    for key, one in fields.items():
        if key not in table:
            if one.default is None:
                problems.append(f"`{key}` is missing")
            values[key] = one.default
    for size, changes in sizes.items():
        if not isinstance(changes, dict):
            problems.append(f"`{size}` must be a table")
            continue
        sizes[size] = check(changes, {k: f for k, f in fields.items() if k in SIZEABLE}, problems, f"{size}.")
    if problems:
        raise CannotMeasure("\n".join(f"{where}: {problem}" for problem in problems))
    common = {key: values.pop(key) for key in COMMON}
    return Scenario(name=name, parameters=values, sizes=sizes, **common)


def check(table, fields, problems, prefix):
    values = {}
    for key, value in table.items():
        if key not in fields:
            problems.append(f"unknown key `{prefix}{key}`; there are {', '.join(sorted(fields))}")
        elif problem := fields[key].problem(value):
            problems.append(f"`{prefix}{key}`: {problem}")
        elif fields[key].kind is list:
            values[key] = tuple(value)
        else:
            values[key] = float(value) if fields[key].kind is float else value
    return values


def load(name, directory=DIRECTORY):
    path = Path(directory) / f"{name}.toml"
    if not path.exists():
        raise CannotMeasure(f"there is no scenario `{name}`; there are {', '.join(names(directory))}")
    return parse(name, path.read_text(), path)


def names(directory=DIRECTORY):
    return sorted(path.stem for path in Path(directory).glob("*.toml"))


@functools.cache
def load_all(directory=DIRECTORY):
    """All scenarios, in the order in which a full run takes them: kinds as above, then names."""
    order = list(KINDS)
    found = [load(name, directory) for name in names(directory)]
    return sorted(found, key=lambda one: (order.index(one.kind), one.name))
