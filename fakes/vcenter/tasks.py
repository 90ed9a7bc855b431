# SPDX-License-Identifier: MIT
"""Tasks that the gateway owns, inside vcsim: real Task objects, so that clients' collectors and waits just work.

vcsim makes one only of an announced kind, and only as a vCenter (a `vcsim -esx` has no extension manager); it appears a
moment after the call that makes it (vcsim reference section 8.3).
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from pyVmomi import vim, vmodl

from fakes.vcenter import soap
from fakes.vcenter.admin import POLL, AdminSession
from fakes.vcenter.calls import Context, SoapFault, fault_name
from fakes.vcenter.http import Reply
from fakes.vcenter.world import World

# wsdl method → descriptionId, as vSphere's TaskManager lists them
KINDS = {
    "CreateSnapshot_Task": "VirtualMachine.createSnapshot",
    "CreateSnapshotEx_Task": "VirtualMachine.createSnapshotEx",
    "RemoveSnapshot_Task": "vm.Snapshot.remove",
    "RemoveAllSnapshots_Task": "VirtualMachine.removeAllSnapshots",
    "RevertToSnapshot_Task": "vm.Snapshot.revert",
    "RevertToCurrentSnapshot_Task": "VirtualMachine.revertToCurrentSnapshot",
    "ConsolidateVMDisks_Task": "VirtualMachine.consolidateDisks",
    "ReconfigVM_Task": "VirtualMachine.reconfigure",
    "PowerOnVM_Task": "VirtualMachine.powerOn",
    "PowerOnMultiVM_Task": "Datacenter.powerOnVm",
    "PowerOffVM_Task": "VirtualMachine.powerOff",
    "SuspendVM_Task": "VirtualMachine.suspend",
    "RelocateVM_Task": "VirtualMachine.relocate",
    "MigrateVM_Task": "VirtualMachine.migrate",
    "SearchDatastore_Task": "HostDatastoreBrowser.searchDatastore",
    "SearchDatastoreSubFolders_Task": "HostDatastoreBrowser.searchDatastoreSubFolders",
    "CreateVM_Task": "Folder.createVm",
    "RegisterVM_Task": "Folder.registerVm",
    "Destroy_Task": "VirtualMachine.destroy",
    "ExtendVirtualDisk_Task": "VirtualDiskManager.extendVirtualDisk",
}
APPEAR = 5.0


async def announce(admin: AdminSession) -> None:
    """Registers the kinds of tasks, once for each life of vcsim. Raises vmodl.MethodFault."""
    kinds = [vim.Extension.TaskTypeInfo(taskID=kind) for kind in KINDS.values()]
    extension = vim.Extension(
        description=vim.Description(label="VirtualCenter tasks", summary="tasks of virtual machines"),
        key="lab.vcenter.tasks",
        version="1.0",
        taskList=kinds,
        lastHeartbeatTime=datetime.now(UTC),
    )
    await admin.call(admin.content.extensionManager, "RegisterExtension", extension=extension)


async def cancel(context: Context) -> Reply:
    """CancelTask: no task of the gateway's own can be cancelled; its work goes on whatever vcsim would say of it."""
    if context.call.this_id.encode() in context.world.sanitiser.named:
        await context.require_login()
        raise SoapFault(vmodl.fault.NotSupported(), "The task can not be cancelled.")
    return await context.forward()


class OwnedTask:
    """A Task in vcsim whose state the gateway sets."""

    def __init__(self, world: World, reference: Any) -> None:
        self._world = world
        self.reference = reference

    @classmethod
    async def create(cls, world: World, session: AdminSession, entity: Any, method: str) -> OwnedTask:
        """A queued task of that method on `entity`, in the name of the session's user. Raises vmodl.MethodFault."""
        info = await session.call(
            world.admin.content.taskManager,
            "CreateTask",
            obj=entity,
            taskTypeId=KINDS[method],
            cancelable=False,
        )
        task = cls(world, info.task)
        world.sanitiser.named[info.task._moId.encode()] = method
        async with asyncio.timeout(APPEAR):
            while True:
                try:
                    await world.admin.properties(task.reference, "info.state")
                    return task
                except vmodl.fault.ManagedObjectNotFound:
                    await asyncio.sleep(POLL)

    async def _set(self, state: str, **more: Any) -> None:
        await self._world.admin.call(self.reference, "SetTaskState", state=state, **more)

    async def running(self) -> None:
        """queued → running."""
        await self._set("running")

    async def succeeded(self, result: Any = None) -> None:
        """→ success, with a result."""
        await self._set("success", result=result)

    async def failed(self, fault: Any) -> None:
        """→ error, with a typed fault."""
        fault.msg = fault.msg or soap.words(fault_name(fault))
        await self._set("error", fault=fault)
