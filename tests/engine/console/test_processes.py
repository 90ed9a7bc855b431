# SPDX-License-Identifier: MIT
"""Service, Transport Services, movers and console as real processes on loopback, from plain configuration files.

They are started with an import hook that refuses the lab, the fakes and the rules: the engine knows nothing of them. The
restore point is written with the store; backups themselves need a vCenter and are tested with the lab.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine import config as configuration
from engine.dialer import Dialer
from engine.events import EventLog
from engine.rpc.client import Client
from engine.store.points import Points, new_point_id
from tests.engine.machines import REPOSITORY, Machines
from tests.engine.store import disks
from tests.engine.store.test_verify import flip, places
from tests.engine.transport.test_service import alive

HOOK = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('lab', 'fakes', 'firewall_rules', 'tests'):
            raise ImportError(f'{name} is not part of the engine')
sys.meta_path.insert(0, Refuse())
"""
ADDRESSES = {
    "backup-server": "127.0.0.11",
    "proxy-1": "127.0.0.12",
    "repository-1": "127.0.0.13",
    "console": "127.0.0.14",
}


def make_point(repository: Path, job: str, vm: str, point: str) -> bytes:
    """A restore point with one disk: data with holes; gives its bytes."""
    data = bytearray(4 << 20)
    for at in (0, 1 << 20, (3 << 20) + 777):
        data[at : at + 70_000] = bytes(i * 7 % 251 for i in range(70_000))
    repository.mkdir(exist_ok=True)
    disks.make_point(Points(repository), bytes(data), point=point, job=job, vm=vm)
    return bytes(data)


def free_port(address: str) -> int:
    with socket.create_server((address, 0)) as probe:
        return int(probe.getsockname()[1])


