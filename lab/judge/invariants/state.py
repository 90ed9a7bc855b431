# SPDX-License-Identifier: MIT
"""I8 and I9: what the run leaves behind in vSphere and in the guests, by their own records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engine.steps import READING
from lab.judge.evidence import Record
from lab.judge.invariants.attached import left
from lab.judge.invariants.model import MS, NOT_APPLICABLE, Invariant, Scene, result
from lab.judge.marks import passages


def snapshots_in_bounds(scene: Scene) -> Invariant:
    """I8: a snapshot of a VM exists only between that VM's 15 and 22; none is left, nor a disk of it on a proxy VM, or it is
    reported.

    The recording ends when the command has ended. When the Backup Service itself was killed, its next start commits what
    was left, and nobody waits for that here: such a snapshot is broken as *left at the end of the recording*.
    """
    source = "the gateway's journal; marks of steps 15 and 22"
    if scene.evidence.gateway is None:
        return Invariant("I8", NOT_APPLICABLE, "the run has no journal of the vCenter gateway", source)
    calls = snapshot_calls(scene.evidence.gateway)
    created = [c for c in calls if c.creates]
    if not created:
        reason = "no snapshot was created" if passages(scene.marks, "15") else "no snapshot was requested"
        return Invariant("I8", NOT_APPLICABLE, reason, source)
    problems = []
    for call in created:
        requested = next(iter(scene.marks_of(call.vm, "15")), None)
        if requested is None or call.asked < requested.begin:
            problems.append(f"snapshot of {call.vm} was requested before step 15")
        gone = min((c.asked for c in calls if _removes(c, call, calls)), default=None)
        if gone is None:
            if not _reported(call, scene):
                problems.append(
                    f"snapshot {call.snapshot} of {call.vm} is left at the end of the recording, unreported"
                )
        elif not any(m.begin <= gone for m in scene.marks_of(call.vm, "22")):
            problems.append(f"snapshot {call.snapshot} of {call.vm} was removed before step 22")
    for vm, disk in left(scene.evidence.gateway):
        if not any(disk in f"{e.get('text')} {e.get('data')}" for e in scene.evidence.events if _says_left(e)):
            problems.append(f"disk {disk} is still attached to {vm} at the end of the recording, unreported")
    return result(
        "I8", source, problems, f"{len(created)} snapshots, each between steps 15 and 22 and gone or reported"
    )


@dataclass(frozen=True, slots=True)
class SnapshotCall:
    """A finished create or remove of a snapshot; `snapshot` None removes all. `asked`: when it was called."""

    creates: bool
    vm: str
    snapshot: str | None
    asked: int


def snapshot_calls(gateway: list[Record]) -> list[SnapshotCall]:
    """Creates and removes that succeeded. A task has a line when it is asked for and one when it has ended."""
    tasks: dict[object, list[Record]] = {}
    for number, entry in enumerate(gateway):
        method, detail = str(entry.get("method")), entry.get("detail")
        if method.startswith(("CreateSnapshot", "RemoveSnapshot", "RemoveAllSnapshots")) and isinstance(detail, dict):
            tasks.setdefault(detail.get("task") or number, []).append(entry)
    found = []
    for entries in tasks.values():
        done = next((e for e in entries if e["detail"].get("state") == "success"), None)
        if done is not None:
            method, detail = str(done["method"]), done["detail"]
            everything = method.startswith("RemoveAll")
            snapshot = None if everything or not detail.get("snapshot") else str(detail["snapshot"])
            asked = min(int(e["utc"]) for e in entries)
            found.append(SnapshotCall(method.startswith("Create"), str(detail.get("vm")), snapshot, asked))
    return sorted(found, key=lambda call: call.asked)


def _removes(call: SnapshotCall, created: SnapshotCall, calls: list[SnapshotCall]) -> bool:
    """True when `call` took that snapshot away. A vCenter that was rebuilt gives snapshots new references: then a VM
    with as many removes as creates has none left."""
    if call.creates or call.vm != created.vm or call.asked < created.asked:
        return False
    if call.snapshot in (None, created.snapshot):
        return True
    mine = [c for c in calls if c.vm == created.vm]
    known = {c.snapshot for c in mine if c.creates}
    return call.snapshot not in known and sum(c.creates for c in mine) <= sum(not c.creates for c in mine)


def _says_left(event: Record) -> bool:
    """Events in which a proxy says that it could not detach a disk."""
    failed = event.get("kind") == "note" or (event.get("kind") == "step" and event.get("phase") == "failed")
    data = event.get("data") if isinstance(event.get("data"), dict) else {}
    return failed and event.get("step") == "20b" and bool((data or {}).get("code"))


def _reported(call: SnapshotCall, scene: Scene) -> bool:
    """True when an event of step 22 about this VM says that the snapshot stays."""
    for event in scene.evidence.events:
        said = event.get("kind") == "note" or (event.get("kind") == "step" and event.get("phase") == "failed")
        if not said or event.get("step") != "22":
            continue
        text, about = (
            f"{event.get('text')} {event.get('data')}",
            scene.vm_of(event.get("task"), event.get("data") or {}),
        )
        if about == call.vm or (about is None and (call.vm in text or (call.snapshot and call.snapshot in text))):
            return True
    return False


def guests_thawed(scene: Scene) -> Invariant:
    """I9: a guest is frozen only between its freeze and step 16, never while its disks are read (18-21)."""
    source = "the guest's own freeze record; packets of 18 to 21; marks of 13, 14, 16 and 20"
    freezes = scene.evidence.freezes
    spans = [(vm, *span) for vm, records in (freezes or {}).items() for span in frozen_spans(records)]
    if not spans:
        return Invariant("I9", NOT_APPLICABLE, "no guest recorded a freeze in this run", source)
    problems = []
    for vm, mount, frozen, thawed in spans:
        what = f"{vm} {mount}"
        if thawed is None:
            problems.append(f"{what} was never thawed")
        if not any(m.begin <= frozen for m in scene.marks_of(vm, "13", "14")):
            problems.append(f"{what} was frozen before step 13")
        until = thawed or scene.evidence.ended
        ends = [m.end for m in scene.marks_of(vm, "16") if m.end and m.phase == "end" and m.begin >= frozen - MS]
        if thawed and ends and thawed > min(ends):
            problems.append(f"{what} was still frozen {(thawed - min(ends)) / 1e6:.0f} ms after the end of step 16")
        for begin, end, name in _reading(vm, scene):
            if frozen < end and until > begin:
                problems.append(f"{what} was frozen while {name}")
    longest = max((t - f) / 1e6 for _, _, f, t in spans if t) if any(t for *_, t in spans) else 0
    return result("I9", source, problems, f"{len(spans)} freezes, the longest {longest:.0f} ms, all over by step 16")


def frozen_spans(records: list[Record]) -> list[tuple[str, int, int | None]]:
    """(mount, frozen, thawed or None) of one guest's record."""
    spans: list[tuple[str, int, int | None]] = []
    pending: dict[str, int] = {}
    for record in sorted(records, key=lambda r: int(r["utc"])):
        mount, utc = str(record.get("mount")), int(record["utc"])
        if record["event"] == "frozen":
            pending.setdefault(mount, utc)
        elif mount in pending:
            spans.append((mount, pending.pop(mount), utc))
    return [*spans, *((mount, frozen, None) for mount, frozen in pending.items())]


def _reading(vm: str, scene: Scene) -> Iterator[tuple[int, int, str]]:
    """When the disks of `vm` were read: by packets its tasks' tickets, 902 and 3260 connections (any task's, if unnamed).

    HotAdd reads without a network path: there the marks of step 20 are all there is.
    """
    for flow in scene.flows:
        packets = flow.joined.packets if flow.joined else None
        if flow.step not in ("18", "19", *READING) or packets is None or not packets["start"]:
            continue
        if scene.vm_of(flow.task, {}) in (None, vm):
            what = f"step {flow.step} used {flow.initiator} to {flow.responder}:{flow.port}"
            yield packets["start"], packets["end"], what
    for mark in scene.marks_of(vm, *READING):
        yield mark.begin, mark.end or scene.evidence.ended, f"step {mark.step} went on ({mark.task or mark.host})"
