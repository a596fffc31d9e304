"""What every contender is asked to do, and what it has to know about itself to be measured.

Each contender lives in `perf/contenders/NAME/`: `contender.py` with `class Contender(harness.contender.Contender)`,
its configuration as templates for `fill`, and `FAIRNESS.md`, which defends every line of it. A contender knows its
configuration and its signals; it pins nothing, waits for nothing and measures nothing: the bench does that to all of
them alike.
"""

import contextlib
import importlib.util
import os
import pwd
import shutil
import string
import subprocess
from dataclasses import dataclass
from pathlib import Path

PERF = Path(__file__).resolve().parent.parent
ROOT = PERF.parent


class CannotMeasure(Exception):
    """Nothing can be said; the text says why and what to do."""


class NotSupported(Exception):
    """This contender has no such means. The text says so in words for the report."""


@dataclass(frozen=True)
class Job:
    """What every contender has to do.

    TLS in on 127.0.0.1:`port`; take the caller's credentials out; write `Authorization: Bearer KEY`; TLS out to
    127.0.0.1:`upstream_port`, verified against `ca` for `host`, over connections that are kept; write an access log
    or audit trail to a file below `dir`. TLS 1.3 and resumption are allowed on both sides.
    """

    dir: Path  # private working directory (0700): configuration, logs and state go here
    port: int
    host: str  # SNI and Host of callers and of the API
    upstream_port: int
    ca: Path
    cert: Path
    cert_key: Path
    bundle: Path  # `cert` and `cert_key` in one file, for those who want it so
    key: str
    key_file: Path  # `key` in a file of mode 0600
    cpu: int  # the first of `cpus`
    workers: int  # 1, or more where growth with cores is measured
    cpus: list[int]  # one for each worker
    routes: int  # virtual hosts configured, each with its route; `hosts` names them, `host` last
    user: str | None  # run workers as this user, where the contender would give up root by itself; None if not root

    def hosts(self):
        """The names to serve, `host` last: r00001.example.com, r00002.example.com, ..., api.example.com."""
        domain = self.host.partition(".")[2]
        return [f"r{number:05}.{domain}" for number in range(1, self.routes)] + [self.host]


class Contender:
    """One of those that do the job. `perf/contenders/NAME/contender.py` extends it."""

    name: str  # as in `--contenders` and in the history
    title: str  # as in tables: "nginx", "HAProxy", ...
    short_key = False  # True for one whose key is too short for Claviger to search answers for
    baseline = False  # True for the one that all others are held against
    install = ""  # the command that installs it, for the message when it is missing

    def find(self):
        """Locates the program. Raises CannotMeasure with the command that installs it."""
        raise NotImplementedError

    def version(self):
        """One line, such as `nginx/1.22.1`. Called after `find`."""
        raise NotImplementedError

    def start(self, job):
        """Writes its configuration below `job.dir` and returns the command line of a process that stays in front."""
        raise NotImplementedError

    def reload(self, job, process):
        """Makes it read its configuration again without dropping traffic. Returns when told, not when done."""
        raise NotSupported(f"{self.title} has no reload")

    def rotate(self, job, process, key):
        """Puts a new real key in service by its usual means: a changed file, a changed configuration and a reload."""
        raise NotSupported(f"{self.title} cannot change a key while it runs")

    def pids(self, process):
        """All processes whose CPU and memory are its own: by default the whole tree."""
        return tree(process.pid)

    def logs(self, job):
        """Files whose last lines explain why it did not start, beside what it prints."""
        return []


def known():
    """Names of the contenders that have a directory."""
    return sorted(path.parent.name for path in (PERF / "contenders").glob("*/contender.py"))


def load(name):
    """The contender of that name."""
    path = PERF / "contenders" / name / "contender.py"
    if not path.exists():
        raise CannotMeasure(f"there is no contender `{name}`; there are {', '.join(known())}")
    spec = importlib.util.spec_from_file_location(f"contenders.{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.Contender()
    if found.name != name:
        raise CannotMeasure(f"{path} calls itself `{found.name}`; a contender has the name of its directory")
    return found


def load_found(name):
    """The contender of that name, its program located."""
    one = load(name)
    one.find()
    return one


# ---- For contenders to use --------------------------------------------------


def find_program(name, install):
    """The path of a program: from PATH (Debian keeps servers in sbin), then from perf's own tools."""
    places = [os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", str(tools_dir() / "bin")]
    found = shutil.which(name, path=os.pathsep.join(places))
    if not found:
        raise CannotMeasure(f"{name} is missing; run: {install}")
    return Path(found)


def tools_dir():
    """Where perf/contenders/install puts what Debian does not have."""
    return Path(os.environ.get("CLAVIGER_PERF_TOOLS") or target_dir() / "perf-tools")


def target_dir():
    """Cargo's target directory."""
    return Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")


def find_built(name, package=None):
    """A release binary of this repository."""
    path = target_dir() / "release" / name
    if not path.exists():
        raise CannotMeasure(f"{path} is missing; run: cargo build --release -p {package or name}")
    return path


def first_line(command):
    """The first line that a command prints, on either stream; for versions."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=20)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0] if lines else "unknown"


def fill(path, **values):
    """A template's text with each `@NAME@` (capitals) filled in; braces and dollars are the file's own.

    Raises KeyError if the template names what is not given.
    """

    class Template(string.Template):
        delimiter = "@"
        pattern = r"@(?:(?P<escaped>@)|(?P<named>[A-Z_]+)@|(?P<braced>\b\B)|(?P<invalid>\b\B))"

    return Template(Path(path).read_text()).substitute({key: str(value) for key, value in values.items()})


def write_private(path, text):
    """Writes a file that nobody else may read, in one step for those who watch it."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    os.replace(beside, path)
    return path


def current_user():
    return pwd.getpwuid(os.geteuid()).pw_name


def tree(pid):
    """A process and all its descendants."""
    pids = [pid]
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as children:
                for child in children.read().split():
                    pids += tree(int(child))
    return pids
