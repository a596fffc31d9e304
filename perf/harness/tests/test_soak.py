import random
import unittest

from harness import soak
from harness.contender import CannotMeasure

PRIVATE = soak.BOUNDS["private_kb"]
DESCRIPTORS = soak.BOUNDS["descriptors"]


def series(value, seconds=1800, every=3):
    """What `value` says at each time, at the pace of half an hour's soak."""
    return [(at, value(at)) for at in range(0, seconds, every)]


class Flatness(unittest.TestCase):
    """The control of the soak: what grows is seen, and what is only restless is not taken for it."""

    def setUp(self):
        self.random = random.Random(7)

    def test_a_leak_is_seen(self):
        # 80 exchanges a second that lose 100 bytes each, in noise of 1 MiB.
        leak = series(lambda at: 30_000 + at * 80 * 100 / 1024 + self.random.uniform(0, 1024))
        self.assertFalse(soak.is_flat(leak, PRIVATE))

    def test_a_descriptor_lost_every_half_minute_is_seen(self):
        self.assertFalse(soak.is_flat(series(lambda at: 150 + at // 30 + self.random.randrange(10)), DESCRIPTORS))

    def test_growth_that_slows_down_but_does_not_stop_is_seen(self):
        self.assertFalse(soak.is_flat(series(lambda at: 20_000 + 400 * at ** 0.5), PRIVATE))

    def test_steps_are_seen(self):
        self.assertFalse(soak.is_flat(series(lambda at: 30_000 + at // 300 * 2048), PRIVATE))

    def test_noise_is_flat(self):
        self.assertTrue(soak.is_flat(series(lambda _: 30_000 + self.random.gauss(0, 2_000)), PRIVATE))

    def test_a_burst_is_flat(self):
        self.assertTrue(soak.is_flat(series(lambda at: 90_000 if at in range(900, 1_200) else 30_000), PRIVATE))

    def test_warming_up_is_no_growth(self):
        self.assertTrue(soak.is_flat(series(lambda at: min(30_000, 10_000 + 50 * at)), PRIVATE))

    def test_what_shrinks_is_flat(self):
        self.assertTrue(soak.is_flat(series(lambda at: 60_000 - 10 * at), PRIVATE))

    def test_every_bound_sees_a_figure_that_doubles(self):
        for name, bound in soak.BOUNDS.items():
            with self.subTest(name):
                self.assertFalse(soak.is_flat(series(lambda at: 10_000 + at * 20), bound))

    def test_two_minutes_of_a_leak_are_seen(self):
        # As CI runs it: a kilobyte and a half with each of 80 exchanges a second.
        leak = series(lambda at: 30_000 + at * 80 * 1.5, seconds=120, every=1)
        self.assertFalse(soak.is_flat(leak, PRIVATE))

    def test_too_few_samples_are_no_proof(self):
        for short in ([], series(lambda _: 1, seconds=30)):
            with self.assertRaises(CannotMeasure):
                soak.is_flat(short, PRIVATE)


class Search(unittest.TestCase):
    def test_every_form_of_a_planted_key_is_found(self):
        for number in range(20):
            soak.control_of_the_search(soak.new_key(number, number))

    def test_keys_have_what_other_forms_escape(self):
        for number in range(20):
            self.assertGreaterEqual(len(soak.forms(soak.new_key(1, number))), 8)

    def test_nothing_else_is_taken_for_a_key(self):
        evidence = soak.Evidence()
        evidence.know(soak.new_key(1, 1))
        evidence.search("another key", soak.new_key(1, 2).encode())
        evidence.search("random bytes", random.Random(1).randbytes(1 << 20))
        self.assertEqual(evidence.found, [])


class Memory(unittest.TestCase):
    def test_only_private_pages_count(self):
        text = "Rss: 900 kB\nPss: 500 kB\nShared_Clean: 400 kB\nPrivate_Clean: 10 kB\nPrivate_Dirty: 200 kB\nSwap: 5 kB\n"
        self.assertEqual(soak.private_kb(text), 215)


class Traffic(unittest.TestCase):
    def test_checked_bodies_meet_no_fault_that_looks_well_formed(self):
        for rule in soak.faults(1)["rules"]:
            if "framing" in rule["action"]:
                self.assertEqual(rule["path"], "/v1/")
