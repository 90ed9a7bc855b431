# SPDX-License-Identifier: MIT
"""Disks that vCenter attached to a VM and detached from it, by the gateway's journal (HotAdd, step 20b)."""

from __future__ import annotations

from dataclasses import dataclass

from lab.judge.evidence import Record


@dataclass(frozen=True, slots=True)
class AttachCall:
    """A reconfiguration that succeeded: which VM's disks changed, at whose call (address), and when it was done."""

    vm: str
    client: str
    attached: tuple[str, ...]
    detached: tuple[str, ...]
    done: int


def attachments(gateway: list[Record]) -> list[AttachCall]:
    """Every attach and detach that succeeded, in order of time."""
    found = []
    for entry in gateway:
        detail = entry.get("detail")
        if not str(entry.get("method")).startswith("ReconfigVM") or not isinstance(detail, dict):
            continue
        attached, detached = tuple(detail.get("attached") or ()), tuple(detail.get("detached") or ())
        if detail.get("state") == "success" and (attached or detached):
            client = str((entry.get("client") or [""])[0])
            found.append(AttachCall(str(detail.get("vm")), client, attached, detached, int(entry["utc"])))
    return sorted(found, key=lambda call: call.done)


def left(gateway: list[Record]) -> list[tuple[str, str]]:
    """(VM, disk) of what was attached during the recording and not detached again."""
    there: dict[tuple[str, str], int] = {}
    for call in attachments(gateway):
        for disk in call.attached:
            there[call.vm, disk] = there.get((call.vm, disk), 0) + 1
        for disk in call.detached:
            there[call.vm, disk] = max(0, there.get((call.vm, disk), 0) - 1)
    return [key for key, count in there.items() if count]
