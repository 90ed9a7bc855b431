# SPDX-License-Identifier: MIT
"""Random writes, zeros, trims, snapshots, removals and reopenings against plain byte arrays."""

from __future__ import annotations

import errno
import random
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fakes.storage import snapshots
from fakes.storage.grains import GRAIN
from tests.fakes.storage.world import SIZES, audit, content, digests, frozen, live, opened, truth, with_vm

GRAINS = 26
KEYS = st.sampled_from(sorted(SIZES))


class StorageMachine(RuleBasedStateMachine):
    """Model: per disk its bytes, per snapshot the bytes of all disks at its instant."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="storage-model-"))
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
    def _range(key: int, at: float, share: float, grid: int) -> tuple[int, int]:
        size = SIZES[key]
        start = int(at * (size - 1)) // grid * grid
        return start, max(1, min(int(share * size), size - start))

    @rule(
        key=KEYS, at=st.floats(0, 1), share=st.floats(0, 1), grid=st.sampled_from([1, 512, GRAIN]), seed=st.integers()
    )
    def write(self, key: int, at: float, share: float, grid: int, seed: int) -> None:
        start, length = self._range(key, at, share, grid)
        data = random.Random(seed).randbytes(length)
        try:
            live(self.store, key).write(memoryview(data), start)
        except OSError as exc:
            assert exc.errno == errno.ENOSPC
            return
        self.now[key][start : start + length] = data

    @rule(key=KEYS, at=st.floats(0, 1), share=st.floats(0, 1), grid=st.sampled_from([1, 512, GRAIN]))
    def zero(self, key: int, at: float, share: float, grid: int) -> None:
        start, length = self._range(key, at, share, grid)
        try:
            live(self.store, key).zero(length, start)
        except OSError as exc:  # the edges may need a grain of their own: then what lies between is zeroed already
            assert exc.errno == errno.ENOSPC
            self.now[key][:] = content(live(self.store, key))
            return
        self.now[key][start : start + length] = bytes(length)

    @rule(key=KEYS, at=st.floats(0, 1), share=st.floats(0, 1), grid=st.sampled_from([512, GRAIN]))
    def trim(self, key: int, at: float, share: float, grid: int) -> None:
        start, length = self._range(key, at, share, grid)
        live(self.store, key).trim(length, start)
        first, end = -(-start // GRAIN) * GRAIN, start + length
        end = end if end == SIZES[key] else end // GRAIN * GRAIN
        if end > first:
            self.now[key][first:end] = bytes(end - first)

    @rule()
    def snapshot(self) -> None:
        made = snapshots.create(self.store, self.vm, "s", "")
        assert made.parent == (self.present[-1] if self.present else None)
        self.present.append(made.id)
        self.taken[made.id] = {key: bytes(data) for key, data in self.now.items()}

    @precondition(lambda self: self.present)
    @rule(which=st.integers(0, 99), children=st.booleans())
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
            for start, length in snapshots.changed(self.store, self.vm, key, since, second):
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
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestStorage = StorageMachine.TestCase
