# SPDX-License-Identifier: MIT
"""The one lever on a VM of vcsim: typed `SET.` options (vcsim reference sections 10 and 11), for the gateway alone.

An unknown path or a value of a wrong type ends vcsim, so every path stands here, and clients' own `SET.` keys never
reach it (`guard`).
"""

from __future__ import annotations

import contextlib
from typing import Any
from urllib.parse import quote, urlencode

from pyVmomi import vim

from fakes.core.inventory import VirtualMachine
from fakes.vcenter.http import Headers
from fakes.vcenter.machine import folder as folder_of
from fakes.vcenter.world import World

STUB_DEADLINE = 30.0

ALLOWED = (
    "config.hardware.device",
    "layoutEx.snapshot",
    "runtime.consolidationNeeded",
    "snapshot",
    "config.guestFullName",
    "guest.",
    "summary.guest.",
)


async def assign(world: World, vm: Any, values: dict[str, Any]) -> Any:
    """Sets properties of a VM by path; returns vcsim's task. Raises vmodl.MethodFault, UpstreamGone."""
    for path in values:
        if not path.startswith(ALLOWED):
            raise ValueError(f"{path} is not among the paths that may be set")
    options = [vim.option.OptionValue(key=f"SET.{path}", value=value) for path, value in values.items()]
    task = await world.admin.call(vm, "ReconfigVM_Task", spec=vim.vm.ConfigSpec(extraConfig=options))
    world.sanitiser.hidden.add(task._moId.encode())
    await world.admin.finished(task)
    return task


async def read(world: World, vm: Any) -> list[Any]:
    """The devices of a VM, or of a snapshot's config."""
    return list((await world.admin.properties(vm, "config.hardware.device")).get("config.hardware.device") or [])


async def write(world: World, vm: Any, devices: list[Any]) -> Any:
    """Makes a VM show these devices; returns vcsim's task."""
    return await assign(world, vm, {"config.hardware.device": vim.vm.device.VirtualDevice.Array(devices)})


def _backing(template: Any, path: str, parent: Any, change_id: str | None) -> Any:
    # a delta of our storage keeps the identity of the disk; only its file differs
    return vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
        fileName=path,
        datastore=template.datastore,
        diskMode=template.diskMode or "persistent",
        thinProvisioned=template.thinProvisioned if parent is None else True,
        writeThrough=bool(template.writeThrough),
        uuid=template.uuid,
        contentId=template.contentId,
        changeId=change_id,
        deltaDiskFormat=None if parent is None else "redoLogFormat",
        parent=parent,
    )


async def set_chains(
    world: World, vm: Any, chains: dict[int, list[str]], change_ids: dict[int, str | None] | None = None
) -> None:
    """Makes disks show these files and change IDs.

    Args:
        chains: device key → paths, base first; the last is the disk's own. change_ids: device key → ID (None: untracked).
    """
    devices = await read(world, vm)
    if show_chains(devices, chains, change_ids or {}):
        await write(world, vm, devices)


def show_chains(devices: list[Any], chains: dict[int, list[str]], change_ids: dict[int, str | None]) -> bool:
    """The same on devices in hand; returns whether something changed."""
    changed = False
    for device in devices:
        chain, change_id = chains.get(device.key), change_ids.get(device.key)
        if not isinstance(device, vim.vm.device.VirtualDisk) or not chain or device.backing is None:
            continue
        if _files(device.backing) == chain and device.backing.changeId == change_id:
            continue
        backing = None
        for path in chain:
            backing = _backing(device.backing, path, backing, change_id if path == chain[-1] else None)
        device.backing = backing
        changed = True
    return changed


def _files(backing: Any) -> list[str]:
    chain: list[str] = []
    while backing is not None:
        chain.insert(0, backing.fileName)
        backing = backing.parent
    return chain


async def show_frozen(world: World, snapshot: str, chains: dict[int, list[str]]) -> None:
    """Makes a snapshot's config show these files; vcsim has no way to change it, so replies are patched."""
    reference = vim.vm.Snapshot(snapshot, None)
    devices = await read(world, reference)
    held = {d.key: _files(d.backing) for d in devices if isinstance(d, vim.vm.device.VirtualDisk)}
    if all(held.get(key) == chain for key, chain in chains.items()):
        world.sanitiser.frozen.pop(snapshot, None)
    else:
        world.sanitiser.frozen[snapshot] = chains


async def pin_layout(world: World, vm: Any) -> None:
    """Keeps vcsim from deleting a wrong file at the next removal: no snapshot's layout names a file (section 9)."""
    layouts = (await world.admin.properties(vm, "layoutEx.snapshot")).get("layoutEx.snapshot") or []
    if all(layout.dataKey == -1 for layout in layouts):
        return
    for layout in layouts:
        layout.dataKey = layout.memoryKey = -1
    array = vim.vm.FileLayoutEx.SnapshotLayout.Array(layouts)
    await assign(world, vm, {"layoutEx.snapshot": array})


async def remember_stubs(world: World, datacenter: str, vm: VirtualMachine) -> None:
    """Keeps the descriptors that vcsim made for a VM, to put them back should one vanish."""
    for index in range(len(vm.disks)):
        query = urlencode({"dcPath": datacenter, "dsName": vm.datastore})
        target = f"/folder/{quote(vm.disk_file(index))}?{query}"
        answer = await world.upstream.request("GET", target, Headers(), b"", STUB_DEADLINE)
        if answer.status == 200:
            world.stubs[target] = answer.body


async def restore_stubs(world: World) -> None:
    """Puts back descriptors that vcsim has lost: a later edit of the VM would fail without them (section 9)."""
    for target, text in world.stubs.items():
        answer = await world.upstream.request("HEAD", target, Headers(), b"", STUB_DEADLINE)
        if answer.status == 404:
            await world.upstream.request("PUT", target, Headers(), text, STUB_DEADLINE)


async def clear_stubs(world: World, vm: VirtualMachine) -> None:
    """Takes away what vcsim left of a VM that it showed before: it would not make that anew."""
    manager, folder = world.admin.content.fileManager, folder_of(vm)
    files = {f"{folder}/{vm.name}.vmx", f"{folder}/{vm.name}.nvram", f"{folder}/vmware.log"}
    for index in range(len(vm.disks)):
        disk = vm.disk_file(index)
        files |= {disk, disk.removesuffix(".vmdk") + "-flat.vmdk"}
    for file in sorted(files):
        name, datacenter = f"[{vm.datastore}] {file}", world.places.datacenter
        with contextlib.suppress(vim.fault.FileNotFound):
            task = await world.admin.call(manager, "DeleteDatastoreFile_Task", name=name, datacenter=datacenter)
            world.sanitiser.hidden.add(task._moId.encode())
            await world.admin.finished(task)
