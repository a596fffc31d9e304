import contextlib
import ctypes
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from harness import bench, compare, contender, history, idle, machine, measures, render, scenario, slowdown, tables
from harness.contender import CannotMeasure


def document(**target):
    latency = {"p50": 1.0, "p90": 2.0, "p99": 3.0, "p99.9": 4.0, "max": 5.0}
    return {
        "targets": [{"rps": 100.0, "latency": latency, "errors_total": 0, "errors": {}, "requests": 200, "good": 200,
                     **target}],
        "generator": {"cpu_user_s": 0.5, "cpu_system_s": 0.6, "spun_s": 0.1, "cpu_us_per_request": 1.0,
                      "lag": {"p99": 7.0}},
        "watched": {"direct": {"cpu_s": 0.8, "cpu_us_per_request": 2.0}, "nginx": {"cpu_s": 0.004}},
        "valid": True, "duration_s": 2.0, "connections": 32,
    }


class Reading(unittest.TestCase):
    def test_cpu_is_taken_over_good_answers(self):
        found = measures.figures("nginx", document())
        self.assertAlmostEqual(found["cpu_us_per_request"], 20.0)
        # Spinning is no work.
        self.assertAlmostEqual(found["load_core_busy"], 0.9)
        self.assertNotIn("error_kinds", found)
        found = measures.figures("nginx", document(good=100, errors_total=3, errors={"reset": 1, "timeout": 2}))
        self.assertAlmostEqual(found["cpu_us_per_request"], 40.0)
        self.assertEqual(found["error_kinds"], {"reset": 1, "timeout": 2})

    def test_errors_of_all_rounds_add_up(self):
        class Bench:
            running = {"nginx": measures.Row("", "", "nginx", "1", {})}
            failed = {"caddy": "ended\nwith a long log"}

        Bench.running["nginx"].tls = Bench.running["nginx"].upstream_tls = ""
        rounds = [measures.figures("nginx", document(errors_total=1, errors={"reset": 1})),
                  measures.figures("nginx", document(errors_total=5, errors={"reset": 1, "unsent": 4}))]
        nginx, caddy = measures.rows(Bench, scenario.load("saturated"), {"nginx": rounds})
        self.assertEqual(nginx.marks["note"], "errors: 2 reset; the judge's end cut off 4 requests")
        self.assertEqual(nginx.figures["errors"], [1, 1])
        self.assertEqual(caddy.marks, {"failed_because": "ended"})

    def test_a_backlog_is_the_contenders(self):
        queue = measures.figures("nginx", document(errors_total=32, errors={"unsent": 32}))
        self.assertEqual((queue["errors"], queue.get("error_kinds"), queue["cut_off"]), (0, None, 32))
        backlog = measures.figures("nginx", document(errors_total=33, errors={"unsent": 33}))
        self.assertEqual((backlog["errors"], backlog["error_kinds"]), (33, {"unsent": 33}))
        self.assertNotIn("cut_off", backlog)
        self.assertEqual(measures.absolute(document(errors_total=9, errors={"unsent": 8, "tls": 1})["targets"][0], 8)["errors"],
                         [1])

    def test_a_port_is_not_one_that_the_kernel_gives_to_whoever_connects(self):
        with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as given:
            first, last = map(int, given.read().split())
        self.assertFalse([port for port in (machine.free_port() for _ in range(50)) if first <= port <= last])

    def test_a_contender_whose_core_others_use_is_marked(self):
        class Bench:
            running = {"nginx": measures.Row("", "", "nginx", "1", {})}
            failed = {}

        Bench.running["nginx"].tls = Bench.running["nginx"].upstream_tls = ""
        for busy, load, starved in ((0.3, 0.3, True), (0.97, 0.3, None), (0.3, 0.97, None)):
            one = {**measures.figures("nginx", document()), "proxy_core_busy": busy, "load_core_busy": load}
            row, = measures.rows(Bench, scenario.load("saturated"), {"nginx": [one]})
            self.assertEqual(row.marks.get("starved"), starved)
        starved = {"scenario": "growth-connections", "at": 32, "starved": True}
        self.assertIn("starved", tables.remarks(starved)[0])
        self.assertNotIn("starved", tables.remarks({**starved, "at": 1})[0])

    def test_a_body_is_counted_in_gigabytes(self):
        found = measures.bulk("nginx", document(), 10_000_000)
        self.assertAlmostEqual(found["mb_per_s"], 5.0)
        self.assertAlmostEqual(found["cpu_ms_per_gb"], 400.0)
        self.assertNotIn("cpu_us_per_request", found)
        with self.assertRaisesRegex(CannotMeasure, "no whole body"):
            measures.bulk("nginx", document(), 0)

    def test_what_perf_and_strace_print(self):
        self.assertEqual(measures.parse_perf("# started\n\n1234,,raw_syscalls:sys_enter,5,100.00,,\n"), 1234)
        with self.assertRaisesRegex(CannotMeasure, "did not count"):
            measures.parse_perf("<not supported>,,raw_syscalls:sys_enter,0,100.00,,\n")
        with self.assertRaisesRegex(CannotMeasure, "no count"):
            measures.parse_perf("")
        summary = "% time seconds usecs/call calls errors syscall\n 99.0 0.1 1 40 2 read\n100.00 0.1 1 44 2 total\n"
        self.assertEqual(measures.parse_strace(summary), 44)
        with self.assertRaisesRegex(CannotMeasure, "no total"):
            measures.parse_strace("nothing")

    def test_what_wrk_prints(self):
        self.assertEqual(measures.parse_wrk("  2000 requests in 2.10s, 1MB read"), (2000, 2.1))
        self.assertEqual(measures.parse_wrk("  2000 requests in 1.50m, 1MB read"), (2000, 90.0))
        for text in ("nothing", "2000 requests in 2.1s, \nNon-2xx or 3xx responses: 5",
                     "2000 requests in 2.1s, \n  Socket errors: connect 0, read 1"):
            with self.assertRaisesRegex(CannotMeasure, "wrk was not answered"):
                measures.parse_wrk(text)

    def test_what_the_kernel_prints(self):
        self.assertEqual(machine.parse_pss("Rss: 5 kB\nPss:        42 kB\nPss_Anon: 3 kB\n"), 42)
        self.assertEqual(machine.parse_sockstat("sockets: used 9\nTCP: inuse 5 orphan 0 tw 1 alloc 7 mem 12\n"), 12)
        self.assertGreater(machine.pss_kb([os.getpid()]), 1000)
        self.assertGreaterEqual(machine.tcp_memory_kb(), 0)
        self.assertGreater(machine.cpu_seconds([os.getpid()]), 0)

    def test_header_counts_hold_those_of_the_load(self):
        self.assertEqual(measures.extra_headers(4), [])
        self.assertEqual(len(measures.extra_headers(20)), 2 * 16)

    def test_an_answer_is_complete_by_length_or_last_chunk(self):
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
        chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
        self.assertIsNone(bench.complete_answer(head + b"o"))
        self.assertEqual(bench.complete_answer(head + b"ok"), b"ok")
        self.assertIsNone(bench.complete_answer(chunked[:-4]))
        self.assertEqual(bench.complete_answer(chunked), b"ok")
        self.assertFalse(idle.complete(head + b"o"))
        self.assertTrue(idle.complete(head + b"ok"))
        self.assertTrue(idle.complete(chunked))

    def test_a_key_watch_tells_first_and_last(self):
        watch = measures.KeyWatch.__new__(measures.KeyWatch)
        watch.seen = [(9.0, 9.1, "old"), (10.1, 10.2, "old"), (10.2, 10.3, "new"), (10.4, 10.5, "old"),
                      (10.6, 10.7, "new")]
        first, last_old = watch.since(10.0, "new")
        self.assertAlmostEqual(first, 0.3)
        self.assertAlmostEqual(last_old, 0.4)
        self.assertEqual(watch.since(10.65, "other")[0], None)


