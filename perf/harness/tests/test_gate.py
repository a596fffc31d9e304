import unittest
from unittest import mock

from harness import ceilings, gate, measures
from harness.contender import CannotMeasure

GOOD = '''# Words that stay.

[[ceiling]]
name = "cpu"
scenario = "saturated"
contender = "claviger"
against = "nginx"
figure = "cpu_us_per_request"
ceiling = 0.700
noise = { runs = 20, mean = 0.65, deviation = 0.01, low = 0.63, high = 0.67 }
reason = "why"

[[ceiling]]
name = "memory"
scenario = "saturated"
contender = "claviger"
figure = "rest_kb"
ceiling = 10
reason = "why"
'''
KNOWN = {"saturated"}


def line(contender, cpu, errors=0, memory=5.0):
    return {"contender": contender, "cpu_us_per_request": {"median": 0, "all": cpu},
            "rest_kb": {"median": memory, "all": [memory]}, "errors": {"median": 0, "all": [errors]}}


def run_of(*values):
    """A run that gives these ratios one after the other; and what it was asked for."""
    asked = []

    def run(name, more_rounds):
        asked.append((name, more_rounds))
        ratio = values[len(asked) - 1]
        return [line("claviger", [10 * ratio, 20 * ratio]), line("nginx", [10, 20])]

    return run, asked


class Ceilings(unittest.TestCase):
    def setUp(self):
        self.held = ceilings.parse(GOOD, "it.toml", KNOWN)

    def refused(self, old, new, sentence):
        with self.assertRaises(CannotMeasure) as caught:
            ceilings.parse(GOOD.replace(old, new), "it.toml", KNOWN)
        self.assertIn(sentence, str(caught.exception))

    def test_a_ratio_is_the_median_of_rounds(self):
        lines = [line("claviger", [5, 20, 9]), line("nginx", [10, 20, 10])]
        self.assertAlmostEqual(self.held[0].value(lines), 0.9)
        self.assertEqual(self.held[1].value(lines), 5.0)

    def test_what_was_not_measured_is_an_error_and_not_a_pass(self):
        with self.assertRaisesRegex(CannotMeasure, "nginx has no cpu_us_per_request: it was not measured"):
            self.held[0].value([line("claviger", [5])])
        with self.assertRaisesRegex(CannotMeasure, "failed because: it crashed"):
            self.held[0].value([{"contender": "claviger", "failed_because": "it crashed"}])

    def test_what_is_refused(self):
        self.refused('reason = "why"\n\n', "\n", "`reason` is missing")
        self.refused("ceiling = 10\n", 'ceiling = "10"\n', "`ceiling` must be a number")
        self.refused("ceiling = 10\n", "ceiling = 0\n", "above zero")
        self.refused('"rest_kb"', '"speed"', "there is no figure `speed`")
        self.refused('name = "memory"', 'name = "cpu"', "`cpu` stands twice")
        self.refused('scenario = "saturated"\ncontender = "claviger"\nfigure', 'scenario = "x"\ncontender = "claviger"\nfigure',
                     "`x` is no scenario with a [gate] size")
        self.refused("ceiling = 10\n", "ceiling = 10\nfloor = 3\n", "unknown key `floor`")
        self.refused("deviation = 0.01", "deviation = 0.03", "would go red by chance")
        self.refused("mean = 0.65", 'mean = "0.65"', "finite numbers only")
        self.refused("mean = 0.65", "mean = nan", "finite numbers only")
        self.refused('against = "nginx"', 'against = "nginy"', "`against` must be nginx or wrk")
        self.refused("runs = 20, ", "", "`noise` must have")
        with self.assertRaisesRegex(CannotMeasure, "there is no ceiling"):
            ceilings.parse("", "it.toml", KNOWN)

    def test_the_committed_ones_are_good(self):
        held = ceilings.load()
        self.assertGreaterEqual({one.name for one in held},
                                {"cpu-saturated", "cpu-open", "syscalls", "idle-connection", "loadgen", "mock-upstream"})

    def test_one_without_a_study_is_called_provisional(self):
        cpu, memory = (gate.Verdict(one, 1.0).shown() for one in self.held)
        self.assertNotIn("provisional", cpu)
        self.assertIn("ceiling 10.000 (provisional)", memory)

    def test_an_update_changes_numbers_only(self):
        noise = ceilings.Noise.of([0.50, 0.51, 0.52])
        text = ceilings.updated(GOOD, {"cpu": noise})
        self.assertIn("# Words that stay.", text)
        cpu, memory = ceilings.parse(text, "it.toml", KNOWN)
        self.assertAlmostEqual(cpu.noise.mean, 0.51, places=4)
        self.assertAlmostEqual(cpu.ceiling, 0.54)
        self.assertEqual((memory, cpu.reason), (self.held[1], "why"))
        # Twice is the same as once.
        self.assertEqual(ceilings.updated(text, {"cpu": noise}), text)

    def test_the_margin_never_is_less_than_three_percent(self):
        self.assertAlmostEqual(ceilings.above(ceilings.Noise.of([1.0, 1.0, 1.0])), 1.03)


