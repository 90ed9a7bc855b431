# SPDX-License-Identifier: MIT
"""An ordinary user has the lab as well, where user namespaces are allowed: with the substitutes that `doctor` names."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import COMMAND_DEADLINE, VADPLAB, drill_topology

USER = "nobody"
HOTADD = ("job", "run", "demo", "--mode", "hotadd", "--no-failover", "--json")


class Ordinary:
    """Runs `vadplab` as a user without powers: this one, or `nobody` when the tests run as root."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.prefix: list[str] = []
        self.environment = {**os.environ, "VADPLAB_HOME": str(home / "labs"), "HOME": str(home)}
        self.environment["VADPLAB_CACHE"] = str(home / "cache")
        if os.geteuid() == 0:
            user = pwd.getpwnam(USER)
            os.chown(home, user.pw_uid, user.pw_gid)
            setpriv = shutil.which("setpriv")
            assert setpriv is not None
            self.prefix = [setpriv, "--reuid", str(user.pw_uid), "--regid", str(user.pw_gid), "--clear-groups", "--"]

    def raw(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.prefix, *argv],
            env=self.environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_DEADLINE,
            check=False,
        )

    def __call__(self, *argv: str, code: int = 0) -> dict[str, Any]:
        done = self.raw(str(VADPLAB), *argv, "--json")
        assert done.returncode == code, done.stdout + done.stderr
        document = json.loads(done.stdout)
        assert isinstance(document, dict)
        return document


@pytest.fixture(scope="module")
def user() -> Iterator[Ordinary]:
    from fakes.vcenter import source

    with tempfile.TemporaryDirectory(prefix="vadplab-user-") as folder:
        found = Ordinary(Path(folder))
        if found.raw("unshare", "-Urn", "true").returncode:
            pytest.skip("user namespaces are not allowed here")
        if found.raw(str(VADPLAB), "--version").returncode:
            pytest.skip(f"{VADPLAB} can not be run by an ordinary user")
        vcsim = source.locate("built", source.default_cache()).executable
        assert vcsim is not None
        shutil.copy(vcsim, found.home / "vcsim")
        (found.home / "vcsim").chmod(0o755)
        drill_topology(found.home).chmod(0o644)
        yield found


@pytest.mark.lab
@pytest.mark.slow
def test_whole_job_without_root(user: Ordinary) -> None:
    powers = {
        p["name"]: p for group in user("doctor").values() if isinstance(group, list) for p in group if "name" in p
    }
    assert powers["namespaces, veth, nftables"]["state"] == "ok"
    topology, vcsim = str(user.home / "drill.yaml"), str(user.home / "vcsim")
    user("--lab", "mine", "up", "--topology", topology, "--vcsim", vcsim)
    try:
        document = user("--lab", "mine", "job", "run", "demo")
        assert document["result"] == "success" and document["evidence"] == "consistent"
        assert "broken" not in document["invariants"].values()
        consistency = {p["vm"]: p["consistency"] for p in document["restore_points"]}
        assert consistency == {"linux-vm": "crash", "files-vm": "crash"}, "nothing can be frozen without root"
        if powers["FUSE"]["state"] != "ok":
            answer = json.loads(user.raw(str(VADPLAB), "--lab", "mine", *HOTADD).stdout)
            assert "/dev/fuse" in answer["error"]["message"], answer
        point = next(p for p in document["restore_points"] if p["vm"] == "linux-vm")
        restored = user(
            *("--lab", "mine", "restore", point["point"], "--vm", "linux-vm", "--disk", "1"),
            *("--to", str(user.home / "disk.img"), "--compare"),
        )
        assert restored["comparison"]["equal"]
    finally:
        user("--lab", "mine", "down", "--purge")
