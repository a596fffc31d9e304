import unittest

from harness import measures, scenario, tables
from harness.contender import CannotMeasure
from harness.figures import FIGURES

GOOD = '''
description = "words"
kind = "open"
supports = ["cpu_us_per_request"]
rates = [1000, 10_000]
seconds = 3
[quick]
rates = [10000]
rounds = 1
'''


class Scenarios(unittest.TestCase):
    def refused(self, text, *sentences):
        with self.assertRaises(CannotMeasure) as caught:
            scenario.parse("it", text, "it.toml")
        for sentence in sentences:
            self.assertIn(sentence, str(caught.exception))
        self.assertIn("it.toml", str(caught.exception))

    def test_a_good_one_has_its_defaults(self):
        one = scenario.parse("it", GOOD, "it.toml")
        self.assertEqual((one.kind, one.rates, one.seconds, one.connections), ("open", (1000, 10000), 3.0, 32))
        self.assertEqual(one.arrivals, "constant")
        with self.assertRaises(AttributeError):
            one.bytes

    def test_sizes_change_how_much_and_may_leave_out(self):
        one = scenario.parse("it", GOOD, "it.toml")
        quick = one.sized("quick")
        self.assertEqual((quick.rates, quick.rounds, quick.seconds), ((10000,), 1, 3.0))
        self.assertIsNone(one.sized("gate"))
        self.assertEqual(one.sized("full"), one)
        self.refused(GOOD + "connections = 5\n", "unknown key `quick.connections`")

    def test_every_problem_is_told_at_once(self):
        self.refused(
            'description = 1\nkind = "open"\nrate = 5\nrates = [0]\nrounds = "3"\n',
            "`description`: expected a string, found a whole number",
            "unknown key `rate`; there are",
            "`rates`: expected a number from 1 to",
            "`rounds`: expected a whole number, found a string",
        )

    def test_what_is_refused(self):
        self.refused("kind = \n", "Invalid value")
        self.refused('kind = "fast"\n', "`kind` must be one of added, churn")
        self.refused("kind = 3\n", "`kind` must be one of")
        self.refused('kind = "open"\n', "`description` is missing")
        self.refused('description = "x"\nkind = "growth"\nover = "days"\nvalues = [1]\n', "expected one of connections")
        self.refused('description = "x"\nkind = "growth"\nover = "routes"\n', "`values` is missing")
        self.refused('description = "x"\nkind = "open"\nrates = []\n', "at least one value")
        self.refused('description = "x"\nkind = "open"\nrates = [5, 5]\n', "stands twice")
        self.refused('description = "x"\nkind = "open"\nrounds = true\n', "found true or false")
        self.refused('description = "x"\nkind = "open"\nsupports = ["speed"]\n', "expected one of cpu_us_per_request")
        self.refused('description = "x"\nkind = "open"\nquick = 3\n', "`quick` must be a table")

    def test_the_files_are_all_good_and_cover_every_kind(self):
        found = scenario.load_all()
        self.assertEqual({one.kind for one in found}, set(scenario.KINDS))
        self.assertEqual(set(measures.MEASURES), set(scenario.KINDS))
        for one in found:
            self.assertTrue(one.description.endswith("."), one.name)
            self.assertTrue(one.supports, f"{one.name} supports nothing")
            shown = {figure for figure in tables.COLUMNS[one.kind] if not figure.startswith("added:")}
            self.assertLessEqual(shown, set(FIGURES), one.name)

    def test_an_unknown_name_lists_the_known(self):
        with self.assertRaisesRegex(CannotMeasure, "there is no scenario `fast`; there are added, "):
            scenario.load("fast")


if __name__ == "__main__":
    unittest.main()
