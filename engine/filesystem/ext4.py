# SPDX-License-Identifier: MIT
"""Reading an ext2, ext3 or ext4 file system without mounting it (kernel documentation, "ext4 Data Structures and Algorithms").

Nouns: *inode* = a file's metadata; *extent* = a run of blocks; *entry* = a name in a directory. The journal is not replayed:
a crash-consistent disk is read as it lies there, like debugfs does. Not read, with a clear error: encrypted directories and
files, compressed or bigalloc file systems. Every number from the disk is checked before it is used.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from engine.errors import InputError
from engine.store.errors import FormatError

_SUPERBLOCK = 1024
_MAGIC = 0xEF53
_ROOT = 2
_EXTENT_MAGIC = 0xF30A
_INCOMPAT_64BIT = 0x80
_INCOMPAT_META_BG = 0x10
_INCOMPAT_READABLE = (
    0x0002 | 0x0004 | 0x0010 | 0x0040 | 0x0080 | 0x0200 | 0x1000 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000
)
_INCOMPAT_NAMED = {
    0x1: "compression",
    0x8: "a separate journal device",
    0x400: "large extended attributes",
}
_RO_BIGALLOC = 0x200
_FLAG_EXTENTS = 0x80000
_FLAG_INLINE = 0x10000000
_FLAG_ENCRYPTED = 0x800
_LINKS = 40
_DEPTH = 5


class NoFileSystem(FormatError):
    """A disk holds no file system that can be read."""

    code = "files.system"
    symptom = "no readable file system"
    advice = "Only ext2, ext3 and ext4 can be read file by file: restore the whole disk instead."


class PathNotFound(InputError):
    """There is no such file or folder on the restored disk."""

    code = "files.not-found"
    advice = "List the folder above it; names are case-sensitive."


class Readable(Protocol):
    """Something of `size` bytes that can be read at any offset."""

    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Bytes at an offset; fewer only at the end."""
        ...


@dataclass(frozen=True, slots=True)
class Inode:
    """number, mode (type and permissions), size in bytes, modification time (seconds), links, flags, 60 bytes of block map."""

    number: int
    mode: int
    size: int
    mtime: int
    links: int
    flags: int
    block: bytes
    extra: bytes

    @property
    def encrypted(self) -> bool:
        """Its contents cannot be read without the guest's keys."""
        return bool(self.flags & _FLAG_ENCRYPTED)

    @property
    def kind(self) -> str:
        """file, folder, link or special."""
        if stat.S_ISREG(self.mode):
            return "file"
        return "folder" if stat.S_ISDIR(self.mode) else "link" if stat.S_ISLNK(self.mode) else "special"


