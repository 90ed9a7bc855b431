# SPDX-License-Identifier: MIT
"""The overlay of an instant recovery: what was written over a restore point, in one sparse file.

Layout: the disk's clusters at their own offsets; after them (at the disk's size, rounded up to a cluster) one byte a cluster,
1 where the overlay holds it; then 64 bytes that bind the overlay to its restore point's disk. A cluster's byte is written
after its data, so a crash between two flushes loses writes, as on a disk with a cache, and never shows half-made clusters
as whole ones; `flush` makes all of it durable.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

from engine.errors import InputError
from engine.store.clusters import CLUSTER
from engine.store.errors import ChainLocked, from_write_error

_MAGIC = b"vadplab overlay 1"
_BINDING = 128


class OverlayUnusable(InputError):
    """An overlay file belongs to another restore point, or is no overlay."""

    code = "recovery.overlay"
    advice = "Name a new file, or the overlay that was made on this disk of this restore point."


class Overlay:
    """Clusters of a disk of `size` bytes that hide those below. `binding`: text that names what lies below.

    Args:
        path: the file, made where it is missing; None: an unnamed temporary file.

    Raises:
        OverlayUnusable: it is another one's. ChainLocked: another process uses it. StoreError.
    """

    def __init__(self, path: Path | None, size: int, binding: str) -> None:
        self.size = size
        self.clusters = -(-size // CLUSTER)
        self._map_at = self.clusters * CLUSTER
        self._trailer = (_MAGIC + b" " + binding.encode()).ljust(_BINDING, b"\0")
        if len(self._trailer) != _BINDING:
            raise ValueError("the binding is too long")
        try:
            self._fd = _open(path)
        except OSError as exc:
            raise from_write_error(exc, str(path)) from exc
        try:
            self._load(str(path))
        except BaseException:
            os.close(self._fd)
            raise

    def holds(self, cluster: int) -> bool:
        """Whether the overlay holds a cluster."""
        return self._map[cluster] != 0

    def read(self, offset: int, view: memoryview) -> None:
        """Fills `view` from `offset`; the clusters it touches must be held."""
        done = 0
        while done < len(view):
            count = os.preadv(self._fd, [view[done:]], offset + done)
            if not count:
                raise OSError(5, "the overlay is too short")
            done += count

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Writes inside one cluster that is held already."""
        _write(self._fd, data, offset)

    def put(self, cluster: int, data: bytes | bytearray | memoryview) -> None:
        """Stores a whole cluster and holds it from then on."""
        _write(self._fd, data, cluster * CLUSTER)
        _write(self._fd, b"\1", self._map_at + cluster)
        self._map[cluster] = 1

    def flush(self) -> None:
        """Everything that was written reaches the device."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Closes the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _load(self, name: str) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise ChainLocked(f"overlay {name}: in use by another process") from exc
        total = self._map_at + self.clusters + _BINDING
        length = os.fstat(self._fd).st_size
        if length == 0:
            try:
                os.ftruncate(self._fd, total)
                _write(self._fd, self._trailer, self._map_at + self.clusters)
            except OSError as exc:
                raise from_write_error(exc, name) from exc
        elif length != total or os.pread(self._fd, _BINDING, self._map_at + self.clusters) != self._trailer:
            raise OverlayUnusable(f"{name}: not an overlay of this disk of this restore point")
        self._map = bytearray()
        while len(self._map) < self.clusters:
            piece = os.pread(self._fd, self.clusters - len(self._map), self._map_at + len(self._map))
            if not piece:
                raise OverlayUnusable(f"{name}: it ends before its map does")
            self._map += piece


def _open(path: Path | None) -> int:
    if path is not None:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fd, name = tempfile.mkstemp(prefix="vadplab-overlay-")
    Path(name).unlink()
    return fd


def _write(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view = view[count:]
        offset += count
