"""HAProxy, in master-worker mode with one thread."""

import os
import resource
import shlex
import signal

from harness import contender
from harness.contender import fill, find_program, first_line, write_private

HERE = os.path.dirname(__file__)

# Connections of callers, and as many again towards the API. Fewer only where the hard limit of descriptors is lower:
# HAProxy does not start with a maxconn that it cannot have.
CONNECTIONS_MAX = 16_384
# What HAProxy keeps for itself beside two descriptors a connection.
OWN_DESCRIPTORS = 256


class Contender(contender.Contender):
    name = "haproxy"
    title = "HAProxy"
    install = "perf/contenders/install haproxy"

    def find(self):
        self.program = find_program("haproxy", self.install)

    def version(self):
        return first_line([self.program, "-v"]).split(" - ")[0].replace("HAProxy version ", "haproxy/").split(" ")[0]

    def start(self, job):
        self.write(job, job.key)
        # HAProxy writes its log to descriptors and sockets, not to files of its own: this is its standard output.
        # Through a shell that becomes HAProxy, so that the process is the same.
        log = shlex.quote(str(job.dir / "haproxy-access.log"))
        return ["/bin/sh", "-c", f'exec "$0" "$@" >>{log}', str(self.program), "-W", "-f", str(job.dir / "haproxy.cfg")]

    def check_command(self, job):
        """What says whether the configuration that `start` wrote is a valid one."""
        return [str(self.program), "-c", "-f", str(job.dir / "haproxy.cfg")]

    def write(self, job, key):
        names = job.hosts()
        # Certificates by name, and the key by name: lookups in trees, however many routes there are.
        write_private(job.dir / "haproxy-certificates", "".join(f"{job.bundle} {name}\n" for name in names))
        write_private(job.dir / "haproxy-keys", "".join(f"{name} {key}\n" for name in names))
        if job.routes == 1:
            rules = fill(f"{HERE}/one-route.cfg", HOST=job.host, KEY=key)
        else:
            rules = fill(f"{HERE}/many-routes.cfg", DIR=job.dir, HOST=job.host)
        write_private(
            job.dir / "haproxy.cfg",
            fill(
                f"{HERE}/haproxy.cfg",
                DIR=job.dir, PORT=job.port, UPSTREAM_PORT=job.upstream_port, HOST=job.host, CA=job.ca,
                USER=f"user {job.user}" if job.user else "", CONNECTIONS=connections(), THREADS=job.workers,
                CPUS=" ".join(map(str, job.cpus)), RULES=rules.rstrip(),
            ),
        )

    def reload(self, job, process):
        # The master starts a new worker, which takes over the listening sockets; the old one finishes its work.
        process.send_signal(signal.SIGUSR2)

    def rotate(self, job, process, key):
        self.write(job, key)
        self.reload(job, process)


def connections():
    """What the limit of descriptors allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return CONNECTIONS_MAX
    return min(CONNECTIONS_MAX, (hard - OWN_DESCRIPTORS) // 2)
