# SPDX-License-Identifier: MIT
"""SIGKILL at many instants of each operation: a child dies at the n-th line of the storage's code, then it is opened again."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from fakes.core.fabric import FabricError
from fakes.storage import changes, machines, reverting, snapshots
from fakes.storage.datastore import Datastore
from fakes.storage.grains import GRAIN
from fakes.storage.truth import TruthKeeper
from tests.fakes.storage.world import SIZES, audit, content, digests, frozen, live, opened, truth, with_vm

GRAINS = 40
Operation = Callable[[Datastore], None]


def pattern(letter: str, grains: int) -> memoryview:
    return memoryview(letter.encode() * (grains * GRAIN))


def prepared(state: Path) -> tuple[dict[int, dict[int, bytes]], dict[int, bytes]]:
    """Two snapshots with different data in each layer; gives the bytes at each snapshot, and now."""
    store = opened(state, GRAINS)
    vm = with_vm(store)
    at: dict[int, dict[int, bytes]] = {}
    for letter, start, length in (("a", 0, 5), ("b", 2, 2), ("c", 3, 3)):
        live(store, 2000).write(pattern(letter, length), start * GRAIN)
        live(store, 2001).write(memoryview(letter.encode() * 700), 1000)
        if letter == "b":
            live(store, 2000).trim(GRAIN, 0)
        if letter != "c":
            made = snapshots.create(store, vm, letter, "")
            at[made.id] = {key: content(live(store, key)) for key in SIZES}
    now = {key: content(live(store, key)) for key in SIZES}
    for identity in at:
        truth(store, identity)
    store.close()
    return at, now


def die_at(line: int) -> Callable[[FrameType, str, Any], Any]:
    """A trace function that kills this process at the `line`-th line executed in the storage's code."""
    left = [line]

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if f"fakes{os.sep}storage" not in frame.f_code.co_filename or "tests" in frame.f_code.co_filename:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def run_and_die(state: Path, operation: Operation, line: int) -> bool:
    """Runs `operation` in a child that dies at a line; True if it got through before."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            store = opened(state, GRAINS)
            sys.settrace(die_at(line))
            operation(store)
            sys.settrace(None)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0
    return True


def each_instant(tmp_path: Path, operation: Operation, first: Operation | None = None) -> Any:
    """Reopened stores, one for every instant tried, the last one after the whole operation.

    `first` is done once, before.
    """
    at, now = prepared(tmp_path / "before")
    if first:
        store = opened(tmp_path / "before", GRAINS)
        first(store)
        store.close()
    line, step, through = 1, 1, False
    while not through:
        state = tmp_path / "try"
        shutil.copytree(tmp_path / "before", state)
        through = run_and_die(state, operation, line)
        store = opened(state, GRAINS)
        yield store, at, now, through
        for vm in store.vms.values():
            for snap in vm.snapshots:
                truth(store, snap.id)
        for path in (state / "truth" / "web").glob("*.json"):
            truth(store, int(path.stem))
        audit(store)
        left = {p.name for p in state.glob("chains/*/*")}
        keep = set()
        for vm in store.vms.values():
            keep |= {la.path.name for d in vm.disks.values() for la in d.chain} | {f"{key}.log" for key in SIZES}
            keep |= {f"{key}-s{s.id}.log" for s in vm.snapshots for key in SIZES}
        assert left == keep
        store.close()
        shutil.rmtree(state)
        step = max(1, line // 12)
        line += step


def removing(identity: int, children: bool) -> Operation:
    return lambda store: snapshots.remove(store, store.vm("web"), identity, children=children)


@pytest.mark.parametrize(("identity", "children"), [(1, False), (2, False), (1, True)])
def test_removal(tmp_path: Path, identity: int, children: bool) -> None:
    tried = 0
    for store, at, now, through in each_instant(tmp_path, removing(identity, children)):
        tried += 1
        vm = store.vm("web")
        assert {key: content(live(store, key)) for key in SIZES} == now
        left = [s.id for s in vm.snapshots]
        allowed = [[1, 2], [1], []] if children else [[1, 2], [3 - identity]]
        assert left in allowed
        for snap in vm.snapshots:
            for disk in snapshots.shown(vm, snap)["disks"]:
                assert content(frozen(store, disk["frozen"])) == at[snap.id][disk["key"]]
        if through:
            assert left == allowed[-1]
        for known, disks in at.items():
            assert truth(store, known) == {key: digests(data) for key, data in disks.items()}
    assert tried > 20


def test_creation(tmp_path: Path) -> None:
    def create(store: Datastore) -> None:
        snapshots.create(store, store.vm("web"), "third", "")

    seen = set()
    for store, _, now, through in each_instant(tmp_path, create):
        vm = store.vm("web")
        assert {key: content(live(store, key)) for key in SIZES} == now
        left = [s.id for s in vm.snapshots]
        assert left == [1, 2, 3] if through else left in ([1, 2], [1, 2, 3])
        seen.add(len(left))
        if 3 in left:
            assert truth(store, 3) == {key: digests(data) for key, data in now.items()}
    assert seen == {2, 3}


def test_revert(tmp_path: Path) -> None:
    """Either nothing happened or all of it; what changed counts as changed from then on, also in the first case."""

    def revert(store: Datastore) -> None:
        reverting.revert(store, store.vm("web"), 1, discard_later=True)

    seen = set()
    for store, at, now, through in each_instant(tmp_path, revert):
        vm = store.vm("web")
        done = [s.id for s in vm.snapshots] == [1]
        assert done or ([s.id for s in vm.snapshots] == [1, 2] and not through)
        expected = at[1] if done else now
        assert {key: content(live(store, key)) for key in SIZES} == expected
        made = snapshots.create(store, vm, "after", "")
        for key in SIZES:
            rebuilt = bytearray(at[2][key])
            for start, length in changes.changed(store, vm, key, 2, made.id):
                rebuilt[start : start + length] = expected[key][start : start + length]
            assert rebuilt == expected[key]
        assert truth(store, made.id) == {key: digests(data) for key, data in expected.items()}
        seen.add(done)
    assert seen == {False, True}


def test_growth(tmp_path: Path) -> None:
    def alone(store: Datastore) -> None:
        snapshots.remove(store, store.vm("web"), 1, children=True)

    def grow(store: Datastore) -> None:
        machines.grow(store, store.vm("web"), 2001, 6 * GRAIN)

    seen = set()
    for store, _, now, through in each_instant(tmp_path, grow, alone):
        disk = store.vm("web").disks[2001]
        assert disk.size == 6 * GRAIN or (disk.size == SIZES[2001] and not through)
        assert content(live(store, 2001)) == now[2001].ljust(disk.size, b"\0")
        if disk.size == 6 * GRAIN:
            made = snapshots.create(store, store.vm("web"), "after", "")
            assert changes.changed(store, store.vm("web"), 2001, 2, made.id) == [[0, GRAIN], [2 * GRAIN, 4 * GRAIN]]
            assert truth(store, made.id)[2001] == digests(now[2001].ljust(disk.size, b"\0"))
        seen.add(disk.size)
    assert len(seen) == 2


def test_deletion(tmp_path: Path) -> None:
    seen = set()
    for store, at, now, through in each_instant(tmp_path, lambda store: machines.delete(store, store.vm("web"))):
        gone = "web" not in store.vms
        assert gone or not through
        if gone:
            assert store.lun.free == store.lun.capacity
        else:
            assert {key: content(live(store, key)) for key in SIZES} == now
        for known, disks in at.items():
            assert truth(store, known) == {key: digests(data) for key, data in disks.items()}
        seen.add(gone)
    assert seen == {False, True}


def test_writing(tmp_path: Path) -> None:
    def write(store: Datastore) -> None:
        live(store, 2000).write(pattern("d", 3), 3 * GRAIN // 2)

    for store, _, now, through in each_instant(tmp_path, write):
        new = bytearray(now[2000])
        new[3 * GRAIN // 2 : 9 * GRAIN // 2] = pattern("d", 3)
        found = content(live(store, 2000))
        for start in range(0, len(new), GRAIN):
            part = slice(start, start + GRAIN)
            assert found[part] in (now[2000][part], new[part])
        assert content(live(store, 2001)) == now[2001]
        if through:
            assert found == new


def test_truth_survives_a_kill_before_it_was_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan's grains stay pinned over a kill, a removal of the snapshot, and later writes to the same place."""

    def snapshot_remove_write(store: Datastore) -> None:
        store.truth._stopping.set()  # the thread takes nothing up any more
        vm = store.vm("web")
        made = snapshots.create(store, vm, "third", "")
        for identity in (1, 2, made.id):
            snapshots.remove(store, vm, identity, children=False)
        live(store, 2000).write(pattern("y", 4), 0)
        os.kill(os.getpid(), signal.SIGKILL)

    _, now = prepared(tmp_path / "s")
    assert not run_and_die(tmp_path / "s", snapshot_remove_write, 1 << 30)
    with monkeypatch.context() as patch:
        patch.setattr(TruthKeeper, "start", lambda self: None)
        store = opened(tmp_path / "s", GRAINS)
    for letter in "vwxz":  # new grains are needed as long as the old ones are pinned
        live(store, 2000).trim(7 * GRAIN, 0)
        live(store, 2000).write(pattern(letter, 7), 0)
    everything = store.lun.allocate(store.lun.free // GRAIN, -1, 0)
    assert not any(store.lun.pins[grain] for grain in everything)
    store.lun.release(everything)
    with pytest.raises(FabricError, match="not complete yet"):
        truth(store, 3, wait=0.01)
    store.truth.start()
    assert truth(store, 3) == {key: digests(data) for key, data in now.items()}
    assert content(live(store, 2000)) == pattern("z", 7)
    audit(store)
    store.close()


def test_a_lost_map_is_an_error(tmp_path: Path) -> None:
    prepared(tmp_path / "s")
    (tmp_path / "s" / "chains" / "web" / "2000-0.map").unlink()
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "s", GRAINS)
