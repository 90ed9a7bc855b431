# SPDX-License-Identifier: MIT
"""Sessions of a vCenter that the configuration database knows; `VSphereLink` for asyncio: each call in a thread, with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from engine.dialer import Dialer
from engine.processes import in_thread
from engine.vsphere import attached, tracking
from engine.vsphere.objects import Snapshot, VmInfo
from engine.vsphere.operations import VSphere
from engine.vsphere.tracking import Extent, Tracking

DEADLINE = 120.0
QUERY_DEADLINE = 600.0
MARGIN = 30.0


def account(vcenter: Mapping[str, Any]) -> dict[str, Any]:
    """What a login, here or by a Data Mover, needs of the configuration database's record of a vCenter."""
    return {key: vcenter[key] for key in ("name", "address", "port", "thumbprint", "username", "password")}


def login(dialer: Dialer, vcenter: Mapping[str, Any], *, step: str, keylog: Path | None) -> VSphere:
    """A session of that vCenter; blocking. Raises as `VSphere.login`."""
    return VSphere.login(dialer, step=step, keylog=keylog, **account(vcenter))


class VSphereLink:
    """A vCenter session, called in threads."""

    def __init__(self, session: VSphere) -> None:
        self._session = session
        self._creating: list[asyncio.Future[Snapshot]] = []

    @classmethod
    async def open(cls, dialer: Dialer, vcenter: Mapping[str, Any], *, step: str, keylog: Path | None) -> Self:
        """Logs in. Raises as `VSphere.login`."""
        session = await in_thread(
            lambda: login(dialer, vcenter, step=step, keylog=keylog),
            deadline=DEADLINE,
            what=f"login to {vcenter['name']}",
        )
        return cls(session)

    async def vms(self, names: list[str], *, step: str) -> list[VmInfo]:
        return await in_thread(lambda: self._session.vms(step=step, names=names), deadline=DEADLINE, what="inventory")

    async def snapshots(self, vm: VmInfo, *, step: str) -> list[Snapshot]:
        return await in_thread(
            lambda: self._session.snapshots(vm.moref, step=step), deadline=DEADLINE, what="snapshots"
        )

    async def ensure_tracking(self, vm: VmInfo) -> Tracking:
        return await in_thread(
            lambda: tracking.ensure(self._session, vm.moref, step="8"),
            deadline=DEADLINE,
            what="change tracking",
        )

    async def change_ids(self, snapshot: Snapshot) -> dict[int, str]:
        return await in_thread(
            lambda: tracking.change_ids(self._session, snapshot.moref, step="15"),
            deadline=DEADLINE,
            what="change IDs",
        )

    async def changed_areas(self, snapshot: Snapshot, key: int, since: str, capacity: int) -> list[Extent]:
        return await in_thread(
            lambda: tracking.changed_areas(self._session, snapshot.vm, snapshot.moref, key, since, capacity, step="15"),
            deadline=QUERY_DEADLINE,
            what="changed areas",
        )

    async def left_attached(self, proxy_uuid: str) -> list[str]:
        return await in_thread(
            lambda: attached.left_paths(self._session, proxy_uuid, step="8"),
            deadline=DEADLINE,
            what="disks of a proxy's VM",
        )

    async def frozen_paths(self, snapshot: Snapshot, *, step: str) -> dict[int, str]:
        return await in_thread(
            lambda: attached.frozen_paths(self._session, snapshot.moref, step=step),
            deadline=DEADLINE,
            what="disks of a snapshot",
        )

    async def detach(self, proxy_uuid: str, paths: list[str], *, step: str) -> list[str]:
        return await in_thread(
            lambda: attached.detach_left(self._session, proxy_uuid, paths, step=step),
            deadline=DEADLINE,
            what="detach",
        )

    async def create_snapshot(self, vm: VmInfo, name: str, description: str, *, timeout: float) -> Snapshot:
        creating = asyncio.ensure_future(
            in_thread(
                lambda: self._session.create_snapshot(vm.moref, name, description, step="15", timeout=timeout),
                deadline=timeout + MARGIN,
                what="snapshot",
            )
        )
        self._creating.append(creating)
        return await asyncio.shield(creating)

    async def settle(self) -> None:
        if self._creating:
            await asyncio.wait(self._creating)
        for one in self._creating:
            if not one.cancelled():
                one.exception()

    async def commit_snapshots(self, vm: str, mark: str, *, timeout: float) -> int:
        def commit() -> int:
            found = self._session.own_snapshots(mark, step="22", vm_name=vm)
            for snapshot in found:
                self._session.remove_snapshot(snapshot.moref, step="22", timeout=timeout)
            return len(found)

        return await in_thread(commit, deadline=timeout + DEADLINE, what="snapshot commit")

    async def logout(self) -> None:
        await in_thread(self._session.logout, deadline=MARGIN, what="logout")
