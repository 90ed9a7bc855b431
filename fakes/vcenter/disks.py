# SPDX-License-Identifier: MIT
"""What a ReconfigVM spec wants of disks, checked against the VM as it is: a *plan* of attach, detach, create, grow, edit.

The checks are those of a real vCenter that vcsim leaves out: the controller exists, the unit is free, the datastore is
visible to the VM's host, capacity never shrinks. Whether a file exists and is free, the storage says later.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim, vmodl

from fakes.core.inventory import Inventory, VirtualMachine
from fakes.vcenter.attachments import CONTROLLERS, free_unit, new_key, new_label, units
from fakes.vcenter.machine import disk_uuid
from fakes.vcenter.machine import folder as folder_of
from fakes.vcenter.storage import Attachment, StoredVm

_PATH = re.compile(r"\[([^\]]+)\]\s*(.*)")
_MODES = ("persistent", "independent_persistent", "independent_nonpersistent")
_MOST_UNITS = 64  # of a paravirtual controller


@dataclass(frozen=True)
class DiskChange:
    """One entry of `deviceChange`, with its place in the list."""

    index: int
    spec: Any


@dataclass
class Plan:
    """What is to be done for one change; `device` is what the VM shall show (or, for `detach`, showed).

    `attach`: datastore and path of an existing file. `create`: what the storage's `disk.create` takes. `grow`: bytes.
    """

    index: int
    device: Any
    path: str = ""
    datastore: str = ""
    label: str = ""
    mode: str = "persistent"
    attach: tuple[str, str] | None = None
    detach: Attachment | None = None
    create: dict[str, Any] | None = None
    grow: int = 0
    controllers_before: frozenset[int] = frozenset()

    def new_controller(self, present: list[Any]) -> int:
        """The key of the disk's controller; for one that came with the same spec, the key that vcsim gave it."""
        key: int = self.device.controllerKey
        if key >= 0 and key in {d.key for d in present}:
            return key
        fresh = [d.key for d in present if isinstance(d, CONTROLLERS) and d.key not in self.controllers_before]
        return fresh[-1] if fresh else key


