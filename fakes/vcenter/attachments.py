# SPDX-License-Identifier: MIT
"""Disk files attached to a VM that does not own them, which is HotAdd: storage, the VM's SCSI bus, and its devices.

The storage has the record (it survives everything else); the bus (`bus-<vm>.sock`) makes the disk appear inside a running
VM; vcsim shows the device. A bus that does not answer is a guest that has not booted: what is attached appears when it
says `bus.started`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pyVmomi import vim

from fakes.core import fabric
from fakes.core.fabric import FabricError
from fakes.core.inventory import Inventory
from fakes.vcenter import devices
from fakes.vcenter.builder import CONTROLLER, FIRST_DISK
from fakes.vcenter.machine import disk_uuid
from fakes.vcenter.storage import Attachment, Storage
from fakes.vcenter.world import World

_log = logging.getLogger(__name__)
_DEADLINE = 30.0
CONTROLLERS = (
    vim.vm.device.VirtualSCSIController,
    vim.vm.device.VirtualSATAController,
    vim.vm.device.VirtualIDEController,
    vim.vm.device.VirtualNVMEController,
)


class Attachments:
    """What is attached to VMs. `bios`: VM's name → its BIOS UUID (from which disks have their UUIDs)."""

    def __init__(self, storage: Storage | None, folder: Path | None, inventory: Inventory | None) -> None:
        self._storage = storage
        self._folder = folder
        self._datastores = [store.name for store in inventory.datastores] if inventory else []
        self.bios: dict[str, str] = {}
        self._places: dict[tuple[str, str], tuple[int, int, int]] = {}  # (by, file) → key, controller, unit

    async def of(self, vm: str) -> list[Attachment]:
        """What is attached to a VM, on all datastores. Raises FabricError."""
        if self._storage is None:
            return []
        found = [each for store in self._datastores for each in await self._storage.attachments(store, vm)]
        for each in found:
            await self.learn(each)
        return found

    async def learn(self, attachment: Attachment) -> None:
        """Gets the UUID of the VM that owns the disk: a host's view does not show the VMs of other hosts."""
        if attachment.vm not in self.bios and self._storage is not None:
            self.bios[attachment.vm] = await self._storage.uuid(attachment.datastore, attachment.vm)

    def uuid(self, attachment: Attachment) -> str:
        """The UUID of the disk, as its own VM shows it."""
        return disk_uuid(self.bios[attachment.vm], attachment.key)

    # -- the bus

    async def plug(self, attachment: Attachment) -> bool:
        """Makes the disk appear in the running VM; False when nobody answers there. Raises FabricError."""
        assert self._folder is not None
        await self.learn(attachment)
        try:
            await self._ask(
                attachment.by,
                "disk.plug",
                uuid=self.uuid(attachment),
                export=attachment.export,
                socket=str((self._folder / f"nbd-{attachment.datastore}.sock").absolute()),
                size=attachment.size,
                read_only=False,
            )
        except FabricError as exc:
            if exc.code != "unavailable":
                raise
            return False
        return True

    async def unplug(self, attachment: Attachment) -> None:
        """Takes it off the bus, if it is there. Raises FabricError."""
        try:
            await self._ask(attachment.by, "disk.unplug", uuid=self.uuid(attachment))
        except FabricError as exc:
            if exc.code not in ("unavailable", "not-found"):
                raise

    async def plug_all(self, vm: str) -> int:
        """Makes everything appear that is attached to a VM; what can not is logged. Returns how many are there."""
        there = 0
        try:
            for attachment in await self.of(vm):
                there += await self.plug(attachment)
        except FabricError as exc:
            _log.warning("bus of %s: %s", vm, exc)
        return there

    async def unplug_all(self, vm: str) -> None:
        """Takes everything off the bus of a VM that went down."""
        try:
            for disk in await self._ask(vm, "disk.list"):
                await self._ask(vm, "disk.unplug", uuid=disk["uuid"])
        except FabricError as exc:
            if exc.code != "unavailable":
                _log.warning("bus of %s: %s", vm, exc)

    async def _ask(self, vm: str, method: str, **params: Any) -> Any:
        if self._folder is None or not (self._folder / f"bus-{vm}.sock").exists():
            raise fabric.FabricUnavailable(f"{vm} has no SCSI bus here")
        return await fabric.call(self._folder / f"bus-{vm}.sock", method, deadline=_DEADLINE, **params)

    # -- devices

    def device(self, world: World, attachment: Attachment, key: int, controller: int, unit: int, label: str) -> Any:
        """The device that vSphere shows for it."""
        self._places[(attachment.by, attachment.name)] = (key, controller, unit)
        return vim.vm.device.VirtualDisk(
            key=key,
            deviceInfo=vim.Description(label=label, summary=f"{attachment.size >> 10:,} KB"),
            backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
                fileName=attachment.name,
                datastore=world.places.datastores.get(attachment.datastore),
                diskMode=attachment.mode,
                thinProvisioned=True,
                writeThrough=False,
                uuid=self.uuid(attachment),
            ),
            controllerKey=controller,
            unitNumber=unit,
            capacityInKB=attachment.size >> 10,
            capacityInBytes=attachment.size,
        )

    def forget(self, attachment: Attachment) -> None:
        """Its place is free again."""
        self._places.pop((attachment.by, attachment.name), None)

    async def show(self, world: World, vm: str, reference: Any) -> int:
        """Gives a VM that was built anew the devices of what is attached to it, at their places if they are known."""
        found = await self.of(vm)
        if not found:
            return 0
        present = await devices.read(world, reference)
        for attachment in found:
            place = self._places.get((vm, attachment.name))
            controller = place[1] if place and place[1] in {d.key for d in present} else CONTROLLER
            taken = units(present, controller)
            unit = place[2] if place and place[2] not in taken else free_unit(taken)
            key = new_key(present, controller, unit)
            present.append(self.device(world, attachment, key, controller, unit, new_label(present)))
        await devices.write(world, reference, present)
        return len(found)


def units(present: list[Any], controller: int) -> set[int]:
    """Units that are taken on a controller."""
    return {device.unitNumber for device in present if device.controllerKey == controller}


def free_unit(taken: set[int]) -> int:
    """The lowest free one; 7 is the controller's own."""
    return next(unit for unit in range(1 << 16) if unit not in taken and unit != 7)


def new_key(present: list[Any], controller: int, unit: int) -> int:
    """The device key of a disk at that place, as vSphere numbers them, or the next free one."""
    keys = {device.key for device in present}
    key = FIRST_DISK + 16 * max(0, controller - CONTROLLER) + (unit if unit < 7 else unit - 1)
    while key in keys:
        key += 1
    return key


def new_label(present: list[Any]) -> str:
    """`Hard disk N` with the lowest free N."""
    labels = {device.deviceInfo.label for device in present if device.deviceInfo}
    return next(label for n in range(1, 1 << 16) if (label := f"Hard disk {n}") not in labels)
