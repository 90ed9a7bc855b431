# SPDX-License-Identifier: MIT
"""What a restore point must be before it becomes visible, and before another one is built on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.errors import VadplabError
from engine.store import blocks, chain
from engine.store.digests import DigestTable
from engine.store.errors import FormatError, ParentUnusable, Unfinished
from engine.store.manifest import SCHEMA, DiskEntry, Kind, Manifest
from engine.store.qcow2.reader import Qcow2Reader
from engine.store.verify import walk


def completed(folder: Path, manifest: Manifest, kind: Kind, parent: Manifest | None) -> Manifest:
    """The manifest with what only the repository knows: kind, parent, digests of the files, counts.

    Raises:
        Unfinished: the files are not those of the manifest, or are not complete.
    """
    disks: list[dict[str, Any]] = []
    for disk in manifest.disks:
        what = f"restore point {manifest.point}, {disk.file}"
        try:
            disks.append(disk.model_dump() | _checked(folder, disk, parent, what))
        except FormatError as exc:
            raise Unfinished(f"{what}: {exc.message}") from exc
    fields = manifest.model_dump(by_alias=True) | {
        "schema": SCHEMA,
        "kind": kind,
        "parent": parent.point if parent else None,
        "disks": disks,
    }
    return Manifest.parse(fields)


def require_usable_parent(folder: Path) -> Manifest:
    """The manifest of the visible point in `folder`, on which an incremental may be built. The caller holds the locks.

    Tables, sizes and digest files of the whole chain are checked; the data itself is `health`'s business.

    Raises:
        ParentUnusable: it is missing, damaged, or not the newest of its chain.
    """
    name = f"restore point {folder.name}"
    if not folder.is_dir():
        raise ParentUnusable(f"{name}: not found; it cannot be the base of an incremental one")
    try:
        links = chain.links(folder)
        if len(links) >= chain.DEEPEST:
            raise ParentUnusable(f"{name}: its chain has {len(links)} restore points already")
        for disk in links[0].manifest.disks:
            _require_sound(links, disk)
    except ParentUnusable:
        raise
    except VadplabError as exc:
        raise ParentUnusable(f"{name} is damaged: {exc.message}") from exc
    for child in children(folder):
        raise ParentUnusable(f"{name} is not the newest of its chain: {child} stands on it")
    return links[0].manifest


def children(folder: Path) -> list[str]:
    """Ids of the visible points directly above the one in `folder`."""
    found = []
    for path in sorted(folder.parent.iterdir()):
        if not path.name.startswith(".") and path != folder and path.is_dir():
            try:
                if Manifest.load(path).parent == folder.name:
                    found.append(path.name)
            except FormatError:
                continue
    return found


def _require_sound(links: list[chain.Link], disk: DiskEntry) -> None:
    table = DigestTable.load(links[0].folder / disk.digests, disk.capacity)
    if table.root() != disk.root:
        raise FormatError(f"the digest file {disk.digests} does not match the manifest")
    with chain.open_disk(links, disk.key) as top:
        reader: Qcow2Reader | None = top
        for link, entry in chain.disk_links(links, disk.key):
            assert reader is not None
            problems = walk(reader)
            if reader.length != entry.stored:
                problems.append(f"has {reader.length} bytes instead of {entry.stored}")
            if problems:
                raise FormatError(f"{link.folder.name}, {entry.file}: {problems[0]}")
            reader = reader.backing


def _checked(folder: Path, disk: DiskEntry, parent: Manifest | None, what: str) -> dict[str, Any]:
    with Qcow2Reader(folder / disk.file, alone=True) as reader:
        if reader.size != disk.capacity or reader.length != disk.stored:
            raise Unfinished(f"{what}: its size differs from the manifest")
        problems = walk(reader)
        backing = reader.header.backing
        named = reader.named_clusters()
    if problems:
        raise Unfinished(f"{what}: {problems[0]}")
    table = DigestTable.load(folder / disk.digests, disk.capacity)
    if table.root() != disk.root:
        raise Unfinished(f"{what}: its digests differ from the manifest")
    name = f"{disk.file.removesuffix('.qcow2')}.blocks"
    root = blocks.root_of(folder / name)
    if disk.blocks not in (None, name) or disk.blocks_root not in (None, root):
        raise Unfinished(f"{what}: the digests of its files differ from the manifest")
    below = None if parent is None else parent.disk(disk.key)
    expected = None if below is None or parent is None else chain.backing_name(parent.point, below.file)
    if backing is not None and backing != expected:
        raise Unfinished(f"{what}: it stands on {backing}, which is not the restore point below it")
    return {
        "blocks": name,
        "blocks_root": root,
        "parent_root": below.root if backing is not None and below is not None else None,
        "changed": named,
        "allocated": table.data_clusters(),
    }
