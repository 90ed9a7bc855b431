# SPDX-License-Identifier: MIT
"""A disk of a restore point that can be read and written at any offset: the chain below, the overlay above.

Safe for several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from engine.recovery.overlay import Overlay
from engine.store.clusters import CLUSTER
from engine.store.view import DiskView, pieces

_STRIPES = 64


class RecoveredDisk:
    """One disk of the point in `folder`, its chain locked against merging until `close`. Raises as `PointDisk` and `Overlay`."""

    def __init__(self, folder: Path, key: int, overlay: Path | None) -> None:
        self._below = DiskView(folder, key)
        self.size = self._below.size
        binding = f"{folder.name} {key} {self._below.disk.entry.root}"
        try:
            self._overlay = Overlay(overlay, self.size, binding)
        except BaseException:
            self._below.close()
            raise
        # A write to part of a cluster reads, joins and stores it: nobody else may write to that cluster meanwhile.
        self._writing = [threading.Lock() for _ in range(_STRIPES)]

    def read(self, view: memoryview, offset: int) -> None:
        """Fills `view` with the bytes at `offset`. Raises Damaged naming point, disk and offset; OSError of the overlay."""
        for cluster, begin, at, count in pieces(offset, len(view)):
            if self._overlay.holds(cluster):
                self._overlay.read(cluster * CLUSTER + begin, view[at : at + count])
            else:
                view[at : at + count] = memoryview(self._below.whole(cluster))[begin : begin + count]

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Writes to the overlay. Raises as `read`."""
        view = memoryview(data)
        for cluster, begin, at, count in pieces(offset, len(view)):
            with self._writing[cluster % _STRIPES]:
                piece = view[at : at + count]
                if self._overlay.holds(cluster):
                    self._overlay.write(cluster * CLUSTER + begin, piece)
                elif count == CLUSTER:
                    self._overlay.put(cluster, piece)
                else:
                    whole = bytearray(self._below.whole(cluster))
                    whole[begin : begin + count] = piece
                    self._overlay.put(cluster, whole)

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """(offset, length, zeros) of neighbouring areas from `offset` on; `zeros`: neither chain nor overlay holds data."""
        for cluster, begin, _, count in pieces(offset, length):
            empty = not self._overlay.holds(cluster) and self._below.empty(cluster)
            yield cluster * CLUSTER + begin, count, empty

    def flush(self) -> None:
        """Makes the overlay durable."""
        self._overlay.flush()

    def close(self) -> None:
        """Closes overlay and chain, and unlocks it."""
        self._overlay.close()
        self._below.close()
