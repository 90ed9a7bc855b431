# SPDX-License-Identifier: MIT
"""I5 and I6: which path the bytes of a disk took, and that guests are not reached behind the network's back.

I5 looks at one *task* (`<vm>:<disk key>`) at a time. The mode is the last step of 20a, 20b, 20c that its marks went through: a
step that failed before was announced as a failover. *Bulk*: what the data connection of step 7 carried to the repository;
at least half of it must have come over the mode's own path (the data connection carries compressed blocks and their
headers). *Files*: configuration and layout of a disk, the only thing that another path may carry.
"""

from __future__ import annotations

from collections.abc import Iterable

from lab.judge.evidence import Record
from lab.judge.invariants.attached import attachments
from lab.judge.invariants.model import NOT_APPLICABLE, Invariant, Scene, first_seen, pair, result, role, unusable
from lab.judge.marks import Mark, passages
from lab.judge.tasks import NFC_PORT, SAN_PORT, Moved, moved_by

FILES = 512 * 1024
"""Bytes that a task may move on a path that is not its mode's: configuration file and layout on 902, a login on 3260."""
SPARE = 64 * 1024
"""Bytes of the data connection that say nothing of the disk: greetings, headers, digests of a small task."""
MODES = {"20a": "Direct SAN", "20b": "HotAdd", "20c": "Network"}


def bytes_by_path(scene: Scene) -> Invariant:
    """I5: Direct SAN moves the disk on 3260, Network mode on 902, HotAdd on neither; files only on the others."""
    source = "packets and connection tracking (bytes); the gateway's journal (attach); mode by step marks"
    read = passages(scene.marks, *MODES)
    tasks = sorted({m.task for m in read if m.task})
    if not tasks:
        return Invariant("I5", NOT_APPLICABLE, "no task reached step 20", source)
    problems, held = [], []
    for task in tasks:
        mark = [m for m in read if m.task == task][-1]
        moved = moved_by(task, scene.flows)
        if moved is None:
            return Invariant("I5", NOT_APPLICABLE, f"neither packets nor connection tracking saw {task}", source)
        problems += [
            f"{task} ({MODES[mark.step]}): {text}" for text in _judged(mark, moved, scene.evidence.capture.complete)
        ]
        held.append(f"{task} {MODES[mark.step]}: {moved.san} bytes on 3260, {moved.nfc} on 902")
    problems += [*_attached(read, scene), *_nobodys(scene)]
    if not problems and (doubt := unusable("I5", source, scene.evidence)):
        return doubt
    return result("I5", source, problems, "; ".join(held))


def _judged(mark: Mark, moved: Moved, complete: bool) -> list[str]:
    found = []
    bulk = moved.data // 2 if complete and mark.phase == "end" and moved.data > SPARE else 0
    if mark.step == "20a":
        if moved.nfc > FILES:
            found.append(f"{moved.nfc} bytes on 902, where only files belong: bulk without an announced failover")
        if moved.san < bulk:
            found.append(f"{moved.data} bytes went to the repository, but only {moved.san} came over 3260")
    elif mark.step == "20b":
        found += [f"{n} bytes on {port}, but HotAdd has no network path" for n, port in _above(moved)]
    else:
        if moved.san > FILES:
            found.append(f"{moved.san} bytes on 3260 in Network mode")
        if moved.nfc < bulk:
            found.append(f"{moved.data} bytes went to the repository, but only {moved.nfc} came over 902")
    return found


def _above(moved: Moved) -> Iterable[tuple[int, int]]:
    return [(n, port) for n, port in ((moved.nfc, NFC_PORT), (moved.san, SAN_PORT)) if n > FILES]


def _attached(read: list[Mark], scene: Scene) -> Iterable[str]:
    """Proxies that read more disks by HotAdd than vCenter attached for them: the data had no way to come."""
    gateway, world = scene.evidence.gateway, scene.evidence.world
    done = [m for m in read if m.step == "20b" and m.phase == "end"]
    for host in sorted({m.host for m in done}) if gateway is not None else []:
        party, tasks = world.named(host), {m.task for m in done if m.host == host}
        attached = sum(len(c.attached) for c in attachments(gateway or []) if party and c.client == party.address)
        if attached < len(tasks):
            yield f"{host} read {len(tasks)} disks by HotAdd, but vCenter attached {attached} for it"


def _nobodys(scene: Scene) -> list[str]:
    """Bulk on 902 or 3260 that belongs to no task: a connection of a proxy without an event."""
    known = {id(f.joined.packets) for f in scene.flows if f.task and f.joined and f.joined.packets}
    found = []
    for record in scene.evidence.tcp:
        if id(record) in known or record["dport"] not in (NFC_PORT, SAN_PORT):
            continue
        if role(record["src"], scene.evidence) == "proxy" and record["received"] > FILES:
            found.append(f"{pair(record, scene.evidence)}: {record['received']} bytes that belong to no task")
    return found


def guests_behind_tools(scene: Scene) -> Invariant:
    """I6: VIX goes through VMware Tools: nothing reaches the guest's interface; a Linux guest gets no VIX call at all."""
    source = "packets; the gateway's journal (guest operations)"
    evidence, world = scene.evidence, scene.evidence.world
    guests = {vm: party for name, vm in world.vm_of_guest.items() if (party := world.named(name)) and party.is_guest}
    used = passages(scene.marks, "10", "11", "12", "13", "15")
    mine = {vm for vm in guests if any(scene.vm_of(m.task, m.data) == vm for m in used)}
    problems = []
    if evidence.gateway is not None:
        calls = _guest_operations(evidence.gateway)
        problems += [
            f"{calls[vm]} guest operations in {vm}, a Linux guest: no failover to VIX exists"
            for vm, party in sorted(guests.items())
            if party.role == "guest_linux" and calls.get(vm)
        ]
    vix = 0
    for vm in sorted(guests):
        marks, network = scene.marks_of(vm, "11"), scene.marks_of(vm, "10")
        if not marks or guests[vm].role == "guest_linux":
            continue
        vix += 1
        attempts = [r for r in [*evidence.tcp, *evidence.others] if world.guest_at(str(r["dst"])) == guests[vm]]
        if not network:
            problems += [f"{pair(r, evidence)} was attempted, although only VIX was asked for" for r in attempts]
        late = [r for r in attempts if first_seen(r) >= marks[0].begin and _reached(r)]
        problems += [f"{pair(r, evidence)} reached the guest after step 11 had begun" for r in late]
    if problems:
        return result("I6", source, problems, "")
    if vix and (doubt := unusable("I6", source, evidence)):
        return doubt
    linux = sorted(vm for vm in mine if guests[vm].role == "guest_linux")
    if not vix and not linux:
        return Invariant(
            "I6", NOT_APPLICABLE, "no guest was processed over VIX, and the run has no Linux guest", source
        )
    if evidence.gateway is None:
        return Invariant("I6", NOT_APPLICABLE, "the run has no journal of the vCenter gateway", source)
    return result(
        "I6", source, [], f"{vix} guests over VIX, untouched by the network; no VIX call for {', '.join(linux) or '-'}"
    )


def _guest_operations(gateway: list[Record]) -> dict[str, int]:
    calls: dict[str, int] = {}
    for entry in gateway:
        detail = entry.get("detail")
        if isinstance(detail, dict) and "guest_operation" in detail:
            calls[str(detail.get("vm"))] = calls.get(str(detail.get("vm")), 0) + 1
    return calls


def _reached(record: Record) -> bool:
    """True when something of it was forwarded by the router."""
    return bool(record["outgoing"]) if record["kind"] == "other" else bool(record["syn_out"] or record["sent"])