class Counting(unittest.TestCase):
    def test_good_answers_that_the_api_did_not_give_are_refused(self):
        asked = {"targets": [{"name": "nginx", "good": 100}, {"name": "direct", "good": 50}]}
        seen = {"endpoints": {"ok": 150, "echo": 99}, "unauthorized": 0}
        bench.check_answers(asked, seen, "ok")
        bench.check_answers(asked, {**seen, "endpoints": {"ok": 170}}, "ok")
        for wrong in ({"endpoints": {"ok": 149}}, {"endpoints": {"echo": 150}}, {"unauthorized": 1}):
            with self.assertRaisesRegex(CannotMeasure, "150 good answers came through nginx, direct, but the API gave"):
                bench.check_answers(asked, {**seen, **wrong}, "ok")

    def test_log_lines_are_counted_in_all_files(self):
        with tempfile.TemporaryDirectory() as directory:
            (Path(directory) / "state").mkdir()
            (Path(directory) / "access.log").write_text('{"path":"/ok"}\n{"path":"/echo"}\n{"path":"/ok"}\n')
            (Path(directory) / "state" / "audit").write_text('{"path":"/ok","again":"/ok"}\n{"path":"/okay"}\n')
            self.assertEqual(bench.log_lines(directory, "/ok"), 3)


