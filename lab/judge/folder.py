# SPDX-License-Identifier: MIT
"""Reads a run folder into `Evidence`. The capture is read by a process of its own (`lab.observe.packets`, scapy).

Files: run.json, events.jsonl, capture.pcapng, packets.jsonl (made here), nflog.jsonl, conntrack.jsonl,
counters-before.json, counters-after.json, policy.yaml, overlays.jsonl, topology.yaml, <vcenter or esxi host>/journal.jsonl,
guest-<vm>/freeze.jsonl.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from firewall_rules.errors import RuleError
from firewall_rules.load import load_matrix, load_policy
from firewall_rules.overlay import Overlay
from lab.judge.evidence import Capture, Evidence, Record
from lab.judge.rules import Change, PolicyBook
from lab.judge.world import World
from lab.observe.errors import EvidenceMissing
from lab.topology import load as load_topology

PACKETS_DEADLINE = 300.0


def read(folder: Path) -> Evidence:
    """The evidence of a run.

    Raises:
        EvidenceMissing: a file that no verdict can do without is not there or can not be read.
    """
    about = _document(folder / "run.json")
    if not about.get("began") or not about.get("ended"):
        raise EvidenceMissing(f"{folder.name}: the recording was cut short")
    began, ended = int(about["began"]["utc"]), int(about["ended"]["utc"])
    topology = load_topology(_needed(folder / "topology.yaml"))
    world = World.of(topology)
    try:
        policy = load_policy(_needed(folder / "policy.yaml"))
        matrix = load_matrix(policy.profile)
        changes = [_change(line) for line in _lines(folder / "overlays.jsonl")]
    except (RuleError, KeyError, ValueError) as exc:
        raise EvidenceMissing(f"{folder.name}: rules can not be read: {exc}") from exc
    names = {address: host for host, address in topology.addresses().items()}
    packets = _packets(folder, ended)
    log, log_lost = _with_loss(folder / "nflog.jsonl")
    tracking, tracking_lost = _with_loss(folder / "conntrack.jsonl")
    session = about.get("session")
    events = _lines(_needed(folder / "events.jsonl"))
    return Evidence(
        run=str(about.get("run", folder.name)),
        kind=str(about.get("kind", "job")),
        session=session,
        began=began,
        ended=ended,
        world=world,
        matrix=matrix,
        rules=PolicyBook(policy, matrix, topology.addresses_by_role(), names, changes),
        capture=_trust(about, packets),
        events=[e for e in events if session is None or e.get("session") == session],
        tcp=_inside([p for p in packets if p["kind"] == "tcp"], began, ended),
        others=[p for p in packets if p["kind"] == "other" and p["last"] >= began and p["first"] <= ended],
        log=log,
        log_lost=log_lost,
        tracking=tracking,
        tracking_lost=tracking_lost,
        before=_document(folder / "counters-before.json"),
        after=_document(folder / "counters-after.json"),
        counted_from=_span(about.get("counted_from")),
        counted_to=_span(about.get("counted_to")),
        gateway=_gateway(folder, world),
        esxi={p.name: _lines(folder / p.name / "journal.jsonl") for p in world.with_role(["esxi"])},
        freezes={p.parent.name.removeprefix("guest-"): _lines(p) for p in sorted(folder.glob("guest-*/freeze.jsonl"))},
    )


def _needed(path: Path) -> Path:
    if not path.is_file():
        raise EvidenceMissing(f"{path.parent.name}: {path.name} is missing")
    return path


def _document(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_needed(path).read_text())
    except (OSError, ValueError) as exc:
        raise EvidenceMissing(f"{path.parent.name}: {path.name} can not be read: {exc}") from exc
    if not isinstance(found, dict):
        raise EvidenceMissing(f"{path.parent.name}: {path.name} holds no object")
    return found


def _lines(path: Path) -> list[Record]:
    """Objects of a JSON-lines file; none when it is not there. A last line cut short by a crash is left out."""
    if not path.is_file():
        return []
    found: list[Record] = []
    lines = path.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
        except ValueError as exc:
            if number == len(lines):
                break
            raise EvidenceMissing(f"{path.parent.name}: {path.name}:{number} is not JSON") from exc
        if isinstance(value, dict):
            found.append(value)
    return found


def _gateway(folder: Path, world: World) -> list[Record] | None:
    """The journals of all vCenters in order of time; None when there is none."""
    paths = [folder / p.name / "journal.jsonl" for p in world.with_role(["vcenter"])]
    found = [_lines(path) for path in paths if path.is_file()]
    return sorted((e for entries in found for e in entries), key=lambda e: int(e["utc"])) if found else None


def _span(value: Any) -> tuple[int, int] | None:
    return (int(value[0]), int(value[1])) if value else None


def _with_loss(path: Path) -> tuple[list[Record], int]:
    """Records of a netlink reader, and how many it reported as lost (`{"lost": n}` lines)."""
    lines = _lines(_needed(path))
    return [x for x in lines if "src" in x], sum(int(x["lost"]) for x in lines if "lost" in x and "src" not in x)


def _change(line: Record) -> Change:
    overlays = tuple(Overlay.model_validate(o) for o in line["overlays"])
    return Change(int(line["utc"]), overlays)


def _packets(folder: Path, until: int) -> list[Record]:
    """`packets.jsonl`, made from the capture up to the end of the run unless it is there and newer."""
    capture, target = _needed(folder / "capture.pcapng"), folder / "packets.jsonl"
    if not target.is_file() or target.stat().st_mtime_ns < capture.stat().st_mtime_ns:
        command = [sys.executable, "-m", "lab.observe.packets", str(capture), str(until)]
        partial = folder / "packets.jsonl.new"
        root = Path(__file__).resolve().parents[2]
        try:
            with partial.open("wb") as out:
                done = subprocess.run(
                    command, stdout=out, stderr=subprocess.PIPE, cwd=root, timeout=PACKETS_DEADLINE, check=False
                )
        except subprocess.TimeoutExpired as exc:
            raise EvidenceMissing(f"{folder.name}: the capture was not read within {PACKETS_DEADLINE:.0f} s") from exc
        if done.returncode:
            raise EvidenceMissing(f"{folder.name}: {done.stderr.decode(errors='replace').strip()}")
        partial.replace(target)
    lines = _lines(target)
    if not lines or lines[-1].get("kind") != "capture":
        raise EvidenceMissing(f"{folder.name}: packets.jsonl is cut short")
    return lines


def _inside(tcp: list[Record], began: int, ended: int) -> list[Record]:
    """Flows of the run's time; one whose SYN came before it has no start here."""
    found = []
    for flow in tcp:
        if flow["end"] < began or (flow["start"] or 0) > ended:
            continue
        found.append({**flow, "start": None} if flow["start"] and flow["start"] < began else flow)
    return found


def _trust(about: dict[str, Any], packets: list[Record]) -> Capture:
    """Whether the absence of a packet proves anything."""
    capture = about.get("capture") or {}
    if capture.get("error"):
        return Capture(False, str(capture["error"]))
    if int(capture.get("dropped") or 0):
        return Capture(False, f"dumpcap dropped {capture['dropped']} packets")
    if not capture.get("flushed"):
        return Capture(False, "nothing proves that the last packets reached the file")
    if not packets[-1]["packets"]:
        return Capture(False, "the capture holds no packet")
    return Capture(True)
