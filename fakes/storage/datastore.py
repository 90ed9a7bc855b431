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

from fakes.core.fabric import FabricError
from fakes.storage import descriptor, grains, merging, paths, structure, tracking, vmx
from fakes.storage.attachments import Attachments
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
        self.attachments = Attachments(kept.attachments if kept else (), state)
        self.retired = dict(kept.retired) if kept else {}
        self.vms: dict[str, Vm] = {}
        for record in kept.vms.values() if kept else ():
            self.vms[record.name] = self._open_vm(record)
        self._settle()

    def close(self) -> None:
        """Stops the background work and closes all files; everything stays on disk."""
        self.truth.stop()
        with self.lock:
            self.attachments.close()
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
                self.lun, gate, each.key, each.label, each.size, chain, log, each.sequence, each.next_layer, each.epoch
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
            record.tracking,
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
        for name in self.retired.keys() - self.vms.keys():
            jobs += self.truth.resume(name, self.retired[name], {})
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

    def prepare(self, changed: VmRecord | None = None, gone: Vm | None = None) -> Commit:
        """The structure as it is, but with `changed` in its VM's place and without `gone`, ready to be committed."""
        vms = {vm.name: vm.record() for vm in self.vms.values() if vm is not gone}
        retired = {**self.retired, **({gone.name: gone.next_snapshot} if gone else {})}
        if changed:
            vms[changed.name] = changed
        attached = self.attachments.records()
        return Commit(self._structure_file, Structure(self.name, self.naa, self.lun.capacity, vms, attached, retired))

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
        fresh = vmx.with_tracking(fresh, vm.tracking)
        if fresh != text:
            self.files.write(path, fresh.encode("utf-8", "surrogateescape"))

    def set_power(self, vm: Vm, on: bool) -> None:
        """Notes that the VM runs (its top layers are locked) or does not. At power-on, tracking takes effect.

        Raises:
            FabricError: `in-use`, the top of a disk is attached to another VM.
        """
        with self.lock:
            if on:
                self.attachments.check_free(disk.top.name for disk in vm.disks.values())
            before = vm.power
            vm.power = on
            try:
                with tracking.taking_effect(vm) if on and not before else contextlib.nullcontext():
                    self.save()
            except BaseException:
                vm.power = before
                raise

    def ask_tracking(self, vm: Vm, on: bool) -> None:
        """Asks for changed block tracking; it takes effect at the next snapshot cycle or power-on (see `tracking`)."""
        with self.lock:
            vm.tracking = on
            self.save()
            self.write_vmx(vm)

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
