# SPDX-License-Identifier: MIT
"""RelocateVM_Task and MigrateVM_Task of VMs that the storage holds: to another host that mounts the datastore, no further.

Tickets for port 902 then name the new host. vcsim would move the disks in its stub folders only, so that is refused.
CloneVM_Task is vcsim's own, but for a host without the datastore, at which vcsim ends (vcsim reference section 19.18).
"""

from __future__ import annotations

from typing import Any

from pyVmomi import vim, vmodl

from fakes.core.inventory import Inventory, VirtualMachine
from fakes.vcenter import soap
from fakes.vcenter.calls import Context, Handler, SoapFault, invalid_argument, not_found
from fakes.vcenter.http import Reply
from fakes.vcenter.machines import not_mounted
from fakes.vcenter.power import Power
from fakes.vcenter.running import Owner, Runner, quietly
from fakes.vcenter.world import World


class Moving:
    """The three calls, on a vCenter."""

    def __init__(self, owner: Owner, runner: Runner, power: Power, inventory: Inventory | None) -> None:
        self._owner = owner
        self._runner = runner
        self._power = power
        self._inventory = inventory

    def handlers(self) -> dict[str, Handler]:
        """By wsdl name."""
        return {"RelocateVM_Task": self.move, "MigrateVM_Task": self.move, "CloneVM_Task": self.clone}

    async def clone(self, context: Context) -> Reply:
        """CloneVM_Task(folder, name, spec)."""
        spec = soap.arguments(context.raw).get("spec")
        vm = context.world.admin.object("VirtualMachine", context.call.this_id)
        if spec is not None and spec.location is not None:
            await self._check_place(context, vm, spec.location)
        return await context.forward()

    async def _check_place(self, context: Context, vm: Any, where: Any) -> None:
        """Whether the host that is asked for, or that of the VM, mounts the datastores that are."""
        await context.require_login()
        world = context.world
        try:
            now = await world.admin.properties(vm, "runtime.host", "datastore")
        except vmodl.fault.ManagedObjectNotFound as exc:
            raise not_found(vm) from exc
        host = world.places.host_name((where.host or now["runtime.host"])._moId)
        wanted = [
            each for each in (where.datastore, *(disk.datastore for disk in where.disk or [])) if each is not None
        ]
        moids = {each._moId for each in wanted or now.get("datastore") or []}
        for store in self._inventory.datastores if self._inventory is not None else []:
            reference = world.places.datastores.get(store.name)
            if reference is not None and reference._moId in moids and host not in store.hosts:
                raise not_mounted(world, store.name)

    async def move(self, context: Context) -> Reply:
        """Either call."""
        world, method = context.world, context.call.method
        vm = world.admin.object("VirtualMachine", context.call.this_id)
        managed = self._runner.managed(world, vm)
        values = soap.arguments(context.raw)
        if managed is None:
            if values.get("spec") is not None:
                await self._check_place(context, vm, values["spec"])
            return await self._power.exclusive(context)
        spec = values.get("spec")
        if method == "RelocateVM_Task" and spec is None:
            raise invalid_argument("spec")
        if spec is not None:
            self._check_datastores(world, managed, spec)
        target = values.get("host") if spec is None else spec.host
        host = self._host(world, managed, target) if target is not None else managed.host

        async def work() -> tuple[Any, Any]:
            where = spec or vim.vm.RelocateSpec(host=target, pool=values.get("pool"))  # vcsim has no MigrateVM_Task
            task = await world.admin.call(vm, "RelocateVM_Task", spec=where)
            await quietly(world, task)
            self._owner.remember(managed.model_copy(update={"host": host}))
            return None, task

        return await self._runner.run(context, vm, work, {"host": host})

    def _host(self, world: World, managed: VirtualMachine, target: Any) -> str:
        name = world.places.host_name(target._moId)
        stores = self._inventory.datastores if self._inventory is not None else []
        if name is None:
            raise invalid_argument("host")
        if not any(store.name == managed.datastore and name in store.hosts for store in stores):
            raise not_mounted(world, managed.datastore)
        return name

    @staticmethod
    def _check_datastores(world: World, managed: VirtualMachine, spec: Any) -> None:
        own = world.places.datastores[managed.datastore]._moId
        wanted = [spec.datastore, *(each.datastore for each in spec.disk or [])]
        if any(each is not None and each._moId != own for each in wanted):
            raise SoapFault(vmodl.fault.NotSupported(), "This storage does not move disks to another datastore.")
