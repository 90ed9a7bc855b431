# SPDX-License-Identifier: MIT
"""Errors of the store: what can be wrong with a restore point, each with a stable code."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from engine.errors import InputError, VadplabError


class StoreError(VadplabError):
    """A restore point could not be written or read."""

    code = "store.failed"
    advice = "Look at the repository's disk and at its system log."


class StoreFull(StoreError):
    """The repository has no space left."""

    code = "store.full"
    symptom = "no space left"
    advice = (
        "Free space on the repository (`points prune` removes old restore points), then run the job again; "
        "no restore point was made visible."
    )


class FormatError(StoreError):
    """A file of a restore point is not what its format demands."""

    code = "store.format"
    symptom = "not a valid file"
    advice = "The file was changed or cut after the backup: restore from another restore point."


class Damaged(StoreError):
    """Data of a restore point does not match its digest."""

    code = "store.damaged"
    symptom = "damaged data"
    advice = "Check the repository's disks; restore from another restore point. Disks named as intact can be restored."


class Unfinished(StoreError):
    """A restore point cannot become visible because it is not complete."""

    code = "store.unfinished"
    symptom = "not complete"
    advice = "Run the job again; the unfinished point is removed by the next run."


class PointBusy(StoreError):
    """Another session is making a restore point of the same name."""

    code = "store.busy"
    symptom = "in use"
    advice = "Wait for the other session to end."


class PointNotFound(InputError):
    """There is no such restore point, or no such disk in it."""

    code = "store.not-found"
    advice = "List the restore points and use one of those names."


class ChainLocked(StoreError):
    """A chain of restore points is in use: it is being appended to, merged, restored, verified or recovered from."""

    code = "store.locked"
    symptom = "chain in use"
    advice = (
        "Wait until the other session ends (or end the instant recovery), then run this again; nothing was changed."
    )


class ParentUnusable(StoreError):
    """A restore point cannot be the base of an incremental one."""

    code = "store.parent"
    symptom = "parent unusable"
    advice = "Run a full backup: it begins a new chain."


class ReadOnlyRepository(StoreError):
    """The repository cannot be written."""

    code = "store.read-only"
    symptom = "read-only"
    advice = "Mount the repository's file system for writing and give the service's user the right to write there."


class RepositoryGone(StoreError):
    """The repository's folder is not there (any more)."""

    code = "store.gone"
    symptom = "repository gone"
    advice = "Connect or mount the repository's disk again, then run the job again."


class ForeignFile(InputError):
    """A folder to import holds something that is not part of a restore point."""

    code = "store.foreign"
    symptom = "not a restore point"
    advice = "Import folders as this product wrote them, complete and without other files; nothing was imported."


class PointExists(InputError):
    """The repository has that restore point already."""

    code = "store.exists"
    symptom = "exists"
    advice = "Nothing needs to be imported, or remove the other restore point first."


@contextlib.contextmanager
def on_host(name: str | None) -> Iterator[None]:
    """Errors of the store that are raised inside name the machine that keeps the repository."""
    try:
        yield
    except StoreError as exc:
        exc.host = exc.host or name
        raise


def from_write_error(exc: OSError, what: str) -> StoreError:
    """The catalogue's error for a failed access to the repository; `what` names the file or folder."""
    kind: type[StoreError] = StoreError
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        kind = StoreFull
    elif exc.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        kind = ReadOnlyRepository
    elif exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.ENOTCONN):
        kind = RepositoryGone
    return kind(f"{what}: {exc.strerror or exc}")
