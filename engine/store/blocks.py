# SPDX-License-Identifier: MIT
"""Digests of a disk's files, so that a changed byte anywhere in them is found: tables, refcounts, padding, header.

A *block* is 64 KiB of a file. The `.blocks` file holds 32 bytes of BLAKE3 for each block of the qcow2 file, then for each
block of the digest file; the manifest holds its root (BLAKE3 of the `.blocks` file).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from engine.store import durable
from engine.store.clusters import DIGEST
from engine.store.errors import FormatError, from_write_error

BLOCK = 1 << 16
_READ = 16 * BLOCK


class BlockHasher:
    """Digests of the blocks of a stream of bytes that begins on a block boundary."""

    def __init__(self) -> None:
        self.digests = bytearray()
        self._hasher = blake3()
        self._fill = 0

    def update(self, data: bytes | memoryview) -> None:
        """Takes the next bytes."""
        view = memoryview(data)
        while view:
            count = min(len(view), BLOCK - self._fill)
            piece, view = view[:count], view[count:]
            if count == BLOCK:
                self.digests += blake3(piece).digest()
                continue
            self._hasher.update(piece)
            self._fill += count
            if self._fill == BLOCK:
                self._end()

    def finish(self) -> bytes:
        """All digests; the last block may be short."""
        if self._fill:
            self._end()
        return bytes(self.digests)

    def _end(self) -> None:
        self.digests += self._hasher.digest()
        self._hasher = blake3()
        self._fill = 0


def digests_of(path: Path) -> bytes:
    """Digests of all blocks of a file. Raises FormatError when it cannot be read."""
    hasher = BlockHasher()
    for piece in _pieces(path):
        hasher.update(piece)
    return hasher.finish()


def write(path: Path, digests: bytes) -> str:
    """Writes and syncs a `.blocks` file; returns its root."""
    try:
        durable.write_file(path, digests)
    except OSError as exc:
        raise from_write_error(exc, str(path)) from exc
    return blake3(digests).hexdigest()


def root_of(path: Path) -> str:
    """The root of a `.blocks` file. Raises FormatError when it cannot be read."""
    hasher = blake3()
    for piece in _pieces(path):
        hasher.update(piece)
    return hasher.hexdigest()


class Seal:
    """The digests of one file's blocks, to check what is read of it."""

    def __init__(self, digests: bytes) -> None:
        self._digests = digests

    @classmethod
    def load(cls, path: Path, root: str) -> Seal | None:
        """From a `.blocks` file, whose first digests are those of the qcow2 file; None when it is not as it was written."""
        try:
            digests = path.read_bytes()
        except OSError:
            return None
        return cls(digests) if blake3(digests).hexdigest() == root else None

    def check(self, offset: int, data: bytes) -> None:
        """Raises FormatError unless these whole blocks, which begin at `offset`, are as they were written."""
        view = memoryview(data)
        for at in range(0, len(view), BLOCK):
            number = (offset + at) // BLOCK
            if blake3(view[at : at + BLOCK]).digest() != self._digests[number * DIGEST : (number + 1) * DIGEST]:
                raise FormatError(
                    f"the {BLOCK >> 10} KiB of the file at offset {offset + at} are not as they were written"
                )


@dataclass(frozen=True, slots=True)
class BadBlock:
    """A place in a file that is not as it was written: `length` bytes at `offset` (the damage lies somewhere in them)."""

    file: str
    offset: int
    length: int
    what: str = "changed"


def check(folder: Path, file: str, length: int, digests: str, blocks: str, root: str) -> list[BadBlock]:
    """Compares a disk's three files with the root in the manifest; every bad place, empty when all is as written.

    Args:
        file, length: the qcow2 file and the length that the manifest gives it.
    """
    bad: list[BadBlock] = []
    found: list[bytes] = []
    missing = set()
    for name in (file, digests):
        try:
            found.append(digests_of(folder / name))
        except FormatError as exc:
            bad.append(BadBlock(name, 0, 0, exc.message))
            missing.add(name)
            found.append(b"")
    try:
        stored = b"".join(_pieces(folder / blocks))
    except FormatError as exc:
        bad.append(BadBlock(blocks, 0, 0, exc.message))
        return bad + _without_stored(folder, file, digests, b"".join(found), root)
    actual = b"".join(found)
    if blake3(stored).hexdigest() != root:
        if blake3(actual).hexdigest() == root:  # the two files are as written: only their list is not
            return [*bad, _first_difference(blocks, stored, actual)]
        bad.append(BadBlock(blocks, 0, len(stored), "does not match the manifest"))
    border = -(-length // BLOCK) * DIGEST
    for name, mine, expected in ((file, found[0], stored[:border]), (digests, found[1], stored[border:])):
        if name in missing:
            continue
        size = (folder / name).stat().st_size
        if len(mine) != len(expected):
            bad.append(BadBlock(name, min(len(mine), len(expected)) // DIGEST * BLOCK, 0, "has another length"))
        for at in range(0, min(len(mine), len(expected)), DIGEST):
            if mine[at : at + DIGEST] != expected[at : at + DIGEST]:
                offset = at // DIGEST * BLOCK
                bad.append(BadBlock(name, offset, min(BLOCK, size - offset)))
    return bad


def _without_stored(folder: Path, file: str, digests: str, actual: bytes, root: str) -> list[BadBlock]:
    if blake3(actual).hexdigest() == root:
        return []
    return [BadBlock(file, 0, 0, f"this file or {digests} is not as written")]


def _first_difference(name: str, stored: bytes, right: bytes) -> BadBlock:
    for at, (one, other) in enumerate(zip(stored, right, strict=False)):
        if one != other:
            return BadBlock(name, at, 1)
    return BadBlock(name, min(len(stored), len(right)), 0, "has another length")


def _pieces(path: Path) -> Iterator[memoryview]:
    """The file's bytes in pieces of whole blocks; holes are not read from the disk."""
    buffer = memoryview(bytearray(_READ))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise FormatError(f"{path.name}: {exc.strerror or exc}") from exc
    try:
        offset = 0
        while count := os.preadv(fd, [buffer], offset):
            yield buffer[:count]
            offset += count
    except OSError as exc:
        raise FormatError(f"{path.name}: offset {offset}: {exc.strerror or exc}") from exc
    finally:
        os.close(fd)
