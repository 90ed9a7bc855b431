# SPDX-License-Identifier: MIT
"""A datastore: LUN, VMs with their disks, and what is done to them as a whole.

The structure file is the commit point of every change: files that it does not name are removed at open, merges that it
names are done again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
import uuid
from pathlib import Path
from typing import Any

from fakes.core.fabric import FabricError
from fakes.storage import contents, descriptor, grains, merging, paths, structure, vmx
from fakes.storage.disk import Disk
from fakes.storage.files import TextFiles
from fakes.storage.gate import Gate
from fakes.storage.grains import ZEROED
from fakes.storage.layer import Layer
from fakes.storage.lun import Lun
from fakes.storage.structure import Commit, Structure, VmRecord
from fakes.storage.truth import TruthKeeper
from fakes.storage.vm import Vm
from fakes.storage.writelog import WriteLog


class Datastore:
    """Everything below `state`. Changes of structure hold `lock`; I/O does not."""

    def __init__(self, state: Path, name: str, capacity: int) -> None:
        self.state = state
        paths.checked_name(name, "datastore")
        for folder in ("chains", "files", "truth"):
            (state / folder).mkdir(parents=True, exist_ok=True)
        self._alone = only_one(state)
        self.lock = threading.RLock()
        self._structure_file = state / "structure.json"
        kept = structure.load(self._structure_file) if self._structure_file.exists() else None
        if kept and kept.name != name:
            raise ValueError(f"{state} holds datastore {kept.name}, not {name}")
        self.name = name
        self.naa = kept.naa if kept else "naa.6" + uuid.uuid4().hex[1:]
        self.lun = Lun(state / "lun.img", capacity)
        self.files = TextFiles(state / "files")
        self.truth = TruthKeeper(state / "truth", self.lun)
        self.vms: dict[str, Vm] = {}
        for record in kept.vms.values() if kept else ():
            self.vms[record.name] = self._open_vm(record)
        self._settle()

    def close(self) -> None:
        """Stops the background work and closes all files; everything stays on disk."""
        self.truth.stop()
        with self.lock:
            for vm in self.vms.values():
                with contextlib.suppress(TimeoutError), vm.gate.closed():
                    for disk in vm.disks.values():
                        for words in (*disk.chain, disk.log):
                            words.close()
            self.vms.clear()
            self.lun.close()
            os.close(self._alone)

    # -- opening -----------------------------------------------------------------------------------------------------

    def _open_vm(self, record: VmRecord) -> Vm:
        gate = Gate(self.lun.release)
        folder = self.state / "chains" / record.name
        disks = {}
        for each in record.disks:
            chain = [self.layer(record.name, each.key, each.size, la.id, la.name, create=False) for la in each.chain]
            log = WriteLog(folder / f"{each.key}.log", grains.count(each.size), create=False)
            disks[each.key] = Disk(
                self.lun, gate, each.key, each.label, each.size, chain, log, each.sequence, each.next_layer
            )
        return Vm(
            record.name,
            record.uuid,
            record.folder,
            record.power,
            gate,
            disks,
            record.snapshots,
            record.merges,
            record.next_snapshot,
        )

    def _settle(self) -> None:
        """Claims what is in use, finishes merges and truth records that a kill cut, removes what nobody names."""
        for vm in self.vms.values():
            for disk in vm.disks.values():
                for layer in disk.chain:
                    words = layer.words
                    self.lun.claim(words[g] - 1 for g in grains.used(words) if words[g] != ZEROED)
        jobs = []
        for vm in self.vms.values():
            jobs += self.truth.resume(vm.name, vm.next_snapshot, vm.disks)
        for job in jobs:
            for plan in job.disks:
                self.lun.claim_orphans(plan.pinned())
        for vm in self.vms.values():
            self.finish_merges(vm)
            self._remove_strays(vm)
            self.write_vmx(vm)
        for stray in (self.state / "chains").iterdir():
            if stray.name not in self.vms:
                shutil.rmtree(stray)
        for stray in self.state.glob("contents-*"):  # a kill came while a disk was being made
            shutil.rmtree(stray)
        self.save()
        self.truth.start()
        for job in jobs:
            self.truth.submit(job)

    def _remove_strays(self, vm: Vm) -> None:
        named = {d.log.path for d in vm.disks.values()} | {la.path for d in vm.disks.values() for la in d.chain}
        named |= {self.log_copy(vm, key, snap.id) for snap in vm.snapshots for key in vm.disks}
        for path in (self.state / "chains" / vm.name).iterdir():
            if path not in named:
                path.unlink()

    def save(self) -> None:
        """Commits the structure as it is."""
        self.prepare().now()

    def prepare(self, changed: VmRecord | None = None) -> Commit:
        """The structure as it is, but with `changed` in its VM's place, ready to be committed."""
        vms = {vm.name: vm.record() for vm in self.vms.values()}
        if changed:
            vms[changed.name] = changed
        return Commit(self._structure_file, Structure(self.name, self.naa, self.lun.capacity, vms))

    # -- names and look-ups ------------------------------------------------------------------------------------------

    def vm(self, name: str) -> Vm:
        """The VM of that name; FabricError `not-found` if there is none."""
        if name not in self.vms:
            raise FabricError("not-found", f"no VM {name!r} on {self.name}")
        return self.vms[name]

    def layer(self, vm: str, key: int, size: int, identity: int, name: str, *, create: bool) -> Layer:
        """Opens or makes the map of a disk's file."""
        path = self.state / "chains" / vm / f"{key}-{identity}.map"
        return Layer(path, grains.count(size), id=identity, name=name, create=create)

    def log_copy(self, vm: Vm, key: int, snapshot: int) -> Path:
        """The write log of a disk as it was at a snapshot."""
        return self.state / "chains" / vm.name / f"{key}-s{snapshot}.log"

    def find(self, path: str) -> tuple[Vm, Disk, Layer] | None:
        """The layer whose file has that path, if any."""
        for vm in self.vms.values():
            for disk in vm.disks.values():
                for layer in disk.chain:
                    if layer.name == path:
                        return vm, disk, layer
        return None

    def descriptor(self, vm: Vm, disk: Disk, layer: Layer) -> str:
        """The text of a disk file's descriptor."""
        index = disk.chain.index(layer)
        return descriptor.text(
            vm.uuid, disk.key, disk.size, layer.id, layer.name, disk.chain[index - 1] if index else None
        )

    def write_vmx(self, vm: Vm) -> None:
        """Brings the disk file names in the VM's `.vmx` up to date."""
        path = f"{vm.folder}/{vm.name}.vmx"
        text = self.files.read(path).decode("utf-8", "surrogateescape")
        fresh = vmx.with_disks(text, {d.key: d.top.name.rpartition("/")[2] for d in vm.disks.values()})
        if fresh != text:
            self.files.write(path, fresh.encode("utf-8", "surrogateescape"))

    # -- VMs ---------------------------------------------------------------------------------------------------------

    def create_vm(self, name: str, bios: str, disks: list[dict[str, Any]], files: dict[str, str], **more: Any) -> Vm:
        """Makes a VM, powered off, with its disks (`key, label, size, file, contents`) and text files.

        `contents` is `empty`, `guest`, `files`, or `image` with the path of a raw `image`.

        `more` are hints for the generated `.vmx` (see `vmx.text`). It exists once the structure names it.

        Raises:
            FabricError: `exists`, `bad-name`, `bad-path`, `bad-size`, `bad-contents`. OSError: ENOSPC.
        """
        with self.lock:
            return self._create_vm(name, bios, disks, files, more)

    def _create_vm(
        self, name: str, bios: str, disks: list[dict[str, Any]], files: dict[str, str], more: dict[str, Any]
    ) -> Vm:
        paths.checked_name(name, "VM")
        bios = str(uuid.UUID(bios))
        self._check_new(name, disks)
        folder = str(disks[0]["file"]).partition("/")[0]
        chains = self.state / "chains" / name
        chains.mkdir(parents=True, exist_ok=True)
        vm = Vm(name, bios, folder, False, Gate(self.lun.release), {})
        try:
            for spec in disks:
                self._add_disk(vm, spec)
            for path, text in files.items():
                self.files.write(path if "/" in path else f"{folder}/{path}", text.encode())
            path = f"{folder}/{name}.vmx"
            if not self.files.exists(path):
                self.files.write(path, vmx.text(name, bios, **more).encode())
            self.write_vmx(vm)
            self.vms[name] = vm
            self.save()
        except BaseException:
            self._drop(vm)
            raise
        return vm

    def _check_new(self, name: str, disks: list[dict[str, Any]]) -> None:
        if name in self.vms:
            raise FabricError("exists", f"VM {name} exists on {self.name}")
        if not disks:
            raise FabricError("bad-size", f"VM {name} needs at least one disk")
        for each in disks:
            path = paths.checked(str(each["file"]))
            if not path.endswith(".vmdk"):
                raise FabricError("bad-path", f"a disk file ends in .vmdk: {path!r}")
            if self.find(path):
                raise FabricError("exists", f"disk file {path} exists on {self.name}")
            if int(each["size"]) <= 0 or int(each["size"]) % 512:
                raise FabricError(
                    "bad-size", f"{path}: a disk's size is a positive multiple of 512, not {each['size']}"
                )
        for field_name in ("key", "file"):
            if len({each[field_name] for each in disks}) != len(disks):
                raise FabricError("exists", f"VM {name}: two disks have the same {field_name}")

    def _add_disk(self, vm: Vm, spec: dict[str, Any]) -> None:
        key, size = int(spec["key"]), int(spec["size"])
        base = self.layer(vm.name, key, size, 0, str(spec["file"]), create=True)
        log = WriteLog(self.state / "chains" / vm.name / f"{key}.log", grains.count(size), create=True)
        disk = Disk(self.lun, vm.gate, key, str(spec.get("label", f"Hard disk {key - 1999}")), size, [base], log)
        vm.disks[key] = disk  # known from here on, so that a failure takes back what was filled
        image = Path(spec["image"]) if "image" in spec else None
        contents.fill(
            disk, str(spec.get("contents", "empty")), seed=f"{vm.name}/{key}", scratch=self.state, image=image
        )

    def _drop(self, vm: Vm) -> None:
        """Takes back what `create_vm` made before it failed."""
        self.vms.pop(vm.name, None)
        for disk in vm.disks.values():
            self.lun.release([entry - 1 for entry in disk.view if entry])
            for words in (*disk.chain, disk.log):
                words.close()
        shutil.rmtree(self.state / "chains" / vm.name, ignore_errors=True)

    def set_power(self, vm: Vm, on: bool) -> None:
        """Notes that the VM runs (its top layers are locked) or does not."""
        with self.lock:
            vm.power = on
            self.save()

    # -- merging -----------------------------------------------------------------------------------------------------

    def finish_merges(self, vm: Vm) -> None:
        """Does the merges that the structure names and commits them; may be done again after a kill at any instant.

        Until the gate closes, writes still go to the layer that will be merged away: its map counts, not a copy of it.
        """
        if not vm.merges:
            return
        commit = self.prepare(merging.merged(vm.record()))
        with vm.gate.closed():
            gone = [merging.merge_down(vm, merge) for merge in vm.merges]
            vm.merges = []
            commit.now()
        for layer in gone:
            layer.close()
            layer.path.unlink()


def only_one(state: Path) -> int:
    """A lock on a state folder, held until the descriptor is closed; ValueError if another service has it."""
    fd = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise ValueError(f"{state} is in use by another storage service") from None
    return fd
