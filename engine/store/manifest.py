# SPDX-License-Identifier: MIT
"""The manifest of a restore point: what it holds, of which VM, how consistent, with which digests.

`vadplab.point/2` is written; `vadplab.point/1` (fulls only, without `blocks`, `parent` and `digest`) can still be read. The
last field of the file, `digest`, is BLAKE3 of all bytes before it, so a changed byte anywhere in the file is noticed.
*Parent* = the restore point directly below an incremental one; a disk's `parent_root` is the root digest of the parent's
disk, null for a disk that is stored whole. Roots speak of a disk's content, so they stay right when the parent is merged.
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engine.store import durable
from engine.store.errors import FormatError

SCHEMA: Literal["vadplab.point/2"] = "vadplab.point/2"
FIRST_SCHEMA: Literal["vadplab.point/1"] = "vadplab.point/1"
FILE = "manifest.json"
POINT_ID = re.compile(r"^\d{8}T\d{6}Z-[0-9a-f]{4,16}$")

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Kind = Literal["full", "incremental", "synthetic-full"]
_TAIL = re.compile(rb',\n  "digest": "([0-9a-f]{64})"\n\}\n\Z')
Hex256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class VmRef(_Model):
    """The VM that was backed up; `uuid` is its BIOS UUID."""

    name: str
    uuid: str


class SnapshotRef(_Model):
    """The snapshot that was read."""

    moref: str
    name: str
    id: int | str | None = None


class DiskEntry(_Model):
    """One disk.

    key, label, path: of vSphere. capacity: bytes. file: qcow2, `stored` bytes. digests: a digest per 64 KiB of the disk,
    `root` their root. blocks: a digest per 64 KiB of the two files, `blocks_root` their root. parent_root: root of the
    parent's disk, null when the file holds the whole disk. change_id: of the snapshot, as the next incremental needs it.
    changed: clusters of 64 KiB that the file names (data or zeros). allocated: clusters of the disk that are not zeros.
    """

    key: int
    label: str
    path: str
    capacity: Annotated[int, Field(ge=0)]
    file: FileName
    stored: Annotated[int, Field(ge=0)]
    digests: FileName
    root: Hex256
    blocks: FileName | None = None
    blocks_root: Hex256 | None = None
    parent_root: Hex256 | None = None
    change_id: Annotated[str, Field(max_length=256)] | None = None
    changed: Annotated[int, Field(ge=0)] | None = None
    allocated: Annotated[int, Field(ge=0)] | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the disk's files."""
        return tuple(name for name in (self.file, self.digests, self.blocks) if name is not None)


class Manifest(_Model):
    """A whole restore point."""

    schema_: Literal["vadplab.point/1", "vadplab.point/2"] = Field(default=SCHEMA, alias="schema")
    job: str
    vm: VmRef
    point: Annotated[str, Field(pattern=POINT_ID.pattern)]
    created: datetime
    kind: Kind = "full"
    parent: Annotated[str, Field(pattern=POINT_ID.pattern)] | None = None
    consistency: Literal["file-system", "crash", "application"]
    session: str
    snapshot: SnapshotRef
    vmx: str
    disks: Annotated[list[DiskEntry], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> Manifest:
        files = [name for disk in self.disks for name in disk.files]
        if len(set(files)) != len(files) or FILE in files:
            raise ValueError("two disks share a file")
        if len({disk.key for disk in self.disks}) != len(self.disks):
            raise ValueError("two disks have the same key")
        if self.created.tzinfo is None:
            raise ValueError("created must name its time zone")
        if (self.kind == "incremental") != (self.parent is not None) or self.parent == self.point:
            raise ValueError("an incremental restore point, and only that, has a parent")
        if self.parent is None and any(disk.parent_root for disk in self.disks):
            raise ValueError("a disk without a parent point has a parent disk")
        return self

    def disk(self, key: int) -> DiskEntry | None:
        """The disk with that vSphere key."""
        return next((disk for disk in self.disks if disk.key == key), None)

    def encode(self) -> bytes:
        """The file's bytes."""
        text = self.model_dump_json(by_alias=True, indent=2).encode()
        if self.schema_ == FIRST_SCHEMA:
            return text + b"\n"
        body = text[: -len(b"\n}")]
        return body + b',\n  "digest": "%s"\n}\n' % blake3(body).hexdigest().encode()

    def write(self, folder: Path) -> None:
        """Writes and syncs the file."""
        durable.write_file(folder / FILE, self.encode())

    @classmethod
    def parse(cls, value: object) -> Manifest:
        """A manifest from decoded JSON. Raises FormatError with the first thing that is wrong."""
        try:
            return cls.model_validate(value)
        except ValidationError as exc:
            raise FormatError(f"manifest: {_first(exc)}") from exc

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Reads the manifest of the restore point in `folder`. Raises FormatError when it is missing or wrong."""
        return cls._decode(read_bytes(folder), folder.name)

    @classmethod
    def _decode(cls, data: bytes, name: str) -> Manifest:
        try:
            tail = _TAIL.search(data)
            if tail is None:
                manifest = cls.model_validate_json(data)
                if manifest.schema_ != FIRST_SCHEMA:
                    raise FormatError(f"{name}: manifest: it does not end with its digest")
                return manifest
            if blake3(data[: tail.start()]).hexdigest().encode() != tail[1]:
                raise FormatError(f"{name}: manifest: its bytes do not match its digest")
            return cls.model_validate_json(data[: tail.start()] + b"\n}")
        except ValidationError as exc:
            raise FormatError(f"{name}: manifest: {_first(exc)}") from exc


def read_bytes(folder: Path) -> bytes:
    """The bytes of the manifest in `folder`. Raises FormatError when it cannot be read."""
    try:
        return (folder / FILE).read_bytes()
    except OSError as exc:
        raise FormatError(f"{folder.name}: manifest: {exc.strerror or exc}") from exc


def _first(exc: ValidationError) -> str:
    error = exc.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}"
