"""No proxy at all: the API itself, which the load reaches with the right key. What it cannot show is no one's figure."""

from harness import contender
from harness.contender import find_built, first_line


class Contender(contender.Contender):
    name = "direct"
    title = "direct"
    install = "cargo build --release -p mock-upstream"

    def find(self):
        self.program = find_built("mock-upstream")

    def version(self):
        return first_line([self.program, "--version"])

    def start(self, job):
        raise contender.NotSupported("the direct way is the API that runs already: callers connect to job.upstream_port")

    def pids(self, process):
        return []
