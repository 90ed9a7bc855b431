# SPDX-License-Identifier: MIT
"""Chains: a full restore point and the incrementals above it, each of whose files names the one directly below.

A *link* is one restore point of a chain. The name of a backing file is relative (`../<parent point>/<file>`), so QEMU's
tools open any point of a chain wherever the repository lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.store.blocks import Seal
from engine.store.errors import Damaged, FormatError
from engine.store.manifest import DiskEntry, Manifest
from engine.store.qcow2.reader import Qcow2Reader

DEEPEST = 512
"""Restore points in one chain, at most."""


@dataclass(frozen=True, slots=True)
class Link:
    """A restore point and its manifest."""

    folder: Path
    manifest: Manifest


def backing_name(parent: str, file: str) -> str:
    """The name of the file below, as it stands in the header of a file of a sibling folder."""
    return f"../{parent}/{file}"


def links(folder: Path, manifest: Manifest | None = None) -> list[Link]:
    """The chain of the restore point in `folder`: itself first, its full last.

    Raises:
        FormatError: a manifest is missing or wrong, or the chain has no end.
    """
    found = [Link(folder, manifest or Manifest.load(folder))]
    while (parent := found[-1].manifest.parent) is not None:
        below = folder.parent / parent
        if len(found) >= DEEPEST or any(link.folder == below for link in found):
            raise FormatError(f"restore point {folder.name}: its chain does not end in a full one")
        if not below.is_dir():
            raise FormatError(f"restore point {found[-1].folder.name}: {parent} below it is missing")
        found.append(Link(below, Manifest.load(below)))
    return found


def disk_links(chain: list[Link], key: int) -> list[tuple[Link, DiskEntry]]:
    """The links that disk `key` of the first one consists of: down to the one that holds the disk whole.

    Raises:
        FormatError: the chain does not hold the disk that the point above it was built on.
    """
    found: list[tuple[Link, DiskEntry]] = []
    wanted: str | None = None
    for link in chain:
        entry = link.manifest.disk(key)
        if entry is None or (found and entry.root != wanted):
            state = "no disk" if entry is None else "another state of disk"
            raise FormatError(f"restore point {link.folder.name} has {state} {key} than the points above it need")
        found.append((link, entry))
        wanted = entry.parent_root
        if wanted is None:
            return found
    raise FormatError(f"restore point {chain[0].folder.name}: disk {key} is not whole")


def open_disk(chain: list[Link], key: int, *, sealed: bool = False) -> Qcow2Reader:
    """A reader of disk `key` of the first link, with everything below it.

    sealed: each file is checked, as it is read, against the digests of its blocks, if it has them and they are as written.

    Raises:
        FormatError: a file is not such a file. Damaged: a file is not the one that the manifests speak of.
    """
    reader: Qcow2Reader | None = None
    below: tuple[Link, DiskEntry] | None = None
    try:
        for link, entry in reversed(disk_links(chain, key)):
            reader = Qcow2Reader(link.folder / entry.file, backing=reader, seal=_seal(link, entry) if sealed else None)
            expected = backing_name(below[0].folder.name, below[1].file) if below else None
            name = f"restore point {link.folder.name}, {entry.file}"
            if reader.size != entry.capacity:
                raise Damaged(f"{name}: holds {reader.size} bytes, the manifest says {entry.capacity}")
            if reader.header.backing != expected:
                raise Damaged(f"{name}: names {reader.header.backing} below it, the manifest says {expected}")
            below = (link, entry)
    except BaseException:
        if reader is not None:
            reader.close()
        raise
    assert reader is not None
    return reader


def _seal(link: Link, entry: DiskEntry) -> Seal | None:
    if entry.blocks is None or entry.blocks_root is None:
        return None
    return Seal.load(link.folder / entry.blocks, entry.blocks_root)
