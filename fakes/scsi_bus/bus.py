# SPDX-License-Identifier: MIT
"""The bus: the devices of one VM, answering the fabric messages of `bus-<vm>.sock`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fakes.core.fabric import FabricError
from fakes.scsi_bus.device import Device, Disk, hex_of


class Bus:
    """Devices by the UUID of their disk. One change at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._devices: dict[str, Device] = {}
        self._lock = asyncio.Lock()

    async def handle(self, method: str, params: dict[str, Any]) -> Any:
        """`disk.plug {uuid, export, socket, size, read_only?}`, `disk.unplug {uuid}`, `disk.list {}`.

        Raises:
            FabricError: `exists` (another disk of that UUID), `not-found`, `malformed`, `missing`, `no-device`,
                `bad-size`, `unknown-method`.
        """
        match method:
            case "disk.plug":
                return await self.plug(_disk(params))
            case "disk.unplug":
                return await self.unplug(hex_of(params["uuid"]))
            case "disk.list":
                return [device.shown() for device in self._devices.values()]
        raise FabricError("unknown-method", f"a SCSI bus has no method {method!r}")

    async def plug(self, disk: Disk) -> dict[str, Any]:
        """Plugs a disk; one that is plugged in the same way already stays as it is."""
        async with self._lock:
            held = self._devices.get(disk.uuid)
            if held is not None and held.alive:
                if held.disk != disk:
                    raise FabricError("exists", f"{disk.name} is on the bus already, as {held.disk.export}")
                return held.shown()
            if held is not None:
                await held.unplug()
                del self._devices[disk.uuid]
            device = Device(self._folder, disk)
            await device.plug()
            self._devices[disk.uuid] = device
            return device.shown()

    async def unplug(self, uuid: str) -> None:
        """Takes a disk off the bus."""
        async with self._lock:
            device = self._devices.pop(uuid, None)
            if device is None:
                raise FabricError("not-found", f"no disk {uuid} on the bus")
            await device.unplug()

    async def close(self) -> None:
        """Takes all disks off the bus."""
        async with self._lock:
            while self._devices:
                _, device = self._devices.popitem()
                await device.unplug()


def _disk(params: dict[str, Any]) -> Disk:
    size, read_only = params["size"], params.get("read_only", False)
    if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
        raise FabricError("malformed", f"disk.plug: `size` is a number of bytes, not {size!r}")
    if not isinstance(read_only, bool):
        raise FabricError("malformed", f"disk.plug: `read_only` is true or false, not {read_only!r}")
    return Disk(hex_of(params["uuid"]), str(params["export"]), Path(str(params["socket"])), size, read_only)
