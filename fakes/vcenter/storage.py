# SPDX-License-Identifier: MIT
"""The storage services as the gateway sees them: one a datastore, over the fabric, as values with one shape.

The storage chain is authoritative: vcsim shows what it holds. *Chain* = file paths from the base up to a disk's present
top, as `[datastore] folder/name.vmdk`.
"""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pyVmomi import vim

from fakes.core import fabric
from fakes.core.fabric import FabricError
from fakes.core.inventory import VirtualMachine
from fakes.vcenter.builder import vmx
from fakes.vcenter.machine import Machine, machine
from fakes.vcenter.machine import folder as folder_of

DEADLINE = 60.0


@dataclass(frozen=True)
class StoredSnapshot:
    """A snapshot as the storage keeps it; by disk key: `frozen` file, `change_ids` (None: not tracked)."""

    id: Any
    name: str
    description: str
    created: datetime | None
    parent: Any
    frozen: dict[int, str]
    change_ids: dict[int, str | None]
    raw: dict[str, Any]


@dataclass(frozen=True)
class StoredVm:
    """A VM as the storage keeps it: power, by disk key chains (base first) and change IDs, snapshots (parents first).

    `tracking` is what was asked for. `machine` is the VM with its present disks.
    """

    power_on: bool
    tracking: bool
    chains: dict[int, list[str]]
    change_ids: dict[int, str | None]
    snapshots: list[StoredSnapshot]
    current: Any
    machine: Machine


@dataclass(frozen=True)
class Attachment:
    """A disk file of VM `vm` (its disk `key`) attached to VM `by`, shown by an NBD export; `size` in bytes."""

    datastore: str
    path: str
    by: str
    mode: str
    export: str
    size: int
    vm: str
    key: int

    @property
    def name(self) -> str:
        """`[datastore1] web/web.vmdk`."""
        return _absolute(self.datastore, self.path)


def _absolute(datastore: str, path: str) -> str:
    return path if path.startswith("[") else f"[{datastore}] {path}"


def _chain(datastore: str, disk: dict[str, Any]) -> list[str]:
    chain = [_absolute(datastore, path) for path in disk.get("chain") or [disk["path"]]]
    top = _absolute(datastore, disk["path"])
    return chain[::-1] if len(chain) > 1 and chain[0] == top else chain


