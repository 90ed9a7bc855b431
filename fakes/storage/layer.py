# SPDX-License-Identifier: MIT
"""A layer: one file of a chain, kept as a map from disk grain to LUN grain in a memory-mapped file.

The map is shared with the page cache, so a SIGKILL of this process loses no entry; `sync` makes it survive the host.
"""

from __future__ import annotations

import mmap
import os
from array import array
from pathlib import Path


class MappedWords:
    """A file of u32 words in memory, one per grain; with `create` a new one, of zeros."""

    def __init__(self, path: Path, count: int, *, create: bool) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_TRUNC if create else 0)
        self._fd = os.open(path, flags, 0o600)
        try:
            held = os.fstat(self._fd).st_size
            if not create and held < 4 * count:
                raise ValueError(f"{path} is damaged: {held} bytes, not {4 * count}")
            if held > 4 * count:  # a kill came while the disk was being grown
                os.ftruncate(self._fd, 4 * count)
            os.posix_fallocate(self._fd, 0, 4 * count)  # a full host disk is an error here, not a SIGBUS later
            self._mmap = mmap.mmap(self._fd, 4 * count)
        except BaseException:
            os.close(self._fd)
            raise
        self.words = memoryview(self._mmap).cast("I")

    def reserve(self, count: int, fill: int) -> None:
        """Lengthens the file to `count` words; the new ones hold `fill`. They are seen from `remap` on.

        Raises:
            OSError: the host's disk is full.
        """
        held = len(self.words)
        os.posix_fallocate(self._fd, 0, 4 * count)
        os.pwrite(self._fd, array("I", [fill]) * (count - held), 4 * held)

    def remap(self, count: int) -> None:
        """Maps `count` words that `reserve` made. Nobody may be using the old ones."""
        fresh = mmap.mmap(self._fd, 4 * count)
        self.words.release()
        self._mmap.close()
        self._mmap = fresh
        self.words = memoryview(fresh).cast("I")

    def sync(self) -> None:
        """Makes the words durable (fdatasync also writes pages dirtied through the mapping)."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Unmaps and closes the file."""
        self.words.release()
        self._mmap.close()
        os.close(self._fd)


class Layer(MappedWords):
    """One file of a chain.

    Attributes:
        id: number within its disk, never used twice.
        name: path below the datastore, for example `web/web-000001.vmdk`.
        generation: grows when the bytes that this file shows change by a merge; readers opened before are stale.
        frozen: the view of the chain that ends here, once no write can reach it.
    """

    def __init__(self, path: Path, count: int, *, id: int, name: str, create: bool) -> None:
        super().__init__(path, count, create=create)
        self.id = id
        self.name = name
        self.generation = 0
        self.frozen: array[int] | None = None
