# SPDX-License-Identifier: MIT
"""The datastore's text files (`.vmx` and what clients upload): real files below one folder, replaced atomically."""

from __future__ import annotations

import contextlib
from pathlib import Path

from fakes.core.fabric import FabricError
from fakes.storage import paths, structure

LIMIT = 16 << 20


class TextFiles:
    """Files of two-part paths `<folder>/<name>` below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, path: str) -> bytes:
        """The file's bytes; FabricError `not-found` or `bad-path`."""
        try:
            return self._place(path).read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            raise FabricError("not-found", f"no file {path}") from None

    def write(self, path: str, data: bytes) -> None:
        """Replaces the file, making its folder; FabricError `bad-path` or `too-large`."""
        place = self._place(path)
        if len(data) > LIMIT:
            raise FabricError("too-large", f"{path}: {len(data)} bytes; text files are limited to {LIMIT}")
        place.parent.mkdir(exist_ok=True)
        structure.replace(place, data)

    def exists(self, path: str) -> bool:
        """True if there is such a file."""
        return self._place(path).is_file()

    def remove(self, path: str) -> None:
        """Removes a file, and its folder when it was the last one in it; nothing happens if it is not there."""
        place = self._place(path)
        place.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty, or gone
            place.parent.rmdir()

    def names(self) -> list[str]:
        """All paths, sorted."""
        return sorted(
            f"{folder.name}/{file.name}"
            for folder in self.root.iterdir()
            for file in folder.iterdir()
            if not file.name.endswith(".tmp")
        )

    def _place(self, path: str) -> Path:
        place = self.root / paths.checked(path)
        if place.is_symlink() or place.parent.is_symlink():
            raise FabricError("bad-path", f"not a path below the datastore: {path!r}")
        return place
