# SPDX-License-Identifier: MIT
"""Every transport mode: a full and three incrementals of VMs that are being written, each restore point equal to the truth."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e import guestdisks, harness
from tests.e2e.harness import COMMAND_DEADLINE, VADPLAB, Document, Lab, Run

pytestmark = pytest.mark.slow

MODES = {"nbd": {"nbd"}, "nbdssl": {"nbdssl"}, "hotadd": {"hotadd"}, "san": {"san"}, "auto": {"san"}}
"""Job's mode → modes that its disks are read in: `auto` finds Direct SAN here."""
STEP = {"nbd": "20c", "nbdssl": "20c", "hotadd": "20b", "san": "20a", "auto": "20a"}
INCREMENTALS = 3
QUIET, BUSY = ("files-vm", 2000), ("files-vm", 2001)
"""The disk whose changes a test knows to the block, and the one that somebody writes to all the time."""
CHANGED = 32
WIRE_OVERHEAD = 64 << 10
"""Bytes of one task that do not grow with what changed, on 902, 3260 and the data connection each: handshakes, the
configuration file, the layout, the closing messages, digests of the whole disk."""
DISK_OVERHEAD = 512 << 10
"""Bytes of one incremental's files that do not: qcow2 header and tables, digests of the whole disk, digests of the files."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab with small disks and one job for each mode."""
    home = tmp_path_factory.mktemp("modes")

    def jobs(plan: Document) -> None:
        job = plan["backup"]["jobs"][0]
        plan["backup"]["jobs"] += [{**job, "name": f"by-{mode}", "mode": mode} for mode in MODES]

    with harness.up(home, "modes", "--topology", str(harness.drill_topology(home, jobs))) as found:
        yield found


@dataclass(frozen=True)
class Backups:
    """What four runs in one mode said, in their order."""

    mode: str
    runs: list[tuple[Document, Run]]

    @property
    def points(self) -> list[tuple[str, str]]:
        """(point, VM), oldest first."""
        return [(p["point"], p["vm"]) for document, _ in self.runs for p in document["restore_points"]]


@pytest.fixture(scope="module", params=MODES)
def backups(lab: Lab, request: pytest.FixtureRequest) -> Backups:
    """A full and three incrementals, while the guest and one more write."""
    mode, runs = str(request.param), []
    for number in range(1 + INCREMENTALS):
        seed = 10 * list(MODES).index(mode) + number
        if number:
            guestdisks.write_blocks(lab, *QUIET, CHANGED, seed=seed)
        with guestdisks.writing(lab, *BUSY, seed=seed):
            runs.append(lab.job(name=f"by-{mode}", code=0))
    return Backups(mode, runs)


def test_full_and_incrementals_hold_every_invariant(backups: Backups) -> None:
    for number, (document, run) in enumerate(backups.runs):
        assert (document["result"], document["error"], document["warnings"]) == ("success", None, [])
        assert document["invariants"] == {f"I{n}": "held" for n in range(1, 11)}
        assert run.flows["foreign"] == []
        tasks = [task for vm in document["vms"] for task in vm["tasks"]]
        assert [t["task"] for t in tasks] == ["linux-vm:2000", "files-vm:2000", "files-vm:2001"]
        assert {t["mode"] for t in tasks} == MODES[backups.mode]
        assert {t["read"] for t in tasks} == {"cbt"}
        assert {t["proxy"] for t in tasks} == {"proxy-2" if backups.mode == "hotadd" else "proxy-1"} or (
            backups.mode in ("nbd", "nbdssl")  # either proxy can do that
        )
        kinds = {(p["vm"], p["kind"]) for p in document["restore_points"]}
        assert kinds == {(vm, "incremental" if number else "full") for vm in ("linux-vm", "files-vm")}
        steps = {s["step"]: s["status"] for s in run.flows["steps"]}
        assert steps[STEP[backups.mode]] == "done"
        assert {steps[s] for s in ("20a", "20b", "20c")} == {"done", "skipped"}
        assert run.freezes("linux-vm") == ["frozen", "thawed"]


def test_every_restore_point_equals_the_truth_at_its_snapshot(lab: Lab, backups: Backups, tmp_path: Path) -> None:
    points = [guestdisks.find_point(lab, *name) for name in backups.points]
    assert sum(guestdisks.assert_equals_truth(lab, point, tmp_path) for point in points) == 3 * (1 + INCREMENTALS)
    for vm in ("linux-vm", "files-vm"):
        chain = [p for p in points if p["vm"] == vm]
        assert [p["parent"] for p in chain] == [None, *(p["point"] for p in chain[:-1])]
        assert len({d["root"] for p in chain for d in p["disks"] if d["key"] == 2000}) == len(chain), "nothing changed"
        newest = Path(chain[-1]["folder"]) / chain[-1]["disks"][0]["file"]
        assert len(guestdisks.backing_files(newest)) == len(chain)


