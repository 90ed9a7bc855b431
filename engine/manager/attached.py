# SPDX-License-Identifier: MIT
"""Disks attached to proxies' VMs: HotAdd's books, kept with the Backup Service so that they outlive this process, and what is left.

`engine.vsphere.attached` says which disks are left over.
"""

from __future__ import annotations

from engine.errors import VadplabError
from engine.manager.errors import as_error
from engine.manager.run import Run
from engine.manager.tasks import DiskTask, VmRun
from engine.modes.names import HOTADD
from engine.vsphere import Snapshot
from engine.vsphere.attached import among, folder_of


async def left_on_proxies(run: Run) -> dict[str, list[str]]:
    """Part of step 8: BIOS UUID → what backups have attached to each proxy that is a VM, also to those that this run does not use."""
    assert run.vsphere is not None
    found = {}
    for uuid, name in run.proxy_vms().items():
        try:
            found[uuid] = await run.vsphere.left_attached(uuid)
        except VadplabError as exc:
            run.report.note(f"what is attached to {name} is not known: {exc.message}", step="8", code=exc.code)
    return found


async def detach_of_dead(run: Run, vm: VmRun, shown: dict[str, list[str]], living: list[Snapshot]) -> None:
    """Part of step 8: detaches disks of this VM that dead runs left on proxies.

    A run has a disk attached only while its snapshot is there: what none of the `living` snapshots froze is left over. They must
    have been read after `shown` (`left_on_proxies`).

    Raises:
        VadplabError: one stays attached; the snapshot that it belongs to must not be removed.
    """
    assert run.vsphere is not None and vm.info is not None
    own = {folder_of(path) for path in (vm.info.vmx, *(disk.path for disk in vm.info.disks))}
    if not any(folder_of(path) in own for paths in shown.values() for path in paths):
        return
    held = [path for one in living for path in (await run.vsphere.frozen_paths(one, step="8")).values()]
    for uuid, paths in shown.items():
        left = [path for path in paths if folder_of(path) in own and not among(path, held)]
        for path in await run.vsphere.detach(uuid, left, step="8") if left else []:
            run.report.note(f"{path} was left attached to a proxy by a dead run: detached", step="8", vm=vm.name)


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


async def detach_left(run: Run, vm: VmRun, task: DiskTask | None = None, *, step: str) -> None:
    """Detaches what Data Movers of this VM (of one task) did not detach themselves: they died. Never raises.

    A living mover detaches while it ends, and this finds nothing.
    """
    left = run.pending.get(vm.name, {}).get("attached") or []
    mine = [one for one in left if task is None or one[1] == task.disk.path]
    if not mine or run.vsphere is None:
        return
    try:
        for uuid in dict.fromkeys(uuid for uuid, _ in mine):
            found = await run.vsphere.detach(uuid, [path for one, path in mine if one == uuid], step=step)
            for path in found:
                run.report.note(f"{path} was left attached to a proxy: detached", step=step, vm=vm.name)
        await run.remember(vm, attached=[one for one in left if one not in mine])
    except Exception as exc:
        run.warn(vm, as_error(exc))
