# SPDX-License-Identifier: MIT
"""The sweep: half-made VMs of restores that their Backup Service did not finish are found in vCenter and destroyed."""

from __future__ import annotations

import time
from collections.abc import Container
from functools import partial
from typing import Any

from engine.config import EngineConfig
from engine.errors import VadplabError
from engine.model.database import Database
from engine.processes import in_thread
from engine.report import Reporter
from engine.restore import machine
from engine.restore.vm import MARK
from engine.service.jobs import Jobs
from engine.vsphere import VSphere
from engine.vsphere.link import login

DEADLINE = 300.0


class Sweep:
    """Looks for them. `running`: sessions of restores that go on; theirs are left alone."""

    def __init__(self, config: EngineConfig, jobs: Jobs, running: Container[str]) -> None:
        self._config = config
        self._jobs = jobs
        self._running = running

    async def at_start(self) -> None:
        """At the service's start: half-made VMs of restores that a dead service did not finish are destroyed."""
        unfinished = await self._jobs.database(lambda db: db.unfinished())
        if not any(s["kind"] == "restore" for s in unfinished):
            return
        events = self._config.event_log("service")
        try:
            vcenters = await self._jobs.database(lambda db: db.vcenters())
            await self.run(vcenters, Reporter(events, lambda item: None))
        finally:
            events.close()

    async def run(self, vcenters: list[dict[str, Any]], report: Reporter) -> None:
        """Destroys VMs that carry the mark of a restore of ours that does not run; what fails is left to the next restore.

        A restore may have been into any vCenter: it is settled when all of them were searched.
        """
        known = await self._jobs.database(lambda db: db.sessions(kind="restore"))
        dead = {s["id"]: s for s in known if s["id"] not in self._running and _may_have_left_a_vm(s)}
        if not dead:
            return

        def sweep(vcenter: dict[str, Any]) -> list[str]:
            vsphere = login(self._config.dialer(report.events), vcenter, step="r11", keylog=self._config.keylog)
            try:
                return _destroy_marked(vsphere, set(dead))
            finally:
                vsphere.logout()

        searched = True
        for vcenter in vcenters:
            try:
                gone = await in_thread(partial(sweep, vcenter), deadline=DEADLINE, what="half-made VMs")
            except VadplabError as exc:
                report.note(f"half-made VMs of earlier restores could not be looked for: {exc.message}", step="r11")
                searched = False
                continue
            for name in gone:
                report.note(f"{name}, left half-made by an earlier restore, was destroyed", step="r11")
        if not searched:
            return

        def settle(database: Database) -> None:
            for session, record in dead.items():
                database.end_session(session, "failed", {**record["document"], "swept": True})

        await self._jobs.database(settle)


def _may_have_left_a_vm(session: dict[str, Any]) -> bool:
    """A restore that did not end by itself (the service died), or said that its half-made VM stayed."""
    document = session["document"] or {}
    if document.get("swept"):
        return False
    return session["state"] != "ended" or document.get("kind") == "job" or bool(document.get("left"))


def _destroy_marked(vsphere: VSphere, sessions: set[str]) -> list[str]:
    gone = []
    end = time.monotonic() + DEADLINE / 2
    for moref, name, text in machine.marked(vsphere, MARK, step="r11"):
        if text.partition(MARK)[2].strip() in sessions:
            while True:
                try:
                    machine.destroy(vsphere, moref, step="r11")
                    break
                except VadplabError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(1.0)  # a Data Mover of that restore may still be giving a disk back
            gone.append(name)
    return gone
