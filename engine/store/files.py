# SPDX-License-Identifier: MIT
"""Single files out of a disk of a restore point, without mounting anything and without root.

Only the clusters that are needed are read, each checked against its digest. What is written stays below the target folder
whatever names and links the disk holds: folders are entered by descriptor, no link is followed, nothing is overwritten.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from engine.errors import InputError
from engine.store.errors import FormatError
from engine.store.ext4 import Ext4, Inode, NoFileSystem, Readable
from engine.store.sparse import TargetFile
from engine.store.view import DiskView

_DEEPEST = 200
_SECTOR = 512


class PartitionUnknown(InputError):
    """The disk has no such partition."""

    code = "files.partition"
    advice = "Name one of those, or none when the disk has no partitions."


@dataclass(frozen=True, slots=True)
class Entry:
    """A name on the disk: `kind` file, folder, link or special; `size` in bytes; `mode` permissions; `mtime` in seconds."""

    name: str
    kind: str
    size: int
    mode: int
    mtime: int
    target: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As a message; a name that is not UTF-8 has its bytes escaped."""
        fields = {"kind": self.kind, "size": self.size, "mode": f"{self.mode:04o}", "mtime": self.mtime}
        return {"name": _shown(self.name), **fields, "target": None if self.target is None else _shown(self.target)}


@dataclass(slots=True)
class Extracted:
    """What was written: numbers of files, folders and links, bytes of file contents; and what was left out, with the reason."""

    files: int = 0
    folders: int = 0
    links: int = 0
    bytes: int = 0
    skipped: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As a message."""
        return {
            "files": self.files,
            "folders": self.folders,
            "links": self.links,
            "bytes": self.bytes,
            "skipped": self.skipped,
        }


class DiskFiles:
    """The files of a disk, which may be read here or by a Data Mover elsewhere.

    Args:
        partition: 1, 2, …, None: the file system on the bare disk, or on its only Linux partition.

    Raises:
        NoFileSystem, and what reading the disk raises.
    """

    def __init__(self, disk: Readable, *, partition: int | None = None) -> None:
        self.system = open_system(disk, partition)

    def list(self, path: str = "/") -> list[Entry]:
        """The entries of a folder in the order of their names, or the one entry of a file. Raises PathNotFound, FormatError."""
        inode, real = self.system.resolve(path)
        if inode.kind != "folder":
            return [self._entry(real.rpartition("/")[2], inode)]
        return [self._entry(name, self.system.inode(number)) for name, number in sorted(self.system.entries(inode))]

    def extract(self, path: str, to: Path) -> Extracted:
        """Writes the file, link or whole folder at `path` below the existing folder `to`, under its own name.

        Permissions and times are kept, owners are not; holes stay holes; set-user-id bits are dropped; devices, pipes and
        sockets are left out. The root's contents go directly into `to`.

        Raises:
            PathNotFound. TargetFile: it cannot be written, or a file of that name exists. Damaged: naming point and offset.
        """
        inode, real = self.system.resolve(path, follow=False)
        done = Extracted()
        try:
            top = os.open(to, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise TargetFile(f"{to}: {exc.strerror}") from exc
        try:
            if name := real.rpartition("/")[2]:
                self._write(inode, name, top, real, done, frozenset())
            else:
                self._write_contents(inode, top, "", done, frozenset())
        finally:
            os.close(top)
        return done

    def _entry(self, name: str, inode: Inode) -> Entry:
        target = self.system.target(inode) if inode.kind == "link" else None
        return Entry(name, inode.kind, inode.size, stat.S_IMODE(inode.mode), inode.mtime, target)

    def _write(self, inode: Inode, name: str, folder: int, path: str, done: Extracted, above: frozenset[int]) -> None:
        if inode.encrypted and inode.kind != "special":
            done.skipped.append(f"{_shown(path)}: encrypted")
            return
        try:
            match inode.kind:
                case "file":
                    self._write_file(inode, name, folder)
                    done.files += 1
                    done.bytes += inode.size
                case "link":
                    os.symlink(self.system.target(inode), name, dir_fd=folder)
                    os.utime(name, (inode.mtime, inode.mtime), dir_fd=folder, follow_symlinks=False)
                    done.links += 1
                case "folder":
                    self._write_folder(inode, name, folder, path, done, above)
                case _:
                    done.skipped.append(f"{_shown(path)}: a device, pipe or socket")
        except OSError as exc:
            raise TargetFile(f"{_shown(path)}: cannot be written: {exc.strerror or exc}") from exc

    def _write_file(self, inode: Inode, name: str, folder: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=folder)
        try:
            os.ftruncate(fd, inode.size)
            for offset, data in self.system.pieces(inode):
                view = memoryview(data)
                while view:
                    count = os.pwrite(fd, view, offset)
                    view = view[count:]
                    offset += count
            os.fchmod(fd, stat.S_IMODE(inode.mode) & 0o777)
            os.utime(fd, (inode.mtime, inode.mtime))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=folder)  # half a file would look like a whole one
            raise
        finally:
            os.close(fd)

    def _write_folder(
        self, inode: Inode, name: str, folder: int, path: str, done: Extracted, above: frozenset[int]
    ) -> None:
        if inode.number in above or len(above) >= _DEEPEST:
            raise FormatError(f"{_shown(path)}: a folder that contains itself, or too many levels")
        os.mkdir(name, 0o700, dir_fd=folder)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            done.folders += 1
            self._write_contents(inode, fd, path, done, above)
            os.fchmod(fd, stat.S_IMODE(inode.mode) & 0o777)
            os.utime(fd, (inode.mtime, inode.mtime))
        finally:
            os.close(fd)

    def _write_contents(self, inode: Inode, fd: int, path: str, done: Extracted, above: frozenset[int]) -> None:
        for name, number in sorted(self.system.entries(inode)):
            self._write(self.system.inode(number), name, fd, f"{path}/{name}", done, above | {inode.number})


class PointFiles(DiskFiles):
    """The files of one disk of the point in `folder`; its chain is locked against merging until `close`.

    Raises:
        As `PointDisk`; NoFileSystem.
    """

    def __init__(self, folder: Path, key: int, *, partition: int | None = None) -> None:
        self._view = DiskView(folder, key)
        try:
            super().__init__(self._view, partition=partition)
        except BaseException:
            self._view.close()
            raise

    def __enter__(self) -> PointFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the disk and unlocks its chain."""
        self._view.close()


