import contextlib
import io
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from harness import bench, compare, history, measures, reckoning, scenario
from harness.contender import CannotMeasure


class Process:
    # Above every number that the kernel gives.
    pid = 1 << 30

    def __init__(self, code=None):
        self.code = code

    def poll(self):
        return self.code

    def terminate(self):
        self.code = 0

    def wait(self, timeout=None):
        return self.code


class FakeBench:
    """As much of a bench as turns need."""

    drop, check_alive = bench.Bench.drop, bench.Bench.check_alive

    def __init__(self, *names, loadgen=lambda names, *options: {}):
        self.names, self.failed, self.asked = list(names), {}, []
        self.running = {name: mock.Mock(process=Process(), version="1", tls="", upstream_tls="")
                        for name in [*names, "direct"]}
        self.load = loadgen

    def loadgen(self, names, *options):
        self.asked.append(list(names))
        return self.load(names, *options)

    def output(self, name):
        return "its log"


def quiet(work):
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        return work()


class Failing(unittest.TestCase):
    """One that fails stops nobody else, and leaves a row that says why."""

    def test_in_a_turn_or_while_it_is_warmed_up(self):
        one = scenario.load("churn")

        def loadgen(names, *options):
            if names == ["caddy"]:
                raise CannotMeasure("caddy ended with 2:\nlong words")
            return {}

        def turn(name):
            if name == "envoy":
                raise OSError("refused")
            return {"rps": 1.0}

        fake = FakeBench("claviger", "nginx", "envoy", "caddy", loadgen=loadgen)
        results = quiet(lambda: measures.interleave(fake, one, turn, lambda *_: None, "churn"))
        self.assertEqual({name: len(rounds) for name, rounds in results.items()},
                         {"claviger": one.rounds, "nginx": one.rounds})
        rows = {row.contender: row.marks.get("failed_because") for row in measures.rows(fake, one, results)}
        self.assertEqual(rows, {"claviger": None, "nginx": None, "envoy": "refused", "caddy": "caddy ended with 2: long words"})

    def test_a_reason_is_one_line(self):
        for text, line in (("a\nb", "a"), ("a:\nb\n\nc\n", "a: c"), ("a:", "a"), (" \n", "no reason given"),
                           ("x" * 999, "x" * measures.REASON_CHARACTERS)):
            self.assertEqual(measures.first_sentence(text), line)

    def test_claviger_too(self):
        fake = FakeBench("claviger", "nginx")

        def turn(name):
            if name == "claviger":
                raise CannotMeasure("claviger ended")
            return {"rps": 1.0}

        self.assertEqual(list(quiet(lambda: measures.interleave(fake, scenario.load("churn"), turn, lambda *_: None, ""))),
                         ["nginx"])
        with self.assertRaisesRegex(CannotMeasure, "the API ended"):
            fake.drop("direct", CannotMeasure("the API ended"))

    def test_one_that_ended_though_something_still_answers(self):
        fake = FakeBench("claviger", "nginx")

        def turn(name):
            if name == "nginx":
                fake.running[name].process = Process(-9)
            return {"rps": 1.0}

        one = scenario.load("churn")
        results = quiet(lambda: measures.interleave(fake, one, turn, lambda *_: None, ""))
        self.assertEqual({name: len(rounds) for name, rounds in results.items()}, {"claviger": one.rounds})
        self.assertEqual(fake.failed, {"nginx": "nginx ended during the run:\nits log"})

    def test_while_all_are_driven_at_once(self):
        def loadgen(names, *options):
            if "caddy" in names:
                fake.running["caddy"].process = Process(2)
                raise CannotMeasure("caddy ended with 2")
            return {"duration_s": 1.0}

        fake = FakeBench("nginx", "caddy", loadgen=loadgen)
        document = quiet(lambda: measures.side_by_side(fake, scenario.load("added"), 1000, ["nginx", "caddy"]))
        self.assertEqual(document, {"duration_s": 1.0})
        self.assertEqual(fake.asked, [["nginx", "caddy", "direct"], ["nginx", "direct"]])
        self.assertEqual(fake.failed, {"caddy": "caddy ended with 2"})

    def test_what_fails_though_nobody_ended_is_not_tried_forever(self):
        def loadgen(names, *options):
            raise CannotMeasure("loadgen ended with 2")

        fake = FakeBench("nginx", loadgen=loadgen)
        with self.assertRaisesRegex(CannotMeasure, "loadgen ended with 2"):
            measures.side_by_side(fake, scenario.load("added"), 1000, ["nginx"])
        self.assertEqual(len(fake.asked), 1)

    def test_one_that_fails_while_a_rate_is_tried_takes_no_further_part(self):
        def loadgen(names, *options):
            raise CannotMeasure("it ended")

        fake = FakeBench("nginx", "caddy", loadgen=loadgen)
        self.assertIsNone(quiet(lambda: measures.probe_or_drop(fake, scenario.load("open"), "caddy", 1000)))
        self.assertEqual((fake.names, list(fake.failed)), (["nginx"], ["caddy"]))