class Ext4:
    """The file system that begins at `offset` of `disk`.

    Raises:
        NoFileSystem: there is none, or one with features that this reader does not know.
    """

    def __init__(self, disk: Readable, offset: int = 0) -> None:
        self._disk = disk
        self._offset = offset
        raw = disk.read(offset + _SUPERBLOCK, 1024)
        if len(raw) < 1024 or struct.unpack_from("<H", raw, 0x38)[0] != _MAGIC:
            raise NoFileSystem(f"no ext2, ext3 or ext4 file system at offset {offset} of the disk")
        (self.inodes,) = struct.unpack_from("<I", raw, 0)
        first, log_size = struct.unpack_from("<II", raw, 0x14)
        blocks, self._per_group, self._inodes_per_group = (
            struct.unpack_from("<I", raw, at)[0] for at in (4, 0x20, 0x28)
        )
        revision, incompatible, read_only = (struct.unpack_from("<I", raw, at)[0] for at in (0x4C, 0x60, 0x64))
        self._inode_size = struct.unpack_from("<H", raw, 0x58)[0] if revision else 128
        unknown = incompatible & ~_INCOMPAT_READABLE
        if unknown or read_only & _RO_BIGALLOC:
            names = [name for bit, name in _INCOMPAT_NAMED.items() if unknown & bit]
            raise NoFileSystem(f"the file system uses {', '.join(names) or 'features that cannot be read'}")
        wide = bool(incompatible & _INCOMPAT_64BIT)
        self._descriptor = max(32, struct.unpack_from("<H", raw, 0xFE)[0]) if wide else 32
        self.blocks = blocks | (struct.unpack_from("<I", raw, 0x150)[0] << 32 if wide else 0)
        if log_size > 6 or not self._per_group or not self._inodes_per_group or not 128 <= self._inode_size <= 4096:
            raise NoFileSystem("the superblock is damaged")
        self.block: int = 1024 << log_size
        self._first: int = first
        self._wide = wide and self._descriptor >= 64
        self._meta = struct.unpack_from("<I", raw, 0x104)[0] if incompatible & _INCOMPAT_META_BG else None
        self.needs_recovery = bool(incompatible & 4)

    def inode(self, number: int) -> Inode:
        """An inode by its number. Raises FormatError when there cannot be such a one."""
        if not 1 <= number <= self.inodes:
            raise FormatError(f"inode {number} does not exist")
        group, index = divmod(number - 1, self._inodes_per_group)
        descriptor = self._disk.read(self._descriptor_at(group), self._descriptor)
        if len(descriptor) < self._descriptor:
            raise FormatError(f"the descriptor of block group {group} lies outside the disk")
        (table,) = struct.unpack_from("<I", descriptor, 8)
        if self._wide:
            table |= struct.unpack_from("<I", descriptor, 0x28)[0] << 32
        at = self._offset + table * self.block + index * self._inode_size
        raw = self._disk.read(at, self._inode_size)
        if len(raw) < 128:
            raise FormatError(f"inode {number} lies outside the disk")
        mode, _, size, _, _, mtime = struct.unpack_from("<HHIIII", raw, 0)
        (links,), (flags,) = struct.unpack_from("<H", raw, 0x1A), struct.unpack_from("<I", raw, 0x20)
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            size |= struct.unpack_from("<I", raw, 0x6C)[0] << 32
        return Inode(number, mode, size, mtime, links, flags, raw[0x28:0x64], raw[128:])

    def resolve(self, path: str, *, follow: bool = True) -> tuple[Inode, str]:
        """The inode at `path` (from the file system's root; links are followed inside the file system), and its real path.

        Args:
            follow: also follow a link that is the last part.

        Raises:
            PathNotFound: a part is missing or is no folder, or links lead in a circle.
        """
        todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        trail: list[tuple[str, Inode]] = [("", self.inode(_ROOT))]
        links = 0
        while todo:
            part = todo.pop()
            if part == "..":
                trail = trail[:-1] or trail
                continue
            here = trail[-1][1]
            if here.kind != "folder":
                raise PathNotFound(f"{path}: {_joined(trail)} is not a folder")
            number = next((number for name, number in self.entries(here) if name == part), None)
            if number is None:
                raise PathNotFound(f"{path}: there is no {part} in {_joined(trail)}")
            found = self.inode(number)
            if found.kind == "link" and (todo or follow):
                links += 1
                if links > _LINKS:
                    raise PathNotFound(f"{path}: too many symbolic links")
                target = self.target(found)
                if target.startswith("/"):
                    trail = trail[:1]
                todo.extend(part for part in reversed(target.split("/")) if part not in ("", "."))
                continue
            trail.append((part, found))
        return trail[-1][1], _joined(trail)

    def entries(self, folder: Inode) -> Iterator[tuple[str, int]]:
        """(name, inode number) of a folder's entries without `.` and `..`; names as `os.fsdecode` gives them.

        Raises:
            FormatError: it is damaged, encrypted, or a name could leave its folder.
        """
        if folder.flags & _FLAG_ENCRYPTED:
            raise FormatError(f"folder of inode {folder.number} is encrypted")
        if folder.flags & _FLAG_INLINE:
            areas: Iterator[bytes] = iter((folder.block[4:60], self._inline_rest(folder)))
        else:
            areas = (piece for _, piece in self.pieces(folder, self.block))
        for area in areas:
            yield from self._entries_of(area, folder)

    def pieces(self, inode: Inode, piece: int = 1 << 20) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of a file's data, ascending, at most `piece` bytes each; holes are left out.

        Raises:
            FormatError: its block map is damaged, or it is encrypted.
        """
        if inode.flags & _FLAG_ENCRYPTED:
            raise FormatError(f"inode {inode.number} is encrypted")
        if inode.flags & _FLAG_INLINE:
            data = (inode.block + self._inline_rest(inode))[: inode.size]
            if data:
                yield 0, data
            return
        runs = self._extents(inode.block, inode, _DEPTH) if inode.flags & _FLAG_EXTENTS else self._mapped(inode)
        per_piece = max(1, piece // self.block)
        for logical, physical, count in runs:
            for done in range(0, count, per_piece):
                offset = (logical + done) * self.block
                if offset >= inode.size:
                    return
                length = min(per_piece, count - done) * self.block
                yield offset, self._blocks(physical + done, length)[: inode.size - offset]

    def target(self, link: Inode) -> str:
        """Where a symbolic link points to, as `os.fsdecode` gives it."""
        if link.size < 60 and not link.flags & _FLAG_EXTENTS and not link.flags & _FLAG_INLINE:
            raw = link.block[: link.size]
        else:
            raw = b"".join(data for _, data in self.pieces(link))[: link.size]
        return raw.decode("utf-8", "surrogateescape")

    def _descriptor_at(self, group: int) -> int:
        per_block = self.block // self._descriptor
        index = group // per_block
        block = self._first + 1 + index
        if self._meta is not None and index >= self._meta:
            # each meta group keeps its descriptors in its own first group
            start = self._first + index * per_block * self._per_group
            block = start + (1 if index * per_block in (0, 1) or _has_backup(index * per_block) else 0)
        return self._offset + block * self.block + group % per_block * self._descriptor

    def _entries_of(self, area: bytes, folder: Inode) -> Iterator[tuple[str, int]]:
        at = 0
        while at + 8 <= len(area):
            number, length, name_length = struct.unpack_from("<IHB", area, at)
            if length == 0 and self.block == 65536:
                length = 65536
            if length < 8 or at + length > len(area) or name_length > length - 8:
                raise FormatError(f"folder of inode {folder.number} is damaged")
            raw = area[at + 8 : at + 8 + name_length]
            at += length
            if not number or raw in (b".", b"..") or not name_length:
                continue
            if b"/" in raw or b"\0" in raw:
                raise FormatError(f"folder of inode {folder.number} holds a name that is none: {raw!r}")
            yield raw.decode("utf-8", "surrogateescape"), number

    def _extents(self, node: bytes, inode: Inode, depth_left: int) -> Iterator[tuple[int, int, int]]:
        """(first block of the file, first block of the disk, blocks) below a node of the extent tree."""
        magic, entries, _, depth = struct.unpack_from("<HHHH", node, 0)
        if magic != _EXTENT_MAGIC or 12 + entries * 12 > len(node) or depth > depth_left:
            raise FormatError(f"the block map of inode {inode.number} is damaged")
        for index in range(entries):
            at = 12 + index * 12
            if depth:
                _, low, high = struct.unpack_from("<IIH", node, at)
                yield from self._extents(self._blocks(low | high << 32, self.block), inode, depth - 1)
                continue
            logical, count, high, low = struct.unpack_from("<IHHI", node, at)
            if count <= 32768:  # longer ones are reserved and not written yet: they read as zeros
                yield logical, low | high << 32, count

    def _mapped(self, inode: Inode) -> Iterator[tuple[int, int, int]]:
        """The same from the block map of ext2 and ext3: 12 blocks, then one, two and three levels of tables."""
        pointers = struct.unpack("<15I", inode.block)
        per_block = self.block // 4
        for logical, physical in enumerate(pointers[:12]):
            if physical:
                yield logical, physical, 1
        first = 12
        for level, physical in enumerate(pointers[12:], 1):
            if physical and first * self.block < inode.size:
                yield from self._table(physical, first, level, inode)
            first += int(per_block**level)

    def _table(self, block: int, first: int, level: int, inode: Inode) -> Iterator[tuple[int, int, int]]:
        per_block = self.block // 4
        span = int(per_block ** (level - 1))
        for index, physical in enumerate(struct.unpack(f"<{per_block}I", self._blocks(block, self.block))):
            logical = first + index * span
            if logical * self.block >= inode.size:
                return
            if physical and level == 1:
                yield logical, physical, 1
            elif physical:
                yield from self._table(physical, logical, level - 1, inode)

    def _inline_rest(self, inode: Inode) -> bytes:
        """What of an inline file stands in the extended attribute `system.data` behind the inode."""
        if len(inode.extra) < 8:
            return b""
        start = struct.unpack_from("<H", inode.extra, 0)[0]  # i_extra_isize
        if start + 4 > len(inode.extra) or inode.extra[start : start + 4] != b"\x00\x00\x02\xea":
            return b""
        base = at = start + 4
        while at + 16 <= len(inode.extra) and inode.extra[at : at + 4] != bytes(4):
            length, index, offset, _, size = struct.unpack_from("<BBHII", inode.extra, at)
            if index == 7 and inode.extra[at + 16 : at + 16 + length] == b"data":
                return inode.extra[base + offset : base + offset + size]
            at += 16 + (length + 3) // 4 * 4
        return b""

    def _blocks(self, first: int, length: int) -> bytes:
        if first + length // self.block > self.blocks:
            raise FormatError(f"block {first} lies outside the file system")
        data = self._disk.read(self._offset + first * self.block, length)
        if len(data) != length:
            raise FormatError(f"block {first} lies outside the disk")
        return data


def _has_backup(group: int) -> bool:
    """Whether a block group keeps a copy of the superblock (feature sparse_super): powers of 3, 5 and 7."""
    for base in (3, 5, 7):
        power = base
        while power < group:
            power *= base
        if power == group:
            return True
    return False


def _joined(trail: list[tuple[str, Inode]]) -> str:
    return "/" + "/".join(name for name, _ in trail[1:])
