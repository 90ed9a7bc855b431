# SPDX-License-Identifier: MIT
"""A disk: a chain of layers over the LUN, with a write log.

Reads go through the *view*, the chain flattened in memory; writes go to the top layer. The order of every write is
log, data, map entry, view: a kill at any instant leaves either the old grain or the new one.
"""

from __future__ import annotations

import errno
import threading
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

from fakes.storage import grains
from fakes.storage.gate import Gate
from fakes.storage.grains import ABSENT, GRAIN, REGION, ZEROED
from fakes.storage.layer import Layer
from fakes.storage.lun import Buffer, Lun, zeros
from fakes.storage.writelog import WriteLog


@dataclass
class Disk:
    """One virtual disk of a VM. `chain` runs from the base to the top; `sequence` is what the write log notes now;
    `epoch` names the tracking under way, None while it is off.

    Every method is called inside the VM's gate. `lock` guards changes of the map.
    """

    lun: Lun
    gate: Gate
    key: int
    label: str
    size: int
    chain: list[Layer]
    log: WriteLog
    sequence: int = 1
    next_layer: int = 1
    epoch: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.grains = grains.count(self.size)
        self.view = grains.empty_view(self.grains)
        for layer in self.chain:
            grains.overlay(self.view, layer.words)

    @property
    def top(self) -> Layer:
        """The layer that takes the writes."""
        return self.chain[-1]

    def read(self, buffer: Buffer, offset: int) -> None:
        """Fills `buffer` from byte `offset` of the top of the chain."""
        self.lun.read_view(self.view, buffer, offset)

    def frozen_view(self, layer: Layer) -> array[int]:
        """The view of the chain that ends in `layer`; a copy is kept once it cannot change any more."""
        if layer is self.top:
            return self.view
        if layer.frozen is None:
            view = grains.empty_view(self.grains)
            for each in self.chain[: self.chain.index(layer) + 1]:
                grains.overlay(view, each.words)
            layer.frozen = view
        return layer.frozen

    def write(self, data: Buffer, offset: int) -> None:
        """Writes `data` at byte `offset`. Raises OSError (ENOSPC) with nothing changed when the datastore is full."""
        first, last = offset // GRAIN, (offset + len(data) - 1) // GRAIN
        if self._write_in_place(first, last, data, offset):
            return
        with self.lock:
            fresh = [grain for grain in range(first, last + 1) if not self._writable_in_place(grain)]
            self._write_fresh(fresh, data, offset)
            kept = set(range(first, last + 1)).difference(fresh)
            for start, length in grains.joined(sorted(kept)):
                part, at = _part(data, offset, start, length)
                if not self._write_in_place(start, start + length - 1, part, at):
                    raise OSError(errno.EIO, "a grain lost its place in the top layer during a write")

    def _writable_in_place(self, grain: int) -> bool:
        entry = self.top.words[grain]
        return entry not in (ABSENT, ZEROED) and not self.lun.pins[entry - 1]

    def _write_in_place(self, first: int, last: int, data: Buffer, offset: int) -> bool:
        """Overwrites grains that the top layer owns alone; False if that is not so for each of them."""
        words, pins = self.top.words, self.lun.pins
        entries = words[first : last + 1].tolist()
        for entry in entries:
            if entry in (ABSENT, ZEROED) or pins[entry - 1]:
                return False
        # A grain that was copied away between the two looks had a pin, which is dropped only after the copy's entry
        # stands in the map: so an unchanged entry that had no pin may be overwritten.
        if words[first : last + 1].tolist() != entries:
            return False
        self.log.note(first, last, self.sequence)
        at, position = 0, (entries[0] - 1) * GRAIN + offset % GRAIN
        start = offset
        for number in range(1, len(entries) + 1):
            if number < len(entries) and entries[number] == entries[number - 1] + 1:
                continue
            stop = min((first + number) * GRAIN, offset + len(data))
            self.lun.write([data[at : at + stop - start]], position)
            at, start = at + stop - start, stop
            if number < len(entries):
                position = (entries[number] - 1) * GRAIN
        return True

    def _write_fresh(self, fresh: list[int], data: Buffer, offset: int) -> None:
        """Writes to grains that need a LUN grain of their own first; the lock is held."""
        if not fresh:
            return
        taken = self.lun.allocate(len(fresh), self._hint(fresh[0]), fresh[0] % REGION)
        try:
            self.log.note(fresh[0], fresh[-1], self.sequence)
            position, pieces = -1, list[Buffer]()
            for number, grain in enumerate(fresh):
                if number and taken[number] != taken[number - 1] + 1:
                    self.lun.write(pieces, position)
                    pieces = []
                if not pieces:
                    position = taken[number] * GRAIN
                pieces.extend(self._whole(grain, data, offset))
                if len(pieces) > 256:
                    self.lun.write(pieces, position)
                    pieces = []
            if pieces:
                self.lun.write(pieces, position)
        except OSError:
            self.lun.release(taken)
            raise
        self._enter(fresh, [at + 1 for at in taken])

    def _whole(self, grain: int, data: Buffer, offset: int) -> list[Buffer]:
        """The new bytes of a whole grain: what is written now, and around it what the chain holds."""
        part, at = _part(data, offset, grain, 1)
        before, after = at % GRAIN, GRAIN - at % GRAIN - len(part)
        if not before and not after:
            return [part]
        entry = self.view[grain]
        if not entry:
            return [piece for piece in (zeros(before), part, zeros(after)) if len(piece)]
        old = memoryview(bytearray(GRAIN))
        self.lun.read(old, (entry - 1) * GRAIN)
        old[before : before + len(part)] = part
        return [old]

    def _enter(self, changed: Iterable[int], entries: Iterable[int]) -> None:
        """Puts entries into the top layer's map and into the view; what they replace is retired."""
        words, view, retired = self.top.words, self.view, []
        for grain, entry in zip(changed, entries, strict=True):
            old = words[grain]
            words[grain] = entry
            view[grain] = 0 if entry == ZEROED else entry
            if old not in (ABSENT, ZEROED):
                retired.append(old - 1)
        if retired:
            self.gate.retire(retired)

    def _hint(self, grain: int) -> int:
        """The LUN grain that would keep `grain` beside its neighbours of the same layer, or -1."""
        words = self.top.words
        first = grain - grain % REGION
        region = (*range(grain - 1, first - 1, -1), *range(grain + 1, min(first + REGION, self.grains)))
        for near in (*region, grain - 1) if grain else region:
            if words[near] not in (ABSENT, ZEROED):
                return int(words[near] - 1 + grain - near)
        return -1

    def discard(self, offset: int, length: int) -> None:
        """Makes the whole grains inside the range read as zero and gives their space back; the rest is untouched."""
        first, last = -(-offset // GRAIN), (offset + length) // GRAIN
        if offset + length == self.size:
            last = self.grains
        if first >= last:
            return
        blank = ZEROED if len(self.chain) > 1 else ABSENT
        with self.lock:
            touched = list(grains.used(self.view, first, last))
            for start, length in grains.joined(touched):
                self.log.note(start, start + length - 1, self.sequence)
            self._enter(touched, (blank for _ in touched))

    def zero(self, offset: int, length: int) -> None:
        """Makes the range read as zero: whole grains become holes, the edges are written where they hold data."""
        end = offset + length
        self.discard(offset, length)
        edges = {offset // GRAIN, (end - 1) // GRAIN} if length else set()
        for grain in sorted(edges):
            at, stop = max(offset, grain * GRAIN), min(end, (grain + 1) * GRAIN)
            whole = stop - at == GRAIN or (at % GRAIN == 0 and stop == self.size)
            if not whole and self.view[grain]:
                self.write(zeros(stop - at), at)

    def sync_maps(self) -> None:
        """Makes maps and write log durable. The data that they name must be durable before."""
        for layer in self.chain:
            layer.sync()
        self.log.sync()


def _part(data: Buffer, offset: int, first: int, length: int) -> tuple[Buffer, int]:
    """The piece of `data` (which starts at byte `offset`) inside grains first..first+length-1, and where it starts."""
    start = max(offset, first * GRAIN)
    stop = min(offset + len(data), (first + length) * GRAIN)
    return data[start - offset : stop - offset], start
