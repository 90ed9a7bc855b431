# SPDX-License-Identifier: MIT
"""The shipped lab and its job, once, end to end: 22 steps, every witness of every flow, and disks that equal the truth."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import harness
from tests.e2e.harness import Document, Lab, Run

pytestmark = pytest.mark.slow

STEPS = ["1", "2", "3", "4", "5a", "5b", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16", "17", "18", "19"]
STEPS += ["20a", "20b", "20c", "21", "22"]
NOT_IN_THIS_JOB = {"9", "10", "11", "14", "20a", "20b"}  # Windows guests, Tools quiescence, SAN and HotAdd
LOCAL = {"2", "4", "9", "12", "14", "17"}
ROWS = {"C1": 1, "M4": 2, "M5": 6, "D1": 3, "H1": 1, "G10": 1, "H4": 3, "H5": 3}  # connections of two VMs, three disks
TASKS = ["linux-vm:2000", "files-vm:2000", "files-vm:2001"]
DISKS = [("linux-vm", 2000, 512 << 20), ("files-vm", 2000, 256 << 20), ("files-vm", 2001, 128 << 20)]
INVARIANTS = {"I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9", "I10"}
BLOCK = 65536


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab of the shipped topology and policy."""
    with harness.up(tmp_path_factory.mktemp("demo"), "demo") as lab:
        yield lab


@pytest.fixture(scope="module")
def backup(shipped: Lab) -> tuple[Document, Run]:
    """The job's first run."""
    return shipped.job(code=0)


def test_the_job_s_document(shipped: Lab, backup: tuple[Document, Run]) -> None:
    document, run = backup
    assert (document["result"], document["error"], document["warnings"]) == ("success", None, [])
    assert document["run"] == run.folder.name
    assert document["invariants"] == dict.fromkeys(INVARIANTS, "held")
    assert [t["task"] for vm in document["vms"] for t in vm["tasks"]] == TASKS
    assert [(vm["scripts"], vm["consistency"]) for vm in document["vms"]] == [("ran", "file-system"), ("off", "crash")]
    for (_, key, size), task in zip(DISKS, (t for vm in document["vms"] for t in vm["tasks"]), strict=True):
        assert task["error"] is None
        assert task["task"].endswith(str(key))
        assert task["moved"]["total"] == size
        assert task["moved"]["data"] + task["moved"]["zero"] == task["moved"]["read"]
    assert {(p["vm"], d["key"]) for p in document["restore_points"] for d in p["disks"]} == {d[:2] for d in DISKS}
    assert {p["point"] for p in document["restore_points"]} == {p["point"] for p in shipped.points()}


def test_22_steps_in_their_order_each_with_evidence(backup: tuple[Document, Run]) -> None:
    _, run = backup
    steps = run.flows["steps"]
    assert [s["step"] for s in steps] == STEPS
    assert {int(s["step"].rstrip("abc")) for s in steps} == set(range(1, 23))
    assert {s["step"] for s in steps if s["status"] == "skipped"} == NOT_IN_THIS_JOB
    numbers = {f["flow"] for f in run.flows["flows"] if f["start"] is not None}
    begun = []
    for step in steps:
        if step["step"] in NOT_IN_THIS_JOB:
            assert step["text"], "a step that is left out says why"
            assert step["flows"] == []
            continue
        assert step["status"] == "done"
        assert set(step["flows"]) <= numbers
        assert bool(step["flows"]) != step["local"] or step["step"] == "3"
        assert step["evidence"], f"step {step['step']} is shown by nothing"
        begun.append((step["begin"], step["step"]))
    first_of_22 = next(at for at, name in begun if name == "22")
    order = [name for _, name in sorted(begun, key=lambda b: b[0]) if name != "22"]
    assert order == [name for _, name in begun if name != "22"], "first times follow the sequence"
    assert first_of_22 > next(at for at, name in begun if name == "20c")
    assert {s["step"] for s in steps if s["local"]} == LOCAL | {"3"}


def test_every_flow_has_five_witnesses_that_agree(shipped: Lab, backup: tuple[Document, Run]) -> None:
    _, run = backup
    attempted = [f for f in run.flows["flows"] if f["start"] is not None]
    assert {row: len(run.attempts(row)) for row in run.rows()} == ROWS
    for flow in attempted:
        assert set(flow["witnesses"]) == {"event", "counter", "packets", "socket"}
        assert {flow["predicted"], flow["verdict"], *flow["witnesses"].values()} == {"allowed"}, flow
        assert flow["rule"] == flow["row"]
        assert flow["step"] in flow["steps"]
        assert flow["bytes"] > 0
        assert flow["matched"] == "5-tuple"
    for flow in run.flows["flows"]:
        if flow["start"] is None:
            assert flow["verdict"] == "not attempted"
            assert set(flow["witnesses"].values()) == {"not attempted"}
    # Counted apart from vadplab's own reader: as many connections in the capture as flows, and no other.
    syns = harness.tshark(
        run.folder / "capture.pcapng",
        "tcp.flags.syn == 1 && tcp.flags.ack == 0",
        ("ip.src", "tcp.srcport", "ip.dst", "tcp.dstport"),
    )
    assert set(syns) == {tuple(map(str, (*f["local"], *f["remote"]))) for f in attempted}
    for rule, count in ROWS.items():
        assert run.counted(rule) == count
    assert run.flows["foreign"] == []
    assert shipped.snapshots() == dict.fromkeys(shipped.snapshots(), 0)


