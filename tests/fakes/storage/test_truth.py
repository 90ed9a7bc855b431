# SPDX-License-Identifier: MIT
"""Truth records that are cut short."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from fakes.storage import snapshots
from fakes.storage.grains import GRAIN
from fakes.storage.lun import Buffer, Lun
from tests.fakes.storage.world import audit, content, digests, live, opened, truth, with_vm


def test_a_record_that_was_cut_short_is_taken_again_from_what_it_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its snapshot is removed and its first grain written over, after the record has read it and before it is complete."""
    store = opened(tmp_path / "s", 32)
    vm = with_vm(store)
    for grain in (0, 2, 4):  # no neighbours: a read each
        live(store, 2000).write(memoryview(bytes([7 + grain]) * GRAIN), grain * GRAIN)
    held = {key: content(live(store, key)) for key in vm.disks}
    one_is_left, may_go_on = threading.Event(), threading.Event()
    reads, read = [], Lun.read

    def held_up(self: Lun, buffer: Buffer, position: int) -> None:
        if threading.current_thread().name == "truth":
            reads.append(position)
            if len(reads) == 2:
                one_is_left.set()
                may_go_on.wait(20)
        read(self, buffer, position)

    monkeypatch.setattr(Lun, "read", held_up)
    snapshots.create(store, vm, "s", "")
    assert one_is_left.wait(20)
    snapshots.remove(store, vm, 1, children=False)
    live(store, 2000).write(memoryview(b"new!" * (GRAIN // 4)), 0)
    store.truth._stopping.set()
    may_go_on.set()
    store.close()
    monkeypatch.undo()

    store = opened(tmp_path / "s", 32)
    assert truth(store, 1) == {key: digests(data) for key, data in held.items()}
    assert content(live(store, 2000))[:4] == b"new!"
    audit(store)
    store.close()
