"""Every figure that a line of the history may hold: what it means, in which unit, and which way is better."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    title: str
    unit: str
    meaning: str
    lower_is_better: bool = True
    decimals: int = 1


FIGURES = {
    "cpu_us_per_request": Figure(
        "CPU per request", "us", "user and system time of all the contender's processes over the good answers", decimals=2),
    "rps": Figure("requests per second", "/s", "good answers within the measured time", False, 0),
    "p50_us": Figure("p50", "us", "latency from when the request was due", decimals=0),
    "p90_us": Figure("p90", "us", "latency from when the request was due", decimals=0),
    "p99_us": Figure("p99", "us", "latency from when the request was due", decimals=0),
    "p999_us": Figure("p99.9", "us", "latency from when the request was due", decimals=0),
    "max_us": Figure("max", "us", "latency from when the request was due", decimals=0),
    "syscalls_per_request": Figure("system calls per request", "", "entered by all its threads, io_uring_enter included",
                                   decimals=2),
    "cpu_us_per_connection": Figure("CPU per new connection", "us", "TCP, TLS handshake, one request, close",
                                    decimals=0),
    "cpu_us_per_handshake": Figure(
        "CPU per handshake", "us",
        "CPU per new connection less the CPU of a request on a kept connection in the same round", decimals=0),
    "handshakes_per_s": Figure("handshakes per second", "/s", "new connections, each with one request", False, 0),
    "mb_per_s": Figure("MB/s", "MB/s", "bodies' bytes, 10^6", False, 0),
    "cpu_ms_per_gb": Figure("CPU per GB", "ms", "CPU time over bodies' bytes, 10^9", decimals=0),
    "rest_kb": Figure("memory at rest", "kB", "Pss of all its processes, before any connection is held", decimals=0),
    "kb_per_connection": Figure(
        "memory per idle connection", "kB", "growth of Pss of all its processes, over the idle TLS connections"),
    "kernel_kb_per_connection": Figure(
        "kernel socket buffers per idle connection", "kB",
        "growth of TCP memory in /proc/net/sockstat, both ends of the connection", decimals=2),
    "lost": Figure("connections lost", "", "idle connections that the contender closed", decimals=0),
    "event_delay_p50_us": Figure("event delay p50", "us", "from the API's clock when sent to the arrival", decimals=0),
    "event_delay_p99_us": Figure("event delay p99", "us", "from the API's clock when sent to the arrival", decimals=0),
    "event_delay_p999_us": Figure("event delay p99.9", "us", "from the API's clock when sent to the arrival", decimals=0),
    "first_event_p99_us": Figure("first event p99", "us", "from the request to the first event", decimals=0),
    "cpu_us_per_event": Figure("CPU per event", "us", "CPU time over the events relayed", decimals=2),
    "failed": Figure("failed requests", "", "errors of any kind under load", decimals=0),
    "quiet_max_us": Figure("max without", "us", "the same load with nothing happening", decimals=0),
    "ms_until_used": Figure("until in use", "ms", "from the change until the API sees the new key", decimals=0),
    "ms_until_last_old": Figure("last use of the old key", "ms", "from the change until the API last saw the old key",
                                decimals=0),
    "evenness": Figure(
        "evenness", "", "CPU time of the second busiest worker over the busiest one's: 1 is even, 0 leaves one idle",
        False, 2),
    "cpu_ratio": Figure("ratio", "x", "of CPU per request, ours over the other's, round by round", decimals=3),
}
