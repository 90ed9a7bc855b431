# SPDX-License-Identifier: MIT
"""What a dead Backup Manager left is put right: guests are thawed (step 16), snapshots committed (step 22).

A manager stores what may be left before it does it: `pending = {vm: {guest: address, attached: [[proxy VM's UUID, disk's path]…],
snapshot: true}}`. Disks are detached before the snapshot is committed, as the manager does it, with the same code
(`engine.vsphere.attached`, `engine.snapshots`). Done at once when a manager dies, and again when the Backup Service starts.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from engine import snapshots
from engine.config import EngineConfig
from engine.dialer import Dialer
from engine.errors import VadplabError
from engine.events import EventLog
from engine.guest.channel import Scripts
from engine.guest.ssh import Account, SshChannel
from engine.model.infrastructure import Job
from engine.report import Reporter
from engine.vsphere.link import VSphereLink

COMMIT_TIMEOUT = 300.0
WHY = "left by a run that died"


class Aftermath:
    """Puts right what one session left. `pauses`: seconds between attempts of step 22."""

    def __init__(
        self, config: EngineConfig, events: EventLog, session: str, *, pauses: tuple[float, ...] = snapshots.PAUSES
    ) -> None:
        self._config = config
        self._events = events
        self._session = session
        self._pauses = pauses

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
        vms = [vm for vm, entry in pending.items() if entry.get("snapshot") or entry.get("attached")]
        chosen = [v for v in vcenters if job is None or job.vcenter in (None, v["name"])][:1]
        site = Site(self._login, chosen[0] if chosen else None, self._events, pending)
        try:
            for vm in vms:
                if not await self._commit(vm, site):
                    left.setdefault(vm, {})["snapshot"] = True
                if site.attached.get(vm):
                    left.setdefault(vm, {})["attached"] = site.attached[vm]
        finally:
            await site.close()
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
        try:
            with Reporter(events, _nobody).step("16", text=WHY):
                await channel.thaw_leftover()
        except VadplabError:
            return False
        finally:
            events.close()
        return True

    async def _commit(self, vm: str, site: Site) -> bool:
        """Whether the session's snapshots of `vm` are committed."""
        try:
            with Reporter(self._events, _nobody).step("22", task=vm, text=WHY) as result:
                result["snapshots"] = await snapshots.commit(
                    site, vm, self._session, timeout=COMMIT_TIMEOUT, pauses=self._pauses
                )
        except VadplabError:
            return False
        return True

    async def _login(self, vcenter: dict[str, Any] | None) -> VSphereLink:
        if vcenter is None:
            raise VadplabError("no vCenter is known")
        dialer = Dialer(self._events, self._config.resolver)
        return await VSphereLink.open(dialer, vcenter, step="22", keylog=self._config.keylog)


class Site:
    """A vCenter for `engine.snapshots.commit`: logged in when it is needed, anew after each failure.

    `attached`: what is left of the disks that dead movers may have left attached, by VM.
    """

    def __init__(
        self,
        login: Callable[[dict[str, Any] | None], Awaitable[VSphereLink]],
        vcenter: dict[str, Any] | None,
        events: EventLog,
        pending: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self.attached = {vm: [list(one) for one in entry.get("attached") or []] for vm, entry in pending.items()}
        self._login = login
        self._vcenter = vcenter
        self._events = events
        self._link: VSphereLink | None = None

    async def commit_snapshots(self, vm: str, mark: str, *, timeout: float) -> int:
        """Detaches what may be attached, then commits every snapshot of `vm` with that mark."""
        try:
            self._link = self._link or await self._login(self._vcenter)
            for uuid in dict.fromkeys(uuid for uuid, _ in self.attached.get(vm, [])):
                paths = [path for one, path in self.attached[vm] if one == uuid]
                for path in await self._link.detach(uuid, paths, step="22"):
                    self._events.note(f"{path} was left attached to a proxy: detached", step="22", vm=vm)
                self.attached[vm] = [one for one in self.attached[vm] if one[0] != uuid]
            return await self._link.commit_snapshots(vm, mark, timeout=timeout)
        except VadplabError:
            await self.close()
            raise

    async def close(self) -> None:
        """Logs out."""
        link, self._link = self._link, None
        if link is not None:
            with contextlib.suppress(VadplabError):
                await link.logout()


def _nobody(_: dict[str, Any]) -> None:
    """No console watches a recovery."""