class Ending(unittest.TestCase):
    def test_a_child_ends_when_we_are_killed(self):
        program = ("import subprocess, sys, time\nfrom harness import machine\n"
                   "child = subprocess.Popen(['sleep', '60'], preexec_fn=machine.dies_with_us())\n"
                   "print(child.pid, flush=True)\ntime.sleep(60)")
        with subprocess.Popen([sys.executable, "-B", "-c", program], stdout=subprocess.PIPE, text=True,
                              cwd=contender.PERF) as parent:
            # The child holds the other end of this pipe too: it is closed when both have ended.
            child = int(parent.stdout.readline())
            parent.kill()
            self.assertEqual(parent.stdout.read(), "")
        self.assertGreater(child, 0)

    def test_what_the_kernel_says_of_an_autogroup(self):
        self.assertEqual(machine.autogroup_nice("/autogroup-123 nice -5\n"), -5)
        self.assertEqual(machine.autogroup_nice(""), 0)


class Arguments(unittest.TestCase):
    def test_what_cannot_be_measured_is_refused_before_the_load(self):
        for given in (["--rounds", "0"], ["--rounds", "-1"], ["--seconds", "nan"], ["--seconds", "0.001"], ["--rates", "0"],
                      ["--contenders", "direct"], ["--contenders", ","], ["--contenders", "nginx,nginx"],
                      ["--history", "/nowhere/at/all"]):
            with self.subTest(given), contextlib.redirect_stderr(io.StringIO()) as said:
                with self.assertRaises(SystemExit):
                    compare.parse_args(["--no-history", *given] if given[0] != "--history" else given)
                self.assertIn(given[0], said.getvalue())
        good = compare.parse_args(["--no-history", "--rounds", "1", "--seconds", "0.5", "--rates", "5,10"])
        self.assertEqual((good.rounds, good.seconds, good.rates), (1, 0.5, [5, 10]))


class Templates(unittest.TestCase):
    def test_only_names_between_at_signs_are_filled(self):
        path = os.path.join(os.path.dirname(__file__), "..", "return-200.conf")
        text = contender.fill(path, DIR="/d", PORT=1, CERT="c", CERT_KEY="k")
        self.assertNotIn("@", text)
        self.assertIn("listen 127.0.0.1:1 ssl", text)
        with self.assertRaises(KeyError):
            contender.fill(path, DIR="/d")

    def test_hosts_end_with_the_one_that_is_asked(self):
        job = contender.Job(None, 1, "api.example.com", 2, None, None, None, None, "", None, 0, 1, [0], 3, None)
        self.assertEqual(job.hosts(), ["r00001.example.com", "r00002.example.com", "api.example.com"])

    def test_every_contender_loads_and_says_who_it_is(self):
        for name in contender.known():
            one = contender.load(name)
            self.assertTrue(one.title, name)
        with self.assertRaisesRegex(CannotMeasure, "there is no contender `squid`"):
            contender.load("squid")


class Slowdown(unittest.TestCase):
    def test_instructions_are_shared_out(self):
        self.assertEqual(slowdown.parts(9_000), [4_000, 4_000, 1_000])
        self.assertEqual(slowdown.parts(4_000), [4_000])
        for wrong in (0, slowdown.INSTRUCTIONS_MAX + 1):
            with self.assertRaises(ValueError):
                slowdown.parts(wrong)
        words = slowdown.program(10)
        self.assertEqual(len(words), 12)
        self.assertEqual(ctypes.sizeof(slowdown._Instruction), 8)

    def test_system_calls_cost_more_and_do_the_same(self):
        calls = "import os, time\nt = time.process_time()\nfor _ in range(20000): os.getppid()\nprint(time.process_time() - t)"

        def cost(before):
            done = subprocess.run([sys.executable, "-S", "-c", calls], preexec_fn=before, capture_output=True, text=True,
                                  check=True)
            return float(done.stdout)

        try:
            slow = cost(slowdown.dearer_system_calls(slowdown.INSTRUCTIONS_MAX))
        except subprocess.SubprocessError:
            self.skipTest("seccomp filters are forbidden here")
        self.assertGreater(slow, 2 * cost(None))


