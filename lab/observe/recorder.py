# SPDX-License-Identifier: MIT
"""Records a run: capture, firewall log, connection tracking, counters, overlays, and what engine and fakes wrote meanwhile.

One recording at a time. The observers start before the mark `began` and end after the mark `ended`, the capture first
and last, so that whatever the log or the counters know of is in the capture too. Files of engine and fakes are taken
from where they stood at the beginning.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

from engine.errors import InputError, VadplabError
from firewall_rules.model import Policy
from firewall_rules.overlay import Overlay
from lab.observe.capture import Capture, Mode
from lab.observe.conntrack import FlowReader
from lab.observe.errors import CaptureFailed, RunBusy
from lab.observe.nflog import LogReader
from lab.observe.runs import RUN_SCHEMA, Limits, check_space, new_folder, prune, write_json

MODES: tuple[Mode, ...] = ("headers", "full")


class Counted(Protocol):
    """A rule's count."""

    @property
    def packets(self) -> int: ...
    @property
    def bytes(self) -> int: ...


class FirewallView(Protocol):
    """What the recorder asks of the firewall (`lab.realise.firewall.Firewall`)."""

    @property
    def policy(self) -> Policy: ...
    @property
    def overlays(self) -> tuple[Overlay, ...]: ...
    async def counters(self) -> Mapping[str, Counted]: ...
    def subscribe(self, listener: Callable[[tuple[Overlay, ...]], None]) -> Callable[[], None]: ...


@dataclass(frozen=True, slots=True)
class Sources:
    """Where engine and fakes of a lab write: the lab's folder (`docs/architecture.md`)."""

    lab: Path

    def events(self) -> list[Path]:
        """The engine's event file of every host."""
        return sorted(self.lab.glob("hosts/*/var/events.jsonl"))

    def key_logs(self) -> list[Path]:
        """TLS key logs of every host."""
        return sorted(self.lab.glob("hosts/*/var/keys.log"))

    def journals(self) -> dict[str, Path]:
        """{place in the run folder: file} of the fakes' journals."""
        fakes = self.lab / "fakes"
        names = ("*/journal.jsonl", "*/soap.jsonl", "guest-*/freeze.jsonl")
        found = sorted(path for name in names for path in fakes.glob(name))
        return {str(path.relative_to(fakes)): path for path in found}

    def every(self) -> list[Path]:
        """All of them."""
        return [*self.events(), *self.key_logs(), *self.journals().values()]


@dataclass(slots=True)
class Recording:
    """A recording in progress."""

    folder: Path
    about: dict[str, Any]
    capture: Capture
    log: LogReader
    tracking: FlowReader
    offsets: dict[Path, int]
    unsubscribe: Callable[[], None] = lambda: None
    problems: list[str] = field(default_factory=list)


