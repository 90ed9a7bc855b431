# SPDX-License-Identifier: MIT
"""ReconfigVM_Task where it concerns disks or changed block tracking, and ExtendVirtualDisk_Task.

Checked before anything happens, since vcsim checks hardly anything (vcsim reference section 11). Then: storage, SCSI bus,
vcsim, undone in reverse when a later part fails; what can not be undone (a disk that grows, a new disk) comes last before
vcsim shows it. Device changes that are about no disk, and all other fields, are vcsim's.
"""

from __future__ import annotations

import contextlib
import logging
import re
from typing import Any

from pyVmomi import vim, vmodl

from fakes.core.fabric import FabricError
from fakes.core.inventory import Inventory, VirtualMachine
from fakes.vcenter import builder, devices, soap
from fakes.vcenter.attachments import Attachments
from fakes.vcenter.calls import Context, Handler, SoapFault, invalid_argument
from fakes.vcenter.disks import DiskChange, DiskChanges, Plan
from fakes.vcenter.http import Reply
from fakes.vcenter.power import Power
from fakes.vcenter.running import Owner, Runner, quietly
from fakes.vcenter.storage import Attachment, StoredVm, file_fault
from fakes.vcenter.world import World

_log = logging.getLogger(__name__)
_PATH = re.compile(r"\[([^\]]+)\]\s*(.+)")