def open_system(disk: Readable, partition: int | None = None) -> Ext4:
    """The file system of a disk: on its bare sectors, or in a partition (see `DiskFiles`). Raises NoFileSystem."""
    if partition is None:
        with contextlib.suppress(NoFileSystem):
            return Ext4(disk)
    found = list(partitions(disk))
    if partition is not None:
        starts = [start for number, start in found if number == partition]
        if not starts:
            known = ", ".join(str(number) for number, _ in found) or "none"
            raise PartitionUnknown(f"there is no partition {partition} (there are: {known})")
        return Ext4(disk, starts[0])
    systems: list[Ext4] = []
    for _, start in found:
        with contextlib.suppress(NoFileSystem):
            systems.append(Ext4(disk, start))
    if len(systems) != 1:
        raise NoFileSystem(
            "the disk holds no ext2, ext3 or ext4 file system" if not systems else "name one of its partitions"
        )
    return systems[0]


def partitions(disk: Readable) -> Iterator[tuple[int, int]]:
    """(number, offset in bytes) of a disk's partitions: GPT, or the four primary ones of an MBR."""
    first = disk.read(0, 2 * _SECTOR)
    if len(first) < 2 * _SECTOR or first[510:512] != b"\x55\xaa":
        return
    if first[_SECTOR : _SECTOR + 8] == b"EFI PART":
        (lba,), (count, size) = (
            struct.unpack_from("<Q", first, _SECTOR + 72),
            struct.unpack_from("<II", first, _SECTOR + 80),
        )
        if size < 128 or count > 1024:
            return
        table = disk.read(lba * _SECTOR, count * size)
        for number in range(min(count, len(table) // size)):
            entry = table[number * size : (number + 1) * size]
            if entry[:16] != bytes(16):
                yield number + 1, struct.unpack_from("<Q", entry, 32)[0] * _SECTOR
        return
    for number in range(4):
        entry = first[446 + number * 16 : 462 + number * 16]
        if entry[4]:
            yield number + 1, struct.unpack_from("<I", entry, 8)[0] * _SECTOR


def _shown(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
