"""`deploy/gcp/move-cloud-run` with a gcloud that records its calls; and whether the real one would understand them."""

import json
import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from machine import KIT

MOVE = KIT / "gcp" / "move-cloud-run"
ONE = "projects/shop/locations/europe-west1/connectors/claviger"
TWO = "projects/shop/locations/us-east1/connectors/claviger"

# A project in a file. It knows what the real one takes, refuses the rest as that does (exit code 2), and makes a failure
# when told to.
GCLOUD = '''#!/usr/bin/env python3
import json, os, sys
home = os.environ["FAKE"]
arguments = sys.argv[1:]
with open(home + "/calls", "a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
with open(home + "/project.json") as file:
    project = json.load(file)
words = [word for word in arguments if not word.startswith("--")]
flags = dict((word[2:].split("=", 1) + [True])[:2] for word in arguments if word.startswith("--"))
def usage(text):
    print("ERROR: (gcloud) " + text, file=sys.stderr); sys.exit(2)
def failed(text):
    print("Deploying...\\nERROR: (gcloud.run.services) " + text, file=sys.stderr); sys.exit(1)
def only(*known):
    extra = set(flags) - set(known) - {"quiet"}
    if extra: usage("unrecognized arguments: " + " ".join(sorted(extra)))
def find(name):
    for service in project["services"]:
        if service["metadata"]["name"] == name and service["metadata"]["labels"]["cloud.googleapis.com/location"] == flags.get("region"):
            return service
    failed("Cannot find service [" + name + "]")
if "account" in project: failed("You do not currently have an active account selected.")
if words[:4] == ["compute", "networks", "vpc-access", "connectors"]:
    only("region", "project", "format")
    print(json.dumps({"state": project["connectors"].get(flags["region"], "MISSING")}))
elif words == ["run", "services", "list"]:
    only("project", "format")
    print(json.dumps(project["services"]))
elif words[:3] == ["run", "services", "describe"]:
    only("project", "region", "format")
    print(json.dumps(find(words[3])))
elif words[:3] == ["run", "services", "update"]:
    only("project", "region", "vpc-connector", "vpc-egress", "clear-vpc-connector")
    service = find(words[3])
    if words[3] in project.get("broken", []): failed("Revision is not ready and cannot serve traffic.")
    notes = service["spec"]["template"]["metadata"].setdefault("annotations", {})
    if "clear-vpc-connector" in flags:
        for key in ("connector", "egress"): notes.pop("run.googleapis.com/vpc-access-" + key, None)
    else:
        notes["run.googleapis.com/vpc-access-connector"] = flags["vpc-connector"]
        notes["run.googleapis.com/vpc-access-egress"] = flags["vpc-egress"]
    with open(home + "/project.json", "w") as file: json.dump(project, file)
else:
    usage("Invalid choice: " + " ".join(words))
'''


def service(name, region="europe-west1", connector=None, egress=None, direct=None, traffic=None):
    notes = {"autoscaling.knative.dev/maxScale": "10"}
    if connector:
        notes["run.googleapis.com/vpc-access-connector"] = connector
    if egress:
        notes["run.googleapis.com/vpc-access-egress"] = egress
    if direct:
        notes["run.googleapis.com/network-interfaces"] = direct
    return {"apiVersion": "serving.knative.dev/v1", "kind": "Service",
            "metadata": {"name": name, "labels": {"cloud.googleapis.com/location": region}},
            "spec": {"template": {"metadata": {"annotations": notes}}, "traffic": traffic or [{"latestRevision": True, "percent": 100}]}}