class Reconfigure:
    """The two calls, for VMs that the storage holds."""

    def __init__(
        self, owner: Owner, runner: Runner, power: Power, attachments: Attachments, inventory: Inventory | None
    ) -> None:
        self._owner = owner
        self._runner = runner
        self._power = power
        self._attachments = attachments
        self._inventory = inventory

    def handlers(self) -> dict[str, Handler]:
        """By wsdl name."""
        return {"ReconfigVM_Task": self.reconfigure, "ExtendVirtualDisk_Task": self.extend}

    async def reconfigure(self, context: Context) -> Reply:
        """ReconfigVM_Task(spec)."""
        vm = context.world.admin.object("VirtualMachine", context.call.this_id)
        managed = self._runner.managed(context.world, vm)
        if managed is None or self._inventory is None:
            return await self._power.exclusive(context)
        spec = soap.arguments(context.raw).get("spec")
        if spec is None:
            raise invalid_argument("spec")
        own = [
            DiskChange(index, change)
            for index, change in enumerate(spec.deviceChange or [])
            if isinstance(change.device, vim.vm.device.VirtualDisk)
            or (change.operation == "remove" and change.device is not None)
        ]
        if spec.changeTrackingEnabled is None and not own:
            return await self._power.exclusive(context)
        detail: dict[str, Any] = {"change_tracking": spec.changeTrackingEnabled}

        async def work() -> tuple[Any, Any]:
            return None, await self._work(context.world, managed, vm, spec, own, detail)

        return await self._runner.run(context, vm, work, detail)

    async def _work(
        self, world: World, managed: VirtualMachine, vm: Any, spec: Any, own: list[DiskChange], detail: dict[str, Any]
    ) -> Any:
        storage, inventory = self._owner.storage, self._inventory
        assert storage is not None and inventory is not None
        state = await storage.get(managed)
        present = await devices.read(world, vm)
        held = {each.name: each for each in await self._attachments.of(managed.name)}
        plan = DiskChanges(managed, inventory, present, state, held, spec.deviceChange or []).plan(own)
        attached: list[tuple[Attachment, Plan]] = []
        async with contextlib.AsyncExitStack() as undo:
            for each in plan:
                if each.detach is not None:
                    await self._detach(world, vm, each.detach, undo)
                elif each.attach is not None:
                    attached.append((await self._attach(world, vm, managed, each, undo), each))
            on = spec.changeTrackingEnabled
            if on is not None:
                undo.push_async_callback(_quiet, storage.track, managed, state.tracking)
                await storage.track(managed, on)
            task = await self._pass_rest(world, vm, state, spec, {each.index for each in plan}, on)
            for each in plan:
                if each.grow:
                    try:
                        state = await storage.grow(managed, each.device.key, each.grow)
                    except FabricError as exc:
                        raise grow_fault(exc, each.index, each.device.backing.fileName, managed.datastore) from exc
                elif each.create is not None:
                    try:
                        state = await storage.add_disk(managed, each.create)
                    except FabricError as exc:
                        raise grow_fault(exc, each.index, each.path, managed.datastore) from exc
            if plan:
                task = await self._show(world, vm, plan, attached, state)
            undo.pop_all()
        for each in plan:
            if each.detach is not None:
                self._attachments.forget(each.detach)
        detail |= {
            "attached": [a.name for a, _ in attached],
            "detached": [p.detach.name for p in plan if p.detach is not None],
        }
        return task

    async def _attach(
        self, world: World, vm: Any, managed: VirtualMachine, each: Plan, undo: contextlib.AsyncExitStack
    ) -> Attachment:
        storage = self._owner.storage
        assert storage is not None and each.attach is not None
        datastore, path = each.attach
        try:
            made = await storage.attach(datastore, path, managed.name, each.mode)
        except FabricError as exc:
            if exc.code == "bad-mode":
                raise vim.fault.InvalidDeviceBacking(
                    deviceIndex=each.index, property=f"deviceChange[{each.index}].device.backing.diskMode"
                ) from exc
            raise file_fault(exc, each.path, datastore) from exc
        undo.push_async_callback(_quiet, storage.detach, made)
        await self._attachments.learn(made)
        if await _runs(world, vm):
            if not await self._attachments.plug(made):
                _log.warning("%s has no SCSI bus that answers; %s appears when it does", managed.name, made.name)
            undo.push_async_callback(_quiet, self._attachments.unplug, made)
        return made

    async def _detach(self, world: World, vm: Any, held: Attachment, undo: contextlib.AsyncExitStack) -> None:
        storage = self._owner.storage
        assert storage is not None
        await self._attachments.unplug(held)
        if await _runs(world, vm):
            undo.push_async_callback(_quiet, self._attachments.plug, held)
        await storage.detach(held)
        undo.push_async_callback(_quiet, storage.attach, held.datastore, held.path, held.by, held.mode)

    async def _pass_rest(
        self, world: World, vm: Any, state: StoredVm, spec: Any, mine: set[int], on: bool | None
    ) -> Any:
        """What is not about disks goes to vcsim; None when nothing is left. `mine`: changes that are not passed on."""
        spec.deviceChange = [c for index, c in enumerate(spec.deviceChange or []) if index not in mine]
        if on is not None:
            spec.extraConfig = [*(spec.extraConfig or []), *builder.tracking_options(state.machine, on=on)]
        if all(value is None or value == [] for value in vars(spec).values()):
            return None
        task = await world.admin.call(vm, "ReconfigVM_Task", spec=spec)
        await quietly(world, task, hide=self._owner.owns_tasks)
        return task

    async def _show(
        self, world: World, vm: Any, plan: list[Plan], attached: list[tuple[Attachment, Plan]], state: Any
    ) -> Any:
        present = await devices.read(world, vm)
        gone = {each.device.key for each in plan if each.detach is not None}
        present = [device for device in present if device.key not in gone]
        added = {id(each): attachment for attachment, each in attached}
        for each in plan:
            if each.detach is not None:
                continue
            controller = each.new_controller(present)
            if id(each) in added:
                made = self._attachments.device(
                    world, added[id(each)], each.device.key, controller, each.device.unitNumber, each.label
                )
                present.append(made)
            elif each.create is not None:
                each.device.controllerKey = controller
                each.device.backing.datastore = world.places.datastores.get(each.datastore)
                present.append(each.device)
            else:
                present[next(i for i, d in enumerate(present) if d.key == each.device.key)] = each.device
        devices.show_chains(present, state.chains, state.change_ids)
        task = await devices.write(world, vm, present)
        self._owner.remember(state.machine)
        if not self._owner.owns_tasks:
            world.sanitiser.hidden.discard(task._moId.encode())
        return task

    async def extend(self, context: Context) -> Reply:
        """ExtendVirtualDisk_Task(name, datacenter, newCapacityKb, eagerZero), on VirtualDiskManager."""
        world, values = context.world, soap.arguments(context.raw)
        match = _PATH.fullmatch(str(values.get("name") or ""))
        stores = {store.name for store in self._inventory.datastores} if self._inventory else set()
        if self._owner.storage is None or match is None or match[1] not in stores:
            return await context.forward()
        await context.require_login()
        for name, reference in world.places.vms.items():
            managed = self._owner.vm(name)
            if managed is None or managed.datastore != match[1]:
                continue
            state = await self._owner.storage.get(managed)
            key = next((k for k, chain in state.chains.items() if chain[-1] == f"[{match[1]}] {match[2]}"), None)
            if key is not None:
                return await self._extend(context, managed, reference, key, int(values.get("newCapacityKb") or 0) << 10)
        path = str(values.get("name"))
        raise SoapFault(vim.fault.FileNotFound(file=path), f"File {path} was not found")

    async def _extend(self, context: Context, managed: VirtualMachine, vm: Any, key: int, size: int) -> Reply:
        async def work() -> tuple[Any, Any]:
            assert self._owner.storage is not None
            present = await devices.read(context.world, vm)
            device = next(d for d in present if d.key == key)
            try:
                state = await self._owner.storage.grow(managed, key, size)
            except FabricError as exc:
                if exc.code == "bad-size":
                    raise vmodl.fault.InvalidArgument(invalidProperty="newCapacityKb") from exc
                raise grow_fault(exc, 0, device.backing.fileName, managed.datastore) from exc
            device.capacityInBytes, device.capacityInKB = size, size >> 10
            devices.show_chains(present, state.chains, state.change_ids)
            self._owner.remember(state.machine)
            return None, await devices.write(context.world, vm, present)

        return await self._runner.run(context, vm, work, {"disk": key, "size": size})


def grow_fault(exc: FabricError, index: int, file: str, datastore: str) -> Any:
    """The fault of a disk that can not grow or come."""
    where = f"deviceChange[{index}].device.capacityInKB"
    if exc.code == "has-snapshots":
        return vim.fault.InvalidDeviceOperation(
            deviceIndex=index, property=where, badOp="edit", msg=f"Not while the virtual machine has snapshots: {exc}"
        )
    if exc.code == "bad-size":
        return vim.fault.InvalidDeviceSpec(deviceIndex=index, property=where, msg=str(exc))
    return file_fault(exc, file, datastore)


async def _runs(world: World, vm: Any) -> bool:
    return (await world.admin.properties(vm, "runtime.powerState")).get("runtime.powerState") == "poweredOn"


async def _quiet(work: Any, *arguments: Any) -> None:
    """A step of an undo: what fails is logged, the other steps go on."""
    try:
        await work(*arguments)
    except FabricError as exc:
        _log.warning("undo: %s", exc)
