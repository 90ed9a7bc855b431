# SPDX-License-Identifier: MIT
"""Changed areas come page by page, and a page that leaves something out is refused; tracking is switched on where that is allowed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyVmomi import vim

from engine.vsphere import tracking
from engine.vsphere.tracking import CLUSTER, ChangesUnclear, Tracking

Page = tuple[int, int, list[tuple[int, int]]]


class Fake:
    """A session whose VM answers with given pages, and keeps the setting of its tracking or not."""

    name = "vcenter"
    stub = None

    def __init__(self, pages: list[Page] | None = None, *, on: bool = False, snapshots: int = 0, keeps: bool = True):
        self.pages = pages or []
        self.asked: list[int] = []
        self.keeps = keeps
        self.reconfigured = 0
        roots = [object()] * snapshots
        self.config = SimpleNamespace(changeTrackingEnabled=on)
        self.snapshot = SimpleNamespace(rootSnapshotList=roots) if snapshots else None

    def call(self, function: Any, *, step: str, repeatable: bool = True) -> Any:
        return function()

    def wait(self, task: Any, *, step: str, timeout: float) -> None:
        assert task == "task"

    def where(self, step: str) -> dict[str, Any]:
        return {"step": step}

    def ReconfigVM_Task(self, *, spec: Any) -> str:
        assert spec.changeTrackingEnabled is True
        self.reconfigured += 1
        self.config.changeTrackingEnabled = self.keeps
        return "task"

    def QueryChangedDiskAreas(self, *, snapshot: Any, deviceKey: int, startOffset: int, changeId: str) -> Any:
        self.asked.append(startOffset)
        start, length, areas = self.pages[len(self.asked) - 1]
        found = [SimpleNamespace(start=at, length=n) for at, n in areas]
        return SimpleNamespace(startOffset=start, length=length, changedArea=found)


@pytest.fixture(autouse=True)
def vsphere_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    real = vim
    fake = SimpleNamespace(
        VirtualMachine=lambda moref, stub: CURRENT[-1],
        vm=SimpleNamespace(Snapshot=lambda moref, stub: moref, ConfigSpec=real.vm.ConfigSpec, device=real.vm.device),
    )
    monkeypatch.setattr(tracking, "vim", fake)


CURRENT: list[Fake] = []


def areas(fake: Fake, capacity: int) -> list[tuple[int, int]]:
    CURRENT.append(fake)
    return tracking.changed_areas(fake, "vm-1", "snapshot-1", 2000, "52/1", capacity, step="15")  # type: ignore[arg-type]


def test_pages_are_asked_for_until_the_disk_is_covered() -> None:
    mib = 1 << 20
    fake = Fake([(0, mib, [(0, 512)]), (mib, mib, []), (2 * mib, 2 * mib, [(2 * mib, 10), (4 * mib - 1, 1)])])
    assert areas(fake, 4 * mib) == [(0, CLUSTER), (2 * mib, CLUSTER), (4 * mib - CLUSTER, CLUSTER)]
    assert fake.asked == [0, mib, 2 * mib]


@pytest.mark.parametrize("page", [(0, 0, []), (512, 1 << 20, []), (0, -1, [])])
def test_page_that_leaves_something_out_is_refused(page: Page) -> None:
    with pytest.raises(ChangesUnclear):
        areas(Fake([page]), 1 << 20)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.data())
def test_nothing_that_changed_is_lost_over_pages(lengths: list[int], data: st.DataObject) -> None:
    changed, pages, start = set(), [], 0
    for length in lengths:
        inside = data.draw(st.sets(st.integers(start, start + length - 1)))
        changed |= inside
        pages.append((start * CLUSTER, length * CLUSTER, [(c * CLUSTER + 7, 1) for c in sorted(inside)]))
        start += length
    found = areas(Fake(pages), start * CLUSTER)
    assert {c for at, n in found for c in range(at // CLUSTER, (at + n) // CLUSTER)} == changed


@pytest.mark.parametrize(
    ("fake", "found", "reconfigured"),
    [
        (Fake(on=True, snapshots=2), Tracking(True), 0),
        (Fake(), Tracking(True, switched=True), 1),
        (Fake(snapshots=1), Tracking(False, reason="the VM has snapshots, so tracking cannot be switched on"), 0),
        (Fake(keeps=False), Tracking(False, reason="vCenter did not keep the setting"), 1),
    ],
)
def test_tracking_is_switched_on_only_without_snapshots(fake: Fake, found: Tracking, reconfigured: int) -> None:
    CURRENT.append(fake)
    assert tracking.ensure(fake, "vm-1", step="8") == found  # type: ignore[arg-type]
    assert fake.reconfigured == reconfigured
