# SPDX-License-Identifier: MIT
"""Truth records: what each snapshot's disks held at the instant of the snapshot, as SHA-256 per 64 KiB block.

*Plan*: per grain of a frozen disk, where its digest comes from: 0 = zeros, `REUSE` = the previous snapshot's digest
(the write log says that the grain did not change), else LUN grain + 1, pinned until the record is complete: a record that a
kill cuts short is taken again from its plan, so nothing that the plan names may have changed. Taking a record delays
no step: plans are made inside the snapshot's instant, digests by one background thread of low priority. A merge needs
not wait either, because pinned grains are neither overwritten nor reused. Plans are files, so a record survives a kill.

Files, in `<state>/truth/<vm>/`: `<id>.json` (the record), `<id>-<key>.sha256` (32 bytes a block), and while pending
`<id>.pending` and `<id>-<key>.plan`. Records stay when their snapshot is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import sys
import threading
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakes.core.fabric import FabricError
from fakes.storage import grains
from fakes.storage.disk import Disk
from fakes.storage.grains import GRAIN, ZEROED
from fakes.storage.lun import Lun
from fakes.storage.structure import replace

SCHEMA = "vadplab.truth/1"
REUSE = ZEROED
_BATCH = 16
_ZERO_DIGEST = hashlib.sha256(bytes(GRAIN)).digest()


@dataclass(frozen=True)
class DiskPlan:
    """The plan of one disk, and the lock under which its pins are dropped."""

    key: int
    size: int
    plan: array[int]
    lock: threading.Lock

    def pinned(self) -> Iterator[int]:
        """LUN grains that are to be read."""
        for grain in grains.used(self.plan):
            if self.plan[grain] != REUSE:
                yield self.plan[grain] - 1


@dataclass(frozen=True)
class Job:
    """A record to be taken. `header` is the record without digests; `previous` is the snapshot whose digests it reuses."""

    vm: str
    id: int
    previous: int | None
    header: dict[str, Any]
    disks: list[DiskPlan]


class TruthKeeper:
    """Takes truth records in a thread of its own, one after the other, and answers for them."""

    def __init__(self, folder: Path, lun: Lun) -> None:
        self.folder = folder
        self.lun = lun
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._state: dict[tuple[str, int], str] = {}  # pending, done, or why it failed
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="truth", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """Stops after the batch at hand; what is pending is taken up at the next open."""
        self._stopping.set()
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)

    # -- planning ----------------------------------------------------------------------------------------------------

    def plan(self, vm: str, header: dict[str, Any], disks: list[Disk]) -> Job:
        """Makes the plan of a snapshot, pins what it needs and writes the plan's files. The VM's gate is closed."""
        identity = int(header["id"])
        previous = identity - 1 if self.known(vm, identity - 1) else None
        plans = [DiskPlan(d.key, d.size, _plan(d, reuse=previous is not None), d.lock) for d in disks]
        job = Job(vm, identity, previous, header, plans)
        folder = self.folder / vm
        folder.mkdir(parents=True, exist_ok=True)
        for each in plans:
            self._plan_file(job, each.key).write_bytes(each.plan.tobytes())
        pending = {"header": header, "previous": previous, "disks": [{"key": d.key, "size": d.size} for d in plans]}
        (folder / f"{identity}.pending").write_text(json.dumps(pending))
        for each in plans:
            self.lun.pin(each.pinned())
        return job

    def withdraw(self, job: Job) -> None:
        """Undoes `plan`, when the snapshot was not made after all. The VM's gate is closed."""
        for each in job.disks:
            self.lun.unpin(each.pinned())
        self._forget_plan(job.vm, job.id, [d.key for d in job.disks])

    def submit(self, job: Job) -> None:
        """Queues a planned record."""
        with self._changed:
            self._state[job.vm, job.id] = "pending"
        self._jobs.put(job)

    def known(self, vm: str, identity: int) -> bool:
        """True if that record is there or will be."""
        state = self._state.get((vm, identity))
        return state in ("pending", "done") or (state is None and self._record(vm, identity).exists())

    def resume(self, vm: str, next_snapshot: int, disks: dict[int, Disk]) -> list[Job]:
        """Plans that a kill left behind, pinned again, oldest first; the caller claims their grains, then submits them.

        A deleted VM has no `disks` any more: nobody else can reach the grains that its plans pin.

        Plans of snapshots that never came to be (id >= `next_snapshot`) are removed.
        """
        jobs = []
        for path in sorted((self.folder / vm).glob("*.pending"), key=lambda p: int(p.stem)):
            data = json.loads(path.read_text())
            identity, keys = int(path.stem), [int(d["key"]) for d in data["disks"]]
            if identity >= next_snapshot or self._record(vm, identity).exists():
                self._forget_plan(vm, identity, keys)
                continue
            plans = []
            for each in data["disks"]:
                plan = array("I")
                plan.frombytes((self.folder / vm / f"{identity}-{each['key']}.plan").read_bytes())
                lock = disks[each["key"]].lock if each["key"] in disks else threading.Lock()
                plans.append(DiskPlan(each["key"], each["size"], plan, lock))
                self.lun.pin(plans[-1].pinned())
            jobs.append(Job(vm, identity, data["previous"], data["header"], plans))
        return jobs

    # -- answers -----------------------------------------------------------------------------------------------------

    def get(self, vm: str, identity: int, wait: float) -> dict[str, Any]:
        """The record of a snapshot, with the digest files' absolute paths; waits up to `wait` seconds for it.

        Raises:
            FabricError: `not-found`, `pending` (not ready in time) or `failed`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._state.get((vm, identity)) != "pending", wait)
            state = self._state.get((vm, identity))
        if state == "pending":
            raise FabricError("pending", f"truth of {vm} snapshot {identity} is not complete yet")
        if state not in (None, "done"):
            raise FabricError("failed", f"truth of {vm} snapshot {identity}: {state}")
        try:
            record: dict[str, Any] = json.loads(self._record(vm, identity).read_text())
        except FileNotFoundError:
            raise FabricError("not-found", f"no truth record of {vm} snapshot {identity}") from None
        for disk in record["disks"]:
            disk["digests"] = str((self.folder / vm / disk["digests"]).absolute())
        return record

    # -- the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        while (job := self._jobs.get()) is not None and not self._stopping.is_set():
            try:
                finished = self._take(job)
            except (OSError, ValueError) as exc:
                state = f"{type(exc).__name__}: {exc}"
                print(f"storage: truth of {job.vm} snapshot {job.id}: {state}", file=sys.stderr, flush=True)
            else:
                if not finished:
                    return
                state = "done"
            for each in job.disks:
                with each.lock:
                    self.lun.unpin(each.pinned())
            with self._changed:
                self._state[job.vm, job.id] = state
                self._changed.notify_all()

    def _take(self, job: Job) -> bool:
        folder = self.folder / job.vm
        record = {**job.header, "disks": [dict(d) for d in job.header["disks"]]}
        for each, entry in zip(job.disks, record["disks"], strict=True):
            digests = bytearray(_ZERO_DIGEST * len(each.plan))
            self._reuse(job, each, digests)
            if not self._digest(each, digests):
                return False
            name = f"{job.id}-{each.key}.sha256"
            replace(folder / name, bytes(digests))
            entry["digests"] = name
        replace(folder / f"{job.id}.json", json.dumps(record, indent=1).encode())
        self._forget_plan(job.vm, job.id, [d.key for d in job.disks])
        return True

    def _reuse(self, job: Job, each: DiskPlan, digests: bytearray) -> None:
        wanted = [grain for grain in grains.used(each.plan) if each.plan[grain] == REUSE]
        if wanted:
            old = (self.folder / job.vm / f"{job.previous}-{each.key}.sha256").read_bytes()
            for first, length in grains.joined(wanted):
                digests[32 * first : 32 * (first + length)] = old[32 * first : 32 * (first + length)]

    def _digest(self, each: DiskPlan, digests: bytearray) -> bool:
        """Reads and hashes the pinned grains; False when told to stop."""
        buffer = memoryview(bytearray(_BATCH * GRAIN))
        last = len(each.plan) - 1
        if each.size % GRAIN and not each.plan[last]:
            digests[32 * last :] = hashlib.sha256(bytes(each.size % GRAIN)).digest()
        for first, length in self._batches(each):
            if self._stopping.is_set():
                return False
            position = each.plan[first] - 1
            self.lun.read(buffer[: length * GRAIN], position * GRAIN)
            for number in range(length):
                grain = first + number
                start = number * GRAIN
                block = buffer[start : start + min(GRAIN, each.size - grain * GRAIN)]
                digests[32 * grain : 32 * grain + 32] = hashlib.sha256(block).digest()
        return True

    @staticmethod
    def _batches(each: DiskPlan) -> Iterator[tuple[int, int]]:
        """`(first disk grain, grains)` stretches to read: neighbours on the disk and in the LUN, at most 1 MiB."""
        first = length = 0
        for grain in grains.used(each.plan):
            entry = each.plan[grain]
            if entry == REUSE:
                continue
            if length and length < _BATCH and grain == first + length and entry == each.plan[first] + length:
                length += 1
                continue
            if length:
                yield first, length
            first, length = grain, 1
        if length:
            yield first, length

    # -- names -------------------------------------------------------------------------------------------------------

    def _record(self, vm: str, identity: int) -> Path:
        return self.folder / vm / f"{identity}.json"

    def _plan_file(self, job: Job, key: int) -> Path:
        return self.folder / job.vm / f"{job.id}-{key}.plan"

    def _forget_plan(self, vm: str, identity: int, keys: list[int]) -> None:
        (self.folder / vm / f"{identity}.pending").unlink(missing_ok=True)
        for key in keys:
            (self.folder / vm / f"{identity}-{key}.plan").unlink(missing_ok=True)


def _plan(disk: Disk, *, reuse: bool) -> array[int]:
    plan = array("I", disk.view)
    if reuse:
        log, sequence = disk.log.words, disk.sequence
        for grain in grains.used(plan):
            if log[grain] < sequence:
                plan[grain] = REUSE
    return plan
