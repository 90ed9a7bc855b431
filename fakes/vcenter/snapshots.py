# SPDX-License-Identifier: MIT
"""Snapshots: what vSphere says and what the storage does, kept in step (vcsim reference section 9, DESIGN section 9).

Order: the VM's lock, then the storage freezes, then vcsim records the snapshot; undone in reverse when a later part
fails. Removal merges first and forgets afterwards, since a merge can not be undone. A snapshot's config carries the
change IDs that its disks had when it was taken.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from pyVmomi import vim, vmodl

from fakes.core.fabric import FabricError
from fakes.core.inventory import VirtualMachine
from fakes.vcenter import devices, soap
from fakes.vcenter.calls import Context, Handler, SoapFault, not_found
from fakes.vcenter.http import Reply
from fakes.vcenter.running import Owner, Runner, quietly
from fakes.vcenter.storage import StoredSnapshot, StoredVm
from fakes.vcenter.upstream import UpstreamGone
from fakes.vcenter.world import World

_log = logging.getLogger(__name__)
LOOK = 3.0  # seconds that a login waits for a storage that is silent


class Snapshots:
    """The calls about snapshots."""

    def __init__(self, owner: Owner, runner: Runner) -> None:
        self._owner = owner
        self._runner = runner

    def handlers(self) -> dict[str, Handler]:
        """By wsdl name."""
        return {
            "CreateSnapshot_Task": self.create,
            "CreateSnapshotEx_Task": self.create,
            "RenameSnapshot": self.rename,
            "RemoveSnapshot_Task": self.remove,
            "RemoveAllSnapshots_Task": self.remove_all,
            "ConsolidateVMDisks_Task": self.consolidate,
        }

    # calls

    async def create(self, context: Context) -> Reply:
        """CreateSnapshot_Task, CreateSnapshotEx_Task."""
        values = soap.arguments(context.raw)
        _check_name(values.get("name") or "")
        vm = context.world.admin.object("VirtualMachine", context.call.this_id)
        quiesce = values.get("quiesceSpec")
        if quiesce is None and values.get("quiesce"):
            quiesce = vim.vm.GuestQuiesceSpec()

        async def work() -> tuple[Any, Any]:
            return await self._create(
                context.world, vm, values["name"], values.get("description") or "", bool(values.get("memory")), quiesce
            )

        return await self._runner.run(context, vm, work, {"name": values["name"]})

    async def rename(self, context: Context) -> Reply:
        """RenameSnapshot: another name, another description, or both; vcsim has no such call."""
        values = soap.arguments(context.raw)
        name, description = values.get("name"), values.get("description")
        if name is not None:
            _check_name(name)
        snapshot = context.world.admin.object("VirtualMachineSnapshot", context.call.this_id)
        vm = await vm_of(context, snapshot)

        async def work() -> tuple[Any, Any]:
            managed, storage = self._runner.managed(context.world, vm), self._owner.storage
            known = context.world.snapshots.get(managed.name, {}) if managed is not None else {}
            if managed is not None and storage is not None and snapshot._moId in known:
                await storage.rename(managed, known[snapshot._moId], name, description)
            told = {"name": name, "description": description}
            await _retell(context.world, vm, {snapshot._moId: {k: v for k, v in told.items() if v is not None}})
            return None, None

        return await self._runner.at_once(context, vm, work, {"snapshot": snapshot._moId})

    async def remove(self, context: Context) -> Reply:
        """RemoveSnapshot_Task."""
        values = soap.arguments(context.raw)
        snapshot = context.world.admin.object("VirtualMachineSnapshot", context.call.this_id)
        vm = await vm_of(context, snapshot)

        async def work() -> tuple[Any, Any]:
            return None, await self._remove(context.world, vm, snapshot, children=bool(values.get("removeChildren")))

        return await self._runner.run(context, vm, work, {"snapshot": context.call.this_id})

    async def remove_all(self, context: Context) -> Reply:
        """RemoveAllSnapshots_Task."""
        vm = context.world.admin.object("VirtualMachine", context.call.this_id)

        async def work() -> tuple[Any, Any]:
            return None, await self._remove_all(context.world, vm)

        return await self._runner.run(context, vm, work, {"snapshot": "all"})

    async def consolidate(self, context: Context) -> Reply:
        """ConsolidateVMDisks_Task: removal merges at once here, so nothing is ever left to merge; the flag is cleared."""
        vm = context.world.admin.object("VirtualMachine", context.call.this_id)

        async def work() -> tuple[Any, Any]:
            return None, await devices.assign(context.world, vm, {"runtime.consolidationNeeded": False})

        return await self._runner.run(context, vm, work, {})

    # what is done under the VM's lock

    async def _create(
        self, world: World, vm: Any, name: str, description: str, memory: bool, quiesce: Any
    ) -> tuple[Any, Any]:
        managed, storage = self._runner.managed(world, vm), self._owner.storage
        stored: StoredSnapshot | None = None
        if managed is not None and storage is not None:
            stored = await storage.freeze(managed, name, description)
        reference = None
        try:
            if stored is not None and managed is not None and storage is not None:
                state = await storage.get(managed)
                await devices.set_chains(world, vm, frozen_chains(state, stored), stored.change_ids)
            task = await world.admin.call(
                vm, "CreateSnapshotEx_Task", name=name, description=description, memory=memory, quiesceSpec=quiesce
            )
            if self._owner.owns_tasks:
                world.sanitiser.hidden.add(task._moId.encode())
            reference = await world.admin.finished(task)
            await devices.pin_layout(world, vm)
            if stored is not None and managed is not None and storage is not None:
                world.snapshots.setdefault(managed.name, {})[reference._moId] = stored.id
                await devices.set_chains(world, vm, state.chains, state.change_ids)
                if self._owner.owns_tasks:  # the reference that counts is vCenter's
                    await storage.label(managed, stored.id, reference._moId)
            return reference, task
        except BaseException:
            await self._undo(world, vm, managed, stored, reference)
            raise

    async def _undo(
        self, world: World, vm: Any, managed: VirtualMachine | None, stored: StoredSnapshot | None, reference: Any
    ) -> None:
        if reference is not None:
            try:
                await self._forget(world, vm, reference)
            except (UpstreamGone, TimeoutError, vmodl.MethodFault) as exc:
                _log.warning("undo: %s: %s", reference._moId, exc)
        if managed is None or stored is None or self._owner.storage is None:
            return
        try:
            await self._owner.storage.merge(managed, stored.id, children=False)
            world.snapshots.get(managed.name, {}).pop(getattr(reference, "_moId", ""), None)
            state = await self._owner.storage.get(managed)
            await devices.set_chains(world, vm, state.chains, state.change_ids)
        except (FabricError, UpstreamGone, TimeoutError, vmodl.MethodFault) as exc:
            _log.warning("undo: the storage's snapshot %s of %s: %s", stored.id, managed.name, exc)

    async def _forget(self, world: World, vm: Any, reference: Any) -> Any:
        await self._step_aside(world, vm, reference)
        task = await world.admin.call(reference, "RemoveSnapshot_Task", removeChildren=False, consolidate=True)
        if self._owner.owns_tasks:
            world.sanitiser.hidden.add(task._moId.encode())
        await world.admin.finished(task)
        return task

    async def _step_aside(self, world: World, vm: Any, reference: Any) -> None:
        """Makes another snapshot the current one where vcsim would end: it can not remove a root that is current and not alone."""
        info = (await world.admin.properties(vm, "snapshot")).get("snapshot")
        if info is None or info.currentSnapshot is None or info.currentSnapshot._moId != reference._moId:
            return
        roots = {node.snapshot._moId: node for node in info.rootSnapshotList}
        node = roots.pop(reference._moId, None)
        others = [*(node.childSnapshotList or []), *roots.values()] if node is not None else []
        if others:
            await quietly(world, await world.admin.call(others[0].snapshot, "RevertToSnapshot_Task"))

    async def _remove(self, world: World, vm: Any, snapshot: Any, *, children: bool) -> Any:
        info = (await world.admin.properties(vm, "snapshot")).get("snapshot")
        node = find(info.rootSnapshotList if info else [], snapshot._moId)
        if node is None:
            raise vmodl.fault.ManagedObjectNotFound(obj=snapshot)
        doomed = [*descendants(node), node] if children else [node]
        managed, storage = self._runner.managed(world, vm), self._owner.storage
        if managed is not None and storage is not None:
            known = world.snapshots.get(managed.name, {})
            if snapshot._moId in known:
                await storage.merge(managed, known[snapshot._moId], children=children)
        task = None
        # deepest first, one at a time: vcsim's own way with children leaves a dangling currentSnapshot (section 9)
        for entry in doomed:
            task = await self._forget(world, vm, entry.snapshot)
            if managed is not None:
                world.snapshots.get(managed.name, {}).pop(entry.snapshot._moId, None)
        await self._settle(world, vm, managed)
        return task

    async def _remove_all(self, world: World, vm: Any) -> Any:
        info = (await world.admin.properties(vm, "snapshot")).get("snapshot")
        managed, storage = self._runner.managed(world, vm), self._owner.storage
        if managed is not None and storage is not None:
            known = world.snapshots.get(managed.name, {})
            for node in info.rootSnapshotList if info else []:
                if node.snapshot._moId in known:
                    await storage.merge(managed, known[node.snapshot._moId], children=True)
        task = await world.admin.call(vm, "RemoveAllSnapshots_Task", consolidate=True)
        if self._owner.owns_tasks:
            world.sanitiser.hidden.add(task._moId.encode())
        await world.admin.finished(task)
        if managed is not None:
            world.snapshots.pop(managed.name, None)
        await self._settle(world, vm, managed)
        return task

    async def _settle(self, world: World, vm: Any, managed: VirtualMachine | None) -> None:
        await devices.pin_layout(world, vm)
        if managed is not None and self._owner.storage is not None:
            state = await self._owner.storage.get(managed)
            await devices.set_chains(world, vm, state.chains, state.change_ids)
            known = {identity: moid for moid, identity in world.snapshots.get(managed.name, {}).items()}
            for kept in state.snapshots:
                if kept.id in known:
                    await devices.show_frozen(world, known[kept.id], frozen_chains(state, kept))
        await devices.restore_stubs(world)

    async def replay(self, world: World, vm: VirtualMachine, state: StoredVm) -> None:
        """Makes vcsim's (new) VM show the snapshots that the storage holds, in their order, under new references."""
        await self._add(world, vm, state, state.snapshots)

    async def _add(self, world: World, vm: VirtualMachine, state: StoredVm, snapshots: list[StoredSnapshot]) -> None:
        assert self._owner.storage is not None
        reference = world.places.vms[vm.name]
        times: dict[str, dict[str, Any]] = {}
        for stored in snapshots:
            await devices.set_chains(world, reference, frozen_chains(state, stored), stored.change_ids)
            task = await world.admin.call(
                reference,
                "CreateSnapshotEx_Task",
                name=stored.name,
                description=stored.description,
                memory=False,
            )
            world.sanitiser.hidden.add(task._moId.encode())
            made = await world.admin.finished(task)
            await devices.pin_layout(world, reference)
            world.snapshots.setdefault(vm.name, {})[made._moId] = stored.id
            if stored.created is not None:
                times[made._moId] = {"createTime": stored.created}
            if self._owner.owns_tasks:  # the reference that counts is vCenter's
                await self._owner.storage.label(vm, stored.id, made._moId)
        await devices.set_chains(world, reference, state.chains, state.change_ids)
        await _retell(world, reference, times)

    async def reconcile(self, world: World, vm: VirtualMachine) -> None:
        """Shows snapshots as they came, went or were named without this gateway (through the other view), under the VM's lock."""
        assert self._owner.storage is not None
        state = await asyncio.wait_for(self._owner.storage.get(vm), LOOK)
        known = world.snapshots.setdefault(vm.name, {})
        held = [stored.id for stored in state.snapshots]
        reference = world.places.vms[vm.name]
        if held == list(known.values()):
            await _name_anew(world, reference, {identity: moid for moid, identity in known.items()}, state)
            return
        for moid, identity in reversed(list(known.items())):
            if identity not in held:
                await self._forget(world, reference, vim.vm.Snapshot(moid, None))
                del known[moid]
        if held[: len(known)] != list(known.values()):
            # something is missing below: vcsim can only add at the top, so all are shown anew
            task = await world.admin.call(reference, "RemoveAllSnapshots_Task", consolidate=True)
            world.sanitiser.hidden.add(task._moId.encode())
            await world.admin.finished(task)
            known.clear()
        missing = [stored for stored in state.snapshots if stored.id not in known.values()]
        await self._add(world, vm, state, missing)
        await self._settle(world, reference, vm)


