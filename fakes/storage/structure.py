# SPDX-License-Identifier: MIT
"""The structure of a datastore: records of its VMs, chains and snapshots, in one JSON file replaced atomically.

*Merge intent*: written before a merge touches a map, so that a merge cut by a kill is done again at open.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = "vadplab.storage/1"


@dataclass
class LayerRecord:
    """A file of a chain: id within its disk, and path below the datastore."""

    id: int
    name: str


@dataclass
class DiskRecord:
    """A disk: vSphere device key, label, size in bytes, chain from base to top, sequence of the write log.

    `epoch` names the tracking under way (32 hex digits), None while the disk is not tracked.
    """

    key: int
    label: str
    size: int
    sequence: int
    next_layer: int
    chain: list[LayerRecord]
    epoch: str | None = None


@dataclass
class SnapshotRecord:
    """A snapshot. By disk key (text, as JSON wants): `layers` = frozen layer's id, `sequences` = sequence at freeze,
    `epochs` = tracking epoch at freeze (no entry: not tracked)."""

    id: int
    name: str
    description: str
    created: str
    parent: int | None
    layers: dict[str, int]
    sequences: dict[str, int]
    ref: str | None = None
    epochs: dict[str, str] = field(default_factory=dict)


@dataclass
class Merge:
    """One layer to be merged into the one below it."""

    key: int
    into: int
    source: int


@dataclass
class VmRecord:
    """A VM: its folder below the datastore, power state, disks, snapshots from oldest to newest, merges under way.

    `tracking` is what was asked for; it reaches the disks' epochs at the next snapshot cycle or power-on.
    """

    name: str
    uuid: str
    folder: str
    power: bool
    next_snapshot: int
    disks: list[DiskRecord]
    snapshots: list[SnapshotRecord] = field(default_factory=list)
    merges: list[Merge] = field(default_factory=list)
    tracking: bool = False


@dataclass
class AttachmentRecord:
    """A disk file attached to another VM (`by`), in one of vSphere's disk modes."""

    path: str
    by: str
    mode: str


@dataclass
class Structure:
    """Everything about a datastore that is not data, map or log.

    `retired` has, for the name of each deleted VM, the id that its next snapshot would have had: ids are never used twice.
    """

    name: str
    naa: str
    capacity: int
    vms: dict[str, VmRecord] = field(default_factory=dict)
    attachments: list[AttachmentRecord] = field(default_factory=list)
    retired: dict[str, int] = field(default_factory=dict)


def load(path: Path) -> Structure:
    """Reads the file.

    Raises:
        ValueError: it is not a structure file of this version.
    """
    data = json.loads(path.read_text())
    if data.get("schema") != SCHEMA:
        raise ValueError(f"{path}: not a {SCHEMA} file")
    attachments = [AttachmentRecord(**a) for a in data.get("attachments", [])]
    vms = {n: _vm(v) for n, v in data["vms"].items()}
    return Structure(data["name"], data["naa"], data["capacity"], vms, attachments, data.get("retired", {}))


class Commit:
    """A new structure file, written and synced beside the old one. `now` puts it in place, which takes no time.

    So a change of the chain waits for the host's disk before or after the instant in which a VM's I/O stands still.
    """

    def __init__(self, path: Path, structure: Structure) -> None:
        self._path = path
        self._temporary = write_beside(path, json.dumps({"schema": SCHEMA, **asdict(structure)}, indent=1).encode())

    def now(self) -> None:
        """Commits: after a kill the file is either the old one or the new one."""
        self._temporary.replace(self._path)


def replace(path: Path, data: bytes) -> None:
    """Writes `data` to a file beside `path`, syncs it and renames it over `path`."""
    write_beside(path, data).replace(path)


def write_beside(path: Path, data: bytes) -> Path:
    """Writes and syncs a temporary file beside `path`."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def _vm(data: dict[str, Any]) -> VmRecord:
    disks = [DiskRecord(**{**d, "chain": [LayerRecord(**x) for x in d["chain"]]}) for d in data["disks"]]
    snapshots = [SnapshotRecord(**s) for s in data["snapshots"]]
    return VmRecord(**{**data, "disks": disks, "snapshots": snapshots, "merges": [Merge(**m) for m in data["merges"]]})
