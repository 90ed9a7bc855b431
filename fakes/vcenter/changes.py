# SPDX-License-Identifier: MIT
"""QueryChangedDiskAreas: which areas of a disk changed, from the storage's own record of writes.

*Page*: one answer; it says for how much of the disk it speaks (`length`), and a client asks on from `startOffset +
length` until the disk is covered. A page ends after `span` bytes of the disk or after `areas` areas, whichever comes
first. Faults are those of flows reference section 5.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyVmomi import vim, vmodl

from fakes.core.fabric import FabricError
from fakes.vcenter import soap
from fakes.vcenter.calls import Context, Handler, SoapFault, invalid_argument, not_found
from fakes.vcenter.http import Reply
from fakes.vcenter.running import Owner, Runner
from fakes.vcenter.storage import file_fault

ALLOCATED = "*"
KEY = "vim.hostd.vmsvc.cbt."
_TEXTS = {
    "noTrack": "Change tracking is not active for this disk.",
    "noEpoch": "Change tracking had not begun at that time.",
    "cannotGetChanges": "The changes since that change ID can not be told.",
}


@dataclass(frozen=True)
class Pages:
    """How much one answer covers at most: `span` bytes of the disk (None: the rest of it), `areas` changed areas."""

    span: int | None = None
    areas: int = 2000

    def __post_init__(self) -> None:
        if (self.span is not None and self.span < 1) or self.areas < 1:
            raise ValueError("a page covers at least one byte and one area")

    def cut(self, found: list[tuple[int, int]], start: int, size: int) -> tuple[int, list[tuple[int, int]]]:
        """The page that begins at byte `start` of a disk of `size`: its length, and the areas of `found` inside it."""
        end = size if self.span is None else min(size, start + self.span)
        inside: list[tuple[int, int]] = []
        for at, length in found:
            first, last = max(at, start), min(at + length, end)
            if first >= last:
                continue
            if len(inside) == self.areas:
                end = first
                break
            inside.append((first, last - first))
        return end - start, inside


class Changes:
    """The call, for VMs that the storage holds."""

    def __init__(self, owner: Owner, runner: Runner, pages: Pages) -> None:
        self._owner = owner
        self._runner = runner
        self._pages = pages

    def handlers(self) -> dict[str, Handler]:
        """By wsdl name."""
        return {"QueryChangedDiskAreas": self.query}

    async def query(self, context: Context) -> Reply:
        """QueryChangedDiskAreas(snapshot?, deviceKey, startOffset, changeId)."""
        world = context.world
        vm = world.admin.object("VirtualMachine", context.call.this_id)
        await context.require_login()
        try:
            now = await world.admin.properties(vm, "name", "config.hardware.device", "runtime.powerState")
        except vmodl.fault.ManagedObjectNotFound as exc:
            raise not_found(vm) from exc
        managed, storage = self._runner.managed(world, vm), self._owner.storage
        if managed is None or storage is None:
            return await context.forward()
        values = soap.arguments(context.raw)
        key, start, since = values.get("deviceKey"), values.get("startOffset"), values.get("changeId")
        snapshot = values.get("snapshot")
        for name in ("deviceKey", "startOffset", "changeId"):
            if values.get(name) is None:
                raise invalid_argument(name)
        assert isinstance(key, int) and isinstance(start, int) and isinstance(since, str)
        shown = {"vm": managed.name, "snapshot": snapshot._moId if snapshot else None, "disk": key, "start": start}
        context.detail = {**shown, "change_id": since[:64]}
        identity = await self._identity(context, managed.name, snapshot)
        disk = next((d for d in now["config.hardware.device"] if d.key == key), None)
        if not isinstance(disk, vim.vm.device.VirtualDisk) or disk.backing is None:
            raise invalid_argument("deviceKey")
        async with self._owner.lock(managed.name):
            try:
                state = await storage.get(managed)
            except FabricError as exc:
                raise SoapFault(self._runner.fault(managed.name, exc)) from exc
            index = next((i for i in range(len(state.machine.disks)) if state.machine.disk_key(i) == key), None)
            if index is None:
                raise invalid_argument("deviceKey")
            size = state.machine.disks[index].size
            if not 0 <= start < size:
                raise invalid_argument("startOffset")
            taken = next((s for s in state.snapshots if s.id == identity), None)
            file = taken.frozen[key] if taken and key in taken.frozen else disk.backing.fileName
            known = (taken.change_ids if taken else state.change_ids).get(key)
            try:
                areas = await storage.changed(managed, key, since, identity)
            except FabricError as exc:
                raise self._refused(exc, since, known, file, managed.datastore) from exc
        length, inside = self._pages.cut(areas, start, size)
        context.detail |= {"length": length, "areas": len(inside), "bytes": sum(n for _, n in inside)}
        changed = [vim.VirtualMachine.DiskChangeInfo.DiskChangeExtent(start=at, length=n) for at, n in inside]
        answer = vim.VirtualMachine.DiskChangeInfo(startOffset=start, length=length, changedArea=changed)
        return Reply.xml(200, soap.reply(context.call.method, answer))

    async def _identity(self, context: Context, vm: str, snapshot: Any) -> Any:
        """The storage's id of a snapshot of this VM; None for none."""
        if snapshot is None:
            return None
        known = context.world.snapshots.get(vm, {})
        if snapshot._moId in known:
            return known[snapshot._moId]
        try:
            await context.world.admin.properties(snapshot, "vm")
        except vmodl.fault.ManagedObjectNotFound as exc:
            raise not_found(snapshot) from exc
        raise invalid_argument("snapshot")  # it is another VM's

    @staticmethod
    def _refused(exc: FabricError, since: str, known: str | None, file: str, datastore: str) -> SoapFault:
        if exc.code == "malformed":
            return invalid_argument("changeId")
        if exc.code == "not-tracked":
            return tracking_fault("noTrack", file)
        if exc.code == "no-epoch":
            before = known is None or since == ALLOCATED
            return tracking_fault("noEpoch" if before else "cannotGetChanges", file)
        if exc.code == "mismatch":
            return tracking_fault("cannotGetChanges", file)
        return SoapFault(file_fault(exc, file, datastore))


def tracking_fault(reason: str, file: str) -> SoapFault:
    """FileFault with the key that tells why: `noTrack`, `noEpoch` or `cannotGetChanges`."""
    message = vmodl.LocalizableMessage(key=KEY + reason, message=_TEXTS[reason])
    value = vim.fault.FileFault(file=file, faultMessage=[message])
    return SoapFault(value, f"Error caused by file {file}: {_TEXTS[reason]}")
