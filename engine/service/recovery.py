# SPDX-License-Identifier: MIT
"""What a dead Backup Manager left is put right: guests are thawed (step 16), snapshots committed (step 22).

A manager stores what may be left before it does it: `pending = {vm: {guest: address, snapshot: true}}`. Snapshots are found by the
session's mark. Done at once when a manager dies, and again when the Backup Service starts.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from engine.config import EngineConfig
from engine.dialer import Dialer
from engine.errors import VadplabError
from engine.events import EventLog
from engine.guest.channel import Scripts
from engine.guest.ssh import Account, SshChannel
from engine.manager import snapshot
from engine.manager.links import VSphereLink
from engine.model.infrastructure import Job
from engine.processes import in_thread
from engine.vsphere import VSphere

LOGIN_DEADLINE = 60.0
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)


class Recovery:
    """Puts right what one session left."""

    def __init__(self, config: EngineConfig, events: EventLog, session: str) -> None:
        self._config = config
        self._events = events
        self._session = session

    async def run(
        self, pending: dict[str, Any], *, job: Job | None, vcenters: list[dict[str, Any]], guests: dict[str, Any]
    ) -> dict[str, Any]:
        """Gives what is still pending; empty when all is well. Never raises an error of the catalogue."""
        left: dict[str, Any] = {}
        thawed = await asyncio.gather(
            *(
                self._thaw(vm, entry["guest"], job, guests.get(vm))
                for vm, entry in pending.items()
                if entry.get("guest")
            )
        )
        for vm, done in zip((vm for vm, entry in pending.items() if entry.get("guest")), thawed, strict=True):
            if not done:
                left.setdefault(vm, {})["guest"] = pending[vm]["guest"]
        snapshots = [vm for vm, entry in pending.items() if entry.get("snapshot")]
        if snapshots:
            chosen = [v for v in vcenters if job is None or job.vcenter in (None, v["name"])][:1]
            for vm in await self._commit(snapshots, chosen[0] if chosen else None):
                left.setdefault(vm, {})["snapshot"] = True
        return left

    async def _thaw(self, vm: str, address: str, job: Job | None, account: dict[str, Any] | None) -> bool:
        if account is None:
            return True  # nobody could thaw it; the guest's own watchdog does
        scripts = Scripts(b"", b"#!/bin/sh\n")
        with contextlib.suppress(VadplabError):
            if job is not None:
                scripts = Scripts.load(
                    job.guest.pre_freeze,
                    job.guest.post_thaw,
                    timeout=job.guest.timeout,
                    thaw_after=job.guest.thaw_after,
                )
        events = self._events.for_session(self._session, task=vm)
        channel = SshChannel(
            Dialer(events, self._config.resolver),
            target=vm,
            address=address,
            account=Account(**account),
            session=self._session,
            scripts=scripts,
        )
        events.step("16", "begin", "left by a run that died")
        try:
            await channel.thaw_leftover()
        except VadplabError as exc:
            events.step("16", "failed", exc.message, code=exc.to_dict()["code"])
            return False
        else:
            events.step("16", "end", "left by a run that died")
            return True
        finally:
            events.close()

    async def _commit(self, vms: list[str], vcenter: dict[str, Any] | None) -> list[str]:
        """Gives the VMs whose snapshots could not be committed."""
        left = list(vms)
        for vm in vms:
            self._events.emit("step", step="22", task=vm, phase="begin", text="left by a run that died", data={})
        error: VadplabError | None = None
        for pause in (*PAUSES, None):
            link: VSphereLink | None = None
            try:
                link = await self._login(vcenter)
                for vm in list(left):
                    count = await link.commit_snapshots(vm, snapshot.mark(self._session), timeout=300.0)
                    self._events.emit(
                        "step",
                        step="22",
                        task=vm,
                        phase="end",
                        text="left by a run that died",
                        data={"snapshots": count},
                    )
                    left.remove(vm)
            except VadplabError as exc:
                error = exc
            finally:
                if link is not None:
                    with contextlib.suppress(VadplabError):
                        await link.logout()
            if not left:
                return []
            if pause is None:
                break
            await asyncio.sleep(pause)
        for vm in left:
            text = f"{vm}: a snapshot may stay: {error.message if error else 'no vCenter is known'}"
            self._events.emit("step", step="22", task=vm, phase="failed", text=text, data={})
        return left

    async def _login(self, vcenter: dict[str, Any] | None) -> VSphereLink:
        if vcenter is None:
            raise VadplabError("no vCenter is known")
        dialer = Dialer(self._events, self._config.resolver)
        session = await in_thread(
            lambda: VSphere.login(
                dialer,
                name=vcenter["name"],
                address=vcenter["address"],
                port=vcenter["port"],
                thumbprint=vcenter["thumbprint"],
                username=vcenter["username"],
                password=vcenter["password"],
                step="22",
                keylog=self._config.keylog,
            ),
            deadline=LOGIN_DEADLINE,
            what=f"login to {vcenter['name']}",
        )
        return VSphereLink(session)
