# SPDX-License-Identifier: MIT
"""VMs and their disks: made, given more disks, grown, deleted."""

from __future__ import annotations

import contextlib
import copy
import shutil
import uuid
from pathlib import Path
from typing import Any

from fakes.core.fabric import FabricError
from fakes.storage import contents, grains, paths, vmx
from fakes.storage.datastore import Datastore
from fakes.storage.disk import Disk
from fakes.storage.gate import Gate
from fakes.storage.grains import GRAIN, ZEROED
from fakes.storage.vm import Vm
from fakes.storage.writelog import WriteLog


def create(
    store: Datastore,
    name: str,
    bios: str,
    disks: list[dict[str, Any]],
    files: dict[str, str],
    *,
    folder: str | None = None,
    **more: Any,
) -> Vm:
    """Makes a VM, powered off, with its disks (`key, label, size, file, contents`) and text files.

    `contents` is `empty`, `guest`, `files`, or `image` with the path of a raw `image`. `folder` is that of the first
    disk unless it is named, and the VM's name without disks. `more` are hints for the generated `.vmx` (see `vmx.text`).
    The VM exists once the structure names it.

    Raises:
        FabricError: `exists`, `bad-name`, `bad-path`, `bad-size`, `bad-contents`. OSError: ENOSPC.
    """
    with store.lock:
        paths.checked_name(name, "VM")
        bios = str(uuid.UUID(bios))
        if name in store.vms:
            raise FabricError("exists", f"VM {name} exists on {store.name}")
        _check(store, name, disks)
        folder = paths.checked(folder or (str(disks[0]["file"]).partition("/")[0] if disks else name), parts=1)
        (store.state / "chains" / name).mkdir(parents=True, exist_ok=True)
        vm = Vm(name, bios, folder, False, Gate(store.lun.release), {})
        vm.next_snapshot = store.retired.get(name, 1)
        try:
            for spec in disks:
                _fill(store, vm, spec)
            for path, text in files.items():
                store.files.write(path if "/" in path else f"{folder}/{path}", text.encode())
            path = f"{folder}/{name}.vmx"
            given = path in files or f"{name}.vmx" in files
            # one that is there is somebody's, unless it was left by a deletion that a kill cut short
            if not given and (name in store.retired or not store.files.exists(path)):
                store.files.write(path, vmx.text(name, bios, **more).encode())
            store.write_vmx(vm)
            store.vms[name] = vm
            store.save()
        except BaseException:
            store.vms.pop(name, None)
            _give_back(store, vm, list(vm.disks.values()))
            shutil.rmtree(store.state / "chains" / name, ignore_errors=True)
            raise
        return vm


def _check(store: Datastore, name: str, disks: list[dict[str, Any]]) -> None:
    for each in disks:
        path = paths.checked(str(each["file"]))
        if not path.endswith(".vmdk"):
            raise FabricError("bad-path", f"a disk file ends in .vmdk: {path!r}")
        if store.find(path):
            raise FabricError("exists", f"disk file {path} exists on {store.name}")
        _check_size(path, int(each["size"]))
    for field_name in ("key", "file"):
        if len({each[field_name] for each in disks}) != len(disks):
            raise FabricError("exists", f"VM {name}: two disks have the same {field_name}")


def _check_size(path: str, size: int) -> None:
    if size <= 0 or size % 512:
        raise FabricError("bad-size", f"{path}: a disk's size is a positive multiple of 512, not {size}")


def _fill(store: Datastore, vm: Vm, spec: dict[str, Any]) -> Disk:
    key, size = int(spec["key"]), int(spec["size"])
    base = store.layer(vm.name, key, size, 0, str(spec["file"]), create=True)
    log = WriteLog(store.state / "chains" / vm.name / f"{key}.log", grains.count(size), create=True)
    disk = Disk(store.lun, vm.gate, key, str(spec.get("label", f"Hard disk {key - 1999}")), size, [base], log)
    vm.disks[key] = disk  # known from here on, so that a failure takes back what was filled
    image = Path(spec["image"]) if "image" in spec else None
    contents.fill(disk, str(spec.get("contents", "empty")), seed=f"{vm.name}/{key}", scratch=store.state, image=image)
    return disk


