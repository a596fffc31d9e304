"""What perf/instructions decides: python3 -m unittest discover -s perf/tests"""

import importlib.machinery
import importlib.util
import json
import sys
import unittest
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "instructions"
loader = importlib.machinery.SourceFileLoader("instructions", str(FILE))
spec = importlib.util.spec_from_loader("instructions", loader)
instructions = importlib.util.module_from_spec(spec)
sys.modules["instructions"] = instructions
sys.dont_write_bytecode = True
loader.exec_module(instructions)

Accepted = instructions.Accepted
TOOLS = {"rustc": "rustc 1.95.0", "valgrind": "valgrind-3.19.0"}


def baseline(**counts):
    return {case: Accepted(count, "as it was") for case, count in counts.items()}


class Judging(unittest.TestCase):
    def check(self, before, now, expected):
        self.assertEqual(instructions.judge(before, now), expected, (before, now))

    def test_two_per_cent_and_no_more(self):
        for before, now, expected in [
            (10_000, 10_000, None),
            (10_000, 10_200, None),
            (10_000, 10_201, "slower"),
            (10_000, 9_800, None),
            (10_000, 9_799, "faster"),
            (10_000, 20_000, "slower"),
            (10_000_000, 10_300_000, "slower"),
        ]:
            self.check(before, now, expected)

    def test_a_small_case_may_move_by_a_few_instructions(self):
        for before, now, expected in [
            (20, 29, None),
            (20, 30, "slower"),
            (20, 11, None),
            (20, 10, "faster"),
            (0, 9, None),
            (0, 10, "slower"),
        ]:
            self.check(before, now, expected)


class Comparing(unittest.TestCase):
    def kinds(self, before, now):
        return {finding.case: finding.kind for finding in instructions.compare(before, now)}

    def test_what_is_equal_is_not_mentioned(self):
        self.assertEqual(self.kinds(baseline(a=1000, b=2000), {"a": 1000, "b": 2040}), {})

    def test_each_kind_is_found(self):
        found = self.kinds(
            baseline(slower=1000, faster=1000, gone=1000, same=1000),
            {"slower": 1021, "faster": 979, "new": 5, "same": 1000},
        )
        self.assertEqual(found, {"slower": "slower", "faster": "faster", "gone": "missing", "new": "new"})

    def test_only_what_is_faster_is_let_through(self):
        findings = instructions.compare(
            baseline(slower=1000, faster=1000, gone=1000), {"slower": 1021, "faster": 979, "new": 5}
        )
        self.assertEqual({finding.kind for finding in findings if not finding.refuses}, {"faster"})

    def test_a_refusal_names_everything_and_the_cure(self):
        (finding,) = instructions.compare(baseline(parse=1000), {"parse": 1030})
        for part in ["parse", "baseline 1000", "counted 1030", "+3.00 %", "perf/instructions --accept", "same commit"]:
            self.assertIn(part, finding.text)
        for before, now in [(baseline(parse=1000), {}), ({}, {"parse": 1000})]:
            (finding,) = instructions.compare(before, now)
            self.assertIn("parse", finding.text)
            self.assertIn("perf/instructions --accept", finding.text)

    def test_other_tools_are_named(self):
        self.assertEqual(instructions.differing_tools(TOOLS, dict(TOOLS)), [])
        (said,) = instructions.differing_tools(TOOLS, TOOLS | {"rustc": "rustc 1.96.0"})
        self.assertIn("rustc 1.95.0", said)
        self.assertIn("rustc 1.96.0", said)
        (said,) = instructions.differing_tools(TOOLS, TOOLS | {"libc": "glibc 2.36"})
        self.assertIn("glibc 2.36", said)


