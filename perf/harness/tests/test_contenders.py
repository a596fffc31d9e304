"""Contenders' configurations render, are accepted by those they are for, and do the same job; and the check of the job
fails where it has to.

`python3 -m unittest discover -s perf/harness/tests -t perf`. Needs nginx, and Claviger, loadgen and mock-upstream built, in
debug or in release; looks at the other contenders where they are installed.
"""

import contextlib
import subprocess
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from harness import contender as contenders
from harness import job_check
from harness.contender import CannotMeasure
from harness.job_check import STRIPPED, Failed


def built(name, package=None):
    """The release binary, or the debug one: what is tested here is not speed."""
    for profile in ("release", "debug"):
        path = contenders.target_dir() / profile / name
        if path.exists():
            return path
    raise CannotMeasure(f"{name} is missing; run: cargo build -p {package or name}")


def installed():
    """The contenders that can be found on this machine, each with its program."""
    found = []
    for name in contenders.known():
        one = contenders.load(name)
        with contextlib.suppress(CannotMeasure):
            if name == "direct" or is_claviger(one):
                one.program = built("mock-upstream" if name == "direct" else "claviger")
            else:
                one.find()
            found.append(one)
    return found


def is_claviger(contender):
    """Whether it is the product, whatever its settings."""
    return contender.name.startswith("claviger")


