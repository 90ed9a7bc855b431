# SPDX-License-Identifier: MIT
"""NBD exports: `live/<vm>/<key>` follows the top of a disk's chain; `file/<folder>/<name>.vmdk` is the chain that ends there.

*Handle*: one NBD connection's open disk. A `file/` handle becomes stale (ESTALE) when a merge changes what its file
shows, and read-only when its layer is no longer the top of a powered-off VM.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Iterator

from fakes.core.fabric import FabricError
from fakes.storage import grains, paths
from fakes.storage.datastore import Datastore
from fakes.storage.disk import Disk
from fakes.storage.grains import GRAIN
from fakes.storage.layer import Layer
from fakes.storage.lun import Buffer
from fakes.storage.vm import Vm


class Handle:
    """An open disk: the live chain, or (with `layer`) the chain that ends in one file."""

    def __init__(self, vm: Vm, disk: Disk, layer: Layer | None) -> None:
        self._vm = vm
        self._disk = disk
        self._layer = layer
        self._generation = layer.generation if layer else 0
        self.size = disk.size

    @property
    def writable(self) -> bool:
        """True if a write would be taken now."""
        return self._layer is None or (self._layer is self._disk.top and not self._vm.power)

    def _view(self) -> array[int]:
        if self._layer is None:
            return self._disk.view
        if self._layer.generation != self._generation:
            raise OSError(errno.ESTALE, f"{self._layer.name} was merged; open it again")
        if self._layer is self._disk.top and self._vm.power:
            raise OSError(errno.EBUSY, f"{self._layer.name} is locked by its running VM")
        return self._disk.frozen_view(self._layer)

    def _check_writable(self) -> None:
        self._view()
        if not self.writable:
            raise OSError(errno.EROFS, "this disk file is frozen by a snapshot")

    def read(self, buffer: Buffer, offset: int) -> None:
        """Fills `buffer` from byte `offset`."""
        gate = self._vm.gate
        epoch = gate.enter()
        try:
            self._disk.lun.read_view(self._view(), buffer, offset)
        finally:
            gate.leave(epoch)

    def write(self, data: Buffer, offset: int) -> None:
        """Writes `data` at byte `offset`."""
        gate = self._vm.gate
        epoch = gate.enter()
        try:
            self._check_writable()
            self._disk.write(data, offset)
        finally:
            gate.leave(epoch)

    def zero(self, length: int, offset: int) -> None:
        """Makes a range read as zero."""
        gate = self._vm.gate
        epoch = gate.enter()
        try:
            self._check_writable()
            self._disk.zero(offset, length)
        finally:
            gate.leave(epoch)

    def trim(self, length: int, offset: int) -> None:
        """Gives whole grains inside a range back."""
        gate = self._vm.gate
        epoch = gate.enter()
        try:
            self._check_writable()
            self._disk.discard(offset, length)
        finally:
            gate.leave(epoch)

    def flush(self) -> None:
        """Makes all completed writes durable, those of other connections too: data first, then the maps that name it."""
        self._disk.lun.sync()  # outside the gate: it may take long, and must not hold up a snapshot
        gate = self._vm.gate
        epoch = gate.enter()
        try:
            self._disk.sync_maps()
        finally:
            gate.leave(epoch)

    def extents(self, length: int, offset: int) -> Iterator[tuple[int, int, bool]]:
        """`(start, length, allocated)` in bytes, covering at least the first byte asked for."""
        gate = self._vm.gate
        epoch = gate.enter()
        try:
            view = self._view()
            first, last = offset // GRAIN, min(grains.count(offset + length), len(view))
            for at, count, allocated in grains.data_runs(view, first, last):
                start = at * GRAIN
                yield start, min(count * GRAIN, self.size - start), allocated
        finally:
            gate.leave(epoch)


class Exports:
    """The export names of a datastore."""

    def __init__(self, store: Datastore) -> None:
        self._store = store

    def names(self) -> list[tuple[str, str]]:
        """`(name, description)` of all exports, live disks first."""
        with self._store.lock:
            live = [
                (f"live/{vm.name}/{disk.key}", f"{vm.name}: {disk.label}")
                for vm in self._store.vms.values()
                for disk in vm.disks.values()
            ]
            files = [
                (f"file/{layer.name}", f"{vm.name}: {disk.label}, {'top' if layer is disk.top else 'frozen'}")
                for vm in self._store.vms.values()
                for disk in vm.disks.values()
                for layer in disk.chain
            ]
        return live + files

    def open(self, name: str) -> Handle:
        """Opens an export.

        Raises:
            OSError: ENOENT for an unknown name, EBUSY for the locked top layer of a running VM.
        """
        kind, _, rest = name.partition("/")
        with self._store.lock:
            if kind == "live":
                vm_name, _, key = rest.rpartition("/")
                vm = self._store.vms.get(vm_name)
                disk = vm.disks.get(int(key)) if vm and key.isascii() and key.isdigit() else None
                if vm and disk:
                    return Handle(vm, disk, None)
            elif kind == "file" and (found := self._store.find(rest)):
                vm, disk, layer = found
                if layer is disk.top and vm.power:
                    raise OSError(errno.EBUSY, f"{rest} is locked by its running VM")
                return Handle(vm, disk, layer)
        raise OSError(errno.ENOENT, f"{os.strerror(errno.ENOENT)}: export {name!r}")

    def resolve(self, path: str, *, write: bool) -> dict[str, object]:
        """Which export shows the disk file `path`, and whether it may be written.

        Raises:
            FabricError: `bad-path`, `not-found`, `locked`, `read-only`.
        """
        paths.checked(path)
        with self._store.lock:
            found = self._store.find(path)
            if not found:
                raise FabricError("not-found", f"no disk file {path} on {self._store.name}")
            vm, disk, layer = found
            if layer is disk.top and vm.power:
                raise FabricError("locked", f"{path} is the running disk of {vm.name}")
            if write and layer is not disk.top:
                raise FabricError("read-only", f"{path} is frozen by a snapshot of {vm.name}")
            return {
                "export": f"file/{path}",
                "size": disk.size,
                "vm": vm.name,
                "key": disk.key,
                "writable": layer is disk.top,
            }
