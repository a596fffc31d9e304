"""A proxy of our own on Pingora (src/), since Pingora is a library."""

import json
import signal

from harness import contender
from harness.contender import CannotMeasure, first_line, tools_dir, write_private

PROGRAM = "claviger-perf-pingora"


class Contender(contender.Contender):
    name = "pingora"
    title = "Pingora"
    install = "perf/contenders/install pingora"

    def find(self):
        self.program = tools_dir() / "bin" / PROGRAM
        if not self.program.exists():
            raise CannotMeasure(f"{PROGRAM} is missing; run: {self.install}")

    def version(self):
        return first_line([self.program, "--version"])

    def start(self, job):
        self.write(job, job.key)
        return [str(self.program), str(job.dir / "pingora.json")]

    def check_command(self, job):
        """What says whether the configuration that `start` wrote is a valid one."""
        return [str(self.program), "--check", str(job.dir / "pingora.json")]

    def write(self, job, key):
        config = {
            "listen": f"127.0.0.1:{job.port}",
            "workers": job.workers,
            # One thread has nobody to share with.
            "work_stealing": job.workers > 1,
            "user": job.user,
            "upstream": f"127.0.0.1:{job.upstream_port}",
            "host": job.host,
            "ca": str(job.ca),
            "access_log": str(job.dir / "pingora-access.log"),
            "hosts": [
                {"name": name, "certificate": str(job.cert), "private_key": str(job.cert_key), "key": key}
                for name in job.hosts()
            ],
        }
        write_private(job.dir / "pingora.json", json.dumps(config, indent=1))

    def reload(self, job, process):
        process.send_signal(signal.SIGHUP)

    def rotate(self, job, process, key):
        self.write(job, key)
        self.reload(job, process)