class Gating(unittest.TestCase):
    def gate(self, counted, here=TOOLS):
        return instructions.gate(instructions.Baseline(TOOLS, baseline(parse=1000)), counted, here)

    def setUp(self):
        # What it prints is looked at above.
        self.stdout, sys.stdout = sys.stdout, open("/dev/null", "w", encoding="utf-8")

    def tearDown(self):
        sys.stdout.close()
        sys.stdout = self.stdout

    def test_exit_codes(self):
        self.assertEqual(self.gate({"parse": 1000}), 0)
        self.assertEqual(self.gate({"parse": 900}), 0)
        self.assertEqual(self.gate({"parse": 1021}), 1)
        self.assertEqual(self.gate({"parse": 1000, "other": 1}), 1)
        self.assertEqual(self.gate({}), 1)

    def test_other_tools_are_neither_good_nor_bad(self):
        for count in [1000, 2000]:
            with self.assertRaises(instructions.CannotJudge) as raised:
                self.gate({"parse": count}, TOOLS | {"rustc": "rustc 1.96.0"})
            self.assertIn("rustc 1.96.0", str(raised.exception))
            self.assertIn("perf/instructions --accept", str(raised.exception))


class Accepting(unittest.TestCase):
    def test_a_reason_goes_where_the_count_has_changed(self):
        old = instructions.Baseline({"rustc": "old"}, baseline(same=10, changed=20, gone=30))
        new = instructions.accept(old, {"same": 10, "changed": 21, "new": 5}, TOOLS, "a better hash")
        self.assertEqual(new.counted_with, TOOLS)
        self.assertEqual(
            new.cases,
            {
                "same": Accepted(10, "as it was"),
                "changed": Accepted(21, "a better hash"),
                "new": Accepted(5, "a better hash"),
            },
        )
        self.assertEqual(instructions.accept(None, {"a": 1}, TOOLS, "first").cases, {"a": Accepted(1, "first")})

    def test_what_is_accepted_is_not_refused(self):
        counted = {"a": 1, "b": 1_000_000}
        new = instructions.accept(None, counted, TOOLS, "first")
        self.assertEqual(instructions.compare(new.cases, counted), [])


class TheFile(unittest.TestCase):
    def test_it_comes_back_as_it_was_written_with_a_line_per_case(self):
        written = instructions.Baseline(TOOLS, {"b/2": Accepted(7, 'says "why" – so'), "a/1": Accepted(5, "first")})
        text = instructions.write_baseline(written)
        self.assertEqual(instructions.read_baseline(text), written)
        json.loads(text)
        self.assertEqual(text.count('"instructions": '), 2)
        for line in text.splitlines():
            self.assertLessEqual(line.count('"instructions"'), 1)
        self.assertLess(text.index("a/1"), text.index("b/2"))

    def test_a_broken_one_is_refused_with_the_cure(self):
        for text in ["", "{}", "[]", '{"counted_with": {}, "cases": {"a": {}}}', '{"counted_with": {}, "cases": []}']:
            with self.assertRaises(instructions.CannotJudge) as raised:
                instructions.read_baseline(text)
            self.assertIn("git checkout", str(raised.exception))

    def test_the_committed_one_is_good(self):
        committed = instructions.read_baseline(instructions.BASELINE.read_text())
        self.assertGreater(len(committed.cases), 40)
        self.assertTrue(all(line.instructions > 0 and line.reason for line in committed.cases.values()))
        self.assertEqual(set(committed.counted_with), {"rustc", "valgrind", "libc", "machine"})


class Callgrind(unittest.TestCase):
    FILE = "\n".join(
        ["fn=(1) counted", "12 3", "cfn=(2) parse", "calls=1 0", "12 40", "fn=(2)", "fi=(3) other.rs", "+1 30", "* 10", "totals: 43", ""]
    )

    def test_the_total_is_found(self):
        self.assertEqual(instructions.total(self.FILE, "a"), 43)

    def test_nothing_counted_is_no_count(self):
        for profile in ["", "totals: 0\n", "summary:\n"]:
            with self.assertRaises(instructions.CannotJudge):
                instructions.total(profile, "a")

    def test_functions_have_what_they_do_themselves(self):
        self.assertEqual(instructions.by_function(self.FILE), {"counted": 3, "parse": 40})


if __name__ == "__main__":
    unittest.main()
