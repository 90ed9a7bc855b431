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
from fakes.vcenter import devices, guard
from fakes.vcenter.attachments import Attachments
from fakes.vcenter.calls import Context, SoapFault
from fakes.vcenter.http import Reply
from fakes.vcenter.running import Owner
from fakes.vcenter.storage import fault_of
from fakes.vcenter.upstream import UpstreamGone
from fakes.vcenter.world import World

_log = logging.getLogger(__name__)
_TASK = re.compile(rb'<returnval[^>]*type="Task"[^>]*>([^<]+)<')
_DEADLINE = 600.0
Quiet = Callable[[World, VirtualMachine, Any], Awaitable[None]]  # the guest of a VM has gone


class Power:
    """Tasks that are passed on under the VM's lock, and power as the fabric and other rooms set it."""

    def __init__(self, owner: Owner, attachments: Attachments, went_down: Quiet) -> None:
        self._owner = owner
        self._attachments = attachments
        self._went_down = went_down

    async def exclusive(self, context: Context) -> Reply:
        """Forwards a task that changes a VM, keeping the VM's lock until it has ended; power is told to the storage."""
        if context.call.this_type != "VirtualMachine":
            return await context.forward()
        world = context.world
        name = world.places.vm_name(context.call.this_id) or context.call.this_id
        vm, on = self._owner.vm(name), guard.POWER.get(context.call.method)
        lock = self._owner.lock(name)
        await lock.acquire()
        handed_over, told = False, False
        try:
            if on and vm is not None and self._owner.storage is not None:
                await context.require_login()
                if await _state(world, context.world.places.vms[name]) == "poweredOff":
                    try:
                        await self._owner.storage.power(vm, True)
                    except FabricError as exc:
                        raise SoapFault(fault_of(exc, vm)) from exc
                    told = True
            reply = await context.forward()
            body = reply.body if isinstance(reply.body, bytes) else b""
            match = _TASK.search(body)
            if reply.status == 200 and match:
                self._owner.spawn(self._follow(world, vm, on, lock, vim.Task(match[1].decode(), None), name))
                handed_over = True
            return reply
        finally:
            if not handed_over:
                if told and vm is not None and self._owner.storage is not None:
                    await asyncio.shield(self._owner.storage.power(vm, False))
                lock.release()

    async def _follow(
        self, world: World, vm: VirtualMachine | None, on: bool | None, lock: asyncio.Lock, task: Any, name: str
    ) -> None:
        storage = self._owner.storage
        try:
            try:
                await world.admin.finished(task, deadline=_DEADLINE)
            except (vmodl.MethodFault, TimeoutError) as exc:
                _log.debug("%s: %s", name, exc)
                if on and vm is not None and storage is not None:
                    # unless it was on before, of which vcsim complains too
                    await storage.power(vm, await _state(world, world.places.vms[name]) == "poweredOn")
                return
            if on is not None and vm is not None and storage is not None:
                await self._took_effect(world, vm, world.places.vms[name], on)
        except (vmodl.MethodFault, UpstreamGone, TimeoutError) as exc:
            _log.debug("%s: %s", name, exc)
        except FabricError as exc:
            _log.warning("power of %s: %s", name, exc)
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
