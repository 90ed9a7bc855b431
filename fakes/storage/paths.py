# SPDX-License-Identifier: MIT
"""Names below a datastore: `<folder>/<name>`, and the names of a disk's files."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fakes.core.fabric import FabricError

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 ._()+@~-]{0,126}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def checked(path: str, *, parts: int | None = 2) -> str:
    """`path` if it names something below the datastore, in its one spelling.

    Raises:
        FabricError: `bad-path` for an absolute path, `..`, empty parts, control characters and the like.
    """
    pieces = path.split("/")
    if (parts is not None and len(pieces) != parts) or not all(_PART.fullmatch(piece) for piece in pieces):
        raise FabricError("bad-path", f"not a path below the datastore (<folder>/<name>): {path!r}")
    return path


def checked_name(name: str, what: str) -> str:
    """`name` if a VM or datastore may be called so; FabricError `bad-name` otherwise."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise FabricError("bad-name", f"not a name for a {what}: {name!r}")
    return name


def delta_name(base: str, taken: Iterable[str]) -> str:
    """The next delta of `base` (`web/web.vmdk` gives `web/web-000001.vmdk`): the first number that is free."""
    stem = base.removesuffix(".vmdk")
    names = set(taken)
    number = 1
    while (name := f"{stem}-{number:06d}.vmdk") in names:
        number += 1
    return name