def _check_name(name: str) -> None:
    if not name or len(name) > 80:
        raise SoapFault(
            vim.fault.InvalidName(name=name), "The name of a snapshot is missing, or longer than 80 characters"
        )


async def _retell(world: World, vm: Any, told: dict[str, dict[str, Any]]) -> None:
    """Makes vcsim show snapshots with other values in its tree, by reference and by the name of the field."""
    info = (await world.admin.properties(vm, "snapshot")).get("snapshot") if any(told.values()) else None
    if info is None:
        return
    for moid, values in told.items():
        node = find(info.rootSnapshotList, moid)
        for field, value in values.items() if node is not None else ():
            setattr(node, field, value)
    await devices.assign(world, vm, {"snapshot": info})


async def _name_anew(world: World, vm: Any, known: dict[Any, str], state: StoredVm) -> None:
    """Gives snapshots the names that the storage has for them. `known`: the storage's id → reference."""
    if not known:
        return
    info = (await world.admin.properties(vm, "snapshot")).get("snapshot")
    told: dict[str, dict[str, Any]] = {}
    for stored in state.snapshots:
        node = find(info.rootSnapshotList if info is not None else [], known[stored.id])
        if node is not None and (node.name, node.description or "") != (stored.name, stored.description):
            told[known[stored.id]] = {"name": stored.name, "description": stored.description}
    await _retell(world, vm, told)


async def vm_of(context: Context, snapshot: Any) -> Any:
    """The VM of a snapshot. Raises SoapFault(ManagedObjectNotFound)."""
    try:
        return (await context.world.admin.properties(snapshot, "vm"))["vm"]
    except vmodl.fault.ManagedObjectNotFound as exc:
        await context.require_login()
        raise not_found(snapshot) from exc


def frozen_chains(state: StoredVm, snapshot: StoredSnapshot) -> dict[int, list[str]]:
    """The chains of a snapshot's disks: those of the VM, up to the frozen file."""
    chains = {}
    for key, frozen in snapshot.frozen.items():
        chain = state.chains.get(key, [])
        chains[key] = chain[: chain.index(frozen) + 1] if frozen in chain else [frozen]
    return chains


def find(nodes: list[Any], moid: str) -> Any:
    """The node of a snapshot tree with that reference; None when there is none."""
    for node in nodes or []:
        if node.snapshot._moId == moid:
            return node
        if (below := find(node.childSnapshotList, moid)) is not None:
            return below
    return None


def descendants(node: Any) -> list[Any]:
    """All nodes below `node`, deepest first."""
    found: list[Any] = []
    for child in node.childSnapshotList or []:
        found += [*descendants(child), child]
    return found
