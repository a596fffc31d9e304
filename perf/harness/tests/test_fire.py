"""perf/fire: what it changes, what it says, and its attackers themselves."""

import json
import subprocess
import sys
import tempfile
import types
import unittest
from pathlib import Path

from harness import attackers, fire
from harness.contender import PERF, target_dir


def row(name, attack="idle", **more):
    judge = {"p50_us": 200, "p99_us": 1500, "max_us": 9000, "good": 10, "errors": 1}
    seen = {**judge, "valid": True, "newcomers": judge, "past": judge, "cpu_share": 0.25, "private_kb": 2048}
    one = {"peace": seen, "fire": {**seen, "p99_us": 2500}, "attacker": {}, "listen_overflows": 0}
    return {"contender": name, "attack": attack, "build": "1", "commit": "c", "machine": "m", "rounds": [one], **more}


class Fire(unittest.TestCase):
    def test_every_attack_is_one(self):
        known = {*attackers.HOLDING, *attackers.FLOODS}
        for attack in fire.ATTACKS:
            self.assertTrue(attack.loadgen or attack.name in known, attack.name)
        self.assertEqual(known, {attack.name for attack in fire.ATTACKS if not attack.loadgen})

    def test_all_have_the_same_limits(self):
        """Each change finds its place in the contender's own template."""
        for changes in (fire.ADJUST, fire.FEW_CONNECTIONS):
            for name, change in changes.items():
                with tempfile.TemporaryDirectory() as directory:
                    job = types.SimpleNamespace(dir=Path(directory), upstream_port=4443)
                    template = next(path for path in (PERF / "contenders" / name).iterdir()
                                    if path.name in ("claviger.toml", "nginx.conf", "haproxy.cfg"))
                    text = template.read_text().replace("@UPSTREAM_PORT@", "4443")
                    (job.dir / template.name).write_text(text)
                    change(job)
                    changed = (job.dir / template.name).read_text()
                    wanted = fire.API_CONNECTIONS if changes is fire.FEW_CONNECTIONS else fire.LIMIT_SECONDS
                    lines = set(changed.splitlines()) - set(text.splitlines())
                    self.assertTrue(lines, name)
                    self.assertTrue(any(str(wanted) in line for line in lines), (name, lines))

    def test_tables(self):
        rows = [row("claviger"), row("nginx"), row("nginx", "silent")]
        table = fire.attack_table(rows, fire.short)
        self.assertIn("| 10,000 connections kept idle after a request | 1.5 → 2.5, 2 failed | 1.5 → 2.5, 2 failed |", table)
        self.assertIn("not measured", table)
        late = row("nginx")
        late["rounds"][0]["fire"]["valid"] = False
        self.assertIn("2.5*", fire.short(late))
        self.assertIn("25% of the core; 2 MiB; not cut off", fire.whole(row("nginx")))
        held = {"contender": "claviger", "bound": "API", "times": 2.0,
                "rounds": [{"capacity": 1000, "goodput": goodput, "valid": True} for goodput in (980, 700, 990)]}
        self.assertIn("| the API | Claviger | 1,000/s (1,000–1,000) | - | 980/s (700–990) | - |", fire.overload_table([held]))

    def test_rounds(self):
        """Those of one build add up, where that is asked for; told are the median and the range."""
        rows = []
        for p99 in (4_000, 9_000, 2_000):
            fire.merge(rows, row("claviger"), adds=True)
            rows[0]["rounds"][-1]["fire"]["p99_us"] = p99
        self.assertEqual(len(rows), 1)
        self.assertIn("1.5 → 4.0 (2.0–9.0)", fire.short(rows[0]))
        fire.merge(rows, row("claviger", "silent"), adds=True)
        self.assertEqual([len(one["rounds"]) for one in rows], [3, 1])
        fire.merge(rows, row("claviger", build="2"), adds=True)
        self.assertEqual([len(one["rounds"]) for one in rows], [1, 1], "another build's are not added to")
        fire.merge(rows, row("claviger", build="2"), adds=False)
        self.assertEqual(len(rows[0]["rounds"]), 1)

    def test_the_documents_show_what_was_kept(self):
        for path in fire.DOCUMENTS:
            text = path.read_text()
            self.assertEqual(text, fire.written(text, fire.kept()), f"perf/fire --keep was not run to its end: {path}")

    def test_an_attacker_holds_and_is_cut_off(self):
        """Slow heads at the mock API, which is as strict as any: held, until the attacker is told to end."""
        with tempfile.TemporaryDirectory() as directory:
            header = Path(directory) / "header"
            header.write_text("Authorization: Bearer 0123456789abcdef")
            command = [target_dir() / "debug" / "mock-upstream", "--self-signed", directory, "--name", "api.example.com",
                       "--key", "0123456789abcdef", "--max-seconds", "60"]
            mock = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True)
            self.addCleanup(lambda: (mock.kill(), mock.wait(), mock.stdout.close()))
            port = None
            for line in mock.stdout:
                if line.startswith("listening "):
                    port = line.split()[1].rsplit(":", 1)[1]
                if line.strip() == "ready":
                    break
            self.assertIsNotNone(port)
            for kind in ("slow-head", "idle", "hello-flood", "informational"):
                attacker = subprocess.Popen(
                    [sys.executable, str(fire.ATTACKERS), kind, "api.example.com", port, f"{directory}/ca.pem", str(header), "3"],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                self.addCleanup(lambda one=attacker: (one.kill(), one.wait()))
                self.assertTrue(attacker.stdout.readline().startswith("ready "), kind)
                out, _ = attacker.communicate("", timeout=30)
                told = json.loads(out)
                self.assertEqual(told.get("refused"), 0, (kind, told))
                self.assertNotIn("400", told.get("answers", {}), (kind, told))


if __name__ == "__main__":
    unittest.main()
