# SPDX-License-Identifier: MIT
"""Power of VMs, and the other tasks that vcsim does by itself but that must not run beside a snapshot.

The storage is told before a VM comes up (it may refuse: a disk of the VM is attached to another one) and after it went
down. At power-on, changed block tracking takes effect, and disks attached to the VM appear on its bus.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

from pyVmomi import vim, vmodl

from fakes.core.fabric import FabricError
from fakes.core.inventory import VirtualMachine
from fakes.vcenter import devices, guard, soap
from fakes.vcenter.attachments import Attachments
from fakes.vcenter.calls import Context, Handler, SoapFault
from fakes.vcenter.http import Reply
from fakes.vcenter.running import Owner, Runner, quietly
from fakes.vcenter.upstream import UpstreamGone
from fakes.vcenter.world import World

_log = logging.getLogger(__name__)
_TASK = re.compile(rb'<returnval[^>]*type="Task"[^>]*>([^<]+)<')
_DEADLINE = 600.0
Quiet = Callable[[World, VirtualMachine, Any], Awaitable[None]]  # the guest of a VM has gone


class Power:
    """Tasks that are passed on under the VM's lock, and power as clients, the fabric and other rooms set it."""

    def __init__(self, owner: Owner, runner: Runner, attachments: Attachments, went_down: Quiet) -> None:
        self._owner = owner
        self._runner = runner
        self._attachments = attachments
        self._went_down = went_down

    def handlers(self) -> dict[str, Handler]:
        """By wsdl name."""
        passed: dict[str, Handler] = dict.fromkeys(guard.EXCLUSIVE, self.exclusive)
        asked: dict[str, Handler] = dict.fromkeys(("ShutdownGuest", "RebootGuest", "StandbyGuest"), self.ask_guest)
        return passed | asked | dict.fromkeys(guard.POWER, self.change) | {"PowerOnMultiVM_Task": self.on_many}

    async def change(self, context: Context) -> Reply:
        """PowerOnVM_Task, PowerOffVM_Task, SuspendVM_Task."""
        world, method = context.world, context.call.method
        vm = world.admin.object("VirtualMachine", context.call.this_id)
        managed = self._runner.managed(world, vm)
        if managed is None:
            return await self.exclusive(context)

        async def work() -> tuple[Any, Any]:
            return None, await self._switch(world, managed, vm, method)

        return await self._runner.run(context, vm, work, {})

    async def _switch(self, world: World, managed: VirtualMachine, vm: Any, method: str) -> Any:
        """One of those tasks, with the storage told; returns vcsim's own."""
        storage, on = self._owner.storage, guard.POWER[method]
        assert storage is not None
        off_before = await _state(world, vm) != "poweredOn"
        if on and off_before:
            await storage.power(managed, True)
        try:
            task = await world.admin.call(vm, method)
            await quietly(world, task, hide=self._owner.owns_tasks)
        except BaseException:
            if on and off_before:
                await storage.power(managed, False)
            raise
        if not on:
            await self._went_down(world, managed, vm)
        await self._took_effect(world, managed, vm, on)
        return task

    async def on_many(self, context: Context) -> Reply:
        """PowerOnMultiVM_Task(vm[]): on a vCenter each VM is switched on as by PowerOnVM_Task."""
        if not self._owner.owns_tasks:
            return await context.forward()
        world, vms = context.world, soap.arguments(context.raw).get("vm") or []
        datacenter = world.admin.object("Datacenter", context.call.this_id)

        async def work() -> tuple[Any, Any]:
            result = vim.cluster.PowerOnVmResult(attempted=[], notAttempted=[])
            for vm in vms:
                vm, managed = world.admin.object("VirtualMachine", vm._moId), self._runner.managed(world, vm)
                name = managed.name if managed is not None else vm._moId
                try:
                    async with self._owner.lock(name):
                        if managed is not None:
                            task = await self._switch(world, managed, vm, "PowerOnVM_Task")
                        else:
                            task = await quietly(world, await world.admin.call(vm, "PowerOnVM_Task"), hide=False)
                    result.attempted.append(vim.cluster.AttemptedVmInfo(vm=vm, task=task))
                except (vmodl.MethodFault, FabricError) as exc:
                    refused = vim.cluster.NotAttemptedVmInfo(vm=vm, fault=self._runner.fault(name, exc))
                    result.notAttempted.append(refused)
            return result, None

        return await self._runner.run(context, datacenter, work, {})

    async def ask_guest(self, context: Context) -> Reply:
        """ShutdownGuest, RebootGuest, StandbyGuest: what Tools do in the guest; without Tools they are refused."""
        world = context.world
        vm = world.admin.object("VirtualMachine", context.call.this_id)
        managed = self._runner.managed(world, vm)
        if managed is None:
            return await context.forward()
        await context.require_login()
        await context.require_power(vm, "poweredOn")
        told = await world.admin.properties(vm, "guest.toolsRunningStatus")
        if told.get("guest.toolsRunningStatus") != "guestToolsRunning":
            text = "Cannot complete operation because VMware Tools is not running in this virtual machine."
            raise SoapFault(vim.fault.ToolsUnavailable(), text)
        if context.call.method != "ShutdownGuest":
            return await context.forward()

        async def work() -> tuple[Any, Any]:
            await self.set(world, managed, vm, False)
            return None, None

        return await self._runner.at_once(context, vm, work, {})

    async def exclusive(self, context: Context) -> Reply:
        """Forwards a task that changes a VM, keeping the VM's lock until it has ended."""
        if context.call.this_type != "VirtualMachine":
            return await context.forward()
        name = context.world.places.vm_name(context.call.this_id) or context.call.this_id
        lock = self._owner.lock(name)
        await lock.acquire()
        handed_over = False
        try:
            reply = await context.forward()
            match = _TASK.search(reply.body if isinstance(reply.body, bytes) else b"")
            if reply.status == 200 and match:
                self._owner.spawn(self._follow(context.world, lock, vim.Task(match[1].decode(), None)))
                handed_over = True
            return reply
        finally:
            if not handed_over:
                lock.release()

    @staticmethod
    async def _follow(world: World, lock: asyncio.Lock, task: Any) -> None:
        try:
            await world.admin.finished(task, deadline=_DEADLINE)
        except (vmodl.MethodFault, UpstreamGone, TimeoutError) as exc:
            _log.debug("%s: %s", task._moId, exc)
        finally:
            lock.release()

    async def _took_effect(self, world: World, vm: VirtualMachine, reference: Any, on: bool) -> None:
        storage = self._owner.storage
        if storage is None:
            return
        if on:
            state = await storage.get(vm)
            await devices.set_chains(world, reference, state.chains, state.change_ids)
            await self._attachments.plug_all(vm.name)
        else:
            await storage.power(vm, False)
            await self._attachments.unplug_all(vm.name)

    async def set(self, world: World, vm: VirtualMachine, reference: Any, on: bool) -> None:
        """Makes a VM run or not, here and in the storage; the VM's lock is held. Raises FabricError, vmodl.MethodFault."""
        if on and self._owner.storage is not None:
            await self._owner.storage.power(vm, True)
        await self.show(world, reference, on)
        if not on:
            await self._went_down(world, vm, reference)
        await self._took_effect(world, vm, reference, on)

    async def show(self, world: World, reference: Any, on: bool) -> None:
        """Makes vcsim show a VM as running or not."""
        if (await _state(world, reference) == "poweredOn") != on:
            task = await world.admin.call(reference, "PowerOnVM_Task" if on else "PowerOffVM_Task")
            await world.admin.finished(task)


async def _state(world: World, reference: Any) -> str:
    return str((await world.admin.properties(reference, "runtime.powerState")).get("runtime.powerState"))
