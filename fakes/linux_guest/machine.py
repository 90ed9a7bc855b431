# SPDX-License-Identifier: MIT
"""The guest's hypervisor: its RPCI socket, its freeze record, its fabric socket `guest-<vm>.sock`, and the way to vCenter."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any

from fakes.core import fabric
from fakes.core.fabric import FabricError
from fakes.linux_guest import guardian, kernel
from fakes.tools import rpci
from fakes.tools.machine import ToolsMachine
from fakes.tools.reporter import Reporter

_THAW = 20.0


class Machine:
    """What the hypervisor knows and does for one guest.

    Args:
        disk_fd: descriptor of the guest's mounted file system. log_fd: freeze record, opened for appending.
    """

    def __init__(self, *, vm: str, fabric_folder: Path, disk_fd: int, log_fd: int) -> None:
        self.frozen: set[str] = set()
        self._vm = vm
        self._fabric = fabric_folder
        self._disk_fd = disk_fd
        self._log_fd = log_fd
        self._tools = ToolsMachine({"vadplab.freeze": self._freeze_record})
        self._reporter = Reporter(fabric_folder, self._tools, vm=vm, family="linuxGuest")
        self._servers: list[asyncio.Server] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, rpci_path: Path) -> None:
        """Answers the guest and the fabric; returns at once."""
        self._servers.append(await rpci.serve(rpci_path, self._tools.handle))
        self._servers.append(await fabric.serve(self._fabric / f"guest-{self._vm}.sock", self._handle))
        self._tasks.append(asyncio.create_task(self._reporter.run()))

    async def stop(self) -> None:
        """Thaws the guest if need be and stops answering."""
        await self.thaw("shutdown")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in self._servers:
            server.close()
        (self._fabric / f"guest-{self._vm}.sock").unlink(missing_ok=True)

    async def thaw(self, by: str) -> bool:
        """Thaws the guest's file system; False when it was not frozen. Raises FabricError when the kernel refuses."""
        try:
            thawed = await asyncio.wait_for(asyncio.to_thread(kernel.thaw, self._disk_fd), _THAW)
        except (OSError, TimeoutError) as exc:
            raise FabricError("failed", f"thaw: {exc or 'no answer from the kernel in time'}") from exc
        if thawed:
            self._record("thawed", "/", by)
        return thawed

    def _freeze_record(self, text: str) -> str:
        event, _, rest = text.partition(" ")
        mount, _, by = rest.partition(" ")
        if event not in ("frozen", "thawed") or not mount.startswith("/"):
            raise rpci.RpciError("Invalid arguments")
        self._record(event, mount, by or "unknown")
        return ""

    def _record(self, event: str, mount: str, by: str) -> None:
        if event == "frozen":
            self.frozen.add(mount)
        else:
            self.frozen.discard(mount)
        guardian.record(self._log_fd, event, mount, by)

    async def _handle(self, method: str, params: dict[str, Any]) -> Any:
        match method:
            case "tools.state":
                state = self._tools.state
                return {
                    "running": state.running,
                    "frozen": bool(self.frozen),
                    "addresses": list(state.addresses) if state.running else [],
                    "hostname": state.hostname,
                    "reported": self._reporter.accepted,
                }
            case "guest.thaw":
                return {"thawed": await self.thaw("tools")}
            case _:
                raise FabricError("unknown-method", f"guest-{self._vm} has no {method}")


def open_record(state: Path) -> int:
    """The freeze record `<state>/freeze.jsonl`, for appending."""
    state.mkdir(parents=True, exist_ok=True)
    return os.open(state / "freeze.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)


async def answers_ssh(address: str, deadline: float) -> bool:
    """True once an SSH server greets on port 22 of the guest."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline
    while loop.time() < end:
        with contextlib.suppress(OSError, TimeoutError):
            reader, writer = await asyncio.wait_for(asyncio.open_connection(address, 22), 2.0)
            try:
                if (await asyncio.wait_for(reader.readline(), 5.0)).startswith(b"SSH-2.0"):
                    return True
            finally:
                writer.close()
        await asyncio.sleep(0.02)
    return False