def test_fakes_tell_the_same_story(backup: tuple[Document, Run]) -> None:
    _, run = backup
    calls = run.gateway()
    assert calls.count("CreateSnapshot_Task") == calls.count("RemoveSnapshot_Task")
    assert run.freezes("linux-vm") == ["frozen", "thawed"]
    authd = run.authd("esxi-1")
    assert sum(e["event"] == "connect" for e in authd) == len(TASKS)
    assert {e["service"] for e in authd if e["event"] == "proxy"} == {"vpxa-nfcssl"}
    opened = [e["path"] for e in authd if e["event"] == "open"]
    assert sum(path.endswith(".vmx") for path in opened) == len(TASKS)
    assert sum(path.endswith(".vmdk") for path in opened) == len(TASKS)
    assert run.authd("esxi-2") == []


@pytest.mark.parametrize(("vm", "key", "size"), DISKS)
def test_a_restored_disk_equals_the_truth(
    shipped: Lab, backup: tuple[Document, Run], tmp_path: Path, vm: str, key: int, size: int
) -> None:
    document, _ = backup
    point = next(p for p in document["restore_points"] if p["vm"] == vm)
    image = tmp_path / "disk.img"
    answer = shipped.done(
        *("restore", point["point"], "--vm", vm, "--disk", str(key), "--to", str(image), "--compare", "--check")
    )
    assert answer["evidence"] == "consistent"
    assert answer["comparison"] == {"equal": True, "blocks": size // BLOCK, "differing": 0, "offsets": []}
    assert differing(image, truth(shipped, vm, key)[0]) == []
    assert image.stat().st_size == size
    assert image.stat().st_blocks * 512 < size // 2, "holes stay holes"
    if vm == "linux-vm":
        assert answer["check"]["filesystem"] == "file-system-consistent"
        assert answer["check"]["ledger"]["ok"]
        assert answer["check"]["ledger"]["bookings"] > 0
        assert_file_system_was_flushed(image)


def test_one_flipped_byte_of_the_truth_is_reported(shipped: Lab, backup: tuple[Document, Run], tmp_path: Path) -> None:
    document, _ = backup
    point = next(p for p in document["restore_points"] if p["vm"] == "files-vm")
    digests, at = truth(shipped, "files-vm", 2001)[1], 37
    right = digests.read_bytes()
    wrong = bytearray(right)
    wrong[at * 32] ^= 1
    digests.write_bytes(wrong)
    try:
        answer = shipped(
            *("restore", point["point"], "--vm", "files-vm", "--disk", "2", "--to", str(tmp_path / "d"), "--compare")
        )
    finally:
        digests.write_bytes(right)
    assert answer.code == answer.document["exit_code"] == 1
    comparison = answer.document["comparison"]
    assert (comparison["equal"], comparison["differing"], comparison["offsets"]) == (False, 1, [at * BLOCK])


def test_nbd_in_the_clear(shipped: Lab, tmp_path: Path) -> None:
    document, run = shipped.job("--mode", "nbd", code=0)
    assert document["result"] == "success"
    assert document["invariants"] == dict.fromkeys(INVARIANTS, "held")
    authd = run.authd("esxi-1")
    assert {e["service"] for e in authd if e["event"] == "proxy"} == {"vpxa-nfc"}
    assert sum(e["event"] == "tls" for e in authd) == len(TASKS), "TLS for authd alone"
    assert "nbd" in run.step("17")["text"]
    for vm, key, _ in DISKS[1:]:
        point = next(p for p in document["restore_points"] if p["vm"] == vm)
        image = tmp_path / f"{vm}-{key}"
        argv = ("restore", point["point"], "--vm", vm, "--disk", str(key), "--to", str(image), "--compare")
        assert shipped.done(*argv)["comparison"]["equal"]


def test_text_shows_steps_and_flows(shipped: Lab, backup: tuple[Document, Run]) -> None:
    _, run = backup
    done = harness.run_text(shipped.home, "--lab", shipped.name, "flows", run.folder.name)
    assert done.returncode == 0
    for words in ("proxy-1 → esxi-1:902", "backup-server → linux-guest:22", "proxy-1 → repository-1:25"):
        assert words in done.stdout
    shown = [line.split()[0] for line in done.stdout.splitlines() if line.split() and line.split()[0] in STEPS]
    assert list(dict.fromkeys(shown)) == STEPS


def truth(lab: Lab, vm: str, key: int) -> tuple[bytes, Path]:
    """Digests of a disk as of the storage's first snapshot of that VM, and their file."""
    folder = lab.folder.fakes / "storage-datastore1" / "truth" / vm
    records = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    record = min(records, key=lambda r: int(r["id"]))
    file = folder / next(d["digests"] for d in record["disks"] if d["key"] == key)
    return file.read_bytes(), file


def differing(image: Path, digests: bytes) -> list[int]:
    """Numbers of the blocks of 64 KiB whose SHA-256 is not the recorded one."""
    assert len(digests) == image.stat().st_size // BLOCK * 32
    with image.open("rb") as file:
        blocks = enumerate(iter(lambda: file.read(BLOCK), b""))
        return [n for n, data in blocks if hashlib.sha256(data).digest() != digests[n * 32 : n * 32 + 32]]


def assert_file_system_was_flushed(image: Path) -> None:
    """The superblock asks for no recovery, and a full check finds nothing to mend."""
    header = subprocess.run(["/sbin/dumpe2fs", "-h", str(image)], capture_output=True, text=True, check=True).stdout
    assert "has_journal" in header
    assert "needs_recovery" not in header
    checked = subprocess.run(["/sbin/e2fsck", "-fn", str(image)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    assert "?" not in checked.stdout