class Site:
    """The machines of a small site; `console` runs one command and gives its exit code and documents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        hook = folder / "hook"
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(HOOK)
        self.env = {**os.environ, "PYTHONPATH": f"{hook}:{REPOSITORY}"}
        machines = Machines(folder)
        service, transport = free_port("127.0.0.11"), free_port("127.0.0.12")
        common = {"resolver": ADDRESSES, "backup_server": {"name": "backup-server", "port": service}}
        settings = {"database": f"sqlite:///{folder}/db.sqlite", "secrets_key": "key", "infrastructure": "infra.yaml"}
        self.paths = {
            "backup-server": machines.path("backup-server", listen="127.0.0.11", port=service, service=settings, **common),
            "proxy-1": machines.path("proxy-1", listen="127.0.0.12", port=transport, **common),
            "repository-1": machines.path(
                "repository-1", listen="127.0.0.13", port=transport, repository="points",
                mover_ports=[transport + 1, min(transport + 40, 65535)], **common,
            ),
            "console": machines.path("console", **common),
        }  # fmt: skip
        (folder / "infra.yaml").write_text(
            yaml.safe_dump({
                "vcenters": [{"name": "vcenter", "address": "127.0.0.1", "port": free_port("127.0.0.1"),
                              "username": "u", "password": "S3cret-word"}],
                "servers": [{"name": "proxy-1", "roles": ["proxy"], "port": transport},
                            {"name": "repository-1", "roles": ["repository"], "port": transport}],
                "jobs": [{"name": "demo", "vms": ["linux-vm"]}],
            })
        )  # fmt: skip
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, module: str, machine: str) -> subprocess.Popen[str]:
        with (self.folder / f"{machine}.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, "--config", str(self.paths[machine])],
                stdout=subprocess.PIPE, stderr=log, text=True, env=self.env, cwd=self.folder,
            )  # fmt: skip
        self.processes.append(process)
        assert process.stdout is not None
        assert "port" in json.loads(process.stdout.readline()), (self.folder / f"{machine}.log").read_text()
        return process

    def console(self, *command: str) -> tuple[int, list[dict[str, Any]]]:
        done = subprocess.run(
            [sys.executable, "-m", "engine.console", "--config", str(self.paths["console"]), "--events", *command],
            capture_output=True, text=True, env=self.env, cwd=self.folder, timeout=60,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    found = Site(tmp_path)
    try:
        found.start("engine.transport", "proxy-1")
        found.start("engine.transport", "repository-1")
        found.start("engine.service", "backup-server")
        yield found
    finally:
        found.close()


def test_the_hook_refuses(tmp_path: Path) -> None:
    site = Site(tmp_path)
    done = subprocess.run([sys.executable, "-c", "import fakes"], env=site.env, capture_output=True, text=True)
    assert done.returncode == 1 and "not part of the engine" in done.stderr


def test_a_missing_repository_is_made_by_the_first_rescan_only(site: Site) -> None:
    folder = site.folder / "points"
    assert not folder.exists()
    _, documents = site.console("infra", "rescan")
    assert [s["error"] for s in documents[-1]["servers"]] == [None, None] and folder.is_dir()
    folder.rmdir()
    _, documents = site.console("infra", "rescan")
    error = next(s["error"] for s in documents[-1]["servers"] if s["name"] == "repository-1")
    assert error["code"] == "store.gone" and not folder.exists()


def test_rescan_lists_and_restore(site: Site) -> None:
    code, documents = site.console("infra", "rescan")
    assert code == 1 and documents[-1]["error"]["code"] == "connect.refused"
    assert documents[-1]["error"]["step"] == "i2" and documents[-1]["error"]["target"] == "vcenter"
    assert [s["error"] for s in documents[-1]["servers"]] == [None, None]
    assert [(d["step"], d["phase"]) for d in documents if d.get("kind") == "step" and d["phase"] != "begin"] == [
        ("i1", "end"), ("i2", "failed"), ("i3", "end"), ("i3", "end"),
    ]  # fmt: skip
    code, documents = site.console("job", "list")
    assert code == 0 and documents[-1]["jobs"][0]["name"] == "demo"
    code, documents = site.console("infra", "show")
    assert code == 0 and [s["state"] for s in documents[-1]["servers"]] == ["ok", "ok"]
    code, documents = site.console("job", "run", "demo")
    assert code == 1 and documents[-1]["error"]["code"] == "infra.empty" and documents[-1]["error"]["step"] == "3"

    point = new_point_id()
    data = make_point(site.folder / "points", "demo", "linux-vm", point)
    code, documents = site.console("points", "list")
    assert code == 0 and [(p["point"], p["vm"], p["repository"]) for p in documents[-1]["points"]] == [
        (point, "linux-vm", "repository-1")
    ]
    code, documents = site.console("restore", point, "--disk", "1", "--to", str(site.folder / "disk"), "--session", "r")
    assert code == 0, documents
    result = documents[-1]
    assert (result["run"], result["disk"], result["size"]) == ("r", 2000, len(data))
    assert (site.folder / "disk").read_bytes() == data
    assert (site.folder / "disk").stat().st_blocks * 512 < len(data)
    steps = [(d["step"], d["phase"]) for d in documents if d.get("kind") == "step"]
    assert [s for s in steps if s[1] == "end"] == [("r1", "end"), ("r2", "end"), ("r3", "end")]
    attempts = [
        json.loads(line)
        for machine in ("console", "backup-server")
        for line in (site.folder / f"{machine}.jsonl").read_text().splitlines()
    ]
    opened = {(e["host"], e["step"], e["target"]) for e in attempts if e["kind"] == "attempt" and e["session"] == "r"}
    assert opened == {
        ("console", "r1", "backup-server"), ("backup-server", "r2", "repository-1"), ("console", "r3", "repository-1"),
    }  # fmt: skip

    cases = [
        (("restore", point, "--disk", "1", "--to", str(site.folder / "disk")), 2, "restore.target-exists"),
        (("restore", point, "--disk", "9", "--to", str(site.folder / "x")), 2, "restore.disk-unknown"),
        (
            ("restore", "20200101T000000Z-0000", "--disk", "1", "--to", str(site.folder / "x")),
            2,
            "restore.point-unknown",
        ),
        (("job", "run", "other"), 2, "job.unknown"),
        (("job", "stop", "demo"), 2, "job.not-running"),
        (("job", "run", "demo", "--mode", "pigeon"), 2, "input.invalid"),
    ]
    for command, status, error in cases:
        code, documents = site.console(*command)
        assert (code, documents[-1]["error"]["code"]) == (status, error), command
    assert not (site.folder / "x").exists()
    written = [p for p in site.folder.rglob("*") if p.is_file() and p.name != "infra.yaml"]
    assert not [p for p in written if b"S3cret-word" in p.read_bytes()]


@pytest.mark.skipif(shutil.which("mkfs.ext4", path="/usr/sbin:/sbin") is None, reason="needs e2fsprogs")
def test_single_files_come_through_a_mover_of_the_repository(site: Site) -> None:
    assert site.console("infra", "rescan")[0] == 1
    tree, out = site.folder / "tree", site.folder / "out"
    (tree / "etc").mkdir(parents=True)
    out.mkdir()
    (tree / "etc" / "hosts").write_text("127.0.0.1 localhost\n")
    big = bytes(i * 7 % 251 for i in range(3_000_017))
    (tree / "etc" / "big").write_bytes(big)
    image = site.folder / "image"
    image.write_bytes(bytes(16 << 20))
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", "-d", str(tree), str(image)], check=True, timeout=60)
    repository, point = site.folder / "points", new_point_id()
    repository.mkdir(exist_ok=True)
    disks.make_point(Points(repository), image.read_bytes(), point=point, job="demo", vm="linux-vm")

    files = ("restore", "files", point)
    code, documents = site.console(*files, "/etc", "--disk", "1", "--list")
    assert code == 0, documents
    assert [e["name"] for e in documents[-1]["paths"][0]["entries"]] == ["big", "hosts"]
    code, documents = site.console(*files, "/etc", "/ghost", "--disk", "1", "--to", str(out), "--session", "f")
    found, ghost = documents[-1]["paths"]
    assert (found["files"], found["error"], ghost["error"]["code"]) == (2, None, "files.not-found")
    assert (code, documents[-1]["result"], documents[-1]["error"]) == (2, "failed", ghost["error"])
    assert (out / "etc" / "big").read_bytes() == big and (
        out / "etc" / "hosts"
    ).read_bytes() == b"127.0.0.1 localhost\n"
    told = [json.loads(line) for line in (site.folder / "console.jsonl").read_text().splitlines()]
    mine = [e for e in told if e["session"] == "f"]
    opened = {(e["step"], e["target"]) for e in mine if e["kind"] == "attempt"}
    assert opened == {("r1", "backup-server"), ("r3", "repository-1")}
    (carried,) = [e for e in mine if e["kind"] == "bytes" and e["step"] == "r3"]
    assert len(big) < carried["received"] < len(big) + (1 << 20), "only what the files need"

    assert site.console(*files, "/etc/hosts", "--disk", "1", "--to", str(out / "etc"))[0] != 0, "nothing is overwritten"
    code, documents = site.console(*files, "/etc", "--disk", "1", "--to", str(site.folder / "nowhere"))
    assert (code, documents[-1]["error"]["code"]) == (2, "restore.target-exists")


@pytest.mark.skipif(shutil.which("mkfs.ext4", path="/usr/sbin:/sbin") is None, reason="needs e2fsprogs")
def test_a_damaged_file_is_named_and_the_others_are_restored(site: Site) -> None:
    assert site.console("infra", "rescan")[0] == 1
    tree, out = site.folder / "tree", site.folder / "out"
    tree.mkdir()
    out.mkdir()
    data = random.Random(3).randbytes(2 << 20)
    (tree / "big").write_bytes(data)
    (tree / "small").write_text("small")
    image = site.folder / "image"
    image.write_bytes(bytes(16 << 20))
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", "-d", str(tree), str(image)], check=True, timeout=60)
    at = image.read_bytes().index(data[: 1 << 16]) + (1 << 20) >> 16
    repository, point = site.folder / "points", new_point_id()
    repository.mkdir(exist_ok=True)
    folder = disks.make_point(Points(repository), image.read_bytes(), point=point, job="demo", vm="linux-vm")
    flip(folder / "disk-2000.qcow2", places(folder / "disk-2000.qcow2")[at][0] + 5)
    code, documents = site.console("restore", "files", point, "/big", "/small", "--disk", "1", "--to", str(out))
    big, small = documents[-1]["paths"]
    assert (code, big["error"]["code"], small["error"]) == (1, "store.damaged", None)
    assert f"offset {at << 16}" in big["error"]["message"]
    assert [p.name for p in out.iterdir()] == ["small"], "no half file"


def test_damaged_point_is_refused_by_name(site: Site) -> None:
    assert site.console("infra", "rescan")[0] == 1
    point = new_point_id()
    make_point(site.folder / "points", "demo", "linux-vm", point)
    path = next((site.folder / "points").glob("*/*/*/*.qcow2"))
    raw = bytearray(path.read_bytes())
    found = raw.find(bytes.fromhex("28b52ffd"))
    assert found > 0
    raw[found + 20] ^= 1
    path.write_bytes(raw)
    code, documents = site.console("restore", point, "--disk", "1", "--to", str(site.folder / "disk"))
    assert code == 1 and documents[-1]["error"]["code"] == "store.damaged"
    assert point in documents[-1]["error"]["message"] and not (site.folder / "disk").exists()


def test_unreachable_service_and_bad_configuration(tmp_path: Path) -> None:
    site = Site(tmp_path)
    code, documents = site.console("job", "run", "demo", "--session", "x")
    error = documents[-1]["error"]
    assert code == 1 and (error["code"], error["step"], error["host"]) == ("connect.refused", "1", "console")
    (tmp_path / "console.yaml").write_text("name: console\nsurprise: 1\n")
    code, documents = site.console("job", "list")
    assert (
        code == 2
        and "surprise" in documents[-1]["error"]["message"]
        and "identity" in documents[-1]["error"]["message"]
    )


def test_killed_transport_service_takes_its_movers_along(site: Site) -> None:
    """PR_SET_PDEATHSIG: whoever dies takes its children along."""

    async def main() -> None:
        config = configuration.load(site.paths["repository-1"])
        identity = configuration.load(site.paths["console"]).make_identity()
        dialer = Dialer(EventLog(None, host="console", process="test"))
        connection = await dialer.dial(config.listen, config.port, step=None, name=config.name)
        client = await Client.open(connection, identity, expect=config.name)
        await client.call("mover.start", deadline=30, session="s", task="t", role="reader")
        transport = site.processes[1]
        children = Path(f"/proc/{transport.pid}/task/{transport.pid}/children").read_text().split()
        assert len(children) == 1
        transport.send_signal(signal.SIGKILL)
        transport.wait(10)
        end = time.monotonic() + 5
        while alive(int(children[0])):
            assert time.monotonic() < end, "the mover outlived its Transport Service"
            await asyncio.sleep(0.01)
        await client.close()

    asyncio.run(main())
