# SPDX-License-Identifier: MIT
"""Errors of the store: what can be wrong with a restore point, each with a stable code."""

from __future__ import annotations

import errno

from engine.errors import InputError, VadplabError


class StoreError(VadplabError):
    """A restore point could not be written or read."""

    code = "store.failed"
    advice = "Look at the repository's disk and at its system log."


class StoreFull(StoreError):
    """The repository has no space left."""

    code = "store.full"
    symptom = "no space left"
    advice = "Free space on the repository, then run the job again; no restore point was made visible."


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


def from_write_error(exc: OSError, what: str) -> StoreError:
    """The catalogue's error for a failed write to the repository; `what` names the file."""
    kind = StoreFull if exc.errno in (errno.ENOSPC, errno.EDQUOT) else StoreError
    return kind(f"{what}: {exc.strerror or exc}")