class History(unittest.TestCase):
    def test_ratios_hold_within_a_scenario_and_a_value(self):
        def row(contender, at, cpu):
            return measures.Row("growth", "growth", contender, "v", {"rounds": 2}, at, {"cpu_us_per_request": cpu},
                                {"valid": True, "note": ""})

        lines = history.lines([row("claviger", 1, [1.0, 2.0]), row("nginx", 1, [2.0, 4.0]), row("claviger", 8, [3.0]),
                               row("nginx", 8, [3.0]), row("direct", 8, [3.0])], {"time": "t"})
        self.assertEqual([line.get("cpu_ratio_to_nginx", {}).get("all") for line in lines],
                         [[0.5, 0.5], None, [1.0], None, None])
        self.assertEqual(lines[0]["at"], 1)
        self.assertNotIn("note", lines[0])

    def test_the_committed_history_can_be_read(self):
        found = history.published(history.read())
        self.assertGreater(len(found), 5)
        for line in found:
            tables.terminal([line])

    def test_a_line_that_was_cut_off_swallows_no_other(self):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "history"
            history.append(path, [{"a": 1}])
            path.write_text(path.read_text() + '{"b": ')
            self.assertEqual(history.read(path), [{"a": 1}])
            history.append(path, [{"c": 1}])
            self.assertEqual(path.read_text().splitlines(), ['{"a": 1}', '{"b": ', '{"c": 1}'])
            with self.assertRaisesRegex(CannotMeasure, "line 2: "):
                history.read(path)

    def test_binaries_are_told_apart_and_old_ones_found(self):
        with tempfile.TemporaryDirectory() as directory:
            (Path(directory) / "proxy").mkdir()
            (Path(directory) / "proxy" / "main.rs").write_text("")
            (Path(directory) / "claviger").write_bytes(b"program")
            found = machine.binaries(directory, ["claviger", "loadgen"])
            self.assertEqual(found["claviger"]["sha256"], hashlib.sha256(b"program").hexdigest()[:12])
            self.assertEqual(list(found), ["claviger"])
            os.utime(Path(directory) / "claviger", (1, 1))
            self.assertEqual(machine.older_than_source(machine.binaries(directory, ["claviger"]), directory), ["claviger"])
            os.utime(Path(directory) / "proxy" / "main.rs", (1, 1))
            self.assertEqual(machine.older_than_source(machine.binaries(directory, ["claviger"]), directory), [])

    @staticmethod
    def line(scenario, time, commit="abc", dirty=False, machine="this one", **more):
        return {"scenario": scenario, "time": time, "commit": commit, "dirty": dirty, "machine": machine, **more}

    def test_only_whole_runs_of_full_size_are_shown(self):
        lines = [self.line("a", "1"), self.line("a", "2", size="quick"), self.line("a", "3", partial=True)]
        self.assertEqual(history.published(lines), lines[:1])

    def test_the_last_run_of_each_scenario_counts(self):
        lines = [self.line("a", "1"), self.line("a", "2"), self.line("b", "1")]
        self.assertEqual(history.published(lines), lines[1:])

    def test_another_commit_or_machine_is_never_mixed_in(self):
        lines = [self.line("a", "1"), self.line("b", "1"), self.line("a", "2", "def"),
                 self.line("b", "3", "def", machine="another")]
        self.assertEqual(history.published(lines), lines[3:])
        self.assertEqual(history.published(lines, "abc"), lines[:2])
        # The newest that has all of them counts, though single scenarios were measured later.
        self.assertEqual(history.published(lines, needed=["a", "b"]), lines[:2])
        self.assertEqual(history.published([], needed=["a"]), [])

    def test_the_same_programs_may_be_measured_at_two_commits(self):
        built = {"claviger": {"sha256": "one", "built": 1}}
        rebuilt = {"claviger": {"sha256": "two", "built": 1}}
        lines = [self.line("a", "1", binaries=built), self.line("b", "2", "def", binaries={**built}),
                 self.line("b", "3", "ghi", binaries=rebuilt)]
        self.assertEqual(history.published(lines, needed=["a", "b"]), lines[:2])
        self.assertEqual(history.published(lines), lines[2:])
        shown = render.machine_lines([{**line, "contender": "claviger", "version": "1"} for line in lines[:2]])
        self.assertIn("commit `abc` and `def`", shown)

    def test_a_clean_tree_goes_before_a_newer_changed_one(self):
        lines = [self.line("a", "1"), self.line("a", "2", "def", dirty=True), self.line("b", "2", "def", dirty=True)]
        self.assertEqual(history.published(lines, needed=["a", "b"]), lines[:1])
        self.assertEqual(history.published(lines[1:]), lines[1:])

    def test_a_scenario_with_rates_is_whole_by_its_rates(self):
        lines = [self.line("open-1000", "1"), self.line("added-poisson-1000", "1"), self.line("open-1000", "2", "def")]
        self.assertEqual(history.published(lines, needed=["open", "added-poisson"]), lines[:2])
        self.assertFalse(history.belongs("added-poisson-1000", "added"))


