import random
import unittest

from harness import stats


class Stats(unittest.TestCase):
    def test_a_summary_keeps_every_round(self):
        self.assertEqual(stats.summarize([3.00001, 1.0, 2.0]), {"median": 2.0, "all": [3.0, 1.0, 2.0]})

    def test_ratios_are_taken_round_by_round(self):
        # The machine halved its speed in the second round: the ratio does not move.
        self.assertEqual(stats.ratios([10.0, 20.0], [20.0, 40.0]), [0.5, 0.5])

    def test_rounds_that_one_side_lacks_are_left_out(self):
        self.assertEqual(stats.ratios([1.0, None, 3.0], [2.0, 2.0, 0.0]), [0.5])
        self.assertEqual(stats.ratios([1.0, 2.0], [2.0]), [0.5])

    def test_intervals_hold_the_median_and_need_values(self):
        values = [10.0, 11.0, 12.0, 13.0, 14.0, 15.0]
        low, high = stats.interval(values, random.Random(1))
        self.assertLessEqual(low, 12.5)
        self.assertGreaterEqual(high, 12.5)
        self.assertTrue(10.0 <= low < high <= 15.0)
        self.assertIsNone(stats.interval(values[:4], random.Random(1)))

    def test_the_normal_tail(self):
        self.assertAlmostEqual(stats.upper_tail(0, 0, 1), 0.5)
        self.assertAlmostEqual(stats.upper_tail(1.96, 0, 1), 0.025, places=4)
        self.assertEqual(stats.upper_tail(1, 2, 0), 1.0)
        self.assertEqual(stats.upper_tail(2, 2, 0), 0.0)

    def test_a_retry_makes_false_alarms_rare(self):
        once = stats.alarm(1.03, 1.0, 0.01, retry=False)
        twice = stats.alarm(1.03, 1.0, 0.01)
        self.assertAlmostEqual(once, 0.00135, places=5)
        self.assertLess(twice, once / 1000)

    def test_what_is_caught_is_red_nineteen_times_of_twenty(self):
        slower = stats.caught(1.05, 1.0, 0.01)
        self.assertGreater(slower, 0.05)
        self.assertLess(slower, 0.08)
        mean = 1 + slower
        self.assertAlmostEqual(stats.alarm(1.05, mean, 0.01 * mean), 0.95, places=3)
        # Without noise it is the ceiling itself.
        self.assertAlmostEqual(stats.caught(1.05, 1.0, 0.0), 0.05, places=6)


if __name__ == "__main__":
    unittest.main()
