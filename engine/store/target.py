# SPDX-License-Identifier: MIT
"""One disk of a restore point in the making: takes batches, then verifies itself before it leaves its digests behind.

The digest file is written last. A disk without one was never verified, and commit refuses it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from engine.errors import InputError
from engine.store import durable
from engine.store.clusters import DIGEST, check_batch
from engine.store.digests import DigestTable
from engine.store.errors import Damaged
from engine.store.verify import verify_disk
from engine.store.writer import Qcow2Writer


@dataclass(frozen=True, slots=True)
class Stored:
    """A finished disk: file names, size of the disk, bytes of the file, root digest, clusters held."""

    file: str
    size: int
    stored: int
    digests: str
    root: str
    held: int

    def to_dict(self) -> dict[str, Any]:
        """As a message."""
        return {
            "file": self.file,
            "size": self.size,
            "stored": self.stored,
            "digests": self.digests,
            "root": self.root,
            "held": self.held,
        }


class TargetDisk:
    """Receives one disk into `folder`/`file`. Not thread-safe."""

    def __init__(self, folder: Path, file: str, size: int) -> None:
        if Path(file).name != file or not file.endswith(".qcow2"):
            raise InputError(f"not a name for a disk of a restore point: {file!r}")
        self.folder = folder
        self.file = file
        self.size = size
        self.received = 0
        self.digests = DigestTable(size)
        self._writer = Qcow2Writer(folder / file, size)

    def __enter__(self) -> TargetDisk:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def stored(self) -> int:
        """Bytes of the file so far."""
        return self._writer.stored

    def add(self, first: int, lengths: Sequence[int], digests: bytes, payload: memoryview) -> None:
        """Takes a batch.

        Raises:
            FormatError: it does not fit the disk or repeats a cluster. StoreError: the repository's disk refused.
        """
        clusters, cluster = self._writer.clusters, self._writer.cluster
        check_batch(first, lengths, digests, len(payload), clusters=clusters, cluster=cluster)
        self._writer.add(first, lengths, payload)
        self.digests.put(first, digests)
        self.received += len(digests) // DIGEST

    def commit(self, *, root: str | None = None) -> Stored:
        """Finishes and syncs the file, reads it back whole, and writes the digest file when all is as it was sent.

        Args:
            root: the source's own root digest, where it sent one.

        Raises:
            Damaged: the file does not hold what the source read.
        """
        length = self._writer.finish()
        mine = self.digests.root()
        if root is not None and root != mine:
            raise Damaged(f"{self.file}: blocks are missing: the digests are not those of the source")
        report = verify_disk(self.folder / self.file, self.digests)
        if not report.intact:
            raise Damaged(f"{self.file}, read back after it was written: {report.describe()}")
        name = f"{self.file.removesuffix('.qcow2')}.digests"
        self.digests.write(self.folder / name)
        durable.sync_folder(self.folder)
        return Stored(self.file, self.size, length, name, mine, report.held)

    def close(self) -> None:
        """Ends the writer; a disk that was not committed leaves no digest file and no valid header."""
        self._writer.close()

    def discard(self) -> None:
        """Ends the writer and removes what it wrote."""
        with contextlib.suppress(Exception):
            self.close()
        for name in (self.file, f"{self.file.removesuffix('.qcow2')}.digests"):
            (self.folder / name).unlink(missing_ok=True)
