# SPDX-License-Identifier: MIT
"""A profile of a mover's half: clock and CPU time of each stage, summed over the threads that were in it.

Stages do not contain each other. The clock of a stage includes waiting (for the source, the link, the interpreter's lock);
the CPU time does not. Measuring costs a few microseconds a cluster, so a profiled run is never one whose time is compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from engine.modes.source import Source
from engine.mover.datalink import DataLink
from engine.store import clusters, durable, readback
from engine.store import target as target_module
from engine.store.blocks import BlockHasher
from engine.store.digests import DigestTable
from engine.store.qcow2.writer import Qcow2Writer
from engine.store.target import TargetDisk


class Profile:
    """Seconds and calls by stage; what two threads add at the same instant may be lost, which is rare and small."""

    def __init__(self) -> None:
        self._found: dict[str, list[float]] = {}
        self._patched: list[tuple[Any, str, Any]] = []

    def wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose time is counted for `stage`."""
        found = self._found.setdefault(stage, [0.0, 0.0, 0])

        def timed(*arguments: Any, **named: Any) -> Any:
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                found[1] += time.thread_time() - cpu
                found[0] += time.perf_counter() - wall
                found[2] += 1

        return timed

    def patch(self, stage: str, owner: Any, name: str) -> None:
        """Counts a method or function of a module for `stage` until `undo`."""
        before = getattr(owner, name)
        self._patched.append((owner, name, before))
        setattr(owner, name, self.wrap(stage, before))

    def undo(self) -> None:
        """Puts everything back."""
        while self._patched:
            owner, name, before = self._patched.pop()
            setattr(owner, name, before)

    def to_list(self) -> list[dict[str, Any]]:
        """By stage, longest first."""
        rows = [
            {"stage": stage, "wall": round(wall, 4), "cpu": round(cpu, 4), "calls": int(calls)}
            for stage, (wall, cpu, calls) in self._found.items()
            if calls
        ]
        return sorted(rows, key=lambda row: -float(row["wall"]))


class _TimedCompressor:
    def __init__(self, compressor: Any, profile: Profile) -> None:
        self.compress = profile.wrap("compress", compressor.compress)


@contextmanager
def of_source(profile: Profile, source: Source) -> Iterator[Source]:
    """Profiles the half that reads: read, zero check, hash, compress, send; gives the source to use."""
    begin = clusters.Packer.__init__

    def init(self: Any, **named: Any) -> None:
        begin(self, **named)
        self._compressor = _TimedCompressor(self._compressor, profile)

    profile.patch("zero check", clusters.Packer, "_is_zero")
    profile.patch("hash", clusters, "blake3")
    profile.patch("send (TLS and lock)", DataLink, "send")
    profile.patch("heed", DataLink, "heed")
    profile.patch("digest table", DigestTable, "put")
    profile.patch("read: request", source, "start")
    profile._patched.append((clusters.Packer, "__init__", begin))
    setattr(clusters.Packer, "__init__", init)  # noqa: B010 - a typed assignment to __init__ is refused
    started = source.start

    def start(offset: int, view: memoryview) -> Any:
        read = started(offset, view)
        return _TimedRead(profile.wrap("read: wait", read.wait))

    setattr(source, "start", start)  # noqa: B010
    try:
        yield source
    finally:
        profile.undo()


class _TimedRead:
    def __init__(self, wait: Callable[[], None]) -> None:
        self.wait = wait


@contextmanager
def of_target(profile: Profile) -> Iterator[None]:
    """Profiles the half that writes: receive, check, append, write, read back, and the end of the file."""
    profile.patch("receive (TLS and wait)", DataLink, "receive")
    profile.patch("check batch", target_module, "check_batch")
    profile.patch("append to qcow2", Qcow2Writer, "add")
    profile.patch("verify: wait for the writer", Qcow2Writer, "wait_written")
    profile.patch("verify: read back", readback.ReadBack, "_read")
    profile.patch("verify: hash the file", BlockHasher, "update")
    profile.patch("verify: expand", clusters.Unpacker, "expand")
    profile.patch("verify: hash clusters", readback, "check")
    profile.patch("digest table", DigestTable, "put")
    profile.patch("write to the device", durable, "write_at")
    profile.patch("end: tables, sync, header", Qcow2Writer, "finish")
    profile.patch("end: wait for the read-back", readback.ReadBack, "finish")
    profile.patch("end: check tables", TargetDisk, "_check_tables")
    profile.patch("sync", durable, "sync")
    try:
        yield
    finally:
        profile.undo()