class Gate(unittest.TestCase):
    def setUp(self):
        self.held = ceilings.parse(GOOD, "it.toml", KNOWN)
        self.said = []

    def judge(self, run, **more):
        return gate.judge(self.held, run, say=self.said.append, **more)

    def test_it_holds_and_measures_once(self):
        run, asked = run_of(0.65)
        self.assertFalse(any(one.red for one in self.judge(run)))
        self.assertEqual(asked, [("saturated", 1)])

    def test_red_counts_only_the_second_time_with_twice_the_rounds(self):
        run, asked = run_of(0.75, 0.66)
        self.assertFalse(any(one.red for one in self.judge(run)))
        self.assertEqual(asked, [("saturated", 1), ("saturated", 2)])
        run, asked = run_of(0.75, 0.75)
        cpu, memory = self.judge(run)
        self.assertTrue(cpu.red)
        self.assertFalse(memory.red)
        self.assertTrue(any("RED" in line and "attempt 2" in line for line in self.said))

    def test_a_study_takes_the_first_verdict(self):
        run, asked = run_of(0.75)
        self.assertTrue(self.judge(run, retry=False)[0].red)
        self.assertEqual(len(asked), 1)

    def test_errors_are_red_whatever_they_cost(self):
        def run(name, more_rounds):
            return [line("claviger", [1], errors=2), line("nginx", [10])]

        verdict = self.judge(run)[0]
        self.assertTrue(verdict.red)
        self.assertIn("2 errors", verdict.shown())

    def test_a_rate_that_only_nginx_holds_is_red(self):
        def run(name, more_rounds):
            return [{"contender": "claviger", "not_held": 7_000, "rate": 10_000}, line("nginx", [10])]

        verdict = self.judge(run)[0]
        self.assertTrue(verdict.red)
        self.assertIn("RED      cpu: answers 7,000/s of 10,000/s offered, which nginx holds, attempt 2", verdict.shown())

    def test_the_verdict_shows_the_rate(self):
        def run(name, more_rounds):
            return [{**line("claviger", [5]), "rate": 8_000}, line("nginx", [10])]

        self.assertIn(", at 8,000/s", self.judge(run)[0].shown())

    def test_a_load_that_lagged_in_most_rounds_is_red(self):
        for lagging, red in ((2, True), (1, False)):
            def run(name, more_rounds):
                return [line("claviger", [1, 1, 1]), {**line("nginx", [10, 10, 10]), "invalid_rounds": lagging, "rounds": 3}]

            self.assertEqual(self.judge(run)[0].red, red)

    def test_a_misspelt_ceiling_is_refused_next_to_a_known_one(self):
        self.assertEqual(gate.chosen(self.held, ["cpu"]), self.held[:1])
        self.assertEqual(gate.chosen(self.held, None), self.held)
        with self.assertRaisesRegex(CannotMeasure, "no ceiling is called cqu; there are cpu, memory"):
            gate.chosen(self.held, ["cpu", "cqu"])

    def test_what_is_red_already_proves_nothing(self):
        with mock.patch.object(gate, "value_with", lambda options, one, instructions: 0.71):
            with self.assertRaisesRegex(CannotMeasure, "cpu: cannot prove anything"):
                gate.prove(None, self.held, 12)

    def test_the_others_errors_are_not_ours(self):
        def run(name, more_rounds):
            return [line("claviger", [1]), line("nginx", [10], errors=2)]

        self.assertFalse(any(one.red for one in self.judge(run)))

    def test_what_the_machine_forbids_is_said_and_not_passed_over(self):
        def run(name, more_rounds):
            raise measures.NotPermitted("tracing is forbidden")

        verdicts = self.judge(run)
        self.assertTrue(all(one.value is None and not one.red for one in verdicts))
        self.assertIn("NOT HELD cpu: tracing is forbidden", self.said)

    def test_a_study_says_what_it_saw(self):
        text = gate.steadiness(self.held[0], [0.64, 0.65, 0.66] * 6)
        self.assertIn("mean 0.650, deviation 1.3%, 0.640 to 0.660", text)
        self.assertIn("0 of 18 runs", text)
        self.assertIn("fewer than one in a million", text)


if __name__ == "__main__":
    unittest.main()
