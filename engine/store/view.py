# SPDX-License-Identifier: MIT
"""A disk of a restore point read at any offset: clusters are expanded and checked on demand, and a few are kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from engine.store.clusters import CLUSTER, Unpacker
from engine.store.point_disk import PointDisk

CACHED = 256
"""Clusters kept in memory: 16 MiB."""


class DiskView:
    """Random reads of one disk of the point in `folder`; its chain is locked against merging until `close`.

    Safe for several threads. Raises as `PointDisk`.
    """

    def __init__(self, folder: Path, key: int) -> None:
        self.disk = PointDisk(folder, key)
        self.size = self.disk.size
        self.zeros = bytes(CLUSTER)
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._guard = threading.Lock()
        self._local = threading.local()

    def __enter__(self) -> DiskView:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files and unlocks the chain."""
        self.disk.close()

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the disk; what lies beyond its end is left out. Raises Damaged naming point, disk and offset."""
        length = max(0, min(length, self.size - offset))
        parts = [
            memoryview(self.whole(cluster))[begin : begin + count]
            for cluster, begin, _, count in pieces(offset, length)
        ]
        return b"".join(parts)

    def whole(self, cluster: int) -> bytes:
        """One whole cluster. Raises as `read`."""
        with self._guard:
            data = self._cache.get(cluster)
            if data is not None:
                self._cache.move_to_end(cluster)
                return data
        unpacker = getattr(self._local, "unpacker", None)
        if unpacker is None:
            unpacker = self._local.unpacker = Unpacker()
        data = self.disk.cluster(cluster, unpacker)
        if data is None:
            return self.zeros
        with self._guard:
            self._cache[cluster] = data
            while len(self._cache) > CACHED:
                self._cache.popitem(last=False)
        return data

    def empty(self, cluster: int) -> bool:
        """Whether a cluster is known to read as zeros."""
        return self.disk.reader.find(cluster) is None


def pieces(offset: int, length: int) -> Iterator[tuple[int, int, int, int]]:
    """(cluster, offset in it, offset in the request, bytes) of a request."""
    at = 0
    while at < length:
        number, begin = divmod(offset + at, CLUSTER)
        count = min(CLUSTER - begin, length - at)
        yield number, begin, at, count
        at += count
