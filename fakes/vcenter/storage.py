# SPDX-License-Identifier: MIT
"""The storage services as the gateway sees them: one a datastore, over the fabric, as values with one shape.

The storage chain is authoritative: vcsim shows what it holds. *Chain* = file paths from the base up to a disk's present
top, as `[datastore] folder/name.vmdk`.
"""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyVmomi import vim

from fakes.core import fabric
from fakes.core.fabric import FabricError
from fakes.core.inventory import VirtualMachine
from fakes.vcenter.builder import vmx

DEADLINE = 60.0


@dataclass(frozen=True)
class StoredSnapshot:
    """A snapshot as the storage keeps it; `frozen` maps a disk's key to the path of its frozen file."""

    id: Any
    name: str
    description: str
    parent: Any
    frozen: dict[int, str]
    raw: dict[str, Any]


@dataclass(frozen=True)
class StoredVm:
    """A VM as the storage keeps it: power, chains by disk key (base first), snapshots (parents first)."""

    power_on: bool
    chains: dict[int, list[str]]
    snapshots: list[StoredSnapshot]
    current: Any


def _absolute(datastore: str, path: str) -> str:
    return path if path.startswith("[") else f"[{datastore}] {path}"


def _chain(datastore: str, disk: dict[str, Any]) -> list[str]:
    chain = [_absolute(datastore, path) for path in disk.get("chain") or [disk["path"]]]
    top = _absolute(datastore, disk["path"])
    return chain[::-1] if len(chain) > 1 and chain[0] == top else chain


def _snapshot(datastore: str, raw: dict[str, Any]) -> StoredSnapshot:
    frozen = {int(disk["key"]): _absolute(datastore, disk["frozen"]) for disk in raw["disks"]}
    return StoredSnapshot(
        raw["id"], raw.get("name") or "", raw.get("description") or "", raw.get("parent"), frozen, raw
    )


def _parents_first(snapshots: list[StoredSnapshot]) -> list[StoredSnapshot]:
    left, known, ordered = list(snapshots), {s.id for s in snapshots}, list[StoredSnapshot]()
    placed: set[Any] = set()
    while left:
        ready = [s for s in left if s.parent is None or s.parent in placed or s.parent not in known] or left[:1]
        ordered += ready
        placed |= {s.id for s in ready}
        left = [s for s in left if s.id not in placed]
    return ordered


class Storage:
    """Calls to `storage-<datastore>.sock` in the fabric folder. All methods raise FabricError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def _ask(self, datastore: str, method: str, params: dict[str, Any]) -> Any:
        def ask() -> Any:
            client = fabric.FabricClient(self._folder / f"storage-{datastore}.sock", timeout=DEADLINE)
            try:
                return client.call(method, **params)
            finally:
                client.close()

        return await asyncio.to_thread(ask)

    async def _call(self, machine: VirtualMachine, method: str, **params: Any) -> Any:
        return await self._ask(machine.datastore, method, {"vm": machine.name, **params})

    async def ensure(self, vm: VirtualMachine) -> StoredVm:
        """The VM's state; makes the VM there when the storage has none of that name."""
        try:
            raw = await self._call(vm, "vm.get")
        except FabricError as exc:
            if exc.code != "not-found":
                raise
            disks = [
                {
                    "key": vm.disk_key(i),
                    "label": vm.disk_label(i),
                    "size": disk.size,
                    "file": vm.disk_file(i),
                    "contents": disk.contents,
                }
                for i, disk in enumerate(vm.disks)
            ]
            files = {f"{vm.name}.vmx": vmx(vm)}
            try:
                raw = await self._call(vm, "vm.create", uuid=vm.uuid, disks=disks, files=files)
            except FabricError as again:
                if again.code != "exists":
                    raise
                # a host's gateway was quicker
                raw = await self._call(vm, "vm.get")
        return self._state(vm, raw)

    async def get(self, vm: VirtualMachine) -> StoredVm:
        """The VM's state."""
        return self._state(vm, await self._call(vm, "vm.get"))

    @staticmethod
    def _state(vm: VirtualMachine, raw: dict[str, Any]) -> StoredVm:
        return StoredVm(
            power_on=raw.get("power") in (True, "on", "poweredOn"),
            chains={int(disk["key"]): _chain(vm.datastore, disk) for disk in raw["disks"]},
            snapshots=_parents_first([_snapshot(vm.datastore, s) for s in raw.get("snapshots") or []]),
            current=raw.get("current"),
        )

    async def power(self, vm: VirtualMachine, on: bool) -> None:
        """Tells the storage that the VM's disks are in use, or no longer."""
        await self._call(vm, "vm.power", on=on)

    async def freeze(self, vm: VirtualMachine, name: str, description: str) -> StoredSnapshot:
        """Freezes all disks at one instant; later writes go to new top layers."""
        raw = await self._call(vm, "snapshot.create", name=name, description=description)
        return _snapshot(vm.datastore, raw)

    async def label(self, vm: VirtualMachine, snapshot: Any, reference: str) -> None:
        """Remembers the vSphere reference of a snapshot."""
        await self._call(vm, "snapshot.label", id=snapshot, ref=reference)

    async def merge(self, vm: VirtualMachine, snapshot: Any, *, children: bool) -> None:
        """Removes a snapshot by merging its layers."""
        await self._call(vm, "snapshot.remove", id=snapshot, children=children)

    async def read_text(self, datastore: str, path: str) -> bytes | None:
        """A text file of the datastore (`folder/name`); None when it is none, or not there."""
        try:
            stat = await self._ask(datastore, "file.stat", {"path": path})
            if stat.get("kind") != "text":
                return None
            data: str = await self._ask(datastore, "file.read", {"path": path})
        except FabricError as exc:
            if exc.code == "not-found":
                return None
            raise
        return base64.b64decode(data)


def fault_of(error: FabricError, vm: VirtualMachine) -> Any:
    """The vSphere fault that a failing storage shows as."""
    path = f"[{vm.datastore}] {vm.name}/{vm.name}.vmx"
    text = f"{vm.datastore}: {error}"
    if error.code == "unavailable":
        return vim.fault.CannotAccessFile(file=path, msg=f"Unable to access file {path}: {text}")
    if error.code in ("no-space", "full"):
        return vim.fault.NoDiskSpace(file=path, datastore=vm.datastore, msg=f"No space left: {text}")
    if error.code == "not-found":
        return vim.fault.FileNotFound(file=path, msg=f"Not found: {text}")
    if error.code == "locked":
        return vim.fault.FileLocked(file=path, msg=f"Locked: {text}")
    return vim.fault.GenericVmConfigFault(reason=text, msg=text)
