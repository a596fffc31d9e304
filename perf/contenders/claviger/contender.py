"""Claviger, as released: every default as it is, but for the bounds that a measurement would run into."""

import os
import signal

from harness import contender
from harness.contender import fill, find_built, first_line, write_private

HERE = os.path.dirname(__file__)


class Contender(contender.Contender):
    name = "claviger"
    title = "Claviger"
    install = "cargo build --release -p claviger"

    def find(self):
        self.program = find_built("claviger")

    def version(self):
        return first_line([self.program, "--version"])

    def start(self, job):
        own_key(job, job.key)
        names = job.hosts()
        hosts = "\n".join(
            f'[host."{name}"]\ncertificate = "file://{job.cert}"\nprivate_key = "file://{job.cert_key}"\n'
            for name in names
        )
        routes = "\n".join(
            f'[[route]]\nname = "{name}"\nhost = "{name}"\nupstream = "api"\ncredential = "api"\ncallers = "open"\n'
            for name in names
        )
        config = write_private(
            job.dir / "claviger.toml",
            fill(
                f"{HERE}/claviger.toml",
                DIR=job.dir, PORT=job.port, UPSTREAM_PORT=job.upstream_port, HOST=job.host, CA=job.ca,
                KEY_FILE=job.dir / "claviger.key", WORKERS=job.workers, CPUS=", ".join(map(str, job.cpus)),
                USER=f'user = "{job.user}"' if job.user else "", HOSTS=hosts, ROUTES=routes,
            ),
        )
        return [str(self.program), "run", "--config", str(config)]

    def check_command(self, job):
        """What says whether the configuration that `start` wrote is a valid one."""
        return [str(self.program), "check", "--config", str(job.dir / "claviger.toml")]

    def reload(self, job, process):
        process.send_signal(signal.SIGHUP)

    def rotate(self, job, process, key):
        # No signal: it watches the file, as it would one that a secret manager's agent replaces.
        own_key(job, key)

    def logs(self, job):
        return []


def own_key(job, key):
    """The key's file, one for each job: another contender's rotation must not reach this one."""
    path = write_private(job.dir / "claviger.key", key + "\n")
    if job.user and os.geteuid() == 0:
        import shutil

        shutil.chown(path, job.user)
