"""deploy/cloud-init: accepted by the real cloud-init, and what it runs, run."""

import re
import unittest

from machine import KIT, STOCK, Machine, needs_root

VALUES = {"package_url": "https://files.example/claviger.deb", "package_sha256": "0" * 64, "permit": "example.com example.org"}


def filled(name, **values):
    text = (KIT / "cloud-init" / name).read_text()
    return re.sub(r"\$\{([a-z0-9_]+)\}", lambda match: (VALUES | values)[match[1]], text)


@needs_root
class FirstBoot(unittest.TestCase):
    def test_cloud_init_accepts_them(self):
        with Machine(STOCK / "bookworm") as machine:
            for name in ("hub.yaml", "edge.yaml"):
                machine.write(f"/root/{name}", filled(name))
                self.assertIn("Valid", machine.run("cloud-init", "schema", "--config-file", f"/root/{name}"))
            machine.write("/root/wrong.yaml", filled("hub.yaml").replace("runcmd:", "runcmd: 7\nruncmds:"))
            machine.run("cloud-init", "schema", "--config-file", "/root/wrong.yaml", code=1)


if __name__ == "__main__":
    unittest.main()
