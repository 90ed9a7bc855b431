# SPDX-License-Identifier: MIT
"""A repository's marker: how an unmounted disk is told from an empty repository.

The repository's id stands in `<repository>/.repository` and beside the folder, in `<parent>/.<name>.repository-id`, which is on
another file system when the repository is a mount point. Both are written at the first use. When the id beside the folder is
not the one inside it, the disk is unplugged (or another one is mounted), and nothing is written beneath the mount point.

The folder itself is made when its server is added (`make`), never because it is missing: a folder below a mount point is missing
when its file system is not mounted, and the id beside it with it.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

from engine.store import durable
from engine.store.errors import RepositoryGone, from_write_error

NAME = ".repository"


def beside(repository: Path) -> Path:
    """The file that keeps the id outside the repository."""
    return repository.parent / f".{repository.name}.repository-id"


def make(repository: Path) -> None:
    """Makes the folder of a repository that is being added. It gets no id yet: a disk may still be mounted there.

    Raises:
        RepositoryGone: it is missing, but was a repository before. ReadOnlyRepository, StoreFull.
    """
    if repository.is_dir() or _read(beside(repository)) is not None:
        return require(repository)
    try:
        repository.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise from_write_error(exc, f"repository {repository}") from exc


def require(repository: Path, *, first_use: bool = False) -> None:
    """Returns when the folder is the repository that it was; `first_use`: a folder without any id becomes one.

    Raises:
        RepositoryGone. ReadOnlyRepository, StoreFull: the marker cannot be written.
    """
    if not repository.is_dir():
        raise RepositoryGone(
            f"repository {repository}: no such folder",
            next=f"{RepositoryGone.advice} Only where it shall begin anew, make the folder yourself.",
        )
    outside = _read(beside(repository))
    inside = _read(repository / NAME)
    if outside is not None and inside != outside:
        what = "it has no marker: its disk is not mounted" if inside is None else "it has another repository's marker"
        raise RepositoryGone(
            f"repository {repository}: {what}",
            next=f"{RepositoryGone.advice} To begin a new repository in this folder, remove {beside(repository)}.",
        )
    if not first_use or outside is not None:
        return
    try:
        inside = inside or _written(repository / NAME, uuid.uuid4().hex)
    except OSError as exc:
        raise from_write_error(exc, str(repository)) from exc
    with contextlib.suppress(OSError):  # a parent where this user may not write: only a missing folder will be noticed
        _written(beside(repository), inside)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise from_write_error(exc, str(path)) from exc


def _written(path: Path, text: str) -> str:
    """What stands in the file: `text`, or what another process wrote there first. The file is whole and synced."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        durable.write_file(partial, f"{text}\n".encode())
        with contextlib.suppress(FileExistsError):
            os.link(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    durable.sync_folder(path.parent)
    return path.read_text().strip()
