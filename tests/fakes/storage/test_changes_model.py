# SPDX-License-Identifier: MIT
"""Changed areas against byte comparisons, whatever happens: writes, snapshots, merges, reverts, growth, resets, reopenings.

*Never too little*: the earlier bytes with the named areas taken from the later ones are the later ones. *Not
everything*: no grain is named that nothing touched meanwhile. The LUN maps and the truth records are checked on the way.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fakes.core.fabric import FabricError
from fakes.storage import changes, machines, reverting, sanmap, snapshots, tracking
from fakes.storage.grains import GRAIN
from tests.fakes.storage.world import SIZES, audit, content, digests, frozen, live, opened, truth, with_vm

GRAINS = 96
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
KEYS = st.sampled_from(sorted(SIZES))
LENGTH = st.sampled_from([512, 4096, GRAIN, 2 * GRAIN, 3 * GRAIN + 512])


@dataclass
class Instant:
    """What a backup client knows of one disk at one time, and the grains touched since."""

    key: int
    data: bytes
    sequence: int
    change_id: str | None
    touched: set[int] = field(default_factory=set)


@dataclass
class Taken:
    """A snapshot: its instants, and for each older instant the grains touched in between."""

    instants: dict[int, Instant]
    since: list[tuple[Instant, frozenset[int]]]
    maps: dict[int, bytes]


def by_map(lun: Path, document: bytes) -> bytes:
    """The disk as a reader of the LUN sees it."""
    data = json.loads(document)
    disk = bytearray(data["size"])
    with open(lun, "rb") as file:
        for at, length, where in data["extents"]:
            disk[at : at + length] = os.pread(file.fileno(), length, where)
    return bytes(disk)


def named(areas: list[list[int]]) -> set[int]:
    """The grains of areas, which are ascending and do not touch."""
    assert all(a[0] + a[1] < b[0] for a, b in itertools.pairwise(areas))
    return {grain for start, length in areas for grain in range(start // GRAIN, -(-(start + length) // GRAIN))}


class ChangesMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="storage-changes-", dir=MEMORY))
        self.store = opened(self.folder / "s", GRAINS)
        self.vm = with_vm(self.store)
        self.now = {key: bytearray(size) for key, size in SIZES.items()}
        self.known: list[Instant] = []
        self.present: dict[int, Taken] = {}
        self.digests: dict[int, dict[int, bytes]] = {}
        self.epochs: dict[int, str | None] = dict.fromkeys(SIZES)
        self.wanted = False

    def teardown(self) -> None:
        try:
            for identity, disks in self.digests.items():
                assert truth(self.store, identity) == disks
            audit(self.store)
        finally:
            self.store.close()
            shutil.rmtree(self.folder)

    def _touch(self, key: int, grains: set[int]) -> None:
        for each in self.known:
            if each.key == key:
                each.touched |= grains

    def _cycle(self) -> None:
        """The disks were opened anew."""
        for key, disk in self.vm.disks.items():
            assert (disk.epoch is not None) == self.wanted
            if self.wanted and self.epochs[key] is not None:
                assert disk.epoch == self.epochs[key]
            elif self.wanted:
                assert disk.epoch not in self.epochs.values()
            self.epochs[key] = disk.epoch

    @rule(key=KEYS, grain=st.integers(0, 9), length=LENGTH, seed=st.integers(0, 99))
    def write(self, key: int, grain: int, length: int, seed: int) -> None:
        size = len(self.now[key])
        start = grain * GRAIN % size
        length = min(length, size - start)
        data = random.Random(seed).randbytes(length)
        live(self.store, key).write(memoryview(data), start)
        self.now[key][start : start + length] = data
        self._touch(key, named([[start, length]]))

    @rule(key=KEYS, grain=st.integers(0, 9), length=LENGTH)
    def zero(self, key: int, grain: int, length: int) -> None:
        size = len(self.now[key])
        start = grain * GRAIN % size
        length = min(length, size - start)
        live(self.store, key).zero(length, start)
        self.now[key][start : start + length] = bytes(length)
        self._touch(key, named([[start, length]]))

    @rule(on=st.booleans())
    def ask(self, on: bool) -> None:
        self.store.ask_tracking(self.vm, on)
        self.wanted = on
        assert {key: disk.epoch for key, disk in self.vm.disks.items()} == self.epochs

    @rule()
    def power_cycle(self) -> None:
        self.store.set_power(self.vm, True)
        self._cycle()
        with pytest.raises(FabricError, match="runs"):
            changes.changed(self.store, self.vm, 2000, 0, None)
        self.store.set_power(self.vm, False)

    @rule(seed=st.integers(0, 9999))
    def snapshot(self, seed: int) -> None:
        """A few writes first, so that neighbouring snapshots differ."""
        rng = random.Random(seed)
        for _ in range(seed % 4):
            self.write(rng.choice(sorted(SIZES)), rng.randrange(9), rng.choice((512, 2 * GRAIN)), rng.randrange(100))
        made = snapshots.create(self.store, self.vm, "s", "")
        self._cycle()
        shown = {disk["key"]: disk for disk in snapshots.shown(self.vm, made)["disks"]}
        instants = {
            key: Instant(key, bytes(data), shown[key]["sequence"], shown[key]["change_id"])
            for key, data in self.now.items()
        }
        for key, each in instants.items():
            assert (each.change_id is not None) == self.wanted
            if each.change_id:
                assert tracking.parse(each.change_id) == (self.epochs[key], each.sequence)
        since = [(each, frozenset(each.touched)) for each in self.known]
        maps = {
            key: sanmap.content(self.store, shown[key]["frozen"].removesuffix(".vmdk") + "-map") for key in self.now
        }
        self.present[made.id] = Taken(instants, since, maps)
        self.known += instants.values()
        self.digests[made.id] = {key: digests(each.data) for key, each in instants.items()}
        self.changed_up_to_a_snapshot(len(self.present) - 1)

    @rule()
    def remember_now(self) -> None:
        """A client that looks at a powered-off VM remembers the change IDs of its present disks."""
        for key, disk in self.vm.disks.items():
            change_id = tracking.text(disk.epoch, disk.sequence - 1) if disk.epoch else None
            made = Instant(key, bytes(self.now[key]), disk.sequence - 1, change_id)
            for each in self.known:  # what was touched since that sequence counts, too
                if each.key == key and each.sequence == made.sequence:
                    made.touched |= each.touched
            if not any(each.key == key and each.sequence == made.sequence for each in self.known):
                made.touched = set(range(64))
            self.known.append(made)

    @precondition(lambda self: self.present)
    @rule(which=st.integers(0, 9), children=st.booleans())
    def remove(self, which: int, children: bool) -> None:
        ids = list(self.present)
        at = which % len(ids)
        snapshots.remove(self.store, self.vm, ids[at], children=children)
        self._cycle()
        for gone in ids[at : None if children else at + 1]:
            del self.present[gone]

    @precondition(lambda self: self.present)
    @rule(which=st.integers(0, 9), discard=st.booleans())
    def revert(self, which: int, discard: bool) -> None:
        ids = list(self.present)
        at = which % len(ids)
        later = ids[at + 1 :]
        if later and not discard:
            with pytest.raises(FabricError) as caught:
                reverting.revert(self.store, self.vm, ids[at], discard_later=False)
            assert caught.value.code == "has-children"
            return
        reverting.revert(self.store, self.vm, ids[at], discard_later=discard)
        self._cycle()
        for gone in later:
            del self.present[gone]
        for key, instant in self.present[ids[at]].instants.items():
            self.now[key][:] = instant.data
            self._touch(key, set(instant.touched))
        self.changed_up_to_now()

    @precondition(lambda self: not self.present)
    @rule(key=KEYS, more=st.sampled_from([512, GRAIN - 1536, GRAIN, 3 * GRAIN + 512]))
    def grow(self, key: int, more: int) -> None:
        old = len(self.now[key])
        if old > 16 * GRAIN:
            return
        machines.grow(self.store, self.vm, key, old + more)
        self.now[key] += bytes(more)
        self._touch(key, named([[old, more]]))
        self.changed_up_to_now()

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = opened(self.folder / "s", GRAINS)
        self.vm = self.store.vm("web")

    def _compare(
        self, old: Instant, identity: int | None, new: bytes, touched: frozenset[int], epoch: str | None
    ) -> None:
        areas = changes.changed(self.store, self.vm, old.key, old.sequence, identity)
        rebuilt = bytearray(old.data.ljust(len(new), b"\0"))
        for start, length in areas:
            rebuilt[start : start + length] = new[start : start + length]
        assert rebuilt == new
        assert named(areas) <= touched
        if old.change_id is None:
            return
        if epoch == tracking.parse(old.change_id)[0]:
            assert changes.changed(self.store, self.vm, old.key, old.change_id, identity) == areas
        else:
            with pytest.raises(FabricError) as caught:
                changes.changed(self.store, self.vm, old.key, old.change_id, identity)
            assert caught.value.code == ("no-epoch" if epoch or self.epochs[old.key] else "not-tracked")

    @precondition(lambda self: self.present)
    @rule(which=st.integers(0, 9))
    def changed_up_to_a_snapshot(self, which: int) -> None:
        identity = list(self.present)[which % len(self.present)]
        taken = self.present[identity]
        for old, touched in taken.since:
            new = taken.instants[old.key]
            epoch = tracking.parse(new.change_id)[0] if new.change_id else None
            self._compare(old, identity, new.data, touched, epoch)

    @rule()
    def changed_up_to_now(self) -> None:
        for old in self.known:
            self._compare(old, None, bytes(self.now[old.key]), frozenset(old.touched), self.epochs[old.key])

    @precondition(lambda self: self.present)
    @rule(which=st.integers(0, 9))
    def allocated(self, which: int) -> None:
        identity = list(self.present)[which % len(self.present)]
        for key, instant in self.present[identity].instants.items():
            if instant.change_id is None:
                with pytest.raises(FabricError) as caught:
                    changes.changed(self.store, self.vm, key, "*", identity)
                assert caught.value.code == ("no-epoch" if self.epochs[key] else "not-tracked")
                continue
            areas = changes.changed(self.store, self.vm, key, "*", identity)
            held = bytearray(len(instant.data))
            for start, length in areas:
                held[start : start + length] = instant.data[start : start + length]
            assert held == instant.data

    @invariant()
    def disks_snapshots_and_maps_hold_their_bytes(self) -> None:
        for key, data in self.now.items():
            assert content(live(self.store, key)) == data
        for snap in self.vm.snapshots:
            taken = self.present[snap.id]
            for disk in snapshots.shown(self.vm, snap)["disks"]:
                instant = taken.instants[disk["key"]].data
                assert content(frozen(self.store, disk["frozen"])) == instant
                assert by_map(self.store.lun.path, taken.maps[disk["key"]]) == instant
                fresh = sanmap.content(self.store, disk["frozen"].removesuffix(".vmdk") + "-map")
                assert json.loads(fresh)["extents"] == json.loads(taken.maps[disk["key"]])["extents"]


ChangesMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestChanges = ChangesMachine.TestCase
