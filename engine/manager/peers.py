# SPDX-License-Identifier: MIT
"""What a Backup Manager talks to, as interfaces: the sequence knows nothing else. `links` has the real ones, tests in-process ones.

Every method raises errors of the catalogue (`engine.errors`) and has a deadline of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from engine.guest.channel import GuestChannel, Scripts
from engine.vsphere import Snapshot, VmInfo
from engine.vsphere.tracking import Extent, Tracking

Progress = Callable[[dict[str, Any]], None]


class Service(Protocol):
    """The Backup Service, over loopback."""

    async def job(self) -> dict[str, Any]:
        """The job, its vCenter, servers, VMs and guests (`Database.job_inputs`)."""

    async def acquire(self, tasks: list[dict[str, Any]]) -> dict[str, Any]:
        """`{assignments: [{task, proxy, repository}], slots: {resource: n}}`; waits while all resources are busy.

        A task is `{id, vm, mode, failover}`.
        """

    async def reassign(self, tasks: list[dict[str, Any]], lost: list[str]) -> dict[str, Any]:
        """`{assignments: [{task, proxy}], slots: {proxy: n}}` for tasks whose proxy is one of `lost`; slots that are new.

        Raises:
            NoResource: no other proxy could serve them.
        """

    async def release(self) -> None:
        """Gives every slot of this run back."""

    async def dead(self, sessions: list[str]) -> list[str]:
        """Which of these were runs of the same Backup Service and go on no more."""

    async def pending(self, pending: dict[str, Any]) -> None:
        """Stores what must be put right should this process die now; returns when it is on disk."""

    def progress(self, fields: dict[str, Any]) -> None:
        """Tells consoles; never waits, never fails."""

    async def learned(self, fields: dict[str, Any]) -> None:
        """Facts for the configuration database: host keys seen, repositories used."""


class Transport(Protocol):
    """A Transport Service. `facts`: what its `hello` answered (`engine.transport.service`)."""

    facts: dict[str, Any]

    async def start_mover(self, task: str, role: str) -> tuple[int, str]:
        """Starts a Data Mover; gives its port and the token for its control connection."""

    async def stop_mover(self, task: str) -> None:
        """Ends the movers of a task."""

    async def newest_point(self, job: str, vm: str, capacity: int) -> dict[str, Any]:
        """`{point: summary | None, problem: text | None, need, need_incremental, free}`: what a new point could stand on.

        `need…`: bytes that a full, an incremental of disks of `capacity` bytes need at least, as far as the repository knows.
        """

    async def begin_point(self, job: str, vm: str, point: str, *, parent: str | None, data: int, capacity: int) -> str:
        """Begins a restore point; gives its folder on the repository.

        Args:
            parent: the point that it is incremental to; its chain is locked. data, capacity: bytes that will be read, and of all
            disks: space for them is kept free.

        Raises:
            `store.parent`, `store.locked`: the chain cannot be used. `store.full`.
        """

    async def commit_point(self, job: str, vm: str, point: str, manifest: dict[str, Any]) -> None:
        """Verifies the point and makes it visible."""

    async def abort_point(self, job: str, vm: str, point: str) -> None:
        """Removes a point in the making."""

    async def retain(self, job: str, vm: str, policy: dict[str, int]) -> dict[str, Any]:
        """Applies retention to a VM's points; gives `{merges, removals}`."""

    async def close(self) -> None:
        """Ends the connection; never raises."""


class Mover(Protocol):
    """The control connection of a Data Mover (`engine/mover/protocol.py`)."""

    closed: asyncio.Event

    async def call(
        self,
        method: str,
        *,
        step: str,
        deadline: float | None = ...,
        idle: float | None = ...,
        on_progress: Progress | None = ...,
        **params: Any,
    ) -> Any:
        """Calls a method of the mover."""

    async def close(self) -> None:
        """Ends the connection, and with it the mover; never raises."""


class VCenter(Protocol):
    """A session with a vCenter."""

    async def vms(self, names: list[str], *, step: str) -> list[VmInfo]:
        """The VMs of those names that exist."""

    async def snapshots(self, vm: VmInfo, *, step: str) -> list[Snapshot]:
        """All snapshots of the VM, whoever made them."""

    async def ensure_tracking(self, vm: VmInfo) -> Tracking:
        """Step 8: changed block tracking is on for the VM from the next snapshot on, where that is possible."""

    async def change_ids(self, snapshot: Snapshot) -> dict[int, str]:
        """Step 15: device key → change ID of each disk that is tracked."""

    async def changed_areas(self, snapshot: Snapshot, key: int, since: str, capacity: int) -> list[Extent]:
        """Step 15: areas of a disk that changed from `since` (`*`: all that are allocated) to the snapshot."""

    async def left_attached(self, proxy_uuid: str) -> list[str]:
        """Step 8: paths of what backups have attached to the proxy's VM; left over where their run is dead."""

    async def frozen_paths(self, snapshot: Snapshot, *, step: str) -> dict[int, str]:
        """Device key → path of the file that a snapshot froze: what is read, and all that a living run attaches."""

    async def detach(self, proxy_uuid: str, paths: list[str], *, step: str) -> list[str]:
        """Detaches disks that a dead mover left attached to the proxy's VM; gives those that were."""

    async def create_snapshot(self, vm: VmInfo, name: str, description: str, *, timeout: float) -> Snapshot:
        """Step 15."""

    async def settle(self) -> None:
        """Waits until a snapshot that is being created has ended, so that a commit can find it; never raises."""

    async def commit_snapshots(self, vm: str, mark: str, *, timeout: float) -> int:
        """Step 22: removes every snapshot of `vm` with that mark; gives how many there were."""

    async def logout(self) -> None:
        """Ends the session; never raises."""


class Peers(Protocol):
    """Opens all of them."""

    @property
    def service(self) -> Service:
        """The Backup Service that started this run."""

    async def transport(self, server: dict[str, Any], *, step: str) -> Transport:
        """Connects to a server's Transport Service."""

    async def mover(self, server: dict[str, Any], port: int, token: str, *, step: str, task: str) -> Mover:
        """Connects to a Data Mover on a server."""

    async def vsphere(self, vcenter: dict[str, Any], *, step: str) -> VCenter:
        """Logs in to a vCenter."""

    def guest(self, vm: str, address: str, account: dict[str, Any], scripts: Scripts) -> GuestChannel:
        """A channel into a guest; it connects in `prepare`."""
