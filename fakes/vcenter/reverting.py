# SPDX-License-Identifier: MIT
"""Reverting a VM to a snapshot: power off, the storage throws away what was written since, then vcsim and its config.

vcsim only moves `currentSnapshot` (vcsim reference section 9): devices, memory and processors, and what the config says
of changed block tracking come from the snapshot's config here, as a host's configuration file does. Without a memory
state the VM is off afterwards.
"""

from __future__ import annotations

from typing import Any

from pyVmomi import vim, vmodl

from fakes.core.fabric import FabricError
from fakes.core.inventory import VirtualMachine
from fakes.vcenter import builder, devices
from fakes.vcenter.calls import Context, Handler, SoapFault, not_found
from fakes.vcenter.http import Reply
from fakes.vcenter.power import Power
from fakes.vcenter.running import Owner, Runner, quietly
from fakes.vcenter.snapshots import vm_of
from fakes.vcenter.world import World


class Reverting:
    """RevertToSnapshot_Task and RevertToCurrentSnapshot_Task."""

    def __init__(self, owner: Owner, runner: Runner, power: Power) -> None:
        self._owner = owner
        self._runner = runner
        self._power = power

    def handlers(self) -> dict[str, Handler]:
        """By wsdl name."""
        return {"RevertToSnapshot_Task": self.to_snapshot, "RevertToCurrentSnapshot_Task": self.to_current}

    async def to_snapshot(self, context: Context) -> Reply:
        """RevertToSnapshot_Task, on a snapshot."""
        snapshot = context.world.admin.object("VirtualMachineSnapshot", context.call.this_id)
        vm = await vm_of(context, snapshot)
        return await self._revert(context, vm, snapshot)

    async def to_current(self, context: Context) -> Reply:
        """RevertToCurrentSnapshot_Task, on a VM."""
        vm = context.world.admin.object("VirtualMachine", context.call.this_id)
        await context.require_login()
        try:
            tree = (await context.world.admin.properties(vm, "snapshot")).get("snapshot")
        except vmodl.fault.ManagedObjectNotFound as exc:
            raise not_found(vm) from exc
        if tree is None or tree.currentSnapshot is None:
            raise SoapFault(vim.fault.NotFound(), "The virtual machine has no snapshot.")
        return await self._revert(context, vm, tree.currentSnapshot)

    async def _revert(self, context: Context, vm: Any, snapshot: Any) -> Reply:
        world = context.world
        managed = self._runner.managed(world, vm)
        if managed is None:
            async with self._owner.lock(world.places.vm_name(vm._moId) or vm._moId):
                return await context.forward()

        async def work() -> tuple[Any, Any]:
            return None, await self._work(world, managed, vm, snapshot)

        return await self._runner.run(context, vm, work, {"snapshot": snapshot._moId})

    async def _work(self, world: World, managed: VirtualMachine, vm: Any, snapshot: Any) -> Any:
        storage = self._owner.storage
        assert storage is not None
        identity = world.snapshots.get(managed.name, {}).get(snapshot._moId)
        if identity is None:
            raise vmodl.fault.ManagedObjectNotFound(obj=snapshot)
        later = [s.id for s in (await storage.get(managed)).snapshots if s.parent == identity]
        if later:
            raise vmodl.fault.NotSupported(msg="Only to the latest snapshot: this storage keeps no branches.")
        config = (await world.admin.properties(snapshot, "config"))["config"]
        tracking = bool(config.changeTrackingEnabled)
        now = await world.admin.properties(
            vm,
            "runtime.powerState",
            "config.changeTrackingEnabled",
            "config.hardware.memoryMB",
            "config.hardware.numCPU",
        )
        if now.get("runtime.powerState") != "poweredOff":
            await self._power.set(world, managed, vm, False)
        before = (await storage.get(managed)).tracking
        if before != tracking:
            await storage.track(managed, tracking)
        try:
            state = await storage.revert(managed, identity)
        except FabricError:
            if before != tracking:
                await storage.track(managed, before)
            raise
        task = await world.admin.call(snapshot, "RevertToSnapshot_Task")
        await quietly(world, task, hide=self._owner.owns_tasks)
        spec = vim.vm.ConfigSpec(
            memoryMB=config.hardware.memoryMB,
            numCPUs=config.hardware.numCPU,
            changeTrackingEnabled=tracking,
            extraConfig=builder.tracking_options(state.machine, on=tracking),
        )
        await quietly(world, await world.admin.call(vm, "ReconfigVM_Task", spec=spec))
        own = {device.key for device in config.hardware.device}
        attached = [device for device in await devices.read(world, vm) if device.key not in own and _is_disk(device)]
        shown = [*config.hardware.device, *attached]
        devices.show_chains(shown, state.chains, state.change_ids)
        await devices.write(world, vm, shown)
        return task


def _is_disk(device: Any) -> bool:
    return isinstance(device, vim.vm.device.VirtualDisk)
