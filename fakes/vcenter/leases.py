# SPDX-License-Identifier: MIT
"""ExportVm, ExportSnapshot, ImportVApp, and what goes over their leases (HttpNfcLease) below `/nfc`.

Leases are vcsim's, so that clients' collectors see them; vcsim makes one over a snapshot only, so a snapshot in vcsim
alone stands for a VM and is removed again. Files are made and taken here: each disk as a streamOptimized VMDK, from or to
the storage. A lease's random id is all that its URLs ask for, as on a real host. Without progress it ends after `LEASE`
seconds; an imported VM goes with a lease that was not completed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbd
from pyVmomi import vim, vmodl

from fakes.core.fabric import FabricError
from fakes.core.inventory import VirtualMachine
from fakes.vcenter import devices, soap, streamvmdk
from fakes.vcenter.admin import AdminSession
from fakes.vcenter.calls import Context, Handler, SoapFault, not_found
from fakes.vcenter.contents import Contents, opened
from fakes.vcenter.http import Body, Headers, Reply, Request
from fakes.vcenter.machines import Machines
from fakes.vcenter.passing import in_thread
from fakes.vcenter.running import Owner, Runner, quietly
from fakes.vcenter.snapshots import frozen_chains, vm_of
from fakes.vcenter.storage import StoredVm, fault_of
from fakes.vcenter.upstream import UpstreamGone
from fakes.vcenter.world import World

_log = logging.getLogger(__name__)
LEASE = 300.0  # what vcsim says in `leaseTimeout`
STREAM = "application/x-vnd.vmware-streamVmdk"


Undo = Callable[[], Awaitable[None]]


@dataclass
class _File:
    """A disk of a lease: where it is in the storage. `sent`: digest, bytes, and bytes of data, once it went over whole."""

    key: str
    datastore: str
    path: str
    size: int
    sent: tuple[str, int, int] | None = None


@dataclass
class Lease:
    """What one lease offers, by the names in its URLs. `session`: whose it is; `expires`: monotonic.

    `undo`: of an import, what takes away the VM when the lease is given up; its disks are written instead of read.
    """

    session: AdminSession
    undo: Undo | None = None
    files: dict[str, _File] = field(default_factory=dict)
    expires: float = 0.0
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def renew(self) -> None:
        """Counts its time anew."""
        self.expires = time.monotonic() + LEASE


class Leases:
    """The calls, and the files."""

    def __init__(self, owner: Owner, runner: Runner, machines: Machines) -> None:
        self._owner = owner
        self._runner = runner
        self._machines = machines
        self._leases: dict[str, Lease] = {}

    def handlers(self) -> dict[str, Handler]:
        """By wsdl name."""
        return {
            "ExportVm": self.vm,
            "ExportSnapshot": self.snapshot,
            "ImportVApp": self.take,
            "HttpNfcLeaseProgress": self.progress,
            "HttpNfcLeaseComplete": self.end,
            "HttpNfcLeaseAbort": self.end,
            "HttpNfcLeaseGetManifest": self.manifest,
        }

    # -- leases

    async def vm(self, context: Context) -> Reply:
        """ExportVm: the disks of a VM that is off, as they are."""
        if self._owner.storage is None:
            return await context.forward()  # vcsim's own model
        world = context.world
        vm = world.admin.object("VirtualMachine", context.call.this_id)
        await context.require_login()
        await context.require_power(vm, "poweredOff")
        managed = self._managed(world, vm)
        async with self._owner.lock(managed.name):
            return await self._whole(context, managed, vm)

    async def _whole(self, context: Context, managed: VirtualMachine, vm: Any, undo: Undo | None = None) -> Reply:
        """A lease over a VM as it is, its lock being held."""
        world, stored = context.world, await self._stored(managed)
        task = await world.admin.call(vm, "CreateSnapshotEx_Task", name="lease", description="", memory=False)
        snapshot = await quietly(world, task)
        try:
            return await self._lease(context, managed, snapshot, stored.chains, undo)
        finally:
            await devices.pin_layout(world, vm)
            await quietly(world, await world.admin.call(snapshot, "RemoveSnapshot_Task", removeChildren=False))

    async def snapshot(self, context: Context) -> Reply:
        """ExportSnapshot: the disks as they were at a snapshot."""
        if self._owner.storage is None:
            return await context.forward()
        world = context.world
        snapshot = world.admin.object("VirtualMachineSnapshot", context.call.this_id)
        vm = await vm_of(context, snapshot)
        await context.require_login()
        managed = self._managed(world, vm)
        async with self._owner.lock(managed.name):
            stored = await self._stored(managed)
            identity = world.snapshots.get(managed.name, {}).get(snapshot._moId)
            kept = next((each for each in stored.snapshots if each.id == identity), None)
            if kept is None:
                raise not_found(snapshot)
            return await self._lease(context, managed, snapshot, frozen_chains(stored, kept))

    async def take(self, context: Context) -> Reply:
        """ImportVApp(spec, folder?, host?), on a pool: a new VM whose disks the client fills; on a vCenter."""
        values, world = soap.arguments(context.raw), context.world
        spec = values.get("spec")
        await context.require_login()
        if not isinstance(spec, vim.vm.VmImportSpec) or not self._owner.owns_tasks:
            return await context.forward()
        order = self._machines.plan(world, spec.configSpec, values.get("host"))
        if order is None:
            return await context.forward()
        pool = world.admin.object(context.call.this_type, context.call.this_id)
        folder = values.get("folder") or world.places.vm_folder
        name = order.vm.name

        async def undo() -> None:
            async with self._owner.lock(name):
                managed, reference = self._owner.vm(name), world.places.vms.get(name)
                if managed is not None and reference is not None:
                    await self._machines.destroy_stored(world, managed, reference, {})

        async with self._owner.lock(name):
            try:
                vm, _ = await self._machines.make(world, order, folder, pool)
            except (vmodl.MethodFault, FabricError) as exc:
                raise SoapFault(self._runner.fault(name, exc)) from exc
            managed = self._owner.vm(name)
            assert managed is not None
            return await self._whole(context, managed, vm, undo)

    def _managed(self, world: World, vm: Any) -> VirtualMachine:
        managed = self._runner.managed(world, vm)
        if managed is None:
            raise SoapFault(vmodl.fault.NotSupported(), "This VM's disks are not in the storage.")
        return managed

    async def _stored(self, managed: VirtualMachine) -> StoredVm:
        storage = self._owner.storage
        assert storage is not None
        try:
            return await storage.get(managed)
        except FabricError as exc:
            raise SoapFault(fault_of(exc, managed)) from exc

    async def _lease(
        self,
        context: Context,
        managed: VirtualMachine,
        snapshot: Any,
        chains: dict[int, list[str]],
        undo: Undo | None = None,
    ) -> Reply:
        """A lease of vcsim's over a snapshot, with what is behind its names: the last file of each disk's chain."""
        world = context.world
        shown = [each for each in await devices.read(world, snapshot) if isinstance(each, vim.vm.device.VirtualDisk)]
        reference = await context.session.call(snapshot, "ExportSnapshot")
        info = (await context.session.properties(reference, "info"))["info"]
        keys = {each.targetId: each.key for each in info.deviceUrl}
        lease = Lease(context.session, undo)
        for disk in shown:
            name = str(getattr(disk.backing, "fileName", "")).rpartition("/")[2]
            if disk.key in chains and name in keys:
                path = chains[disk.key][-1].partition("] ")[2]
                lease.files[name] = _File(keys[name], managed.datastore, path, int(disk.capacityInBytes or 0))
        lease.renew()
        moid = str(reference._moId)
        self._leases[moid] = lease
        world.sanitiser.leases[moid.encode()] = sum(each.size for each in lease.files.values()) >> 10
        context.detail = {"vm": managed.name, "lease": moid}
        self._owner.spawn(self._watch(world, moid, lease))
        return Reply.xml(200, soap.reply(context.call.method, reference))

    async def _watch(self, world: World, moid: str, lease: Lease) -> None:
        """Ends a lease whose time is over."""
        while not lease.ended.is_set():
            if (left := lease.expires - time.monotonic()) <= 0:
                _log.info("lease %s timed out", moid)
                with contextlib.suppress(vmodl.MethodFault, UpstreamGone, TimeoutError):
                    await lease.session.call(vim.HttpNfcLease(moid, None), "HttpNfcLeaseAbort")
                await self._give_up(world, moid)
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(lease.ended.wait(), left)

    async def _give_up(self, world: World, moid: str) -> None:
        lease = self._leases.get(moid)
        self._forget(world, moid)
        if lease is not None and lease.undo is not None:
            try:
                await lease.undo()
            except (FabricError, vmodl.MethodFault, UpstreamGone, TimeoutError) as exc:
                _log.warning("the VM of lease %s stays: %s", moid, exc or "no answer")

    def _forget(self, world: World, moid: str) -> None:
        if (lease := self._leases.pop(moid, None)) is not None:
            lease.ended.set()
        world.sanitiser.leases.pop(moid.encode(), None)

    async def progress(self, context: Context) -> Reply:
        """HttpNfcLeaseProgress(percent): the lease lives on."""
        reply = await context.forward()
        if reply.status == 200 and (lease := self._leases.get(context.call.this_id)) is not None:
            lease.renew()
        return reply

    async def end(self, context: Context) -> Reply:
        """HttpNfcLeaseComplete, HttpNfcLeaseAbort."""
        reply = await context.forward()
        if reply.status == 200 and context.call.method == "HttpNfcLeaseAbort":
            await self._give_up(context.world, context.call.this_id)
        elif reply.status == 200:
            self._forget(context.world, context.call.this_id)
        return reply

    async def manifest(self, context: Context) -> Reply:
        """HttpNfcLeaseGetManifest: what went over the lease so far."""
        lease = self._leases.get(context.call.this_id)
        if lease is None:
            return await context.forward()
        await context.require_login()
        entries = [
            vim.HttpNfcLease.ManifestEntry(
                key=each.key,
                sha1=each.sent[0],
                size=each.sent[1],
                disk=True,
                capacity=each.size,
                populatedSize=each.sent[2],
            )
            for each in lease.files.values()
            if each.sent is not None
        ]
        return Reply.xml(200, soap.reply(context.call.method, entries))

    # -- files

    async def serve(self, request: Request, path: str) -> Reply | None:
        """GET of `/nfc/<lease>/<name>`, or PUT for an import; None when this is no path of a lease from here."""
        moid, _, name = path.removeprefix("/nfc/").partition("/")
        lease = self._leases.get(moid)
        if lease is None:
            return None
        allowed = ("GET", "HEAD") if lease.undo is None else ("PUT", "POST")
        if request.method not in allowed:
            return Reply.text(405, "not with this lease", ("Allow", ", ".join(allowed)))
        file, storage = lease.files.get(name), self._owner.storage
        if file is None or storage is None:
            return Reply.text(404, f"{name} is not among the lease's files")
        try:
            if lease.undo is not None:
                socket, export, size = await storage.export(file.datastore, file.path, write=True)
                return await _receive(request.body, file, socket, export, size)
            socket, export, size = await storage.export(file.datastore, file.path)
            extents = await storage.extents(file.datastore, file.path)
        except FabricError as exc:
            return Reply.text(403 if exc.code == "locked" else 500, str(exc))
        headers = Headers([("Content-Type", STREAM)])
        return Reply(200, headers, in_thread(_stream(file, name, socket, export, size, extents)))


def _stream(
    file: _File, name: str, socket: Path, export: str, size: int, extents: list[tuple[int, int]]
) -> Generator[bytes, None, None]:
    """The file's bytes, which are counted for the manifest when all were taken."""
    digest, total = hashlib.sha1(usedforsecurity=False), 0
    content_id = hashlib.sha256(f"{file.datastore}/{file.path}".encode()).hexdigest()[:8]
    with opened(socket, export) as contents:
        for part in streamvmdk.stream(size, extents, contents.read, name, content_id):
            digest.update(part)
            total += len(part)
            yield part
    populated = sum(length for _, length in extents)
    file.sent = (digest.hexdigest(), total, populated)


async def _receive(body: Body, file: _File, socket: Path, export: str, size: int) -> Reply:
    """Writes the VMDK that a client sends to a disk."""
    reader, digest = streamvmdk.Reader(size), hashlib.sha1(usedforsecurity=False)
    total = populated = 0

    def write(part: bytes) -> int:
        digest.update(part)
        written = 0
        for offset, data in reader.feed(part):
            contents.write(offset, data)
            written += len(data)
        return written

    contents = await asyncio.to_thread(Contents, socket, export)
    try:
        async for part in body:
            total += len(part)
            populated += await asyncio.to_thread(write, part)
        if not reader.ended:
            raise streamvmdk.NotVmdk("the stream ends before its end marker")
        await asyncio.to_thread(contents.flush)
    except streamvmdk.NotVmdk as exc:
        return Reply.text(400, str(exc))
    except nbd.Error as exc:
        return Reply.text(500, f"the disk can not be written: {exc.string}")
    finally:
        await asyncio.to_thread(contents.close)
    file.sent = (digest.hexdigest(), total, populated)
    return Reply(200)
