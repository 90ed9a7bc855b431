# SPDX-License-Identifier: MIT
"""One disk of a restore point in the making: takes batches, and verifies itself before it leaves its digests behind.

What a successful `commit` proves: every cluster that was sent was read back from the file, expands, and has the digest that
was taken where the source was read (`readback`); the tables read back from the finished file say where each of them lies;
refcounts fit. The digest files are written last: a disk without them was never verified, and the point's commit refuses it.

With a *parent* (the same disk in the restore point below), only what changed is sent: clusters that are not sent are the
parent's, and the digest file still covers the whole disk. Zeros that are sent hide the parent's data.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from engine.errors import InputError
from engine.store import blocks, durable
from engine.store.chain import backing_name
from engine.store.clusters import CLUSTER, DIGEST, Packer, Unpacker, check_batch
from engine.store.digests import DigestTable
from engine.store.errors import Damaged, FormatError
from engine.store.point_disk import PointDisk
from engine.store.qcow2.reader import Qcow2Reader
from engine.store.qcow2.writer import Qcow2Writer
from engine.store.readback import ReadBack, discard
from engine.store.verify import walk


@dataclass(frozen=True, slots=True)
class Stored:
    """A finished disk: its three files, size of the disk, bytes of the qcow2 file, and the roots.

    held: clusters whose bytes lie in the file. changed: clusters that the file names (data or zeros). allocated: clusters of
    the disk that are not zeros. parent_root: root of the parent's disk, None when the file holds the whole disk.
    """

    file: str
    size: int
    stored: int
    digests: str
    root: str
    held: int
    blocks: str
    blocks_root: str
    parent_root: str | None
    changed: int
    allocated: int

    def to_dict(self) -> dict[str, Any]:
        """As a message."""
        return asdict(self)


class TargetDisk:
    """Receives one disk into `folder`/`file`. Not thread-safe.

    Args:
        parent: the disk of the restore point below, open (its chain is locked against merging); closed with this one.
    """

    def __init__(self, folder: Path, file: str, size: int, *, parent: PointDisk | None = None) -> None:
        if Path(file).name != file or not file.endswith(".qcow2"):
            raise InputError(f"not a name for a disk of a restore point: {file!r}")
        if parent is not None and parent.folder.parent.resolve() != folder.parent.resolve():
            raise InputError(f"{parent.folder} is not a restore point beside {folder}")
        self.folder = folder
        self.file = file
        self.size = size
        self.received = 0
        self.parent = parent
        self.digests = DigestTable(size) if parent is None else parent.digests.resized(size)
        self._sent = DigestTable(size)
        self._held = 0
        backing = None if parent is None else backing_name(parent.folder.name, parent.entry.file)
        self._writer = Qcow2Writer(folder / file, size, backing=backing)
        try:
            self._readback = ReadBack(
                folder / file,
                start=CLUSTER,
                direct=self._writer.direct,
                wait_written=self._writer.wait_written,
            )
        except BaseException:
            self._writer.close()
            raise

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
        check_batch(first, lengths, digests, len(payload), clusters=self._writer.clusters)
        for position, length in enumerate(lengths):
            if (length == 0) != (digests[position * DIGEST : (position + 1) * DIGEST] == bytes(DIGEST)):
                raise FormatError(f"{self.file}: cluster {first + position} is zeros or not, but not both")
        places = self._writer.add(first, lengths, payload)
        self._readback.expect(self._writer.stored, first, lengths, places, digests)
        self.digests.put(first, digests)
        self._sent.put(first, digests)
        self._held += sum(1 for length in lengths if length)
        self.received += len(lengths)

    def commit(self, *, root: str | None = None) -> Stored:
        """Finishes and syncs the file, waits until all of it was read back, and writes the digest files.

        Args:
            root: the source's own root digest of what it sent, where it gave one (clusters not sent count as zeros).

        Raises:
            Damaged: the file does not hold what the source read.
        """
        self._cut_last()
        if root is not None and root != self._sent.root():
            raise Damaged(f"{self.file}: clusters are missing: the digests are not those of the source")
        length = self._writer.finish()
        file_blocks = self._readback.finish(length)
        self._check_tables()
        stem = self.file.removesuffix(".qcow2")
        names = f"{stem}.digests", f"{stem}.blocks"
        self.digests.write(self.folder / names[0])
        blocks_root = blocks.write(self.folder / names[1], file_blocks + self.digests.blocks())
        durable.sync_folder(self.folder)
        return Stored(
            file=self.file,
            size=self.size,
            stored=length,
            digests=names[0],
            root=self.digests.root(),
            held=self._held,
            blocks=names[1],
            blocks_root=blocks_root,
            parent_root=None if self.parent is None else self.parent.entry.root,
            changed=self.received,
            allocated=self.digests.data_clusters(),
        )

    def close(self) -> None:
        """Ends the writer; a disk that was not committed leaves no digest files and no valid header."""
        self._writer.close()
        self._readback.close()
        if self.parent is not None:
            self.parent.close()

    def discard(self) -> None:
        """Ends the writer and removes what it wrote."""
        with contextlib.suppress(Exception):
            self._writer.close()
        discard(self._readback)
        with contextlib.suppress(Exception):
            self.close()
        stem = self.file.removesuffix(".qcow2")
        for name in (self.file, f"{stem}.digests", f"{stem}.blocks"):
            (self.folder / name).unlink(missing_ok=True)

    def _cut_last(self) -> None:
        """A disk that shrank into the middle of a cluster: what the parent holds behind the new end must not show."""
        parent, writer = self.parent, self._writer
        last = writer.clusters - 1
        if parent is None or self.size >= parent.size or self.size % CLUSTER == 0 or writer.holds(last):
            return
        data = parent.cluster(last, Unpacker())
        batch = Packer().pack(last, memoryview(data or bytes(CLUSTER))[: self.size % CLUSTER])
        sent = self._sent
        self._sent = DigestTable(self.size)  # the source did not send this one
        self.add(batch.first, batch.lengths, batch.digests, memoryview(b"".join(batch.parts)))
        self._sent = sent

    def _check_tables(self) -> None:
        """The tables of the finished file are those by which it was read back, and its structure is sound."""
        below = None if self.parent is None else self.parent.reader
        reader = Qcow2Reader(self.folder / self.file, backing=below)
        try:
            problems = walk(reader)
            for index in range(len(reader.l1)):
                expected = self._writer.tables.get(index)
                if reader.table(index) != (() if expected is None else tuple(expected)):
                    problems.append(f"L2 table {index} is not what was written")
        except FormatError as exc:
            problems = [exc.message]
        finally:
            reader.close_own()
        if problems or reader.size != self.size:
            raise Damaged(f"{self.file}, read back after it was written: {'; '.join(problems[:4]) or 'another size'}")
