# SPDX-License-Identifier: MIT
"""Half-made VMs of restores whose Backup Service died are destroyed by the next one; others' VMs are left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.restore import machine
from engine.restore.vm import MARK
from engine.service.sweep import Sweep
from tests.engine.machines import Machines
from tests.engine.modes.site import Site
from tests.engine.pki import Pki
from tests.engine.restore.test_machine import POINT


class Records:
    """The configuration database's part that restores use."""

    def __init__(self, vcenter: dict[str, Any]) -> None:
        self.vcenter = vcenter
        self.rows: dict[str, dict[str, Any]] = {}

    def row(self, ident: str, state: str, result: str | None, document: dict[str, Any]) -> None:
        self.rows[ident] = {"id": ident, "kind": "restore", "state": state, "result": result, "document": document}

    def vcenters(self) -> list[dict[str, Any]]:
        return [self.vcenter]

    def servers(self) -> list[dict[str, Any]]:
        return []

    def sessions(self, *, kind: str) -> list[dict[str, Any]]:
        return list(self.rows.values())

    def unfinished(self) -> list[dict[str, Any]]:
        return [r for r in self.rows.values() if r["state"] != "ended"]

    def end_session(self, ident: str, result: str, document: dict[str, Any]) -> None:
        self.row(ident, "ended", result, document)


class Jobs:
    """Runs work on those records."""

    def __init__(self, records: Records) -> None:
        self.records = records

    async def database(self, work: Any) -> Any:
        return await asyncio.to_thread(work, self.records)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "pki").mkdir()
    site = Site.start(folder, Pki(folder / "pki"))
    try:
        yield site
    finally:
        site.stop()


def sweep(folder: Path, records: Records) -> Sweep:
    config = Machines(folder).config("backup-server")
    return Sweep(config, Jobs(records), running=())  # type: ignore[arg-type]


@pytest.mark.root
def test_what_a_dead_restore_left_is_destroyed_once(site: Site, tmp_path: Path) -> None:
    records = Records(site.login)
    records.row("dead", "running", None, {})
    records.row("done", "ended", "success", {"what": "vm", "left": None})

    def prepare() -> None:
        with site.vsphere() as vsphere:
            for name, mark in (("half", f"{MARK}dead"), ("foreign", f"{MARK}somebody-else"), ("whole", "Restored")):
                where = machine.place(vsphere, None, "datastore1", name, resolver={}, step="r5")
                machine.create(vsphere, machine.planned(name, POINT), where, mark, step="r5")

    prepare()
    logins = site.folder.joinpath("journal.jsonl").read_text().count('"Login"')
    asyncio.run(sweep(tmp_path, records).at_start())
    left = {vm["vm"] for vm in site.storage("vm.list")}
    assert "half" not in left and {"foreign", "whole"} <= left
    assert records.rows["dead"]["state"] == "ended" and records.rows["dead"]["document"]["swept"]
    asyncio.run(sweep(tmp_path, records).at_start())
    assert site.folder.joinpath("journal.jsonl").read_text().count('"Login"') == logins + 1, (
        "nothing is looked for twice"
    )


@pytest.mark.root
def test_a_restore_counts_as_swept_when_every_vcenter_was_searched(site: Site, tmp_path: Path) -> None:
    records = Records(site.login)
    records.row("dead", "running", None, {})
    silent = {**site.login, "name": "other", "port": 1}
    records.vcenters = lambda: [silent, site.login]  # type: ignore[method-assign]
    asyncio.run(sweep(tmp_path, records).at_start())
    assert records.rows["dead"]["state"] == "running", "one vCenter was not searched"
    records.vcenters = lambda: [site.login]  # type: ignore[method-assign]
    asyncio.run(sweep(tmp_path, records).at_start())
    assert records.rows["dead"]["document"]["swept"]
