# SPDX-License-Identifier: MIT
"""Random writes, zeros, trims, snapshots, removals and reopenings against plain byte arrays."""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fakes.storage import changes, snapshots
from fakes.storage.grains import GRAIN
from tests.fakes.storage.world import SIZES, audit, content, digests, frozen, live, opened, truth, with_vm

GRAINS = 32
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
KEYS = st.sampled_from(sorted(SIZES))
PLACE = st.integers(0, 6)
WITHIN = st.sampled_from([0, 0, 1, 512, GRAIN - 512])
LENGTH = st.sampled_from([GRAIN, 1, 512, 4096, 2 * GRAIN, 3 * GRAIN + 700, 8 * GRAIN])


class StorageMachine(RuleBasedStateMachine):
    """Model: per disk its bytes, per snapshot the bytes of all disks at its instant."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="storage-model-", dir=MEMORY))
        self.store = opened(self.folder / "s", GRAINS)
        self.vm = with_vm(self.store)
        self.now = {key: bytearray(size) for key, size in SIZES.items()}
        self.taken: dict[int, dict[int, bytes]] = {}
        self.present: list[int] = []

    def teardown(self) -> None:
        try:
            for identity, disks in self.taken.items():
                assert truth(self.store, identity) == {key: digests(data) for key, data in disks.items()}
            audit(self.store)
        finally:
            self.store.close()
            shutil.rmtree(self.folder)

    @staticmethod
    def _range(key: int, grain: int, within: int, length: int) -> tuple[int, int]:
        start = (grain * GRAIN + within) % SIZES[key]
        return start, min(length, SIZES[key] - start)

    @rule(key=KEYS, grain=PLACE, within=WITHIN, length=LENGTH, seed=st.integers(0, 99))
    def write(self, key: int, grain: int, within: int, length: int, seed: int) -> None:
        self._write(key, grain, within, length, seed)

    def _write(self, key: int, grain: int, within: int, length: int, seed: int) -> None:
        start, length = self._range(key, grain, within, length)
        data = random.Random(seed).randbytes(length)
        try:
            live(self.store, key).write(memoryview(data), start)
        except OSError as exc:
            assert exc.errno == errno.ENOSPC
            return
        self.now[key][start : start + length] = data

    @rule(key=KEYS, grain=PLACE, within=WITHIN, length=LENGTH)
    def zero(self, key: int, grain: int, within: int, length: int) -> None:
        start, length = self._range(key, grain, within, length)
        try:
            live(self.store, key).zero(length, start)
        except OSError as exc:  # the edges may need a grain of their own: then what lies between is zeroed already
            assert exc.errno == errno.ENOSPC
            self.now[key][:] = content(live(self.store, key))
            return
        self.now[key][start : start + length] = bytes(length)

    @rule(key=KEYS, grain=PLACE, within=WITHIN, length=LENGTH)
    def trim(self, key: int, grain: int, within: int, length: int) -> None:
        start, length = self._range(key, grain, within, length)
        live(self.store, key).trim(length, start)
        first, end = -(-start // GRAIN) * GRAIN, start + length
        end = end if end == SIZES[key] else end // GRAIN * GRAIN
        if end > first:
            self.now[key][first:end] = bytes(end - first)

    @rule(seed=st.integers(0, 9999))
    def snapshot(self, seed: int) -> None:
        """A few writes first, so that neighbouring snapshots differ."""
        rng = random.Random(seed)
        for _ in range(seed % 4):
            place = (rng.choice(sorted(SIZES)), rng.randrange(7), rng.choice((0, 512)), rng.choice((4096, 2 * GRAIN)))
            self._write(*place, rng.randrange(100))
        made = snapshots.create(self.store, self.vm, "s", "")
        assert made.parent == (self.present[-1] if self.present else None)
        self.present.append(made.id)
        self.taken[made.id] = {key: bytes(data) for key, data in self.now.items()}

    @precondition(lambda self: self.present)
    @rule(which=st.integers(0, 5), children=st.booleans())
    def remove(self, which: int, children: bool) -> None:
        at = which % len(self.present)
        snapshots.remove(self.store, self.vm, self.present[at], children=children)
        del self.present[at : None if children else at + 1]

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = opened(self.folder / "s", GRAINS)
        self.vm = self.store.vm("web")

    @precondition(lambda self: len(self.present) > 1)
    @rule(data=st.data())
    def changed_is_exact_for_content(self, data: st.DataObject) -> None:
        first = data.draw(st.sampled_from(self.present[:-1]))
        second = data.draw(st.sampled_from([p for p in self.present if p > first]))
        for key in SIZES:
            since = self.vm.snapshot(first).sequences[str(key)]
            rebuilt = bytearray(self.taken[first][key])
            for start, length in changes.changed(self.store, self.vm, key, since, second):
                rebuilt[start : start + length] = self.taken[second][key][start : start + length]
            assert rebuilt == self.taken[second][key]

    @invariant()
    def disks_hold_what_was_written(self) -> None:
        for key, data in self.now.items():
            handle = live(self.store, key)
            assert content(handle) == data
            for start, length, allocated in handle.extents(handle.size, 0):
                assert allocated or not any(data[start : start + length])

    @invariant()
    def snapshots_stay_frozen(self) -> None:
        assert [s.id for s in self.vm.snapshots] == self.present
        for snap in self.vm.snapshots:
            for disk in snapshots.shown(self.vm, snap)["disks"]:
                assert content(frozen(self.store, disk["frozen"])) == self.taken[snap.id][disk["key"]]


StorageMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestStorage = StorageMachine.TestCase