class Holding(unittest.TestCase):
    def test_a_rate_counts_as_held_if_one_of_two_tries_holds_it(self):
        for tries, found in (([1000.0], 1000.0), ([500.0, 990.0], 990.0), ([600.0, 500.0], 600.0)):
            rates = iter(tries)

            def loadgen(names, *options):
                return {"targets": [{"rps": next(rates), "errors_total": 0}]}

            fake = FakeBench("nginx", loadgen=loadgen)
            self.assertEqual(measures.probe(fake, scenario.load("open"), "nginx", 1000), found)
            self.assertEqual(len(fake.asked), len(tries))


class Runs(unittest.TestCase):
    """What is left in the history by a run that did not go as it should."""

    def run_with(self, measure):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "history"
            with contextlib.redirect_stderr(io.StringIO()):
                arguments = compare.parse_args(["--scenarios", "syscalls,idle,churn", "--contenders", "claviger,nginx",
                                                "--history", str(path)])
            options = mock.Mock(contenders=arguments.contenders, verbose=False)
            with mock.patch.object(compare, "prepare", return_value=options), \
                    mock.patch.object(measures, "measure", measure):
                try:
                    code = quiet(lambda: compare.compare(arguments))
                except KeyboardInterrupt:
                    code = "interrupted"
            return code, [(line["scenario"], line["contender"], line.get("failed_because"), line.get("partial", False))
                          for line in history.read(path)]

    @staticmethod
    def row(one, contender):
        return measures.Row(one.name, one.kind, contender, "1", one.shown(), None, {"rest_kb": [1.0]})

    def test_an_interrupted_one_keeps_what_was_done(self):
        def measure(options, one, tell):
            yield self.row(one, "claviger")
            if one.name == "idle":
                raise KeyboardInterrupt
            yield self.row(one, "nginx")

        self.assertEqual(self.run_with(measure), ("interrupted", [
            ("syscalls", "claviger", None, False), ("syscalls", "nginx", None, False), ("idle", "claviger", None, True)]))

    def test_a_scenario_that_cannot_go_on_leaves_its_reason_and_the_next_is_measured(self):
        def measure(options, one, tell):
            yield self.row(one, "claviger")
            if one.name == "idle":
                raise CannotMeasure("no memory\nmany words")
            yield self.row(one, "nginx")

        code, lines = self.run_with(measure)
        self.assertEqual(code, 2)
        self.assertEqual(lines[2:], [("idle", "claviger", None, True), ("idle", "nginx", "no memory", True),
                                     ("churn", "claviger", None, False), ("churn", "nginx", None, False)])

    def test_the_judges_own_scenarios_name_their_own(self):
        rows = measures.unmeasured(scenario.load("mock"), ["claviger", "nginx"], [], "wrk is missing")
        self.assertEqual([row.contender for row in rows], ["mock-upstream", "nginx"])


class Reckoning(unittest.TestCase):
    def test_a_full_run_with_everybody_takes_about_three_quarters_of_an_hour(self):
        minutes = reckoning.run(scenario.load_all(), 6) / 60
        self.assertLess(minutes, 46)
        self.assertGreater(minutes, 30)

    def test_every_scenario_is_reckoned_and_grows_with_what_it_measures(self):
        for one in scenario.load_all():
            few, many = reckoning.seconds(one, 2), reckoning.seconds(one, 6)
            self.assertGreater(few, one.seconds)
            self.assertEqual(many > few, one.kind not in ("judge", "mock"), one.name)
            if quick := one.sized("quick"):
                self.assertLess(reckoning.seconds(quick, 6), many, one.name)

    def test_the_list_tells_it(self):
        said = io.StringIO()
        arguments = compare.parse_args(["--list", "--contenders", "claviger,nginx"])
        with contextlib.redirect_stdout(said):
            self.assertEqual(compare.compare(arguments), 0)
        self.assertRegex(said.getvalue(), r"(?m)^syscalls +syscalls +\d+ s  System calls")
        self.assertRegex(said.getvalue(), r"(?m)^about \d+ min with claviger, nginx$")


if __name__ == "__main__":
    unittest.main()
