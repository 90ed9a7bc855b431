# SPDX-License-Identifier: MIT
"""Single files of a disk of a restore point: listed, or written into a folder, path by path."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine.errors import InputError, RemoteError
from engine.store.errors import StoreError
from engine.store.ext4 import Readable
from engine.store.files import DiskFiles


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
