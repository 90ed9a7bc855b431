# SPDX-License-Identifier: MIT
"""The engine's snapshots: the mark in their description, and their commit (step 22), which is tried several times.

A snapshot is found by its mark, never only by a remembered reference: the answer to the request may have been lost, and a
vCenter may have been rebuilt with new references.
"""

from __future__ import annotations

import asyncio
import re
from typing import Protocol

from engine.errors import ConnectError, ConnectTimedOut, VadplabError
from engine.vsphere import VSphereFault

NAME = "VADPLAB BACKUP TEMPORARY SNAPSHOT"
PAUSES = (1.0, 2.0, 4.0, 8.0)
_MARK = re.compile(r"vadplab-session:([^;]+);")


class SnapshotOrphaned(VadplabError):
    """A snapshot of the engine could not be committed and stays on the VM."""

    code = "snapshot.orphaned"
    symptom = "snapshot stays"
    advice = (
        "The next run of a job with this VM commits it, and so does the Backup Service when it starts;"
        " or remove it in the vCenter by its description."
    )


class Committer(Protocol):
    """What step 22 needs of a vCenter session."""

    async def commit_snapshots(self, vm: str, mark: str, *, timeout: float) -> int: ...


def mark(session: str) -> str:
    """The mark of a session's snapshots."""
    return f"vadplab-session:{session};"


def session_of(description: str) -> str | None:
    """The session whose mark stands in a snapshot's description; None: not a snapshot of the engine."""
    found = _MARK.search(description)
    return found.group(1) if found else None


def description(job: str, session: str) -> str:
    """A snapshot's description: for people, and with the mark."""
    return f"Temporary snapshot of backup job {job}. Do not remove it while the job runs. {mark(session)}"


async def commit(
    vsphere: Committer, vm: str, session: str, *, timeout: float, pauses: tuple[float, ...] = PAUSES
) -> int:
    """Step 22: commits the session's snapshots of `vm`; tries again after failures that may pass. Gives how many there were.

    A vCenter that restarts refuses or cuts connections for a while; one that two attempts could not reach in time is cut off.

    Raises:
        VadplabError: the last failure.
    """
    silent = 0
    for pause in (*pauses, None):
        try:
            return await vsphere.commit_snapshots(vm, mark(session), timeout=timeout)
        except (ConnectError, VSphereFault) as exc:
            silent += isinstance(exc, ConnectTimedOut)
            if pause is None or silent > 1:
                raise
            await asyncio.sleep(pause)
    raise AssertionError("not reached")