def _give_back(store: Datastore, vm: Vm, disks: list[Disk]) -> None:
    """Closes the files of disks that the structure does not name, and frees their LUN grains."""
    for disk in disks:
        for layer in disk.chain:
            words = layer.words
            store.lun.release([words[g] - 1 for g in grains.used(words) if words[g] != ZEROED])
        for words_file in (*disk.chain, disk.log):
            words_file.close()
            words_file.path.unlink(missing_ok=True)
        vm.disks.pop(disk.key, None)


def add_disk(store: Datastore, vm: Vm, spec: dict[str, Any]) -> Disk:
    """Gives a VM one more disk, also while it runs.

    Raises:
        FabricError: as `create`; `has-snapshots`: every snapshot here holds all disks of its VM. OSError: ENOSPC.
    """
    with store.lock:
        _no_snapshots(vm, "a disk cannot be added")
        if int(spec["key"]) in vm.disks:
            raise FabricError("exists", f"{vm.name} has a disk {spec['key']}")
        _check(store, vm.name, [spec])
        try:
            disk = _fill(store, vm, spec)
            store.save()
        except BaseException:
            _give_back(store, vm, [d for d in [vm.disks.get(int(spec["key"]))] if d])
            raise
        store.write_vmx(vm)
        return disk


def _no_snapshots(vm: Vm, what: str) -> None:
    if vm.snapshots:
        raise FabricError("has-snapshots", f"{vm.name} has snapshots: {what}")


def grow(store: Datastore, vm: Vm, key: int, size: int) -> None:
    """Makes a disk larger, also while its VM runs; what is new reads as zero and counts as changed.

    NBD connections keep the size that they were opened with.

    Raises:
        FabricError: `not-found`, `bad-size` (not larger, or no multiple of 512), `has-snapshots`, `in-use`.
        OSError: the host's disk is full; nothing changed.
    """
    with store.lock:
        disk = vm.disk(key)
        _no_snapshots(vm, "a disk cannot grow")
        _check_size(disk.top.name, size)
        if size <= disk.size:
            raise FabricError("bad-size", f"{disk.top.name} has {disk.size} bytes: it can only grow")
        store.finish_merges(vm)
        store.attachments.check_free([disk.top.name])
        count, old = grains.count(size), disk.grains
        disk.top.reserve(count, 0)
        disk.log.reserve(count, disk.sequence)
        record = copy.deepcopy(vm.record())
        next(each for each in record.disks if each.key == key).size = size
        commit = store.prepare(record)
        with vm.gate.closed():
            if disk.size % GRAIN:  # its last grain grows: its digest is no longer that of before
                disk.log.note(old - 1, old - 1, disk.sequence)
            commit.now()
            disk.top.remap(count)
            disk.log.remap(count)
            disk.view.extend([0] * (count - old))
            disk.size, disk.grains = size, count


def delete(store: Datastore, vm: Vm) -> None:
    """Deletes a VM with its disks and files. Truth records stay, and snapshot ids go on if its name is used again.

    Raises:
        FabricError: `locked` (it runs), `in-use` (a disk file is attached). OSError: the host's disk is full.
    """
    with store.lock:
        if vm.power:
            raise FabricError("locked", f"{vm.name} runs: power it off first")
        store.attachments.check_free(layer.name for disk in vm.disks.values() for layer in disk.chain)
        commit = store.prepare(gone=vm)
        with vm.gate.closed():
            commit.now()
            vm.gone = True
        store.retired[vm.name] = vm.next_snapshot
        del store.vms[vm.name]
        _give_back(store, vm, list(vm.disks.values()))
        shutil.rmtree(store.state / "chains" / vm.name, ignore_errors=True)
        shared = any(each.folder == vm.folder for each in store.vms.values())
        for path in store.files.names():
            if path == f"{vm.folder}/{vm.name}.vmx" or (not shared and path.startswith(f"{vm.folder}/")):
                with contextlib.suppress(OSError):  # a file that stays is untidy, the VM is gone all the same
                    store.files.remove(path)
