# SPDX-License-Identifier: MIT
"""HotAdd's books: which disks may be attached to a proxy's VM, kept with the Backup Service so that they outlive this process."""

from __future__ import annotations

from engine.manager.errors import as_error
from engine.manager.run import Run
from engine.manager.tasks import DiskTask, VmRun
from engine.scheduler.modes import HOTADD


async def remember(run: Run, vm: VmRun, task: DiskTask) -> None:
    """Before the Data Mover of `task` may attach its disk."""
    await _store(run, vm, task, attached=True)


async def forget(run: Run, vm: VmRun, task: DiskTask) -> None:
    """After the Data Mover has detached it."""
    await _store(run, vm, task, attached=False)


async def _store(run: Run, vm: VmRun, task: DiskTask, *, attached: bool) -> None:
    if HOTADD not in task.modes:
        return
    uuid = next((uuid for uuid, name in run.proxy_vms().items() if name == task.proxy), None)
    mine = [uuid, task.disk.path]
    others = [one for one in run.pending.get(vm.name, {}).get("attached") or [] if one != mine]
    if uuid is not None:
        await run.remember(vm, attached=[*others, mine] if attached else others)


async def detach_left(run: Run, vm: VmRun, task: DiskTask | None = None) -> None:
    """Detaches what Data Movers of this VM (of one task) did not detach themselves: they died. Never raises.

    A living mover detaches while it ends, and this finds nothing.
    """
    left = run.pending.get(vm.name, {}).get("attached") or []
    mine = [one for one in left if task is None or one[1] == task.disk.path]
    if not mine or run.vsphere is None:
        return
    try:
        for uuid in dict.fromkeys(uuid for uuid, _ in mine):
            found = await run.vsphere.detach(uuid, [path for one, path in mine if one == uuid])
            for path in found:
                run.report.note(f"{path} was left attached to a proxy: detached", step="22", vm=vm.name)
        await run.remember(vm, attached=[one for one in left if one not in mine])
    except Exception as exc:
        run.warn(vm, as_error(exc))
