# SPDX-License-Identifier: MIT
"""Aftermath: guests are thawed and snapshots committed, tried again while the vCenter is away, and what stays is said."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ConnectRefused
from engine.service import aftermath as aftermath_module
from engine.service.aftermath import Aftermath
from tests.engine.machines import Machines

LEFT = ["423f0000-0000-0000-0000-00000000000a", "[ds] b/b_0.vmdk"]
PENDING = {"a": {"guest": "10.0.0.9", "snapshot": True}, "b": {"snapshot": True, "attached": [LEFT]}}
VCENTER = {"name": "vcenter"}
ACCOUNT = {"username": "root", "password": "p", "host_key": None, "port": 22}


class Ssh:
    """In place of `SshChannel`."""

    thawed: list[str]
    error: Exception | None = None

    def __init__(self, dialer: Any, *, target: str, **_: Any) -> None:
        self.target = target

    async def thaw_leftover(self) -> bool:
        if type(self).error is not None:
            raise type(self).error
        type(self).thawed.append(self.target)
        return True


class Link:
    """In place of `VSphereLink`: refuses as often as it should, then commits."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.committed: list[str] = []
        self.detached: list[list[str]] = []
        self.logouts = 0

    async def commit_snapshots(self, vm: str, mark: str, *, timeout: float) -> int:
        assert mark == "vadplab-session:s1;"
        if self.refusals:
            self.refusals -= 1
            raise ConnectRefused("backup-server to vcenter:443: refused")
        self.committed.append(vm)
        return 1

    async def detach(self, uuid: str, paths: list[str], *, step: str) -> list[str]:
        assert not self.committed or self.committed == ["a"]  # before the snapshot of b
        self.detached += [[uuid, path] for path in paths]
        return paths

    async def logout(self) -> None:
        self.logouts += 1


def recover(
    folder: Path, monkeypatch: pytest.MonkeyPatch, link: Link, ssh: type[Ssh], *, vcenters: list[Any] | None = None
) -> dict[str, Any]:
    monkeypatch.setattr(aftermath_module, "SshChannel", ssh)

    async def login(self: Aftermath, vcenter: dict[str, Any] | None) -> Link:
        if vcenter is None:
            raise ConnectRefused("no vCenter is known")
        return link

    monkeypatch.setattr(Aftermath, "_login", login)
    config = Machines(folder).config("backup-server")
    events = config.event_log("service", session="s1")
    work = Aftermath(config, events, "s1", pauses=(0.0, 0.0, 0.0)).run(
        PENDING, job=None, vcenters=[VCENTER] if vcenters is None else vcenters, guests={"a": ACCOUNT}
    )
    return asyncio.run(work)


def marks(folder: Path) -> list[tuple[str, str, str]]:
    lines = (folder / "backup-server.jsonl").read_text().splitlines()
    return [(e["step"], e["phase"], e["task"]) for e in map(json.loads, lines) if e["kind"] == "step"]


def test_thaw_comes_first_and_commit_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh = type("Ssh1", (Ssh,), {"thawed": []})
    link = Link(refusals=2)
    assert recover(tmp_path, monkeypatch, link, ssh) == {}
    assert ssh.thawed == ["a"] and link.committed == ["a", "b"] and link.logouts == 3
    assert link.detached == [LEFT]
    assert marks(tmp_path) == [
        ("16", "begin", "a"), ("16", "end", "a"), ("22", "begin", "a"), ("22", "end", "a"), ("22", "begin", "b"), ("22", "end", "b"),
    ]  # fmt: skip


def test_what_cannot_be_put_right_stays_pending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh = type("Ssh2", (Ssh,), {"thawed": [], "error": ConnectRefused("backup-server to a:22: refused")})
    left = {**PENDING, "b": {"snapshot": True}}  # the disk is detached, its snapshot stays
    assert recover(tmp_path, monkeypatch, Link(refusals=99), ssh) == left
    assert [m for m in marks(tmp_path) if m[1] == "failed"] == [
        ("16", "failed", "a"), ("22", "failed", "a"), ("22", "failed", "b"),
    ]  # fmt: skip


def test_without_a_vcenter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh = type("Ssh3", (Ssh,), {"thawed": []})
    left = recover(tmp_path, monkeypatch, Link(0), ssh, vcenters=[])
    assert left == {"a": {"snapshot": True}, "b": PENDING["b"]}
