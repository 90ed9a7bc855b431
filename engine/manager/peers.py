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

Progress = Callable[[dict[str, Any]], None]


class Service(Protocol):
    """The Backup Service, over loopback."""

    async def job(self) -> dict[str, Any]:
        """The job, its vCenter, servers, VMs and guests (`Database.job_inputs`)."""

    async def acquire(self, tasks: list[dict[str, str]]) -> dict[str, Any]:
        """`{assignments: [{task, proxy, repository}], slots: {resource: n}}`; waits while all resources are busy."""

    async def release(self) -> None:
        """Gives every slot of this run back."""

    async def pending(self, pending: dict[str, Any]) -> None:
        """Stores what must be put right should this process die now; returns when it is on disk."""

    def progress(self, fields: dict[str, Any]) -> None:
        """Tells consoles; never waits, never fails."""

    async def learned(self, fields: dict[str, Any]) -> None:
        """Facts for the configuration database: host keys seen, repositories used."""


class Transport(Protocol):
    """A Transport Service."""

    async def start_mover(self, task: str, role: str) -> tuple[int, str]:
        """Starts a Data Mover; gives its port and the token for its control connection."""

    async def stop_mover(self, task: str) -> None:
        """Ends the movers of a task."""

    async def begin_point(self, job: str, vm: str, point: str) -> str:
        """Begins a restore point; gives its folder on the repository."""

    async def commit_point(self, job: str, vm: str, point: str, manifest: dict[str, Any]) -> None:
        """Verifies the point and makes it visible."""

    async def abort_point(self, job: str, vm: str, point: str) -> None:
        """Removes a point in the making."""

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


class VSphere(Protocol):
    """A session with a vCenter."""

    async def vms(self, names: list[str], *, step: str) -> list[VmInfo]:
        """The VMs of those names that exist."""

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

    async def vsphere(self, vcenter: dict[str, Any], *, step: str) -> VSphere:
        """Logs in to a vCenter."""

    def guest(self, vm: str, address: str, account: dict[str, Any], scripts: Scripts) -> GuestChannel:
        """A channel into a guest; it connects in `prepare`."""
