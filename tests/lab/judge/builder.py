# SPDX-License-Identifier: MIT
"""Builds the evidence of a run by hand: packets crafted with scapy, events, log, conntrack, counters and journals.

`demo` is a whole healthy job over both VMs of the shipped topology; tests then take something away or put something
wrong in. Times are milliseconds since the run began.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from firewall_rules.load import load_policy
from firewall_rules.model import Policy
from firewall_rules.render.base import marks
from lab.judge import folder as run_folder
from lab.judge.evidence import Evidence
from lab.judge.report import Report, build
from lab.observe import packets
from lab.topology import find, load
from tests.lab.observe.wire import MS, Conversation, Wire

T0 = 1_790_000_000_000_000_000
TOPOLOGY = load(find(None))
IP = TOPOLOGY.addresses()
TASKS = ("linux-vm:2000", "files-vm:2000")
RESULTS = {
    # result: (event outcome, event code, conntrack states or None)
    "open": ("open", None, ["SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT"]),
    "drop": ("timed out", "connect.timed-out", None),
    "reset": ("refused", "connect.refused", None),
    "prohibit": ("prohibited", "connect.prohibited", None),
    "closed": ("refused", "connect.refused", ["SYN_SENT", "CLOSE"]),
    "silent": ("timed out", "connect.timed-out", ["SYN_SENT"]),
}


@dataclass
class Link:
    """One connection attempt of the run that is being built."""

    id: str
    talk: Conversation
    step: str
    task: str | None
    tracking: dict[str, Any] | None


@dataclass
class RunBuilder:
    """The pieces of one run's evidence."""

    kind: str = "job"
    policy: Policy = field(default_factory=lambda: load_policy("default-12.3"))
    wire: Wire = field(default_factory=Wire)
    events: list[dict[str, Any]] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    tracking: list[dict[str, Any]] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)
    gateway: list[dict[str, Any]] | None = field(default_factory=list)
    freezes: list[dict[str, Any]] = field(default_factory=list)
    overlays: list[dict[str, Any]] = field(default_factory=list)
    capture: dict[str, Any] = field(default_factory=lambda: {"mode": "headers", "dropped": 0, "flushed": True})
    log_lost: int = 0
    end: float = 5000
    links: dict[str, Link] = field(default_factory=dict)
    said: list[tuple[float, str, int, int]] = field(default_factory=list)
    _port: int = 40000

    def event(self, kind: str, at: float, host: str, step: str | None, task: str | None = None, **more: Any) -> None:
        """One engine event."""
        base = {"schema": "vadplab.event/1", "kind": kind, "utc": utc(at), "mono": int(at * MS), "session": "s1"}
        where = {"host": host, "process": f"process on {host}", "pid": 100 + len(host), "step": step, "task": task}
        self.events.append({**base, **where, **more})

    def step(
        self,
        step: str,
        begin: float,
        end: float | None,
        *,
        host: str = "backup-server",
        phase: str = "end",
        **more: Any,
    ) -> None:
        """A step's two marks; `end` None = it never ended."""
        task, data = more.pop("task", None), more.pop("data", {})
        self.event("step", begin, host, step, task, phase="begin", text="", data=data)
        if end is not None:
            self.event("step", end, host, step, task, phase=phase, text=more.get("text", ""), data=data)

    def connect(
        self,
        name: str,
        at: float,
        step: str,
        src: str,
        dst: str,
        port: int,
        rule: str,
        *,
        result: str = "open",
        task: str | None = None,
        event: bool = True,
        logged: bool = True,
        on_wire: bool = True,
        tracked: bool = True,
    ) -> Link:
        """One attempt, consistent in every witness unless a switch takes one away."""
        self._port += 1
        talk = Conversation(self.wire, IP[src], self._port, IP[dst], port, isn=self._port * 7)
        outcome, code, states = RESULTS[result]
        if event:
            ends: dict[str, Any] = {"local": [IP[src], self._port], "remote": [IP[dst], port], "target": dst}
            self.event("attempt", at - 0.2, src, step, task, attempt=name, **ends)
            self.event("outcome", at + 4, src, step, task, attempt=name, target=dst, outcome=outcome, code=code, ms=4)
        if on_wire:
            _handshake(talk, utc(at), result)
        if logged:
            self.counters[rule] += 1
            self.log.append(self.record(at, rule, IP[src], self._port, IP[dst], port))
        record = None
        if states and tracked:
            pairs = [[utc(at) + i * MS, state] for i, state in enumerate(states)]
            ends = {"proto": "tcp", "src": IP[src], "dst": IP[dst], "sport": self._port, "dport": port}
            record = {
                **ends,
                "mark": self._mark(rule),
                "state": states[-1],
                "states": states,
                "history": pairs,
                "start": utc(at),
                "stop": None,
            }
            record |= {"packets_orig": 3, "bytes_orig": 180, "packets_reply": 2, "bytes_reply": 120}
            self.tracking.append(record)
        self.links[name] = Link(name, talk, step, task, record)
        return self.links[name]

    def _mark(self, rule: str) -> int | None:
        """The connection mark that the firewall would set for this rule."""
        return {name: mark for mark, name in marks(self.policy).items()}.get(rule)

    def record(self, at: float, rule: str, src: str, sport: int, dst: str, dport: int) -> dict[str, Any]:
        """One record of the firewall's log."""
        ends = {"src": src, "sport": sport, "dst": dst, "dport": dport, "proto": "tcp", "flags": "SYN", "length": 60}
        return {"utc": utc(at) + 2000, "prefix": rule, "in": "a", "out": "b", "mark": None, **ends}

    def say(self, name: str, at: float, sent: int, received: int, *, use: str | None = None, host: str = "") -> None:
        """Payload on a connection, for a later step if `use` says so."""
        link = self.links[name]
        if use:
            self.event("use", at - 0.1, host or "backup-server", use, link.task, attempt=name)
        self.said.append((at, name, sent, received))
        if link.tracking:
            link.tracking["packets_orig"] += 2
            link.tracking["packets_reply"] += 2
            link.tracking["bytes_orig"] += sent + 80
            link.tracking["bytes_reply"] += received + 80

    def bulk(self, name: str, at: float, size: int, *, mine: bool = False) -> None:
        """Payload in segments of 50 kB, all within a few milliseconds; by default towards the initiator."""
        for number, start in enumerate(range(0, size, 50_000)):
            length = min(50_000, size - start)
            self.say(name, at + number / 100, length if mine else 0, 0 if mine else length)

    def soap(self, at: float, client: str, method: str, **detail: Any) -> None:
        """One line of the gateway's journal."""
        assert self.gateway is not None
        entry = {"utc": utc(at), "mono": at, "client": [IP[client], 1], "method": method, "this": "x", "status": 200}
        self.gateway.append({**entry, "fault": detail.pop("fault", None), "detail": detail or None})

    def freeze(self, frozen: float, thawed: float | None) -> None:
        """The guest's own record of one freeze."""
        self.freezes.append({"utc": utc(frozen), "mono": 0, "event": "frozen", "mount": "/", "by": "fsfreeze"})
        if thawed is not None:
            self.freezes.append({"utc": utc(thawed), "mono": 0, "event": "thawed", "mount": "/", "by": "fsfreeze"})

    def write(self, folder: Path) -> Path:
        """The run folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self._speak()
        (folder / "topology.yaml").write_text(find(None).read_text())
        (folder / "policy.yaml").write_text(yaml.safe_dump(self.policy.model_dump(mode="json", by_alias=True)))
        self.wire.write(folder / "capture.pcapng")
        _lines(folder / "events.jsonl", self.events)
        _lines(folder / "nflog.jsonl", [*self.log, {"lost": self.log_lost}])
        _lines(folder / "conntrack.jsonl", [*self.tracking, {"lost": 0}])
        _lines(folder / "overlays.jsonl", self.overlays)
        rules = {*self.counters, *(r.id for r in self.policy.rules), "default", "invalid", "stray"}
        before = {rule: {"packets": 7, "bytes": 420} for rule in rules}
        after = {rule: {"packets": 7 + self.counters[rule], "bytes": 420 + 60 * self.counters[rule]} for rule in rules}
        (folder / "counters-before.json").write_text(json.dumps(before))
        (folder / "counters-after.json").write_text(json.dumps(after))
        if self.gateway is not None:
            (folder / "vcenter").mkdir(exist_ok=True)
            _lines(folder / "vcenter" / "journal.jsonl", self.gateway)
        if self.freezes:
            (folder / "guest-linux-vm").mkdir(exist_ok=True)
            _lines(folder / "guest-linux-vm" / "freeze.jsonl", self.freezes)
        about = {"schema": "vadplab.run/1", "run": folder.name, "kind": self.kind, "session": "s1", "about": {}}
        times = {"began": {"utc": utc(0), "mono": 0}, "ended": {"utc": utc(self.end), "mono": 0}}
        spans = {"counted_from": [utc(-20), utc(-10)], "counted_to": [utc(self.end + 1), utc(self.end + 2)]}
        (folder / "run.json").write_text(json.dumps({**about, **times, **spans, "capture": self.capture}))
        return folder

    def _speak(self) -> None:
        """Puts the payload on the wire in order of time, so that sequence numbers rise with it."""
        for at, name, sent, received in sorted(self.said):
            talk = self.links[name].talk
            if sent:
                talk.say(utc(at), sent)
            if received:
                talk.say(utc(at + 1), received, mine=False)
        self.said.clear()

    def evidence(self, tmp_path: Path) -> Evidence:
        """Through the folder, as a real run; the capture is read in this process to save time."""
        folder = self.write(tmp_path / "run-1")
        _lines(folder / "packets.jsonl", list(packets.read(folder / "capture.pcapng", utc(self.end))))
        return run_folder.read(folder)

    def report(self, tmp_path: Path) -> Report:
        """Judged."""
        return build(self.evidence(tmp_path))


def utc(at: float) -> int:
    """Milliseconds of the run to UTC ns."""
    return T0 + int(at * MS)


def _handshake(talk: Conversation, at: int, result: str) -> None:
    if result == "open":
        talk.open(at)
    elif result in ("drop", "silent"):
        for wait in (0, 1000, 3000):
            talk.syn(at + wait * MS, forwarded=result == "silent")
    elif result == "reset":
        talk.syn(at, forwarded=False)
        talk.reset_by_router(at + MS // 10)
    elif result == "prohibit":
        talk.syn(at, forwarded=False)
        talk.prohibited(at + MS // 10)
    else:
        talk.syn(at)
        talk.reset(at + MS)


def _lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))


def _network(run: RunBuilder, number: int, task: str, base: float) -> None:
    run.step("20c", base + 200, base + 900, host="proxy-1", task=task, data={"mode": "nbdssl"})
    run.event("use", base + 299, "proxy-1", "20c", task, attempt=f"nfc-{number}")
    run.bulk(f"nfc-{number}", base + 300, BULK)


def _san(run: RunBuilder, number: int, task: str, base: float) -> None:
    run.step("20a", base + 200, base + 900, host="proxy-1", task=task, data={"mode": "san"})
    run.event("use", base + 201, "proxy-1", "20a", task, attempt=f"nfc-{number}")
    run.say(f"nfc-{number}", base + 202, 100, 9_000)
    for what, at in (("discovery", 210), ("session", 230)):
        run.connect(f"{what}-{number}", base + at, "20a", "proxy-1", "san", 3260, "H9", task=task)
        run.say(f"{what}-{number}", base + at + 8, 400, 400)
    run.bulk(f"session-{number}", base + 300, BULK)


def _hotadd(run: RunBuilder, number: int, task: str, base: float) -> None:
    run.step("20b", base + 200, base + 900, host="proxy-1", task=task, data={"mode": "hotadd"})
    disk, asked = f"[datastore1] {task}.vmdk", {"vm": "proxy-2", "change_tracking": None}
    for at, key in ((210, "attached"), (890, "detached")):
        run.say(f"api-{number}", base + at, 900, 300, use="20b", host="proxy-1")
        both = {"attached": [], "detached": [], key: [disk]}
        run.soap(base + at + 2, "proxy-1", "ReconfigVM_Task", **asked, **both, state="success")


READ = {"network": _network, "san": _san, "hotadd": _hotadd}
BULK = 1_000_000
"""Bytes of each disk that `demo` moves: more than the files that may go on another path."""


def demo(mode: str = "network") -> RunBuilder:
    """A healthy job: both VMs, one disk each, pre-freeze over SSH in the Linux guest; read by `network`, `san` or `hotadd`."""
    run = RunBuilder()
    run.connect("console", 10, "1", "console", "backup-server", 9392, "C1")
    run.say("console", 20, 200, 400)
    run.step("1", 10, 30)
    run.step("2", 30, 40)
    run.step("3", 40, 50, data={"tasks": list(TASKS)})
    run.step("4", 50, 60)
    run.connect("ts-repo", 100, "5a", "backup-server", "repository-1", 6162, "M4")
    run.connect("ts-proxy", 150, "5b", "backup-server", "proxy-1", 6162, "M4")
    for number, task in enumerate(TASKS):
        base = 200 + number * 20
        for side, host in (("source", "proxy-1"), ("target", "repository-1")):
            port = 2500 + number
            name = f"control-{side}-{number}"
            run.connect(name, base + (side == "target") * 8, "6", "backup-server", host, port, "M5", task=task)
            run.say(name, base + 16, 50, 50)
    for number, task in enumerate(TASKS):
        name, port = f"data-{number}", 2510 + number
        run.step("7", 298 + number * 10, 306 + number * 10, host="proxy-1", task=task)
        run.connect(name, 300 + number * 10, "7", "proxy-1", "repository-1", port, "D1", task=task)
    run.connect("vcenter", 400, "8", "backup-server", "vcenter", 443, "H1")
    run.say("vcenter", 410, 500, 9000)
    run.step("8", 399, 430)
    run.step("9", 431, None)
    run.events[-1]["phase"] = "skipped"
    run.step("12", 440, 445)
    run.connect("ssh", 500, "13", "backup-server", "linux-guest", 22, "G10", task="linux-vm")
    run.say("ssh", 520, 900, 300)
    run.step("13", 499, 560, task="linux-vm")
    run.freeze(550, 640)
    for number, vm in enumerate(("linux-vm", "files-vm")):
        run.step("15", 570 + number * 100, 600 + number * 100, task=vm)
        run.say("vcenter", 572 + number * 100, 300, 300, use="15")
        asked = {"vm": vm, "snapshot": None, "task": f"task-{number}", "name": "b"}
        run.soap(574 + number * 100, "backup-server", "CreateSnapshot_Task", **asked, state="queued")
        done = {**asked, "snapshot": f"snapshot-{number}", "state": "success"}
        run.soap(590 + number * 100, "backup-server", "CreateSnapshot_Task", **done)
    run.step("16", 605, 650, task="linux-vm")
    run.say("ssh", 620, 100, 100, use="16")
    run.step("17", 900, 901, host="proxy-1")
    for number, task in enumerate(TASKS):
        base = 1000 + number * 20
        run.connect(f"api-{number}", base, "18", "proxy-1", "vcenter", 443, "H4", task=task)
        run.say(f"api-{number}", base + 5, 300, 900)
        ticket = {"vm": task.split(":")[0], "host": "esxi-1", "address": IP["esxi-1"], "session": f"abcd{number}"}
        run.soap(base + 5.5, "proxy-1", "NfcGetVmFiles", **ticket, read_only=True)
        run.connect(f"nfc-{number}", base + 100, "19", "proxy-1", "esxi-1", 902, "H5", task=task)
        run.say(f"nfc-{number}", base + 110, 100, 300)
        READ[mode](run, number, task, base)
        run.step("21", base + 201, base + 950, host="proxy-1", task=task)
        run.bulk(f"data-{number}", base + 310, BULK // 2, mine=True)
        run.event("use", base + 309, "proxy-1", "21", task, attempt=f"data-{number}")
    for number, vm in enumerate(("linux-vm", "files-vm")):
        at = 3000 + number * 100
        run.step("22", at, at + 50, task=vm)
        run.say("vcenter", at + 10, 300, 300, use="22")
        asked = {"vm": vm, "snapshot": f"snapshot-{number}", "task": f"task-r{number}"}
        run.soap(at + 12, "backup-server", "RemoveSnapshot_Task", **asked, state="queued")
        run.soap(at + 30, "backup-server", "RemoveSnapshot_Task", **asked, state="success")
    return run
