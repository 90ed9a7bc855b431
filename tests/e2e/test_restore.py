# SPDX-License-Identifier: MIT
"""What restore points are for: a new VM that equals the truth, instant recovery, single files, and damage that is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbd
import pytest

from lab.disks import truth
from tests.e2e.guestdisks import socket_of
from tests.e2e.harness import COMMAND_DEADLINE, VADPLAB, Document, Lab, Run
from tests.e2e.test_incrementals import at_vcenter
from tests.e2e.test_kills import kill

pytestmark = pytest.mark.slow
VM = "files-vm"


@pytest.fixture
def point(drill: Lab) -> Document:
    """The newest restore point of a VM with two disks and no running guest."""
    found = [p for p in drill.points() if p["vm"] == VM]
    if not found:
        drill.job(code=0)
        found = [p for p in drill.points() if p["vm"] == VM]
    return found[-1]


@contextmanager
def destroyed(lab: Lab, name: str) -> Iterator[None]:
    """Whatever became of it, the VM of that name is gone afterwards."""
    try:
        yield
    finally:
        if name in (vms := at_vcenter(lab, "show")):
            if vms[name]["power"] == "poweredOn":
                at_vcenter(lab, "power", name, "off")
            at_vcenter(lab, "destroy", name)


def assert_equals(lab: Lab, path: str, record: truth.TruthRecord, folder: Path) -> None:
    """A disk file of the storage, read past the engine, equals a truth record block by block."""
    image = folder / "disk.img"
    handle = nbd.NBD()
    handle.set_export_name(f"file/{path.partition('] ')[2]}")
    handle.connect_unix(str(socket_of(lab)))
    with image.open("wb") as file:
        for at in range(0, handle.get_size(), 1 << 20):
            file.write(handle.pread(min(1 << 20, handle.get_size() - at), at))
    handle.shutdown()
    found = truth.compare(image, record)
    assert found.equal, found.offsets[:5]
    assert image.stat().st_size == found.blocks * 65536
    image.unlink()


def record_of(lab: Lab, point: Document, key: int) -> truth.TruthRecord:
    store = lab.folder.fakes / "storage-datastore1"
    return truth.find(store, vm=point["vm"], mark=point["session"], key=key, wait=truth.WAIT)


def judged(answer_document: Document) -> Run:
    """The evidence of a recorded command, which must agree with itself."""
    assert answer_document["evidence"] == "consistent", answer_document["problems"]
    assert "broken" not in answer_document["invariants"].values()
    run = Run(Path(answer_document["folder"]))
    assert all(f["consistent"] for f in run.flows["flows"])
    return run


CASES = {
    "nbdssl": ("nbdssl", [], {"C1", "M4", "M5", "H1", "D1", "H4", "H5"}),
    "nbd": ("nbd", ["--host", "esxi-1", "--datastore", "datastore1"], {"C1", "M4", "M5", "H1", "D1", "H4", "H5"}),
    "hotadd": ("hotadd", [], {"C1", "M4", "M5", "H1", "D1", "H4"}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_restored_vm_equals_the_truth_and_powers_on(drill: Lab, point: Document, case: str, tmp_path: Path) -> None:
    mode, options, rows = CASES[case]
    name = f"restored-{case}"
    with destroyed(drill, name):
        document = drill.done("restore", "vm", point["point"], "--vm", VM, "--name", name, "--mode", mode, *options)
        assert (document["result"], document["error"], document["left"]) == ("success", None, None)
        assert [d["mode"] for d in document["disks"]] == [mode] * 2
        run = judged(document)
        assert run.rows() == rows
        steps = {s["step"]: s["status"] for s in run.flows["steps"] if s["status"] != "not reached"}
        last = "r10b" if mode == "hotadd" else "r10c"
        network = set() if mode == "hotadd" else {"r9"}
        assert steps == dict.fromkeys({"r1", "r2", "r4", "r5", "r6", "r7", "r8", last, "r11"} | network, "done")
        vms = at_vcenter(drill, "show")
        made, original = vms[name], vms[VM]
        assert made["uuid"] == document["uuid"] != original["uuid"]
        assert made["annotation"].startswith(f"Restored from {point['point']}")
        assert (made["power"], made["guest"], made["memory"]) == ("poweredOff", original["guest"], original["memory"])
        shown = [(d["label"], d["capacity"]) for d in made["disks"]]
        assert shown == [(d["label"], d["capacity"]) for d in point["disks"]]
        for disk, kept in zip(made["disks"], point["disks"], strict=True):
            assert_equals(drill, disk["path"], record_of(drill, point, kept["key"]), tmp_path)
        assert at_vcenter(drill, "power", name, "on")["power"] == "poweredOn"
    assert name not in at_vcenter(drill, "show")
    assert not {"engine.mover"} & drill.processes()


def test_the_other_direction_is_refused_by_the_policy_and_nothing_is_left(drill: Lab, point: Document) -> None:
    argv = ("--name", "reverse", "--mode", "nbd", "--data-direction", "repository-to-proxy")
    answer = drill("restore", "vm", point["point"], "--vm", VM, *argv)
    assert (answer.code, answer.error["step"]) == (1, "r6")
    run = judged(answer.document)
    assert run.attempts("D1") == []
    assert "reverse" not in at_vcenter(drill, "show")
    assert "reverse" not in {vm["vm"] for vm in drill.storage().call("vm.list")}


@contextmanager
def running(lab: Lab, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on; it has ended afterwards."""
    process = subprocess.Popen(
        [str(VADPLAB), "--lab", lab.name, *argv, "--json"],
        env={**os.environ, "VADPLAB_HOME": str(lab.home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextmanager
def half_made(lab: Lab, point: Document, name: str) -> Iterator[subprocess.Popen[str]]:
    """A restore into a new VM that is there and gets no bytes: the way to its host's 902 is closed."""
    lab.done("firewall", "block", "H5", "--with", "drop")
    try:
        with running(lab, "restore", "vm", point["point"], "--vm", VM, "--name", name, "--mode", "nbd") as process:
            end = time.monotonic() + COMMAND_DEADLINE
            while name not in stored(lab):
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.01)
            yield process
    finally:
        lab.done("firewall", "reset")


def stored(lab: Lab) -> set[str]:
    """The VMs that the storage has."""
    client = lab.storage()
    try:
        return {vm["vm"] for vm in client.call("vm.list")}
    finally:
        client.close()


def test_a_stopped_restore_takes_the_half_made_vm_back(drill: Lab, point: Document) -> None:
    with half_made(drill, point, "half") as process:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=COMMAND_DEADLINE)
    document = json.loads(out.splitlines()[-1])
    assert (process.returncode, document["error"]["code"]) == (1, "restore.stopped"), out + err
    assert document["left"] is None
    judged(document)
    assert "half" not in at_vcenter(drill, "show")
    assert "half" not in stored(drill)


def test_a_service_killed_in_a_restore_leaves_no_half_made_vm(drill: Lab, point: Document) -> None:
    with half_made(drill, point, "orphaned") as process:
        kill(drill, "backup-server", "backup-service")
        out, err = process.communicate(timeout=COMMAND_DEADLINE)
    assert process.returncode == 1 and "Traceback" not in err, (out, err)
    end = time.monotonic() + COMMAND_DEADLINE
    while "orphaned" in stored(drill) or {"engine.mover"} & drill.processes():
        assert time.monotonic() < end, "the service that started again did not take it back"
        time.sleep(0.1)
    assert "orphaned" not in at_vcenter(drill, "show")


def test_instant_recovery_equals_the_truth_and_changes_nothing(drill: Lab, point: Document, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in Path(point["folder"]).iterdir()}
    with running(drill, "recover", point["point"], "--vm", VM) as process:
        assert process.stdout is not None
        served = json.loads(process.stdout.readline())
        assert served["schema"] == "vadplab.recovery/1", served
        assert [d["key"] for d in served["disks"]] == [d["key"] for d in point["disks"]]
        for disk in served["disks"]:
            image = tmp_path / f"{disk['key']}.img"
            copy = drill_exec(drill, "nbdcopy", disk["uri"], str(image))
            assert copy.returncode == 0, copy.stderr
            assert truth.compare(image, record_of(drill, point, disk["key"])).equal
        written = tmp_path / "new.img"
        written.write_bytes(os.urandom(1 << 20).ljust(served["disks"][1]["size"], b"\0"))
        uri = served["disks"][1]["uri"]
        assert drill_exec(drill, "nbdcopy", str(written), uri).returncode == 0
        again = tmp_path / "again.img"
        assert drill_exec(drill, "nbdcopy", uri, str(again)).returncode == 0
        assert again.read_bytes() == written.read_bytes()
        plain = uri.replace("nbds:", "nbd:").partition("?")[0]
        assert drill_exec(drill, "nbdinfo", plain).returncode != 0, "without a certificate nothing is served"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=COMMAND_DEADLINE)
    document = json.loads(out.splitlines()[-1])
    assert (process.returncode, document["result"]) == (0, "success"), out + err
    run = judged(document)
    assert run.rows() == {"C1", "M4", "R1"}
    assert {path: path.read_bytes() for path in Path(point["folder"]).iterdir()} == before
    assert "engine.recovery" not in drill.processes()
    assert not Path(served["certificates"]).exists()