class Recorder:
    """The supervisor's family of control methods `run.…`.

    Args:
        runs: folder of the run folders. netns: descriptor of the router's network namespace. firewall: the router's.
        sources: where engine and fakes write. topology: file copied into each run folder. mode: default capture mode.
    """

    def __init__(
        self,
        runs: Path,
        *,
        netns: int | None,
        firewall: FirewallView,
        sources: Sources,
        topology: Path,
        mode: Mode = "headers",
        limits: Limits | None = None,
    ) -> None:
        self._runs = runs
        self._netns = netns
        self._firewall = firewall
        self._sources = sources
        self._topology = topology
        self._mode: Mode = mode
        self._limits = limits or Limits()
        self._current: Recording | None = None
        self._change = asyncio.Lock()

    @property
    def current(self) -> str | None:
        """The run that is being recorded."""
        return self._current.folder.name if self._current else None

    async def control(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """`begin {run, kind, session?, capture?, about?}` and `end {run, session?}`; both give `{run, folder, …}`.

        Raises:
            InputError: an unknown method or a missing parameter; otherwise as `begin` and `end`.
        """
        verb = method.removeprefix("run.")
        if verb not in ("begin", "end") or not params.get("run"):
            raise InputError(f"run.{verb}: not a request, or its parameter `run` is missing")
        run = str(params["run"])
        if verb == "end":
            return await self.end(run, params.get("session"))
        return await self.begin(
            run,
            str(params.get("kind") or "job"),
            session=params.get("session"),
            capture=params.get("capture"),
            about=params.get("about"),
        )

    async def begin(
        self,
        run: str,
        kind: str,
        *,
        session: str | None = None,
        capture: Mode | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Starts recording.

        Raises:
            RunBusy: another run is being recorded. NoSpace, RunNameInvalid, CaptureFailed, ToolMissing: nothing is left.
        """
        mode = capture or self._mode
        if mode not in MODES:
            raise InputError(f"capture {mode!r} is not a mode: {' or '.join(MODES)}")
        async with self._change:
            if self._current is not None:
                raise RunBusy(f"run {self.current} is being recorded")
            self._runs.mkdir(parents=True, exist_ok=True)
            await asyncio.to_thread(prune, self._runs, self._limits)
            check_space(self._runs, self._limits)
            folder = new_folder(self._runs, run)
            recording = Recording(
                folder,
                {"schema": RUN_SCHEMA, "run": run, "kind": kind, "session": session, "about": dict(about or {})},
                Capture(folder / "capture.pcapng", netns=self._netns, mode=mode),
                LogReader(self._netns),
                FlowReader(self._netns),
                {path: path.stat().st_size for path in self._sources.every()},
            )
            try:
                await self._start(recording)
            except BaseException as exc:
                await self._abandon(recording)
                shutil.rmtree(folder, ignore_errors=True)
                if isinstance(exc, OSError):
                    raise CaptureFailed(f"run {run} can not be recorded: {exc}") from exc
                raise
            self._current = recording
        return {"run": run, "folder": str(folder), "began": recording.about["began"]}

    async def end(self, run: str, session: str | None = None) -> dict[str, Any]:
        """Stops recording and collects; what could not be recorded is said in `problems`, never hidden.

        Raises:
            InputError: that run is not being recorded.
        """
        async with self._change:
            recording = self._current
            if recording is None or recording.folder.name != run:
                raise InputError(f"run {run} is not being recorded")
            self._current = None
            if session is not None:
                recording.about["session"] = session
            await self._stop(recording)
        return {"run": run, "folder": str(recording.folder), "problems": recording.problems}

    async def close(self) -> None:
        """Ends a recording that is still going on (the lab goes down)."""
        if self._current is not None:
            await self.end(self._current.folder.name)

    async def _start(self, recording: Recording) -> None:
        folder = recording.folder
        shutil.copyfile(self._topology, folder / "topology.yaml")
        policy = self._firewall.policy.model_dump(mode="json", by_alias=True)
        (folder / "policy.yaml").write_text(yaml.safe_dump(policy, sort_keys=False))
        await recording.capture.start()
        await recording.log.start(folder / "nflog.jsonl")
        await recording.tracking.start()
        (folder / "nflog.jsonl").touch()
        recording.about["counted_from"] = await self._counters(folder / "counters-before.json")
        recording.about["capture"] = {"mode": recording.capture.mode}
        recording.about["began"] = mark()
        _overlays(folder, self._firewall.overlays, recording.about["began"]["utc"])
        recording.unsubscribe = self._firewall.subscribe(lambda changed: _overlays(folder, changed, time.time_ns()))
        write_json(folder / "run.json", recording.about)

    async def _stop(self, recording: Recording) -> None:
        """Ends every observer, whatever becomes of the others; the capture last. `run.json` is written in any case."""
        folder, about, problems = recording.folder, recording.about, recording.problems
        ended = mark()
        with _noted(problems, "counters"):
            about["counted_to"] = await self._counters(folder / "counters-after.json")
        with _noted(problems, "overlays"):
            recording.unsubscribe()
        with _noted(problems, "firewall log"):
            await recording.log.stop()
        _append(folder / "nflog.jsonl", {"lost": recording.log.lost + _failed(problems, "firewall log")})
        flows: list[Any] = []
        with _noted(problems, "connection tracking"):
            flows = await recording.tracking.stop()
        with (folder / "conntrack.jsonl").open("w") as file:
            for flow in flows:
                file.write(json.dumps(flow.to_dict(), separators=(",", ":")) + "\n")
        lost = recording.tracking.lost + _failed(problems, "connection tracking")
        _append(folder / "conntrack.jsonl", {"lost": lost})
        with _noted(problems, "capture"):
            done = await recording.capture.stop()
            about["capture"] |= {"received": done.received, "dropped": done.dropped, "flushed": done.flushed}
        if _failed(problems, "capture"):
            about["capture"]["error"] = problems[-1]
            await _quietly(recording.capture.kill)
        with _noted(problems, "collecting"):
            await asyncio.to_thread(self._collect, recording)
        if problems:
            about["problems"] = problems
        about["ended"] = ended
        write_json(folder / "run.json", about)

    def _collect(self, recording: Recording) -> None:
        folder, offsets = recording.folder, recording.offsets
        with (folder / "events.jsonl").open("wb") as events:
            lines: list[bytes] = []
            for path in self._sources.events():
                lines += _since(path, offsets).splitlines(True)
            lines.sort(key=_time_of)
            events.writelines(lines)
        with (folder / "keys.log").open("wb") as keys:
            for path in self._sources.key_logs():
                keys.write(_since(path, offsets))
        for place, path in self._sources.journals().items():
            target = folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(_since(path, offsets))

    async def _counters(self, path: Path) -> list[int]:
        """Writes every counter; returns the time just before and just after they were read."""
        before = time.time_ns()
        counted = await self._firewall.counters()
        after = time.time_ns()
        write_json(path, {rule: {"packets": c.packets, "bytes": c.bytes} for rule, c in counted.items()})
        return [before, after]

    async def _abandon(self, recording: Recording) -> None:
        recording.unsubscribe()
        for stop in (recording.log.stop, recording.tracking.stop, recording.capture.kill):
            await _quietly(stop)


@contextlib.contextmanager
def _noted(problems: list[str], observer: str) -> Iterator[None]:
    """What one observer can not do becomes a problem of the recording; the others go on."""
    try:
        yield
    except (OSError, ValueError, KeyError, VadplabError) as exc:
        problems.append(f"{observer}: {getattr(exc, 'message', exc)}")


def _failed(problems: Sequence[str], observer: str) -> int:
    """1 when that observer has a problem: whatever it did not record counts as lost."""
    return int(any(problem.startswith(f"{observer}: ") for problem in problems))


def mark() -> dict[str, int]:
    """Now, by both clocks, in ns."""
    return {"utc": time.time_ns(), "mono": time.monotonic_ns()}


def _overlays(folder: Path, overlays: Sequence[Overlay], utc: int) -> None:
    """What is in force from now on; the kernel obeys it a moment before (`lab.judge.rules.SLACK_NS`)."""
    entries = [o.model_dump(mode="json", by_alias=True) for o in overlays]
    _append(folder / "overlays.jsonl", {"utc": utc, "overlays": entries})


def _append(path: Path, document: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(document, separators=(",", ":")) + "\n")


def _since(path: Path, offsets: Mapping[Path, int]) -> bytes:
    """What was added to a file since the beginning; all of it when it is new or was begun anew."""
    try:
        with path.open("rb") as file:
            start = offsets.get(path, 0)
            if file.seek(0, 2) < start:
                start = 0
            file.seek(start)
            return file.read()
    except FileNotFoundError:
        return b""


def _time_of(line: bytes) -> int:
    try:
        return int(json.loads(line)["utc"])
    except (ValueError, KeyError, TypeError):
        return 0


async def _quietly(stop: Callable[[], Any]) -> None:
    """Stops one observer of a recording that failed to start; the first error is the one that counts."""
    with contextlib.suppress(OSError, VadplabError):
        await stop()
