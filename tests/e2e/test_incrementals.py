# SPDX-License-Identifier: MIT
"""Incrementals without usable change tracking: the engine compares blocks itself and says so; only changes are moved and kept.

Each test leaves one point more on the chain of the last; every one of them equals the truth at its snapshot.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import guestdisks, harness
from tests.e2e.harness import Document, Lab, Run

pytestmark = pytest.mark.slow

JOB = "files"
VM = "files-vm"
CHANGED = 24
OVERHEAD = 64 << 10
"""Bytes on the data connection that do not grow with what changed."""
DIGESTS = 64
"""Bytes on the data connection for each block of 64 KiB that is compared: its digest, and who asks for it."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab with one job over one VM, which has a full and an incremental made with change tracking."""
    home = tmp_path_factory.mktemp("incrementals")

    def one_job(plan: Document) -> None:
        plan["backup"]["jobs"] = [{"name": JOB, "vms": [VM], "mode": "nbd"}]

    with harness.up(home, "increments", "--topology", str(harness.drill_topology(home, one_job))) as found:
        for kind in ("full", "incremental"):
            document, _ = found.job(name=JOB, code=0)
            assert [p["kind"] for p in document["restore_points"]] == [kind]
            assert {t["read"] for vm in document["vms"] for t in vm["tasks"]} == {"cbt"}
        yield found


def at_vcenter(lab: Lab, *argv: str) -> Document:
    """What an administrator does at vCenter."""
    script = Path(__file__).with_name("at_vcenter.py")
    done = harness.run_text(lab.home, "--lab", lab.name, "exec", "vcenter", "--", sys.executable, str(script),
                            lab.address("vcenter"), str(lab.folder.topology_file), *argv)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def compared(lab: Lab, words: str, folder: Path, *, key: int = 2000, count: int = CHANGED) -> tuple[Document, Run]:
    """A run that must compare disk `key` for the reason with these words; `count` blocks of it changed, and no more is kept."""
    document, run = lab.job(name=JOB, code=0)
    assert (document["result"], [p["kind"] for p in document["restore_points"]]) == ("success", ["incremental"])
    assert document["invariants"]["I5"] == "held"
    task = next(t for t in document["vms"][0]["tasks"] if t["task"] == f"{VM}:{key}")
    assert (task["read"], words in task["reason"]) == ("compare", True), task
    assert words in run.step("17")["text"] or any(words in str(t["reason"]) for t in run.flows["tasks"])
    point = guestdisks.find_point(lab, document["restore_points"][0]["point"], VM)
    assert guestdisks.assert_equals_truth(lab, point, folder) == 2
    entry = next(d for d in point["disks"] if d["key"] == key)
    assert entry["changed"] == count
    moved = next(t for t in run.flows["tasks"] if t["task"] == f"{VM}:{key}")
    blocks = entry["capacity"] // guestdisks.BLOCK
    assert moved["bytes_data"] <= 1.1 * count * guestdisks.BLOCK + blocks * DIGESTS + OVERHEAD
    return document, run


def test_tracking_that_was_reset(lab: Lab, tmp_path: Path) -> None:
    """Off and on again between two runs: a new period, whose record begins after some of the writes."""
    guestdisks.write_blocks(lab, VM, 2000, CHANGED, seed=1)
    at_vcenter(lab, "tracking", VM, "off")
    at_vcenter(lab, "tracking", VM, "on")
    compared(lab, "change tracking was reset", tmp_path)


def test_tracking_that_was_switched_off_is_switched_on_again(lab: Lab, tmp_path: Path) -> None:
    at_vcenter(lab, "tracking", VM, "off")
    guestdisks.write_blocks(lab, VM, 2000, CHANGED, seed=2)
    compared(lab, "tracking", tmp_path)
    guestdisks.write_blocks(lab, VM, 2000, CHANGED, seed=3)
    document, _ = lab.job(name=JOB, code=0)
    assert {t["read"] for t in document["vms"][0]["tasks"]} == {"cbt"}, "from the next run on it is used"
    point = guestdisks.find_point(lab, document["restore_points"][0]["point"], VM)
    assert guestdisks.assert_equals_truth(lab, point, tmp_path) == 2


def test_job_without_tracking(lab: Lab, tmp_path: Path) -> None:
    lab.done("job", "edit", JOB, "--no-cbt")
    guestdisks.write_blocks(lab, VM, 2000, CHANGED, seed=4)
    try:
        _, run = compared(lab, "switched off in the job", tmp_path)
    finally:
        lab.done("job", "edit", JOB, "--cbt")
    assert "QueryChangedDiskAreas" not in run.gateway()


def test_disk_that_has_grown(lab: Lab, tmp_path: Path) -> None:
    lab.job(name=JOB, code=0)  # with a change ID again, so that size alone is the reason
    guestdisks.write_blocks(lab, VM, 2001, 8, seed=5)
    at_vcenter(lab, "grow", VM, "2001", str(24 << 20))
    with guestdisks.guest_disk(lab, VM, 2001) as disk:
        assert disk.get_size() == 24 << 20
        disk.pwrite(b"\xa7" * guestdisks.BLOCK, (24 << 20) - guestdisks.BLOCK)
    compared(lab, "has grown from 16777216 to 25165824 bytes", tmp_path, key=2001, count=9)
    document, _ = lab.job(name=JOB, code=0)
    assert {t["read"] for t in document["vms"][0]["tasks"]} == {"cbt"}


def test_all_points_verify_afterwards(lab: Lab) -> None:
    document = lab.done("points", "verify", "--deep")
    assert len(document["points"]) >= 2
    assert document["intact"] is True, document