def _snapshot(datastore: str, raw: dict[str, Any]) -> StoredSnapshot:
    return StoredSnapshot(
        raw["id"],
        raw.get("name") or "",
        raw.get("description") or "",
        datetime.fromisoformat(raw["created"]) if raw.get("created") else None,
        raw.get("parent"),
        {int(disk["key"]): _absolute(datastore, disk["frozen"]) for disk in raw["disks"]},
        {int(disk["key"]): disk.get("change_id") for disk in raw["disks"]},
        raw,
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
            tracking=bool(raw.get("tracking")),
            chains={int(disk["key"]): _chain(vm.datastore, disk) for disk in raw["disks"]},
            snapshots=_parents_first([_snapshot(vm.datastore, s) for s in raw.get("snapshots") or []]),
            current=raw.get("current"),
            change_ids={int(disk["key"]): disk.get("change_id") for disk in raw["disks"]},
            machine=machine(vm, raw),
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

    async def rename(self, vm: VirtualMachine, snapshot: Any, name: str | None, description: str | None) -> None:
        """Gives a snapshot another name or description (None: as it is)."""
        await self._call(vm, "snapshot.rename", id=snapshot, name=name, description=description)

    async def merge(self, vm: VirtualMachine, snapshot: Any, *, children: bool) -> None:
        """Removes a snapshot by merging its layers."""
        await self._call(vm, "snapshot.remove", id=snapshot, children=children)

    async def revert(self, vm: VirtualMachine, snapshot: Any) -> StoredVm:
        """Makes the disks what they were at a snapshot."""
        return self._state(vm, await self._call(vm, "snapshot.revert", id=snapshot))

    # -- VMs and disks

    async def vms(self, datastore: str) -> list[dict[str, Any]]:
        """All VMs of a datastore, as `vm.get` shows them."""
        found: list[dict[str, Any]] = await self._ask(datastore, "vm.list", {})
        return found

    async def uuid(self, datastore: str, vm: str) -> str:
        """The BIOS UUID of any VM there."""
        return str((await self._ask(datastore, "vm.get", {"vm": vm}))["uuid"])

    async def create(self, vm: VirtualMachine, folder: str, disks: list[dict[str, Any]], text: str) -> StoredVm:
        """Makes a VM that is off, with its disks and its `.vmx`."""
        files = {f"{folder}/{vm.name}.vmx": text}
        return self._state(vm, await self._call(vm, "vm.create", uuid=vm.uuid, disks=disks, files=files, folder=folder))

    async def delete(self, vm: VirtualMachine) -> None:
        """Deletes a VM that is off, with its disks and files."""
        await self._call(vm, "vm.delete")

    async def add_disk(self, vm: VirtualMachine, spec: dict[str, Any]) -> StoredVm:
        """Gives a VM one more disk: `key, label, size, file, contents`."""
        return self._state(vm, await self._call(vm, "disk.create", **spec))

    async def grow(self, vm: VirtualMachine, key: int, size: int) -> StoredVm:
        """Makes a disk larger."""
        return self._state(vm, await self._call(vm, "disk.grow", key=key, size=size))

    # -- changed blocks

    async def track(self, vm: VirtualMachine, on: bool) -> StoredVm:
        """Asks for changed block tracking, from the next snapshot cycle or power-on."""
        return self._state(vm, await self._call(vm, "disk.tracking", on=on))

    async def changed(self, vm: VirtualMachine, key: int, since: str, snapshot: Any) -> list[tuple[int, int]]:
        """`(start, length)` of areas changed since a change ID (`*`: allocated), up to a snapshot or (None) up to now."""
        areas = await self._call(vm, "disk.changed", key=key, since=since, id=snapshot)
        return [(int(start), int(length)) for start, length in areas]

    # -- attached disks

    async def attach(self, datastore: str, path: str, by: str, mode: str) -> Attachment:
        """Attaches a disk file to a VM, in one of vSphere's disk modes."""
        raw = await self._ask(datastore, "disk.attach", {"path": path, "by": by, "mode": mode})
        return _attachment(datastore, raw)

    async def detach(self, attachment: Attachment) -> None:
        """Takes it away again."""
        await self._ask(attachment.datastore, "disk.detach", {"path": attachment.path, "by": attachment.by})

    async def attachments(self, datastore: str, by: str) -> list[Attachment]:
        """What a datastore has attached to a VM."""
        return [_attachment(datastore, raw) for raw in await self._ask(datastore, "disk.attachments", {"by": by})]

    # -- datastores

    async def info(self, datastore: str) -> dict[str, Any]:
        """`datastore.info`, and what the array says of the LUN (`target`, `portal`, `lun`) where there is one."""
        info: dict[str, Any] = await self._ask(datastore, "datastore.info", {})
        try:
            array = await fabric.call(self._folder / f"san-{datastore}.sock", "lun.info", deadline=DEADLINE)
        except FabricError:
            return info  # a datastore of local disks
        return {**info, "array": array}

    async def folder(self, datastore: str, path: str) -> list[str]:
        """Names in a folder, of the root (empty path) the folders; empty when it is not there."""
        return list(await self._unless_missing(datastore, "file.list", path) or [])

    async def stat(self, datastore: str, path: str) -> dict[str, Any] | None:
        """`{size, kind: text|disk}` of a file (`folder/name`); None when it is not there."""
        found: dict[str, Any] | None = await self._unless_missing(datastore, "file.stat", path)
        return found

    async def read_text(self, datastore: str, path: str) -> bytes | None:
        """A text file, or the descriptor of a disk file (`folder/name`); None when it is not there."""
        data: str | None = await self._unless_missing(datastore, "file.read", path)
        return None if data is None else base64.b64decode(data)

    async def _unless_missing(self, datastore: str, method: str, path: str) -> Any:
        try:
            return await self._ask(datastore, method, {"path": path})
        except FabricError as exc:
            if exc.code in ("not-found", "bad-path"):
                return None
            raise

    async def export(self, datastore: str, path: str, *, write: bool = False) -> tuple[Path, str, int]:
        """Where the contents of a disk file are: NBD socket and export; and their size. FabricError `locked`, `read-only`."""
        found = await self._ask(datastore, "disk.resolve", {"path": path, "write": write})
        return self._folder / f"nbd-{datastore}.sock", str(found["export"]), int(found["size"])

    async def extents(self, datastore: str, path: str) -> list[tuple[int, int]]:
        """`(start, length)` of what is allocated in the chain that ends in a disk file."""
        return [
            (int(start), int(length)) for start, length in await self._ask(datastore, "disk.extents", {"path": path})
        ]


def _attachment(datastore: str, raw: dict[str, Any]) -> Attachment:
    return Attachment(
        datastore,
        raw["path"],
        raw["by"],
        raw["mode"],
        raw["export"],
        int(raw.get("size") or 0),
        str(raw.get("vm") or ""),
        int(raw.get("key") or 0),
    )


def fault_of(error: FabricError, vm: VirtualMachine) -> Any:
    """The vSphere fault that a failing storage shows as, for a call about a VM."""
    return file_fault(error, f"[{vm.datastore}] {folder_of(vm)}/{vm.name}.vmx", vm.datastore)


def file_fault(error: FabricError, path: str, datastore: str) -> Any:
    """The vSphere fault that a failing storage shows as, for a call about a file (`[datastore] folder/name`)."""
    text = f"{datastore}: {error}"
    if error.code == "unavailable":
        return vim.fault.CannotAccessFile(file=path, msg=f"Unable to access file {path}: {text}")
    if error.code in ("no-space", "full"):
        return vim.fault.NoDiskSpace(file=path, datastore=datastore, msg=f"No space left: {text}")
    if error.code == "not-found":
        return vim.fault.FileNotFound(file=path, msg=f"Not found: {text}")
    if error.code == "exists":
        return vim.fault.FileAlreadyExists(file=path, msg=f"Exists: {text}")
    if error.code in ("locked", "in-use", "read-only"):
        return vim.fault.FileLocked(file=path, msg=f"Locked: {text}")
    if error.code == "bad-path":
        return vim.fault.InvalidDatastorePath(datastorePath=path, msg=f"Invalid datastore path: {text}")
    return vim.fault.GenericVmConfigFault(reason=text, msg=text)
