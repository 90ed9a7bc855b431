# SPDX-License-Identifier: MIT
"""The manifest of a restore point: what it holds, of which VM, how consistent, with which digests (`vadplab.point/1`)."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engine.store import durable
from engine.store.errors import FormatError

SCHEMA: Literal["vadplab.point/1"] = "vadplab.point/1"
FILE = "manifest.json"
POINT_ID = re.compile(r"^\d{8}T\d{6}Z-[0-9a-f]{4,16}$")

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
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
    """One disk: vSphere key and label, datastore path, capacity in bytes, its two files, stored bytes, root digest."""

    key: int
    label: str
    path: str
    capacity: Annotated[int, Field(ge=0)]
    file: FileName
    stored: Annotated[int, Field(ge=0)]
    digests: FileName
    root: Hex256


class Manifest(_Model):
    """A whole restore point."""

    schema_: Literal["vadplab.point/1"] = Field(default=SCHEMA, alias="schema")
    job: str
    vm: VmRef
    point: Annotated[str, Field(pattern=POINT_ID.pattern)]
    created: datetime
    kind: Literal["full"] = "full"
    consistency: Literal["file-system", "crash", "application"]
    session: str
    snapshot: SnapshotRef
    vmx: str
    disks: Annotated[list[DiskEntry], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> Manifest:
        files = [name for disk in self.disks for name in (disk.file, disk.digests)]
        if len(set(files)) != len(files) or FILE in files:
            raise ValueError("two disks share a file")
        if len({disk.key for disk in self.disks}) != len(self.disks):
            raise ValueError("two disks have the same key")
        if self.created.tzinfo is None:
            raise ValueError("created must name its time zone")
        return self

    def disk(self, key: int) -> DiskEntry | None:
        """The disk with that vSphere key."""
        return next((disk for disk in self.disks if disk.key == key), None)

    def encode(self) -> bytes:
        """The file's bytes."""
        return self.model_dump_json(by_alias=True, indent=2).encode() + b"\n"

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
        try:
            return cls.model_validate_json((folder / FILE).read_bytes())
        except ValidationError as exc:
            raise FormatError(f"{folder.name}: manifest: {_first(exc)}") from exc
        except OSError as exc:
            raise FormatError(f"{folder.name}: manifest: {exc.strerror or exc}") from exc


def _first(exc: ValidationError) -> str:
    error = exc.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}"
