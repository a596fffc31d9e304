"""Caddy, from one Caddyfile whose site has all names."""

import os
import subprocess

from harness import contender
from harness.contender import fill, find_program, first_line, write_private

HERE = os.path.dirname(__file__)

# A reload reads 10,000 names at most.
RELOAD_S_MAX = 120


class Contender(contender.Contender):
    name = "caddy"
    title = "Caddy"
    install = "perf/contenders/install caddy"

    def find(self):
        self.program = find_program("caddy", self.install)

    def version(self):
        return "caddy/" + first_line([self.program, "version"]).split()[0].removeprefix("v")

    def start(self, job):
        self.write(job, job.key)
        # Go takes one thread for running code for each core that it may use; said, not left to what it finds.
        # HOME and XDG keep Caddy's storage here.
        environment = [f"GOMAXPROCS={job.workers}", f"HOME={job.dir}", f"XDG_DATA_HOME={job.dir}",
                       f"XDG_CONFIG_HOME={job.dir}"]
        return ["/usr/bin/env", *environment, str(self.program), "run", *config(job)]

    def check_command(self, job):
        """What says whether the configuration that `start` wrote is a valid one."""
        return ["/usr/bin/env", f"HOME={job.dir}", f"XDG_DATA_HOME={job.dir}", str(self.program), "validate", *config(job)]

    def write(self, job, key):
        names = job.hosts()
        # One key stands where it is used; more of them in a map by name.
        listed = "".join(f"\t\t{name} {key}\n" for name in names) if job.routes > 1 else ""
        write_private(
            job.dir / "Caddyfile",
            fill(
                f"{HERE}/Caddyfile",
                DIR=job.dir, UPSTREAM_PORT=job.upstream_port, HOST=job.host, DOMAIN=job.host.partition(".")[2],
                CA=job.ca, CERT=job.cert, CERT_KEY=job.cert_key, SITE=",\n".join(f"https://{name}:{job.port}" for name in names),
                KEYS=f"\tmap {{host}} {{real_key}} {{\n{listed}\t}}" if listed else "",
                BEARER="{real_key}" if listed else key,
            ),
        )

    def reload(self, job, process):
        command = [str(self.program), "reload", *config(job), "--address", f"unix/{job.dir}/caddy.sock"]
        # --force, since an unchanged file would be no reload at all.
        done = subprocess.run([*command, "--force"], capture_output=True, text=True, timeout=RELOAD_S_MAX)
        if done.returncode != 0:
            raise contender.CannotMeasure(f"caddy reload: {done.stderr.strip()[-500:]}")

    def rotate(self, job, process, key):
        self.write(job, key)
        self.reload(job, process)


def config(job):
    return ["--config", str(job.dir / "Caddyfile"), "--adapter", "caddyfile"]