class Contenders(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.stack = contextlib.ExitStack()
        cls.addClassCleanup(cls.stack.close)
        cls.stack.enter_context(mock.patch.object(job_check, "find_built", built))
        cls.work = Path(cls.stack.enter_context(tempfile.TemporaryDirectory(prefix="claviger-contenders-")))
        cls.api = job_check.Mock(cls.stack, cls.work / "api", keys=(job_check.KEY, job_check.NEW_KEY))
        cls.all = [one for one in installed() if one.name != "direct"]

    def job(self, routes=1, api=None):
        place = Path(tempfile.mkdtemp(dir=self.work)) / "job"
        return job_check.job_for(place, api or self.api, self.api, routes=routes)

    def nginx(self):
        return next(one for one in self.all if one.name == "nginx")

    def test_nginx_and_claviger_are_here(self):
        self.assertLessEqual({"nginx", "claviger"}, {one.name for one in self.all})

    def test_configurations_are_accepted(self):
        for one in self.all:
            for routes in (1, 3):
                with self.subTest(one.name, routes=routes):
                    job = self.job(routes)
                    one.start(job)
                    done = subprocess.run(one.check_command(job), capture_output=True, text=True, timeout=60)
                    self.assertEqual(done.returncode, 0, (done.stdout + done.stderr)[-2000:])

    def test_broken_configurations_are_refused(self):
        for one in self.all:
            with self.subTest(one.name):
                job = self.job()
                one.start(job)
                main = Path(one.check_command(job)[-1 if is_claviger(one) or one.name in ("haproxy", "pingora") else 0])
                if not main.is_relative_to(job.dir):
                    main = job.dir / {"nginx": "nginx.conf", "caddy": "Caddyfile", "envoy": "envoy.json"}[one.name]
                main.write_text(main.read_text().replace("127.0.0.1", "no address", 1) + "\n}{ no such thing\n")
                done = subprocess.run(one.check_command(job), capture_output=True, text=True, timeout=60)
                self.assertNotEqual(done.returncode, 0)
                self.assertNotIn(job.key, done.stdout + done.stderr)

    def test_every_route_is_configured(self):
        for one in self.all:
            with self.subTest(one.name):
                job = self.job(routes=3)
                one.start(job)
                text = "".join(path.read_text() for path in job.dir.rglob("*") if path.is_file())
                for name in ("r00001.example.com", "r00002.example.com", "api.example.com"):
                    self.assertIn(name, text)

    def test_keys_are_private(self):
        for one in self.all:
            with self.subTest(one.name):
                job = self.job(routes=2)
                one.start(job)
                for path in job.dir.rglob("*"):
                    if path.is_file() and job.key in path.read_text():
                        self.assertEqual(path.stat().st_mode & 0o077, 0, path)

    def test_all_strip_the_same(self):
        for one in self.all:
            if is_claviger(one):
                continue  # By default; the check of the job holds it to that.
            with self.subTest(one.name):
                job = self.job()
                one.start(job)
                sources = list(job.dir.rglob("*")) + list((contenders.PERF / "contenders" / one.name).rglob("*.rs"))
                text = "".join(path.read_text() for path in sources if path.is_file()).lower()
                for field in STRIPPED:
                    self.assertIn(field.lower(), text)

    def test_nginx_does_the_job(self):
        job = self.job()
        with job_check.running(self.nginx(), job) as process:
            seen = job_check.check(job.port, self.api.ca, name="nginx")
            self.assertTrue(seen["resumes"])
            self.assertGreaterEqual(len(self.nginx().pids(process)), 2, "the master and its worker")

    def test_another_cipher_or_group_is_noticed(self):
        """On either side: nginx as it is speaks what all speak, and with one line more it does not."""
        for more, wanted in (
            ("", None),
            ("ssl_conf_command Ciphersuites TLS_AES_256_GCM_SHA384;", "AES_256.* with callers"),
            ("ssl_ecdh_curve secp384r1;", "secp384r1.* with callers"),
            ("proxy_ssl_conf_command Ciphersuites TLS_AES_256_GCM_SHA384;", "AES_256.* with the API"),
            ("proxy_ssl_protocols TLSv1.2;", "TLSv1_2.* with the API"),
        ):
            with self.subTest(more):
                job, nginx = self.job(), self.nginx()
                command = nginx.start(job)
                file = job.dir / "nginx.conf"
                text = file.read_text()
                if more.startswith("proxy_ssl_protocols"):
                    text = text.replace("proxy_ssl_protocols TLSv1.2 TLSv1.3;", "")
                file.write_text(text.replace("ssl_session_cache", f"{more} ssl_session_cache"))

                class Started:
                    name, logs, start = nginx.name, staticmethod(nginx.logs), staticmethod(lambda job: command)

                with job_check.running(Started, job):
                    caller = job_check.Caller(job.port, self.api.ca, job_check.HOST, "nginx")
                    job_check.replaces_key(caller, job_check.KEY)
                    ask = job.port, self.api.ca, caller.seen["upstream_tls"]
                    if wanted:
                        with self.assertRaisesRegex(Failed, f"(?i){wanted}"):
                            job_check.speaks_the_same_tls(*ask)
                    else:
                        job_check.speaks_the_same_tls(*ask)

    def test_an_answer_that_the_api_did_not_give_is_noticed(self):
        for more, wanted in (("", None), ("location = /ok { return 200; }", "the API saw 0")):
            job, nginx = self.job(), self.nginx()
            command = nginx.start(job)
            file = next(path for path in job.dir.glob("*.conf") if "location" in path.read_text())
            text = file.read_text()
            at = text.index("location ")
            file.write_text(text[:at] + more + "\n" + text[at:])

            class Started:
                name, logs, start = nginx.name, staticmethod(nginx.logs), staticmethod(lambda job: command)

            with job_check.running(Started, job):
                caller = job_check.Caller(job.port, self.api.ca, job_check.HOST, "nginx")
                if wanted:
                    with self.assertRaisesRegex(Failed, wanted):
                        job_check.asks_the_api(caller, self.api.stats)
                else:
                    job_check.asks_the_api(caller, self.api.stats)

    def test_the_wrong_is_refused(self):
        """By nginx as it is, and not by one that does not verify."""
        for old, new, wanted in (("", "", None), ("proxy_ssl_verify on", "proxy_ssl_verify off", "certificate is wrong")):
            nginx = self.nginx()
            work = Path(tempfile.mkdtemp(dir=self.work))

            class Started:
                name, logs = nginx.name, staticmethod(nginx.logs)

                @staticmethod
                def start(job):
                    command = nginx.start(job)
                    file = job.dir / "nginx.conf"
                    file.write_text(file.read_text().replace(old, new))
                    return command

            if wanted:
                with self.assertRaisesRegex(Failed, wanted):
                    job_check.refuses_the_wrong(Started, work, self.api)
            else:
                job_check.refuses_the_wrong(Started, work, self.api)

    def check_fails(self, part, file, old, new):
        """nginx with one line changed does not pass one part of the check."""
        job, nginx = self.job(), self.nginx()

        class Worse:
            name, logs = nginx.name, staticmethod(nginx.logs)

            @staticmethod
            def start(job):
                command = nginx.start(job)
                text = (job.dir / file).read_text()
                self.assertIn(old, text)
                (job.dir / file).write_text(text.replace(old, new))
                return command

        with job_check.running(Worse, job):
            caller = job_check.Caller(job.port, self.api.ca, job_check.HOST, "nginx")
            with self.assertRaises(Failed):
                part(caller, job_check.KEY)

    def test_a_passed_on_key_is_noticed(self):
        for field in STRIPPED[1:]:
            with self.subTest(field):
                self.check_fails(job_check.replaces_key, "nginx-job.conf", f'proxy_set_header {field} "";', "")

    def test_a_missing_key_is_noticed(self):
        self.check_fails(job_check.replaces_key, "nginx-job.conf", "Authorization \"Bearer ", "Authorization \"Basic ")

    def test_a_new_connection_each_time_is_noticed(self):
        self.check_fails(job_check.keeps_upstream, "nginx-job.conf", "$connection_upgrade", "close")

    def test_events_held_back_are_noticed(self):
        self.check_fails(job_check.streams_events, "nginx.conf", "proxy_buffering off;", "")

    def test_a_refused_upgrade_is_noticed(self):
        self.check_fails(job_check.upgrades, "nginx-job.conf", "proxy_set_header Upgrade $http_upgrade;", "")

    def test_a_swallowed_status_is_noticed(self):
        self.check_fails(
            job_check.passes_status, "nginx-job.conf", "proxy_http_version 1.1;",
            "proxy_http_version 1.1; proxy_intercept_errors on; error_page 500 =503 /gone;",
        )

    def test_a_wrong_certificate_is_noticed(self):
        """nginx as it is refuses the API under another name; without verification it does not, and that is noticed."""
        with contextlib.ExitStack() as stack:
            misnamed = job_check.Mock(stack, Path(tempfile.mkdtemp(dir=self.work)) / "api", name="api.example.net")
            for verify in (True, False):
                job, nginx = self.job(api=misnamed), self.nginx()
                with contextlib.ExitStack() as inner:
                    command = nginx.start(job)
                    if not verify:
                        file = job.dir / "nginx.conf"
                        file.write_text(file.read_text().replace("proxy_ssl_verify on", "proxy_ssl_verify off"))

                    class Started:
                        name, logs, start = nginx.name, staticmethod(nginx.logs), staticmethod(lambda job: command)

                    inner.enter_context(job_check.running(Started, job))
                    if verify:
                        job_check.refuses(job.port, self.api.ca, misnamed.requests)
                    else:
                        with self.assertRaises(Failed):
                            job_check.refuses(job.port, self.api.ca, misnamed.requests)


if __name__ == "__main__":
    unittest.main()
