# SPDX-License-Identifier: MIT
"""Runs what changes a VM: under the VM's lock, as a task that the client gets at once.

On a vCenter the task is the gateway's own and ends when all of the work has; on a host (whose vcsim makes no such tasks)
the call answers with vcsim's task once it is all done. Every end is journalled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from pyVmomi import vmodl

from fakes.core.fabric import FabricError
from fakes.core.inventory import VirtualMachine
from fakes.vcenter import soap
from fakes.vcenter.calls import Context, SoapFault, fault_name, not_found
from fakes.vcenter.http import Reply
from fakes.vcenter.storage import Storage, fault_of
from fakes.vcenter.tasks import OwnedTask
from fakes.vcenter.upstream import UpstreamGone
from fakes.vcenter.world import World

_log = logging.getLogger(__name__)
Work = Callable[[], Awaitable[tuple[Any, Any]]]  # → (result, vcsim's own task)


class Owner(Protocol):
    """What the rooms need of the gateway."""

    storage: Storage | None
    owns_tasks: bool

    def lock(self, vm: str) -> asyncio.Lock: ...
    def vm(self, name: str) -> VirtualMachine | None: ...
    def remember(self, vm: VirtualMachine) -> None: ...
    async def show(self, world: World, vm: VirtualMachine) -> Any: ...
    def spawn(self, work: Awaitable[None]) -> None: ...
    def note(self, context: Context, method: str, status: int | None, fault: str | None, detail: Any) -> None: ...


class Runner:
    """Runs work for calls on a VM, a snapshot of it, or whatever the work says that it locks."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    async def run(
        self, context: Context, entity: Any, work: Work, detail: dict[str, Any], *, name: str | None = None
    ) -> Reply:
        """Answers a call with a task that does `work`.

        Args:
            entity: what the task is about. name: the VM whose lock is taken (default: the entity is that VM).
            detail: for the journal; it may be added to while the work runs.
        """
        await context.require_login()
        world, method = context.world, context.call.method
        if name is None:
            name = await self._name(context, entity)
        detail.update({"vm": name, "snapshot": None, **detail})
        context.detail = {**detail, "state": "queued"}
        if not self._owner.owns_tasks:
            # shielded: the client may go away, the storage must not be left half-way
            _, task = await asyncio.shield(asyncio.ensure_future(self._synchronously(context, name, work, detail)))
            if task is None:
                raise SoapFault(vmodl.fault.NotSupported(), "The host makes no task for this.")
            return Reply.xml(200, soap.reply(method, task))
        owned = await OwnedTask.create(world, context.session, entity, method)
        detail["task"] = owned.reference._moId
        context.detail["task"] = owned.reference._moId
        self._owner.spawn(self._in_background(context, name, owned, work, detail))
        return Reply.xml(200, soap.reply(method, owned.reference))

    async def at_once(self, context: Context, vm: Any, work: Work, detail: dict[str, Any]) -> Reply:
        """Answers a call that has no task when `work` is done."""
        await context.require_login()
        name = await self._name(context, vm)
        detail = {"vm": name, **detail}
        context.detail = {**detail, "state": "queued"}
        await asyncio.shield(asyncio.ensure_future(self._synchronously(context, name, work, detail)))
        return Reply.xml(200, soap.reply(context.call.method))

    async def _name(self, context: Context, vm: Any) -> str:
        try:
            await context.world.admin.properties(vm, "name")
        except vmodl.fault.ManagedObjectNotFound as exc:
            raise not_found(vm) from exc
        return context.world.places.vm_name(vm._moId) or str(vm._moId)

    async def _synchronously(self, context: Context, name: str, work: Work, detail: dict[str, Any]) -> tuple[Any, Any]:
        async with self._owner.lock(name):
            try:
                result, task = await work()
            except (vmodl.MethodFault, vmodl.RuntimeFault, FabricError) as exc:
                raise SoapFault(self.fault(name, exc)) from exc
        context.detail = {**detail, "state": "success", "snapshot": _snapshot(result, detail)}
        return result, task

    async def _in_background(
        self, context: Context, name: str, owned: OwnedTask, work: Work, detail: dict[str, Any]
    ) -> None:
        method = context.call.method
        try:
            async with self._owner.lock(name):
                await owned.running()
                result, _ = await work()
                done = {**detail, "state": "success", "snapshot": _snapshot(result, detail)}
                self._owner.note(context, method, None, None, done)
                await owned.succeeded(result)
        except Exception as exc:
            fault = self.fault(name, exc)
            self._owner.note(context, method, None, fault_name(fault), {**detail, "state": "error"})
            if isinstance(exc, UpstreamGone):
                return  # the task died with its vcsim
            if fault_name(fault) == "SystemError":
                _log.exception("%s on %s", method, name)
            try:
                await owned.failed(fault)
            except (UpstreamGone, TimeoutError, vmodl.MethodFault) as again:
                _log.warning("%s on %s: the task could not be ended: %s", method, name, again)

    def fault(self, name: str, exc: Exception) -> Any:
        """The vSphere fault that an exception shows as."""
        vm = self._owner.vm(name)
        if isinstance(exc, FabricError) and vm is not None:
            return fault_of(exc, vm)
        if isinstance(exc, vmodl.MethodFault | vmodl.RuntimeFault):
            return exc
        if isinstance(exc, SoapFault):
            exc.value.msg = exc.message
            return exc.value
        return vmodl.fault.SystemError(reason=str(exc) or type(exc).__name__, msg="A general system error occurred")

    def managed(self, world: World, vm: Any) -> VirtualMachine | None:
        """The VM behind a reference, if the storage holds it."""
        if self._owner.storage is None:
            return None
        name = world.places.vm_name(vm._moId)
        return self._owner.vm(name) if name else None


def _snapshot(result: Any, detail: dict[str, Any]) -> Any:
    return result._moId if type(result).__name__ == "vim.vm.Snapshot" else detail.get("snapshot")


async def quietly(world: World, task: Any, *, hide: bool = True) -> Any:
    """Waits for a task of the gateway's own doing, which clients' lists do not show. Raises vmodl.MethodFault."""
    if hide:
        world.sanitiser.hidden.add(task._moId.encode())
    return await world.admin.finished(task)
