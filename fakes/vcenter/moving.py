# SPDX-License-Identifier: MIT
"""RelocateVM_Task and MigrateVM_Task of VMs that the storage holds: to another host that mounts the datastore, no further.

Tickets for port 902 then name the new host. vcsim would move the disks in its stub folders only, so that is refused.
"""

from __future__ import annotations

from typing import Any

from pyVmomi import vim, vmodl

from fakes.core.inventory import Inventory, VirtualMachine
from fakes.vcenter import soap
from fakes.vcenter.calls import Context, Handler, SoapFault, invalid_argument
from fakes.vcenter.http import Reply
from fakes.vcenter.machines import not_mounted
from fakes.vcenter.power import Power
from fakes.vcenter.running import Owner, Runner, quietly
from fakes.vcenter.world import World


class Moving:
    """The two calls, on a vCenter."""

    def __init__(self, owner: Owner, runner: Runner, power: Power, inventory: Inventory | None) -> None:
        self._owner = owner
        self._runner = runner
        self._power = power
        self._inventory = inventory

    def handlers(self) -> dict[str, Handler]:
        """By wsdl name."""
        return {"RelocateVM_Task": self.move, "MigrateVM_Task": self.move}

    async def move(self, context: Context) -> Reply:
        """Either call."""
        world, method = context.world, context.call.method
        vm = world.admin.object("VirtualMachine", context.call.this_id)
        managed = self._runner.managed(world, vm)
        if managed is None:
            return await self._power.exclusive(context)
        values = soap.arguments(context.raw)
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
