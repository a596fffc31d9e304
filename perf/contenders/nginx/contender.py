"""nginx, as its operators set it up for a few busy upstreams; the one that all others are held against."""

import os
import signal

from harness import contender
from harness.contender import current_user, fill, find_program, first_line, write_private

HERE = os.path.dirname(__file__)

# The most buckets that nginx may try until none holds more than a cache line: its default, and beyond it so many for each
# name. With one each it finds no such table for thousands of names, and warns.
NAMES_HASH_SIZE_MIN = 512
NAMES_HASH_SIZE_PER_NAME = 4


class Contender(contender.Contender):
    name = "nginx"
    title = "nginx"
    baseline = True
    install = "perf/contenders/install nginx"

    def find(self):
        self.program = find_program("nginx", self.install)

    def version(self):
        return first_line([self.program, "-v"]).replace("nginx version: ", "")

    def start(self, job):
        self.write(job, job.key)
        return self.command(job)

    def command(self, job):
        return [str(self.program), "-p", str(job.dir), "-c", str(job.dir / "nginx.conf")]

    def check_command(self, job):
        """What says whether the configuration that `start` wrote is a valid one."""
        return [*self.command(job), "-t"]

    def write(self, job, key):
        names = job.hosts()
        servers = "\n".join(
            fill(f"{HERE}/server.conf", PORT=job.port, NAME=name, CERT=job.cert, CERT_KEY=job.cert_key, DIR=job.dir)
            for name in names
        )
        # The headers that every location sends; a key a location would be one of these files each.
        write_private(job.dir / "nginx-job.conf", fill(f"{HERE}/job.conf", HOST=job.host, KEY=key))
        write_private(
            job.dir / "nginx.conf",
            fill(
                f"{HERE}/nginx.conf",
                DIR=job.dir, UPSTREAM_PORT=job.upstream_port, HOST=job.host, CA=job.ca,
                USER=f"user {job.user or current_user()};" if os.geteuid() == 0 else "",
                WORKERS=job.workers, AFFINITY=" ".join(f"{1 << cpu:b}" for cpu in job.cpus),
                NAMES_HASH_SIZE=max(NAMES_HASH_SIZE_MIN, NAMES_HASH_SIZE_PER_NAME * len(names)), SERVERS=servers,
            ),
        )

    def reload(self, job, process):
        process.send_signal(signal.SIGHUP)

    def rotate(self, job, process, key):
        self.write(job, key)
        self.reload(job, process)

    def logs(self, job):
        return [job.dir / "nginx-error.log"]