class Move(unittest.TestCase):
    def setUp(self):
        self.home = Path(tempfile.mkdtemp(prefix="claviger-gcloud-"))
        self.addCleanup(shutil.rmtree, self.home)
        (self.home / "gcloud").write_text(GCLOUD)
        (self.home / "gcloud").chmod(0o755)
        self.project(service("billing"), service("mailer", connector="old", egress="all-traffic"),
                     service("there", connector=ONE), service("far", region="us-east1"),
                     service("direct", direct='[{"network":"default"}]'))

    def project(self, *services, **more):
        (self.home / "project.json").write_text(json.dumps({"services": services, "connectors": {"europe-west1": "READY", "us-east1": "READY"}} | more))

    def change_project(self, change):
        project = json.loads((self.home / "project.json").read_text())
        change(project)
        (self.home / "project.json").write_text(json.dumps(project))

    def ways(self):
        project = json.loads((self.home / "project.json").read_text())
        return {item["metadata"]["name"]: tuple(item["spec"]["template"]["metadata"]["annotations"].get("run.googleapis.com/vpc-access-" + key)
                                                for key in ("connector", "egress")) for item in project["services"]}

    def calls(self, verb=None):
        try:
            lines = (self.home / "calls").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [call for call in map(json.loads, lines) if verb is None or verb in call]

    def run_move(self, *arguments, code=0, path=None):
        finished = subprocess.run([MOVE, *arguments], cwd=self.home, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  env={"PATH": path or f"{self.home}:{os.environ['PATH']}", "FAKE": str(self.home)}, timeout=120)
        self.assertEqual(finished.returncode, code, finished.stdout)
        return finished.stdout

    def move(self, *arguments, **options):
        return self.run_move("--project", "shop", "--connector", ONE, *arguments, **options)

    def test_a_dry_run_shows_the_difference_and_changes_nothing(self):
        before = self.ways()
        said = self.move()
        self.assertIn(f"would change billing (europe-west1)\n  - no connector\n  + {ONE}, private-ranges-only\n", said)
        self.assertIn(f"would change mailer (europe-west1)\n  - old, all-traffic\n  + {ONE}, private-ranges-only\n", said)
        self.assertIn("is there     there (europe-west1)", said)
        self.assertIn("left alone   far (us-east1): no connector for its region", said)
        self.assertIn("left alone   direct (europe-west1): it has Direct VPC egress", said)
        self.assertIn("2 would be changed; nothing was", said)
        self.assertEqual(self.ways(), before)
        self.assertEqual(self.calls("update"), [])
        self.assertEqual([path.name for path in self.home.glob("*.ndjson")], [])

    def test_moves_once_and_back(self):
        before = self.ways()
        said = self.move("--apply")
        self.assertIn("2 changed, 0 failed", said)
        self.assertEqual(self.ways(), before | {"billing": (ONE, "private-ranges-only"), "mailer": (ONE, "private-ranges-only")})
        self.assertEqual(self.calls("update"), [
            ["run", "services", "update", name, "--project=shop", "--region=europe-west1", f"--vpc-connector={ONE}", "--vpc-egress=private-ranges-only", "--quiet"]
            for name in ("billing", "mailer")])
        self.assertIn("0 changed, 0 failed", self.move("--apply"), "a second time there is nothing to do")
        self.assertEqual(len(self.calls("update")), 2)

        restore = ("--restore", "--record", "move-cloud-run.shop.ndjson")
        self.assertIn("2 would be changed", self.run_move(*restore))
        self.assertEqual(len(self.calls("update")), 2)
        self.run_move(*restore, "--apply")
        self.assertEqual(self.ways(), before)
        self.assertEqual([call[3:] for call in self.calls("update")[2:]], [
            ["mailer", "--project=shop", "--region=europe-west1", "--vpc-connector=old", "--vpc-egress=all-traffic", "--quiet"],
            ["billing", "--project=shop", "--region=europe-west1", "--clear-vpc-connector", "--quiet"]])
        self.assertIn("0 changed, 0 failed", self.run_move(*restore, "--apply"))

    def test_goes_on_where_it_stopped(self):
        self.change_project(lambda project: project.update(broken=["billing"]))
        said = self.move("--apply", code=4)
        self.assertIn("FAILED       billing (europe-west1): ERROR: (gcloud.run.services) Revision is not ready", said)
        self.assertIn("1 changed, 1 failed", said)
        self.change_project(lambda project: project.update(broken=[]))
        self.assertIn("1 changed, 0 failed", self.move("--apply"))
        # Recorded twice: what was before the first change counts.
        self.run_move("--restore", "--record", "move-cloud-run.shop.ndjson", "--apply")
        self.assertEqual(self.ways()["billing"], (None, None))
        self.assertEqual(self.ways()["mailer"], ("old", "all-traffic"))

    def test_one_at_a_time(self):
        for left in (1, 0):
            said = self.move("--apply", "--limit", "1")
            self.assertEqual(said.count("\nlater "), left, said)
        self.assertEqual(len(self.calls("update")), 2)

    def test_the_choice_of_services_and_of_egress(self):
        self.run_move("--project", "shop", "--connector", ONE, "--connector", TWO, "--egress", "all-traffic", "--except", "mailer", "--apply")
        ways = self.ways()
        self.assertEqual((ways["billing"], ways["far"], ways["there"]), ((ONE, "all-traffic"), (TWO, "all-traffic"), (ONE, "all-traffic")))
        self.assertEqual(ways["mailer"], ("old", "all-traffic"))
        self.move("--only", "mailer", "--apply")
        self.assertEqual(self.ways()["mailer"], (ONE, "private-ranges-only"))
        self.assertEqual(self.ways()["billing"], (ONE, "all-traffic"))

    def test_what_somebody_has_changed_since_is_left_alone(self):
        self.move("--apply")

        def change(project):
            project["services"][0]["spec"]["template"]["metadata"]["annotations"]["run.googleapis.com/vpc-access-connector"] = "theirs"
        self.change_project(change)
        said = self.run_move("--restore", "--record", "move-cloud-run.shop.ndjson", "--apply")
        self.assertIn("left alone   billing (europe-west1): somebody has changed it since, to: theirs", said)
        self.assertEqual(self.ways()["billing"][0], "theirs")
        self.assertEqual(self.ways()["mailer"], ("old", "all-traffic"))

    def test_pinned_traffic_is_pointed_out(self):
        self.project(service("billing", traffic=[{"revisionName": "billing-00007", "percent": 100}]))
        self.assertIn("pinned to billing-00007", self.move())

    def test_a_connector_by_its_name_alone_is_the_same(self):
        self.project(service("billing", connector="claviger", egress="all"))
        self.assertIn("is there", self.move("--egress", "all-traffic"))

    def test_refusals_come_before_any_change(self):
        (self.home / "garbage").write_text("hello\n")
        for arguments, code, words in [
            ([], 1, "--project is missing"),
            (["--project", "shop"], 1, "--connector is missing"),
            (["--project", "shop", "--connector", "claviger"], 1, "no connector's full name"),
            (["--project", "shop", "--connector", ONE, "--connector", ONE], 1, "two connectors"),
            (["--project", "shop", "--connector", ONE, "--egress", "none"], 1, "private-ranges-only or all-traffic"),
            (["--project", "shop", "--connector", ONE, "--only", "nobody"], 1, "there is no service nobody"),
            (["--project", "shop", "--connector", ONE, "--limit", "0"], 1, "at least 1"),
            (["--project", "shop", "--connector", ONE, "--frobnicate"], 1, "unrecognized arguments"),
            (["--restore"], 1, "--restore needs --record"),
            (["--restore", "--record", "missing"], 1, "records no change"),
            (["--restore", "--record", "garbage"], 1, "not a record"),
            (["--restore", "--record", "garbage", "--project", "shop"], 1, "neither --project"),
        ]:
            with self.subTest(arguments=arguments):
                self.assertIn(words, self.run_move(*arguments, "--apply", code=code))
        self.change_project(lambda project: project["connectors"].update({"europe-west1": "ERROR"}))
        self.assertIn("is ERROR and not READY", self.move("--apply", code=3))
        self.change_project(lambda project: project.update(account=None))
        self.assertIn("active account", self.move("--apply", code=3))
        empty = self.home / "empty"
        empty.mkdir()
        (empty / "python3").symlink_to(shutil.which("python3"))
        self.assertIn("gcloud is not installed", self.move("--apply", code=3, path=f"{empty}"))
        self.assertEqual(self.calls("update"), [])

    def test_help_names_every_option(self):
        said = self.run_move("--help")
        for line in MOVE.read_text().splitlines():
            if "add_argument(" in line:
                self.assertIn(line.split('"')[1] if "--help" not in line else "usage", said)

    @unittest.skipUnless(shutil.which("gcloud"), "the real gcloud is not installed, and no package registry has it")
    def test_the_real_gcloud_understands_each_call(self):
        self.move("--apply")
        self.run_move("--restore", "--record", "move-cloud-run.shop.ndjson", "--apply")
        kinds = {tuple(word.split("=")[0] for word in call if word.startswith("--")) + (call[-2] if "list" in call else "",): call for call in self.calls()}
        self.assertGreaterEqual(len(kinds), 5)
        for call in [*kinds.values(), ["run", "services", "update", "x", "--project=p", "--frobnicate", "--quiet"]]:
            # Without an account it gets as far as wanting one; a call that it does not understand ends before, with 2.
            finished = subprocess.run(["gcloud", *call], text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=120,
                                      env=os.environ | {"CLOUDSDK_CONFIG": str(self.home / "config"), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"})
            if "--frobnicate" in call:
                self.assertEqual(finished.returncode, 2, finished.stderr)
            else:
                self.assertEqual(finished.returncode, 1, finished.stderr)
                self.assertIn("account", finished.stderr)


if __name__ == "__main__":
    unittest.main()
