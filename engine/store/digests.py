# SPDX-License-Identifier: MIT
"""The digests of a disk: 32 bytes a cluster, in a sparse file.

An entry of 32 zero bytes says that the cluster reads as zeros, so the table of an empty disk of any size is one hole.
The *root* is BLAKE3 of the file's bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from engine.store import durable
from engine.store.blocks import BlockHasher
from engine.store.clusters import CLUSTER_BITS, DIGEST
from engine.store.errors import FormatError, from_write_error

_PAGE = 8192
"""Entries of one page of the table: what one qcow2 L2 table covers at 64 KiB."""


class DigestTable:
    """Digests of a disk of `size` bytes, in memory only where a cluster is not zeros."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.clusters = -(-size >> CLUSTER_BITS)
        self._pages: dict[int, bytearray] = {}
        self._zeros = bytes(_PAGE * DIGEST)

    def put(self, first: int, digests: bytes) -> None:
        """Stores the digests of neighbouring clusters, beginning with cluster `first`."""
        if len(digests) % DIGEST or first < 0 or first + len(digests) // DIGEST > self.clusters:
            raise FormatError("digests lie outside the disk")
        at = 0
        while at < len(digests):
            page, entry = divmod(first + at // DIGEST, _PAGE)
            count = min(len(digests) - at, (_PAGE - entry) * DIGEST)
            table = self._pages.setdefault(page, bytearray(_PAGE * DIGEST))
            table[entry * DIGEST : entry * DIGEST + count] = digests[at : at + count]
            at += count

    def get(self, cluster: int, count: int = 1) -> bytes:
        """Digests of `count` neighbouring clusters."""
        found = bytearray()
        while count > 0:
            page, entry = divmod(cluster, _PAGE)
            some = min(count, _PAGE - entry)
            table = self._pages.get(page, self._zeros)
            found += table[entry * DIGEST : (entry + some) * DIGEST]
            cluster += some
            count -= some
        return bytes(found)

    def holds(self, begin: int, end: int) -> bool:
        """Whether a cluster in `begin`..`end` may have a digest other than that of zeros."""
        return any(page in self._pages for page in range(begin // _PAGE, -(-end // _PAGE)))

    def data_clusters(self) -> int:
        """How many clusters are not zeros."""
        zeros = bytes(DIGEST)
        return sum(
            1
            for table in self._pages.values()
            for at in range(0, len(table), DIGEST)
            if table[at : at + DIGEST] != zeros
        )

    def resized(self, size: int) -> DigestTable:
        """A copy for a disk of `size` bytes: cut, or continued with zeros."""
        other = DigestTable(size)
        for page, table in self._pages.items():
            count = min(_PAGE, other.clusters - page * _PAGE)
            if count > 0:
                other._pages[page] = table[: count * DIGEST] + bytes((_PAGE - count) * DIGEST)
        return other

    def blocks(self) -> bytes:
        """Digests of the blocks of the file that `write` makes (see `engine.store.blocks`)."""
        hasher = BlockHasher()
        for part in self._parts():
            hasher.update(part)
        return hasher.finish()

    def root(self) -> str:
        """BLAKE3 of the table's bytes, hexadecimal."""
        hasher = blake3()
        for part in self._parts():
            hasher.update(part)
        return hasher.hexdigest()

    def write(self, path: Path) -> None:
        """Writes and syncs the sparse file."""
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                durable.truncate(fd, self.clusters * DIGEST)
                for page, table in sorted(self._pages.items()):
                    end = min(len(table), (self.clusters - page * _PAGE) * DIGEST)
                    durable.write_at(fd, memoryview(table)[:end], page * _PAGE * DIGEST)
                durable.sync(fd)
            finally:
                os.close(fd)
        except OSError as exc:
            raise from_write_error(exc, str(path)) from exc

    @classmethod
    def load(cls, path: Path, size: int) -> DigestTable:
        """Reads the file of a disk of `size` bytes.

        Raises:
            FormatError: it is missing or has another length.
        """
        table = cls(size)
        try:
            with path.open("rb") as file:
                length = os.fstat(file.fileno()).st_size
                if length != table.clusters * DIGEST:
                    raise FormatError(
                        f"{path.name}: {length} bytes, a disk of {size} bytes needs {table.clusters * DIGEST}"
                    )
                for page in range(-(-table.clusters // _PAGE)):
                    data = file.read(_PAGE * DIGEST)
                    if data != table._zeros[: len(data)]:
                        table._pages[page] = bytearray(data.ljust(_PAGE * DIGEST, b"\0"))
        except OSError as exc:
            raise FormatError(f"{path.name}: {exc.strerror or exc}") from exc
        return table

    def _parts(self) -> Iterator[bytes | memoryview]:
        for page in range(-(-self.clusters // _PAGE)):
            end = min(_PAGE, self.clusters - page * _PAGE) * DIGEST
            yield memoryview(self._pages.get(page, self._zeros))[:end]