class DiskChanges:
    """The changes of one spec."""

    def __init__(
        self,
        vm: VirtualMachine,
        inventory: Inventory,
        present: list[Any],
        state: StoredVm,
        held: dict[str, Attachment],
        changes: list[Any],
    ) -> None:
        self._vm = vm
        self._inventory = inventory
        self._present = list(present)
        self._state = state
        self._held = held
        self._before = frozenset(device.key for device in present)
        self._new_controllers = {
            change.device.key
            for change in changes
            if change.operation == "add" and isinstance(change.device, CONTROLLERS)
        }

    def plan(self, own: list[DiskChange]) -> list[Plan]:
        """The plan, in the order of the spec. Raises vmodl.MethodFault."""
        made = []
        for change in own:
            is_disk = isinstance(change.spec.device, vim.vm.device.VirtualDisk)
            if not is_disk and change.spec.device.key not in {d.key for d in self._disks()}:
                continue  # the removal of another device is vcsim's
            match change.spec.operation:
                case "add":
                    made.append(self._add(change))
                case "remove":
                    made.append(self._remove(change))
                case _:
                    made.append(self._edit(change))
        return made

    def _disks(self) -> list[Any]:
        return [device for device in self._present if isinstance(device, vim.vm.device.VirtualDisk)]

    def _add(self, change: DiskChange) -> Plan:
        device, index = copy.copy(change.spec.device), change.index
        backing = device.backing
        if not isinstance(backing, vim.vm.device.VirtualDisk.FlatVer2BackingInfo | _SESPARSE):
            raise _bad(vim.fault.InvalidDeviceBacking, index, "backing")
        mode = backing.diskMode or "persistent"
        if mode not in _MODES:
            raise _bad(vim.fault.InvalidDeviceBacking, index, "backing.diskMode")
        controller, unit = self._place(index, device)
        datastore, path = self._path(index, backing, new=change.spec.fileOperation is not None)
        plan = Plan(
            index,
            device,
            path=f"[{datastore}] {path}",
            datastore=datastore,
            label=new_label(self._present),
            mode=mode,
            controllers_before=self._before,
        )
        size = device.capacityInBytes or (device.capacityInKB or 0) << 10
        device.controllerKey, device.unitNumber = controller, unit
        device.key = new_key(self._present, max(0, controller), unit)
        if change.spec.fileOperation is None:
            plan.attach = (datastore, path)
        elif change.spec.fileOperation == "create":
            self._new_disk(plan, path, size)
        else:
            raise vmodl.fault.NotSupported(msg=f"fileOperation {change.spec.fileOperation}: not offered here.")
        self._present.append(device)
        return plan

    def _new_disk(self, plan: Plan, path: str, size: int) -> None:
        device = plan.device
        if size <= 0:
            raise _bad(vim.fault.InvalidDeviceSpec, plan.index, "capacityInKB")
        device.capacityInBytes, device.capacityInKB = size, size >> 10
        device.deviceInfo = vim.Description(label=plan.label, summary=f"{size >> 10:,} KB")
        device.backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName=plan.path,
            diskMode=plan.mode,
            thinProvisioned=bool(device.backing.thinProvisioned),
            writeThrough=False,
            uuid=disk_uuid(self._vm.uuid, device.key),
        )
        plan.create = {"key": device.key, "label": plan.label, "size": size, "file": path, "contents": "empty"}

    def _place(self, index: int, device: Any) -> tuple[int, int]:
        controller = device.controllerKey
        if controller is None:
            controller = next((d.key for d in self._present if isinstance(d, CONTROLLERS)), None)
        here = {d.key for d in self._present if isinstance(d, CONTROLLERS)} | self._new_controllers
        if controller not in here:
            key = controller if controller is not None else 0
            raise vim.fault.InvalidController(
                deviceIndex=index, property=f"deviceChange[{index}].device.controllerKey", controllerKey=key
            )
        taken, unit = units(self._present, controller), device.unitNumber
        if unit is None or unit < 0:
            unit = free_unit(taken)
        if unit == 7 or unit >= _MOST_UNITS or unit in taken:
            raise _bad(vim.fault.InvalidDeviceSpec, index, "unitNumber")
        return controller, unit

    def _path(self, index: int, backing: Any, *, new: bool) -> tuple[str, str]:
        text = backing.fileName or ""
        match = _PATH.fullmatch(text) if text else None
        if (text and match is None) or (match and not match[2] and not new):
            raise vim.fault.InvalidDatastorePath(datastorePath=text, msg=f"Invalid datastore path '{text}'.")
        datastore = match[1] if match else self._vm.datastore
        store = next((s for s in self._inventory.datastores if s.name == datastore), None)
        if store is None or self._vm.host not in store.hosts:
            why = f"the host {self._vm.host} does not mount it" if store else "there is none of that name"
            raise vim.fault.InvalidDatastore(name=datastore, msg=f"Datastore '{datastore}': {why}.")
        path = match[2] if match else ""
        if new and not path:
            used = {file.partition("] ")[2] for chain in self._state.chains.values() for file in chain}
            base = f"{folder_of(self._state.machine)}/{self._vm.name}"
            path = next(p for n in range(1, 1 << 10) if (p := f"{base}_{n}.vmdk") not in used)
        if new and datastore != self._vm.datastore:
            raise vmodl.fault.NotSupported(msg="New disks lie on the datastore of their virtual machine here.")
        return datastore, path

    def _remove(self, change: DiskChange) -> Plan:
        device = next((d for d in self._disks() if d.key == change.spec.device.key), None)
        if device is None:
            raise _bad(vim.fault.InvalidDeviceSpec, change.index, "key")
        held = self._held.get(device.backing.fileName)
        if held is None or change.spec.fileOperation is not None:
            raise vmodl.fault.NotSupported(msg="Only a disk that another virtual machine owns can be taken away here.")
        self._present.remove(device)
        return Plan(change.index, device, path=held.name, detach=held)

    def _edit(self, change: DiskChange) -> Plan:
        sent, index = change.spec.device, change.index
        found = next((d for d in self._disks() if d.key == sent.key), None)
        if found is None:
            raise _bad(vim.fault.InvalidDeviceSpec, index, "key")
        device = copy.copy(found)
        plan = Plan(index, device, path=device.backing.fileName)
        size = sent.capacityInBytes or (sent.capacityInKB or 0) << 10
        if found.capacityInKB and sent.capacityInKB and sent.capacityInKB != found.capacityInKB:
            size = sent.capacityInKB << 10 if size == found.capacityInBytes else size
        if size and size != found.capacityInBytes:
            if device.backing.fileName in self._held:
                raise vmodl.fault.NotSupported(msg="A disk that another virtual machine owns can not grow here.")
            if size < found.capacityInBytes:
                raise _bad(vim.fault.InvalidDeviceSpec, index, "capacityInKB")
            plan.grow = size
            device.capacityInBytes, device.capacityInKB = size, size >> 10
            device.deviceInfo = vim.Description(label=found.deviceInfo.label, summary=f"{size >> 10:,} KB")
        mode = sent.backing.diskMode if sent.backing is not None else None
        if mode and mode != device.backing.diskMode:
            if device.backing.fileName in self._held or mode not in _MODES:
                raise _bad(vim.fault.InvalidDeviceBacking, index, "backing.diskMode")
            device.backing = copy.copy(device.backing)
            device.backing.diskMode = mode
        for name in ("shares", "storageIOAllocation"):
            if getattr(sent, name, None) is not None:
                setattr(device, name, getattr(sent, name))
        return plan


_SESPARSE = vim.vm.device.VirtualDisk.SeSparseBackingInfo


def _bad(kind: Any, index: int, what: str) -> Any:
    return kind(deviceIndex=index, property=f"deviceChange[{index}].device.{what}")