def test_the_newest_point_restores_over_the_wire(lab: Lab, backups: Backups, tmp_path: Path) -> None:
    point, vm = backups.points[-2]
    assert vm == "linux-vm"
    argv = ("restore", point, "--vm", vm, "--disk", "2000", "--to", str(tmp_path / "disk"), "--compare", "--check")
    answer = lab.done(*argv)
    assert answer["comparison"]["equal"] is True
    assert answer["check"]["filesystem"] == "file-system-consistent"
    assert answer["check"]["ledger"]["ok"]
    assert answer["evidence"] == "consistent"


def test_an_incremental_moves_and_stores_what_changed(lab: Lab, backups: Backups) -> None:
    changed = CHANGED * guestdisks.BLOCK
    vm, key = QUIET
    full = bytes_by_port(backups.runs[0][1], f"{vm}:{key}")
    for document, run in backups.runs[1:]:
        moved = bytes_by_port(run, f"{vm}:{key}")
        most, least = changed * 1.1 + WIRE_OVERHEAD, changed
        bulk = {"20a": 3260, "20b": None, "20c": 902}[STEP[backups.mode]]
        for port in (902, 3260):
            if port == bulk:
                assert least <= moved[port] <= most, moved
            else:
                assert moved[port] <= WIRE_OVERHEAD, f"{port} is not this mode's path: {moved}"
        assert least <= moved["data"] <= most, moved
        point = next(p["point"] for p in document["restore_points"] if p["vm"] == vm)
        found = guestdisks.find_point(lab, point, vm)
        entry = next(d for d in found["disks"] if d["key"] == key)
        assert entry["changed"] * guestdisks.BLOCK == changed
        files = [Path(found["folder"]) / entry[name] for name in ("file", "digests", "blocks")]
        assert least <= sum(file.stat().st_size for file in files) <= changed * 1.1 + DISK_OVERHEAD
        # The same by connection tracking alone, for the run: no path carries what no task read.
        for port in (902, 3260):
            if port != bulk:
                tasks = 3
                assert sum(f["bytes"] for f in run.flows["flows"] if f["port"] == port) <= 2 * tasks * WIRE_OVERHEAD
    assert full["data"] > 0


def test_every_point_verifies(lab: Lab, backups: Backups) -> None:
    document = lab.done("points", "verify")
    mine = [p for p in document["points"] if (p["point"], p["vm"]) in backups.points]
    assert len(mine) == len(backups.points)
    assert {p["intact"] for p in mine} == {True}, document


def test_the_proxy_lists_the_lun_with_its_naa(lab: Lab) -> None:
    """What an unmodified initiator sees from the proxy is the LUN that the storage knows."""
    client = lab.storage()
    try:
        naa = str(client.call("datastore.info")["lun"]["naa"])
    finally:
        client.close()
    portal = f"iscsi://vadplab%iscsi-chap-01@{lab.address('san')}"
    listed = initiator(lab, "iscsi-ls", "-s", "-i", "iqn.2026-11.lab.vadplab:proxy-1", f"{portal}/")
    assert listed.count("DIRECT_ACCESS") == 1
    target = listed.split("Target:")[1].split()[0]
    argv = ("iscsi-inq", "-i", "iqn.2026-11.lab.vadplab:proxy-1", "-e", "1", "-c", "131", f"{portal}/{target}/1")
    assert naa.removeprefix("naa.").lower() in initiator(lab, *argv).lower()


def initiator(lab: Lab, *argv: str) -> str:
    """What a tool of libiscsi says on the proxy. It prints binary identifiers as they are."""
    done = subprocess.run(
        [str(VADPLAB), "--lab", lab.name, "exec", "proxy-1", "--", *argv],
        env={**os.environ, "VADPLAB_HOME": str(lab.home)},
        capture_output=True,
        timeout=COMMAND_DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode(errors="replace")


def bytes_by_port(run: Run, task: str) -> dict[int | str, int]:
    """Bytes of one task's connections towards who reads (902, 3260), and over the data connection, from packets."""
    found = next(t for t in run.flows["tasks"] if t["task"] == task)
    return {902: found["bytes_902"], 3260: found["bytes_3260"], "data": found["bytes_data"]}