class Tables(unittest.TestCase):
    LINE = {"scenario": "saturated", "kind": "saturated", "contender": "claviger",
            "rps": {"median": 65432.1, "all": [65432.1]}, "cpu_us_per_request": {"median": 14.7, "all": [14.2, 15.0]},
            "load_core_busy": {"median": 0.95, "all": [0.95]}, "errors": {"median": 0, "all": [0]},
            "cpu_ratio_to_nginx": {"median": 0.6, "all": [0.58, 0.62]}}

    def test_what_the_judge_limited_stands_in_brackets(self):
        self.assertEqual(tables.cell(self.LINE, "rps"), "65,432")
        self.assertEqual(tables.cell({**self.LINE, "judge_bound": True}, "rps"), "[65,432]")
        self.assertEqual(tables.cell({**self.LINE, "judge_bound": True}, "cpu_us_per_request"), "14.70")

    def test_so_does_every_figure_of_the_load_s_own_core(self):
        added = {"added_us": {"p50": {"difference": 81.4, "low": 70, "high": 90, "finding": "slower"},
                              "p99": {"difference": -3.2, "low": -20, "high": 9, "finding": "below the noise"}}}
        self.assertEqual([tables.cell({**added, "judge_bound": True}, f"added:{q}") for q in ("p50", "p99")],
                         ["[+81]", "[(-3)]"])
        for figure in ("p50_us", "p999_us", "event_delay_p99_us", "mb_per_s", "handshakes_per_s"):
            self.assertTrue(tables.judges_own({"judge_bound": True}, figure))
            self.assertFalse(tables.judges_own({"judge_bound": False}, figure))
        self.assertFalse(tables.judges_own({"judge_bound": True}, "cpu_ms_per_gb"))

    def test_added_latency_below_the_noise_stands_in_brackets(self):
        line = {"added_us": {"p50": {"difference": 81.4, "low": 70, "high": 90, "finding": "slower"},
                             "p99": {"difference": -3.2, "low": -20, "high": 9, "finding": "below the noise"}}}
        self.assertEqual([tables.cell(line, f"added:{q}") for q in ("p50", "p99", "p90")], ["+81", "(-3)", ""])

    def test_a_table_has_a_line_each_in_our_order(self):
        nginx = {**self.LINE, "contender": "nginx"}
        nginx.pop("cpu_ratio_to_nginx")
        lines = tables.terminal([{"scenario": "saturated", "contender": "caddy", "failed_because": "it ended"}, nginx,
                                 {**self.LINE, "judge_bound": True}]).splitlines()
        self.assertEqual([line.split()[0] for line in lines[1:]], ["Claviger", "nginx", "Caddy"])
        self.assertIn("0.600 (0.58-0.62)", lines[1])
        self.assertTrue(lines[1].endswith("judge-bound"))
        self.assertTrue(lines[3].endswith("could not be measured: it ended"))


if __name__ == "__main__":
    unittest.main()
