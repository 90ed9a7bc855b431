# SPDX-License-Identifier: MIT
"""Open disks: what one NBD connection reads and writes.

A `file/` handle becomes stale (ESTALE) when a merge changes what its file shows, and read-only when its layer is no
longer the top of a powered-off VM. Requests to the disk of a deleted VM or to a detached disk fail (ESHUTDOWN).
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Iterator

from fakes.storage import grains
from fakes.storage.attachments import Attachment, ThrowAway
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
        if self._vm.gone:
            raise OSError(errno.ESHUTDOWN, f"{self._vm.name} was deleted")
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
            if not self._vm.gone:
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


class AttachedHandle:
    """An open attachment: writes go to its throw-away layer if it has one. After a detach every request fails (ESHUTDOWN)."""

    def __init__(self, below: Handle, attachment: Attachment) -> None:
        self._below = below
        self._attachment = attachment
        self.size = below.size
        self.writable = True

    def _layer(self) -> ThrowAway | None:
        if self._attachment.ended:
            raise OSError(errno.ESHUTDOWN, f"{self._attachment.record.path} was detached")
        return self._attachment.layer

    def read(self, buffer: Buffer, offset: int) -> None:
        """Fills `buffer` from byte `offset`."""
        layer = self._layer()
        self._below.read(buffer, offset)
        if layer:
            layer.overlay(buffer, offset)

    def write(self, data: Buffer, offset: int) -> None:
        """Writes `data` at byte `offset`."""
        if layer := self._layer():
            layer.write(data, offset, self._below.read)
        else:
            self._below.write(data, offset)

    def zero(self, length: int, offset: int) -> None:
        """Makes a range read as zero."""
        if layer := self._layer():
            layer.zero(length, offset, self._below.read)
        else:
            self._below.zero(length, offset)

    def trim(self, length: int, offset: int) -> None:
        """Gives whole grains inside a range back; a throw-away layer keeps them as they are."""
        if self._layer() is None:
            self._below.trim(length, offset)

    def flush(self) -> None:
        """Makes completed writes durable; those of a throw-away layer never are."""
        if self._layer() is None:
            self._below.flush()

    def extents(self, length: int, offset: int) -> Iterator[tuple[int, int, bool]]:
        """`(start, length, allocated)` in bytes, covering at least the first byte asked for."""
        layer = self._layer()
        for start, count, allocated in self._below.extents(length, offset):
            written = list(layer.holds(start // GRAIN, (start + count - 1) // GRAIN)) if layer else []
            if allocated or not written:
                yield start, count, allocated
                continue
            at = start
            for first, several in grains.joined(written):
                if first * GRAIN > at:
                    yield at, first * GRAIN - at, False
                stop = min((first + several) * GRAIN, start + count)
                yield first * GRAIN, stop - first * GRAIN, True
                at = stop
            if at < start + count:
                yield at, start + count - at, False


OpenDisk = Handle | AttachedHandle
