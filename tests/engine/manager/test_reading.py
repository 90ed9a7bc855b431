# SPDX-License-Identifier: MIT
"""How a disk is read: the whole decision table; areas are rounded so that nothing that changed is left out."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.manager import reading
from engine.manager.reading import Intent
from engine.vsphere import VSphereFault
from engine.vsphere.tracking import CLUSTER, rounded

PERIOD = "52 de c0 d9 b9 43 9d 10-61 d5 4c 1b e9 7b 65 63"
OTHER = "52 aa c0 d9 b9 43 9d 10-61 d5 4c 1b e9 7b 65 63"
BELOW = {"key": 2000, "capacity": 1 << 20, "change_id": f"{PERIOD}/4"}


@pytest.mark.parametrize(
    ("change_id", "below", "wanted", "since", "how", "words"),
    [
        (f"{PERIOD}/5", None, True, "*", "cbt", "allocated"),
        (None, None, True, None, "all", "not in effect"),
        (f"{PERIOD}/5", None, False, None, "all", "switched off in the job"),
        (f"{PERIOD}/5", BELOW, True, f"{PERIOD}/4", "cbt", "changed areas"),
        (f"{PERIOD.upper()}/5", BELOW, True, f"{PERIOD}/4", "cbt", "changed areas"),
        (f"{PERIOD}/5", BELOW, False, None, "compare", "switched off in the job"),
        (None, BELOW, True, None, "compare", "not in effect"),
        (f"{PERIOD}/5", {**BELOW, "change_id": None}, True, None, "compare", "no change ID"),
        (f"{PERIOD}/5", {"key": 2000, "capacity": 1 << 20}, True, None, "compare", "no change ID"),
        (f"{OTHER}/5", BELOW, True, None, "compare", "reset"),
        ("nonsense", BELOW, True, None, "compare", "reset"),
        (f"{PERIOD}/5", {**BELOW, "capacity": 1 << 19}, True, None, "compare", "grown"),
        (f"{PERIOD}/5", {**BELOW, "capacity": 1 << 21}, True, None, "compare", "shrunk"),
    ],
)
def test_decision_table(
    change_id: str | None, below: dict[str, Any] | None, wanted: bool, since: str | None, how: str, words: str
) -> None:
    intent = reading.intend(1 << 20, change_id, below, wanted=wanted, off="")
    assert intent.since == since and words in intent.reason
    ranges = [(0, CLUSTER)] if since is not None else None
    found = reading.settled(intent, ranges)
    assert (found.how, found.incremental, found.ranges) == (how, below is not None, ranges)
    assert found.bytes == (CLUSTER if ranges else None)
    # nothing changed is an answer too, and a refusal never is one
    if since is not None:
        assert reading.settled(intent, []).ranges == []
        refused = reading.settled(intent, None, VSphereFault("vcenter: FileFault (noTrack)"))
        assert (refused.how, refused.ranges) == ("compare" if below else "all", None)
        assert "noTrack" in refused.reason


def test_why_tracking_is_off_is_said() -> None:
    off = reading.intend(1 << 20, None, None, wanted=True, off="the VM has snapshots")
    assert off == Intent(None, "the VM has snapshots", False)


NEWEST = {"point": "20261125T071500Z-3f2a", "uuid": "u", "folder": "/r/p", "disks": [BELOW]}


@pytest.mark.parametrize(
    ("newest", "problem", "full", "uuid", "kind", "words"),
    [
        (NEWEST, None, False, "u", "incremental", ""),
        (NEWEST, None, True, "u", "full", "asked for"),
        (None, None, False, "u", "full", "first"),
        (None, "manifest: damaged", False, "u", "full", "damaged"),
        (NEWEST, "locked", False, "u", "full", "locked"),
        (NEWEST, None, False, "another", "full", "another VM"),
    ],
)
def test_what_a_point_stands_on(
    newest: dict[str, Any] | None, problem: str | None, full: bool, uuid: str, kind: str, words: str
) -> None:
    found = reading.base(newest, problem, full=full, uuid=uuid)
    assert found.kind == kind and words in found.reason
    assert found.point == (NEWEST["point"] if kind == "incremental" else None)
    assert found.disk(2000) == (BELOW if kind == "incremental" else None) and found.disk(2001) is None


areas = st.lists(st.tuples(st.integers(0, 40 * CLUSTER), st.integers(0, 5 * CLUSTER)), max_size=20)


@given(areas, st.integers(1, 80).map(lambda n: n * 32768))
def test_rounded_areas_cover_every_byte_and_no_further_cluster(found: list[tuple[int, int]], capacity: int) -> None:
    covered = rounded(found, capacity)
    assert covered == sorted(covered)
    for (one, length), (other, _) in itertools.pairwise(covered):
        assert one + length < other
    clusters = {c for at, n in covered for c in range(at // CLUSTER, -(-(at + n) // CLUSTER))}
    wanted = {
        c for at, n in found if n for c in range(at // CLUSTER, (at + n - 1) // CLUSTER + 1) if c * CLUSTER < capacity
    }
    assert clusters == wanted
    assert all(at % CLUSTER == 0 and at + n <= capacity for at, n in covered)
