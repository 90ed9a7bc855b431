# SPDX-License-Identifier: MIT
"""Files of a disk, listed or written into a folder.

What is written stays below the target folder whatever names and links the disk holds: folders are entered by descriptor, no link
is followed, nothing is overwritten.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import InputError, RemoteError
from engine.filesystem.ext4 import Inode, Readable
from engine.filesystem.partitions import open_system
from engine.store.errors import FormatError, StoreError
from engine.store.sparse import FileNotWritten

_DEEPEST = 200


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

    Args, Raises: as `engine.filesystem.partitions.open_system`.
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
            PathNotFound. FileNotWritten: it cannot be written, or a file of that name exists. Damaged: naming point and offset.
        """
        inode, real = self.system.resolve(path, follow=False)
        done = Extracted()
        try:
            top = os.open(to, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise FileNotWritten(f"{to}: {exc.strerror}") from exc
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
        except FileExistsError as exc:
            raise FileNotWritten(
                f"{_shown(path)}: a file of that name exists",
                next="Nothing is overwritten: name another folder, or take the file away.",
            ) from exc
        except OSError as exc:
            raise FileNotWritten(f"{_shown(path)}: cannot be written: {exc.strerror or exc}") from exc

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


def fetch(disk: Readable, paths: Iterable[str], to: Path | None, partition: int | None = None) -> list[dict[str, Any]]:
    """What became of each path: `{path, error, entries}` (without `to`), or what was written. Blocking.

    A path that is not there, is damaged or cannot be written has its error; the others go on.

    Raises:
        NoFileSystem; what ends the reading of the disk altogether.
    """
    files = DiskFiles(disk, partition=partition)
    found: list[dict[str, Any]] = []
    for path in paths:
        one: dict[str, Any] = {"path": path, "error": None}
        try:
            if to is None:
                one["entries"] = [entry.to_dict() for entry in files.list(path)]
            else:
                one |= files.extract(path, to).to_dict()
        except (InputError, RemoteError, StoreError) as exc:
            one["error"] = exc.to_dict()
        found.append(one)
    return found


def _shown(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
