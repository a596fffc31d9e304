import argparse
import contextlib
import dataclasses
import io
import json
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from harness import ceilings, gate, measures, slowdown
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

    def test_ten_percent_above_each_committed_ceiling_is_red_and_below_it_is_not(self):
        for one in ceilings.load():
            for value, red in ((one.ceiling * 1.1, True), (one.ceiling * 1.001, True), (one.ceiling * 0.999, False)):
                def run(name, more_rounds):
                    lines = [{"contender": one.contender, one.figure: {"median": value, "all": [value] * 3}}]
                    if one.against:
                        lines.append({"contender": one.against, one.figure: {"median": 1.0, "all": [1.0] * 3}})
                    return [{**line, **({"at": one.at} if one.at else {})} for line in lines]

                verdict, = gate.judge([one], run, say=self.said.append)
                self.assertEqual((verdict.red, verdict.attempts), (red, 2 if red else 1), one.name)

    def test_a_study_that_was_cut_off_goes_on_and_one_bad_run_does_not_end_it(self):
        outcomes = [0.64, CannotMeasure("no answer"), 0.66]

        def judged(*_, **__):
            outcome = outcomes.pop(0)
            if isinstance(outcome, CannotMeasure):
                raise outcome
            return [gate.Verdict(self.held[0], outcome)]

        with tempfile.TemporaryDirectory() as directory, mock.patch.object(gate, "judge", judged), \
                contextlib.redirect_stdout(io.StringIO()) as said:
            values = Path(directory) / "values.json"
            values.write_text(json.dumps({"cpu": [0.61, 0.62], "gone": [1.0]}))
            arguments = argparse.Namespace(study=4, values=str(values), update=False)
            self.assertEqual(gate.study(None, self.held[:1], arguments), 0)
            self.assertEqual(json.loads(values.read_text()), {"cpu": [0.61, 0.62, 0.64, 0.66]})
            self.assertIn("run 4 could not be measured: no answer", said.getvalue())
            outcomes[:] = [CannotMeasure("no answer")] * (gate.STUDY_FAILURES_MAX + 1)
            with self.assertRaises(CannotMeasure):
                gate.study(None, self.held[:1], argparse.Namespace(study=5, values=str(values), update=False))

    def test_a_study_says_what_it_saw(self):
        text = gate.steadiness(self.held[0], [0.64, 0.65, 0.66] * 6)
        self.assertIn("mean 0.650, deviation 1.3%, 0.640 to 0.660", text)
        self.assertIn("0 of 18 runs", text)
        self.assertIn("fewer than one in a million", text)


class Proof(unittest.TestCase):
    """The proof's own verdicts, with a program whose figure rises by a known amount for each instruction."""

    def setUp(self):
        self.one = ceilings.parse(GOOD, "it.toml", KNOWN)[0]
        self.twin = dataclasses.replace(self.one, contender="claviger-slowed")
        self.asked = []

    def proof(self, effect, plain=0.6, errors=0, percent=10):
        def run(amount, rounds):
            self.asked.append((amount, rounds))
            return lambda: [line("claviger", [10 * plain] * 3), line("nginx", [10] * 3),
                            line("claviger-slowed", [10 * (plain + effect(amount))] * 3, errors=errors)]

        return gate.proof_of(self.one, self.twin, gate.means(self.one), percent, run)

    def test_it_is_lifted_to_so_much_above_its_ceiling(self):
        proof = self.proof(lambda amount: amount * 2e-5)
        # From 0.60 to 0.77, a tenth above 0.70.
        self.assertEqual(self.asked, [(gate.TRIED_INSTRUCTIONS, gate.TRY_ROUNDS),
                                      (8_500, gate.TRY_ROUNDS), (8_500, None)])
        self.assertTrue(proof.good)
        self.assertEqual(proof.shown(), "PROVED cpu: 0.600 x nginx's as it is, 0.770 x nginx's (+28%) with 8,500 "
                                        "instructions in each system call, ceiling 0.700")

    def test_a_gate_that_sleeps_is_not_proved(self):
        # The effect wears off: the run that counts shows none.
        effects = iter([0.1, 0.17, 0.0])
        proof = self.proof(lambda amount: next(effects))
        self.assertFalse(proof.good)
        self.assertIn("MISSED cpu", proof.shown())
        self.assertIn("the slow-down is not seen", proof.shown())

    def test_an_effect_that_is_no_straight_line_is_found(self):
        square = lambda amount: (amount / 10_000) ** 2
        self.assertAlmostEqual(self.proof(square).slowed.value, 0.77, delta=0.06)
        self.assertEqual(gate.amount_for(5, [(10, 2.0), (20, 8.0)], 100), 15)
        self.assertEqual(gate.amount_for(1, [(10, 2.0), (20, 8.0)], 100), 5)
        self.assertEqual(gate.amount_for(16, [(10, 2.0), (20, 8.0)], 100), 40)
        self.assertEqual(gate.amount_for(99, [(10, 2.0), (20, 8.0)], 100), 100)

    def test_no_effect_at_all_is_tried_with_the_most_there_is(self):
        self.assertFalse(self.proof(lambda amount: 0.0).good)
        self.assertEqual(self.asked[-1], (slowdown.INSTRUCTIONS_MAX, None))

    def test_what_is_red_already_proves_nothing(self):
        proof = self.proof(lambda amount: amount * 2e-5, plain=0.71)
        self.assertFalse(proof.good)
        self.assertIn("it is red as it is", proof.shown())

    def test_red_by_errors_is_no_proof_of_the_figure(self):
        self.assertFalse(self.proof(lambda amount: 1e-9, errors=3).good)

    def test_each_committed_ceiling_has_a_means_and_fits_the_time(self):
        held = ceilings.load()
        self.assertEqual({gate.means(one).words.partition(" ")[0] for one in held}, {"{}", "--driver"})
        self.assertLess(gate.proof_seconds(held), 8 * 60)
        with self.assertRaisesRegex(CannotMeasure, "memory: nothing here drives rest_kb up on purpose"):
            gate.means(ceilings.parse(GOOD, "it.toml", KNOWN)[1])

    def test_only_a_twin_is_slowed(self):
        slow = {"claviger": slowdown.Slowdown(instructions=5)}
        self.assertEqual(slowdown.of(slow, slowdown.twin("claviger")).instructions, 5)
        for name in ("claviger", "nginx", slowdown.twin("nginx")):
            self.assertEqual(slowdown.of(slow, name), slowdown.NONE)

    def test_the_exit_code_is_zero_only_if_each_was_proved(self):
        held = ceilings.load()
        verdict = gate.Verdict(held[0], held[0].ceiling * 0.9)
        for missed in (0, 1):
            results = [gate.Proof(verdict, gate.Verdict(held[0], held[0].ceiling * 1.1), "")] * (len(held) - missed) \
                + [gate.Proof(verdict, verdict, "")] * missed
            with mock.patch.object(gate, "proof_of", side_effect=results), contextlib.redirect_stdout(io.StringIO()):
                self.assertEqual(gate.prove(None, held, 10), missed)


if __name__ == "__main__":
    unittest.main()