def drill_exec(lab: Lab, *argv: str) -> subprocess.CompletedProcess[str]:
    """A program on the console host."""
    return subprocess.run(
        [str(VADPLAB), "--lab", lab.name, "exec", "console", "--", *argv],
        env={**os.environ, "VADPLAB_HOME": str(lab.home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_DEADLINE,
        check=False,
    )


def test_a_flipped_bit_is_found_and_refused_by_name(drill: Lab, tmp_path: Path) -> None:
    drill.job("--full", code=0)
    mine = [p for p in drill.points() if p["vm"] == VM]
    point, disk = mine[-1], mine[-1]["disks"][0]
    file = Path(point["folder"]) / disk["file"]
    at = file.stat().st_size // 2
    right = file.read_bytes()
    file.write_bytes(right[:at] + bytes([right[at] ^ 4]) + right[at + 1 :])
    try:
        verified = drill("points", "verify", point["point"], "--vm", VM)
        assert (verified.code, verified.document["intact"]) == (1, False)
        found = next(p for p in verified.document["points"] if p["point"] == point["point"])
        assert found["intact_disks"] == [point["disks"][1]["key"]]
        assert {(d["vm"], d["disk"]) for d in found["damage"]} == {(VM, disk["key"])}
        answer = drill("restore", "vm", point["point"], "--vm", VM, "--name", "damaged", "--mode", "nbd")
        assert (answer.code, answer.error["code"]) == (1, "store.damaged"), answer.stdout
        assert "Intact restore points of files-vm: " in answer.error["next"]
        assert f"in part: {point['point']} (disks {point['disks'][1]['key']})" in answer.error["next"]
        assert "damaged" not in at_vcenter(drill, "show")
        judged(answer.document)
        image = tmp_path / "whole.img"
        other = ("--disk", str(point["disks"][1]["key"]), "--to", str(image), "--compare")
        assert drill.done("restore", point["point"], "--vm", VM, *other)["comparison"]["equal"]
    finally:
        file.write_bytes(right)
    assert drill.done("points", "verify", point["point"], "--vm", VM)["intact"]


@pytest.mark.parametrize(
    ("argv", "code", "error"),
    [
        (("--name", VM), 2, "restore.vm-exists"),
        (("--name", "a/b"), 2, "input.invalid"),
        (("--name", "x", "--datastore", "nowhere"), 2, "restore.place"),
        (("--name", "x", "--host", "esxi-9"), 2, "restore.place"),
        (("--name", "x", "--mode", "san"), 2, "input.invalid"),
        (("--name", "x", "--vcenter", "nowhere"), 2, "input.invalid"),
    ],
)
def test_wrong_arguments_make_nothing(
    drill: Lab, point: Document, argv: tuple[str, ...], code: int, error: str
) -> None:
    before = at_vcenter(drill, "show")
    answer = drill("restore", "vm", point["point"], "--vm", VM, *argv)
    assert (answer.code, answer.error["code"]) == (code, error), answer.stdout
    assert at_vcenter(drill, "show") == before


def test_points_are_pruned_and_imported_through_the_service(drill: Lab, tmp_path: Path) -> None:
    drill.job("--full", code=0)
    drill.job("--full", code=0)
    mine = [p for p in drill.points() if p["vm"] == VM]
    newest = Path(mine[-1]["folder"])
    copy = tmp_path / newest.parent.parent.name / newest.parent.name / newest.name
    copy.parent.mkdir(parents=True)
    shutil.copytree(Path(mine[-2]["folder"]), copy.with_name(Path(mine[-2]["folder"]).name))
    pruned = drill.done("points", "prune", "--count", "1", "--vm", VM)
    judged(pruned)
    assert [one["vm"] for one in pruned["vms"]] == [VM] and pruned["vms"][0]["removals"]
    assert [p["point"] for p in drill.points() if p["vm"] == VM] == [mine[-1]["point"]]
    imported = drill.done("points", "import", str(tmp_path))
    assert judged(imported).rows() == {"C1", "M4"}
    assert (len(imported["points"]), imported["refused"]) == (1, [])
    assert [p["point"] for p in drill.points() if p["vm"] == VM] == [mine[-2]["point"], mine[-1]["point"]]
    verified = drill.done("points", "verify", "--vm", VM)
    assert verified["intact"] and judged(verified).rows() == {"C1", "M4"}
    refused = drill("points", "prune", "--vm", "nobody", "--count", "1")
    assert (refused.code, refused.error["code"]) == (2, "restore.point-unknown")


def test_single_files_equal_those_of_the_restored_disk(drill: Lab, point: Document, tmp_path: Path) -> None:
    image, folder = tmp_path / "disk.img", tmp_path / "files"
    folder.mkdir()
    drill.done("restore", point["point"], "--vm", VM, "--disk", "2", "--to", str(image), "--compare")
    listed = drill.done("restore", "files", point["point"], "/data-0", "--vm", VM, "--disk", "2", "--list")
    names = [e["name"] for e in listed["paths"][0]["entries"] if e["kind"] == "file"]
    assert names
    fetched = drill.done("restore", "files", point["point"], "/data-0", "--vm", VM, "--disk", "2", "--to", str(folder))
    assert judged(listed).rows() == judged(fetched).rows() == {"C1", "M4", "M5", "R1"}
    for name in names:
        original = subprocess.run(
            ["/sbin/debugfs", "-R", f"cat /data-0/{name}", str(image)], capture_output=True, check=True, timeout=60
        )
        assert (folder / "data-0" / name).read_bytes() == original.stdout
