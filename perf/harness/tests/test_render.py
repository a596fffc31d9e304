import re
import tempfile
import unittest
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

from harness import history, markdown, plots, render, scenario, tables
from harness.contender import ROOT, CannotMeasure


def line(scenario, contender, kind=None, at=None, **figures):
    made = {"time": "2026-01-01T00:00:00+00:00", "commit": "abc", "dirty": False, "machine": "a machine",
            "scenario": scenario, "kind": kind or scenario.partition("-")[0], "contender": contender,
            "version": f"{contender} 1", "rounds": 3, "seconds": 2}
    if at is not None:
        made["at"] = at
    for key, values in figures.items():
        made[key] = {"median": sorted(values)[len(values) // 2], "all": values} if isinstance(values, list) else values
    return made


LINES = [
    line("saturated", "claviger", cpu_us_per_request=[14.0, 15.0, 16.0], rps=[60000.0], judge_bound=True,
         cpu_ratio_to_nginx=[0.6]),
    line("saturated", "nginx", cpu_us_per_request=[24.0, 25.0, 26.0], rps=[40000.0]),
    line("saturated", "direct", rps=[80000.0], judge_bound=True),
    line("open-1000", "claviger", cpu_us_per_request=[100.0], p99_us=[300.0], p50_us=[90.0]),
    line("open-10000", "claviger", cpu_us_per_request=[50.0], p99_us=[3000.0], p50_us=[95.0]),
    line("open-10000", "caddy", not_held=7000),
    line("growth-routes", "claviger", "growth", 1, cpu_us_per_request=[14.0]),
    line("growth-routes", "claviger", "growth", 10000, cpu_us_per_request=[15.0]),
    line("reload", "nginx", failed=[0]),
    line("reload", "envoy", not_supported="Envoy has no <reload>"),
]


class Documents(unittest.TestCase):
    def test_the_best_is_bold_unless_the_judge_held_one_back(self):
        table = render.summary_table(LINES).splitlines()
        cpu = next(row for row in table if row.startswith("| CPU per request, saturated"))
        rps = next(row for row in table if row.startswith("| requests per second"))
        self.assertIn("| **15.00** | 25.00 |", cpu)
        self.assertIn("| [60,000] | 40,000 |", rps)

    def summary_of(self, ours, theirs, scenario="saturated", figure="cpu_us_per_request", **more):
        lines = [line(scenario, "claviger", **{figure: ours}, **more), line(scenario, "nginx", **{figure: theirs})]
        return render.summary_cells(lines, ["claviger", "nginx"], [(scenario, None, figure)])

    def test_bold_is_what_no_round_of_another_reaches(self):
        for ours, theirs, best in (
            ([14.0, 15.0, 16.0], [16.5, 25.0, 26.0], [True, False]),
            ([24.0, 25.0, 26.0], [14.0, 15.0, 16.0], [False, True]),
            ([14.0, 15.0, 16.0], [15.9, 25.0, 26.0], [False, False]),
            ([14.0, 15.0, 16.0], [16.0, 25.0, 26.0], [False, False]),
            # One round is no range; and equals have no best.
            ([14.0], [25.0], [False, False]),
            ([14.0, 15.0], [25.0], [False, False]),
            ([0, 0, 0], [0, 0, 0], [False, False]),
        ):
            self.assertEqual([bold for _, bold in self.summary_of(ours, theirs)], best, (ours, theirs))

    def test_more_is_better_where_it_is(self):
        found = self.summary_of([60.0, 61.0], [40.0, 41.0], figure="rps")
        self.assertEqual([bold for _, bold in found], [True, False])
        found = self.summary_of([60.0, 61.0], [40.0, 60.5], figure="rps")
        self.assertEqual([bold for _, bold in found], [False, False])

    def test_added_latency_is_bold_by_its_intervals_and_never_where_the_judge_was_bound(self):
        def added(contender, low, middle, high, **more):
            return line("added-2000", contender, added_us={"p50": {
                "difference": middle, "low": low, "high": high, "finding": "slower"}}, **more)

        parts = [("added-2000", None, "added:p50")]
        for ours, theirs, more, best, cell in (
            ((80, 85, 89), (90, 95, 99), {}, True, "+85"),
            ((80, 85, 91), (90, 95, 99), {}, False, "+85"),
            ((80, 85, 89), (90, 95, 99), {"judge_bound": True}, False, "[+85]"),
            ((None, 85, None), (90, 95, 99), {}, False, "+85"),
        ):
            lines = [added("claviger", *ours, **more), added("nginx", *theirs, **more)]
            self.assertEqual(render.summary_cells(lines, ["claviger", "nginx"], parts)[0], (cell, best))
        self.assertIn("judge-bound", render.scenario_tables(
            [added("claviger", 1, 2, 3, judge_bound=True)], "added"))

    def test_where_others_are_better_is_told_worst_first(self):
        lines = [
            line("churn", "claviger", cpu_us_per_request=[30.0, 31.0, 32.0]),
            line("churn", "nginx", cpu_us_per_request=[20.0, 21.0, 22.0]),
            line("churn", "haproxy", cpu_us_per_request=[25.0, 26.0, 27.0]),
            line("tail", "claviger", cpu_us_per_request=[30.0, 31.0, 32.0]),
            line("tail", "nginx", cpu_us_per_request=[29.0, 30.0, 31.0]),
            line("growth-routes", "claviger", "growth", 100, cpu_us_per_request=[10.0, 11.0]),
            line("growth-routes", "nginx", "growth", 100, cpu_us_per_request=[20.0, 21.0]),
            line("growth-routes", "claviger", "growth", 10000, cpu_us_per_request=[30.0, 31.0]),
            line("growth-routes", "nginx", "growth", 10000, cpu_us_per_request=[20.0, 21.0]),
            line("added-2000", "claviger", added_us={"p50": {"difference": 90, "low": 85, "high": 95, "finding": "slower"}}),
            line("added-2000", "nginx", added_us={"p50": {"difference": 80, "low": 78, "high": 82, "finding": "slower"}}),
            # Bound by the judge, nobody knows.
            line("saturated", "claviger", rps=[50_000.0, 50_100.0], judge_bound=True),
            line("saturated", "nginx", rps=[60_000.0, 60_100.0]),
            # What supports no claim, and going direct, are no losses.
            line("open-1000", "claviger", p999_us=[9_000.0, 9_001.0]),
            line("open-1000", "nginx", p999_us=[1_000.0, 1_001.0]),
            line("sse", "claviger", event_delay_p50_us=[90.0, 91.0]), line("sse", "direct", event_delay_p50_us=[30.0, 31.0]),
            line("reload", "claviger", failed_because="it ended"),
            line("mock", "nginx", cpu_us_per_request=[1.0, 1.0]), line("mock", "claviger", cpu_us_per_request=[2.0, 2.0]),
        ]
        self.assertEqual([row.split(" | ") for row in render.losses_table(lines).splitlines()[2:]], [
            ["| all of it", "`reload`", "failed", "", "", "yes |"],
            ["| CPU per request us", "`churn`", "31.00", "nginx 21.00", "48%", "yes |"],
            ["| CPU per request us", "`growth-routes`, 10,000", "31.00", "nginx 21.00", "48%", "yes |"],
            ["| added p50 us", "`added-2000`", "+90", "nginx +80", "12%", "yes |"],
            ["| CPU per request us", "`tail`", "31.00", "nginx 30.00", "3%", "no |"],
        ])
        self.assertIn("In none of the figures", render.losses_table(LINES[:1]))

    def test_what_is_of_another_commit_is_left_out_and_said(self):
        everything = [line("idle", "claviger", rest_kb=[1]), *LINES, {**line("tail", "nginx", p50_us=[1]), "partial": True}]
        self.assertEqual(render.left_out(everything, LINES), ["idle"])
        self.assertEqual(render.machine_lines(LINES).splitlines()[0], "- a machine; commit `abc`, 2026-01-01")

    def test_what_is_missing_is_said(self):
        table = render.summary_table(LINES)
        self.assertIn("cannot", next(row for row in table.splitlines() if "10,000/s, us" in row))
        self.assertIn("no means", next(row for row in table.splitlines() if "failed requests" in row))

    def test_a_scenario_s_table_has_its_rates(self):
        text = render.scenario_tables(LINES, "open")
        self.assertIn("`open-1000`:", text)
        self.assertIn("`open-10000`:", text)
        self.assertEqual(render.scenario_tables(LINES, "tail"), "Not measured yet.")

    def test_only_what_stands_between_markers_changes(self):
        text = "before\n<!-- perf:summary -->\nold\n<!-- /perf -->\nbetween\n<!-- perf:saturated -->\n<!-- /perf -->\nafter\n"
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "document.md"
            path.write_text(text)
            self.assertEqual(render.documents(LINES, write=False, paths=[path]), [path])
            self.assertEqual(path.read_text(), text)
            render.documents(LINES, write=True, paths=[path])
            made = path.read_text()
            self.assertEqual(render.documents(LINES, write=True, paths=[path]), [])
        self.assertTrue(made.startswith("before\n<!-- perf:summary -->\n| "))
        self.assertTrue(made.endswith("<!-- /perf -->\nafter\n"))
        self.assertNotIn("old", made)
        with self.assertRaisesRegex(CannotMeasure, "`perf:speed` is neither"):
            render.filled("<!-- perf:speed -->\n<!-- /perf -->", LINES, "it.md")
        with self.assertRaisesRegex(CannotMeasure, "no `<!-- perf:NAME -->` marker"):
            render.filled("words", LINES, "it.md")

    def test_the_committed_documents_say_what_the_history_says(self):
        lines = history.published(history.read(), needed=scenario.names())
        self.assertEqual([path.name for path in render.documents(lines, write=False)], [], "run: perf/render --write")


# What is to be measured: a scenario, what it takes, and the figures that its tables must show.
MEASURES = [
    ("saturated", {}, ["cpu_us_per_request", "rps"]),
    ("open", {}, ["cpu_us_per_request", "p50_us", "p99_us", "p999_us"]),
    ("added", {}, ["added:p50", "added:p99", "added:p99.9"]),
    ("added-poisson", {"arrivals": "poisson"}, ["added:p50", "added:p99", "added:p99.9"]),
    ("handshake-full", {"resume": False}, ["handshakes_per_s", "cpu_us_per_handshake"]),
    ("handshake-resumed", {"resume": True}, ["handshakes_per_s", "cpu_us_per_handshake"]),
    ("download", {}, ["mb_per_s", "cpu_ms_per_gb"]),
    ("upload", {}, ["mb_per_s", "cpu_ms_per_gb"]),
    ("idle", {"steps": (2000, 8000)}, ["rest_kb", "kb_per_connection"]),
    ("tail", {"connections": 1000}, ["p99_us", "p999_us"]),
    ("churn", {"connections": 1000}, ["cpu_us_per_request"]),
    ("sse", {}, ["event_delay_p50_us", "event_delay_p99_us"]),
    ("reload", {}, ["failed", "max_us"]),
    ("rotation", {}, ["failed", "ms_until_used"]),
    ("growth-connections", {"over": "connections"}, ["cpu_us_per_request"]),
    ("growth-routes", {"over": "routes", "values": (1, 100, 10000)}, ["cpu_us_per_request"]),
    ("growth-headers", {"over": "headers"}, ["cpu_us_per_request"]),
    ("growth-cores", {"over": "cores"}, ["cpu_us_per_request"]),
    ("spread", {"values": (2, 4, 8)}, ["evenness", "rps"]),
    ("syscalls", {}, ["syscalls_per_request"]),
    ("judge-direct", {}, ["cpu_us_per_request"]),
    ("judge-nginx", {}, ["cpu_us_per_request"]),
    ("mock", {}, ["cpu_us_per_request"]),
]


class Measures(unittest.TestCase):
    def test_each_has_a_scenario_a_column_and_a_place_in_the_document(self):
        text = (ROOT / "docs" / "performance.md").read_text()
        for name, parameters, figures in MEASURES:
            with self.subTest(name):
                one = scenario.load(name)
                for key, value in parameters.items():
                    self.assertEqual(getattr(one, key), value)
                self.assertLessEqual(set(figures), set(tables.COLUMNS[one.kind]))
                self.assertIn(f"<!-- perf:{name} -->", text)
        self.assertEqual({name for name, _, _ in MEASURES}, set(scenario.names()))
        self.assertGreater(len(scenario.load("added").rates), 2)

    def test_the_summary_asks_only_for_what_there_is(self):
        for words, parts in render.SUMMARY:
            for label, at, figure in parts:
                one = max((scenario.load(name) for name in scenario.names() if history.belongs(label, name)),
                          key=lambda one: len(one.name))
                self.assertIn(figure, tables.COLUMNS[one.kind], words)
                if label != one.name:
                    self.assertIn(int(label.rpartition("-")[2]), one.rates, words)
                if at is not None:
                    self.assertIn(at, getattr(one, "steps" if one.kind == "idle" else "values"), words)


class Tags(HTMLParser):
    """Whether what is opened is closed."""

    VOID = {"meta", "path", "rect", "circle", "br"}

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag, f"{tag} closes another"


class Report(unittest.TestCase):
    def setUp(self):
        self.page = render.page(LINES)

    def test_it_is_whole_and_needs_nothing_else(self):
        tags = Tags()
        tags.feed(self.page)
        self.assertEqual(tags.open, [])
        for tag, attributes in tags.seen:
            self.assertNotIn(tag, ("script", "link", "img", "iframe"))
            self.assertNotIn("src", attributes)
            if tag == "a" and not attributes["href"].startswith("https://"):
                self.assertTrue(f'id="{attributes["href"][1:]}"' in self.page, attributes)
        self.assertNotIn("@import", self.page)
        self.assertIsNone(re.search(r"url\((?!#)", self.page))

    def test_what_the_judge_limited_is_hatched(self):
        plot = self.page[self.page.index('id="rate"'):]
        plot = plot[: plot.index("</figure>")]
        self.assertEqual(plot.count('class="hatch"'), 2)
        self.assertNotIn('class="hatch"', render.bar_card(LINES, "saturated", None, "cpu_us_per_request", "x"))

    def test_it_tells_where_others_are_better(self):
        self.assertIn("no figure that was measured and supports a claim", self.page)
        lines = [line("churn", "claviger", cpu_us_per_request=[30.0, 31.0]), line("churn", "nginx", cpu_us_per_request=[20.0, 21.0])]
        page = render.page(lines)
        self.assertIn("figures that support a claim: 1; beyond the rounds&#x27; ranges: 1", page)
        self.assertIn("<td>nginx 21.00</td>", page)

    def test_text_is_escaped(self):
        self.assertIn("Envoy has no &lt;reload&gt;", self.page)
        self.assertNotIn("<reload>", self.page)

    def test_the_committed_history_makes_a_page(self):
        lines = history.published(history.read(), needed=scenario.names())
        self.assertIn("<h2>Summary</h2>", render.page(lines))


class Plots(unittest.TestCase):
    def test_bars_are_well_formed_and_to_scale(self):
        svg = plots.bars([plots.Bar("nginx", "a & b", 10.0, 9.0, 11.0, False, "10"),
                          plots.Bar("claviger", "c", 5.0, None, None, True, "5")])
        root = ElementTree.fromstring(svg)
        widths = [float(rect.get("width")) for rect in root.iter("rect")]
        self.assertAlmostEqual(widths[0], 2 * widths[1], delta=0.2)
        self.assertEqual(widths[1], widths[2])

    def test_lines_are_well_formed(self):
        points = [plots.Point(1000, 5.0, 4.0, 6.0), plots.Point(10000, 50.0, -1.0, 60.0, True)]
        for log in (True, False):
            root = ElementTree.fromstring(plots.lines([plots.Series("nginx", "n", points)], "x", "y", y_log=log))
            self.assertEqual(len(list(root.iter("circle"))), 2)
        self.assertEqual(plots.lines([plots.Series("nginx", "n", [])], "x", "y"), "")

    def test_ticks_are_round_and_hold_everything(self):
        for low, high in ((0, 7), (0, 123.4), (-3, 40), (0, 0.02), (5, 5)):
            found = plots.ticks(low, high)
            self.assertLessEqual(found[0], low)
            self.assertGreaterEqual(found[-1], high)
            self.assertLessEqual(len(found), plots.TICKS + 2)
        self.assertEqual(plots.log_ticks(2, 50), [1, 3, 10, 30, 100])
        self.assertEqual(plots.short(10000), "10k")


class Markdown(unittest.TestCase):
    def test_what_notes_use(self):
        text = "# A\n\nwords `<b>` **x** [l](https://e.org) [m](file.md)\n\n| a | b |\n|---|---|\n| `c` | d |\n\n- one\n- two\n"
        self.assertEqual(
            markdown.html(text),
            '<h3>A</h3><p>words <code>&lt;b&gt;</code> <strong>x</strong> <a href="https://e.org">l</a> m</p>'
            "<div class='scroll'><table class='words'><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>"
            "<code>c</code></td><td>d</td></tr></tbody></table></div><ul><li>one</li><li>two</li></ul>")


if __name__ == "__main__":
    unittest.main()
