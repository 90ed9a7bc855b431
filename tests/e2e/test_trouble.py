# SPDX-License-Identifier: MIT
"""What goes wrong around a job (`docs/trouble.md`): each time it says so, leaves the chain as it was, and the next run succeeds.

The repository lies on a small file system of its own inside the lab, so it can be full, read-only or gone. Reads are
throttled where trouble must come in the middle of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine import snapshots
from fakes.core.fabric import FabricClient
from tests.e2e import guestdisks, harness
from tests.e2e.harness import COMMAND_DEADLINE, VADPLAB, Answer, Document, Lab

pytestmark = pytest.mark.slow

JOB = "files"
VM = "files-vm"
SPACE = 192 << 20
CHANGED = 192
SLOW = 2 << 20
"""Blocks of 64 KiB that a test changes (12 MiB), and bytes a second at which they are read: six seconds."""


class Site(Lab):
    """The lab, with what its repository holds as its own processes see it."""

    @property
    def repository(self) -> Path:
        """The repository's folder, from here."""
        return self.outside_path(str(self.inside))

    @property
    def inside(self) -> Path:
        """The repository's folder, in the lab."""
        return self.folder.host("repository-1") / "var" / "repository"

    def shell(self, host: str, *argv: str) -> str:
        """A command on a host; must succeed."""
        done = harness.run_text(self.home, "--lab", self.name, "exec", host, "--", *argv)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def chain(self) -> list[Document]:
        """The visible restore points, oldest first."""
        found = []
        for path in (self.repository / JOB / VM).glob("[0-9]*/manifest.json"):
            manifest = json.loads(path.read_text())
            point = {"point": manifest["point"], "vm": VM, "session": manifest["session"], "folder": str(path.parent)}
            found.append(point | {"disks": manifest["disks"], "parent": manifest["parent"]})
        return sorted(found, key=lambda p: str(p["point"]))

    def content(self) -> dict[str, tuple[int, int]]:
        """Every file that is not hidden: its size and when it was written."""
        files = (p for p in self.repository.rglob("*") if p.is_file())
        visible = [p for p in files if not any(part.startswith(".") for part in p.relative_to(self.repository).parts)]
        return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in visible}

    def partial_bytes(self) -> int:
        """Bytes of restore points in the making."""
        found = 0
        for path in self.repository.glob(f"{JOB}/{VM}/.partial-*/*.qcow2"):
            try:
                found += path.stat().st_size
            except FileNotFoundError:
                continue  # it ended meanwhile
        return found

    def vcenter(self, *argv: str) -> Document:
        """A login of our own at vCenter."""
        script = Path(__file__).with_name("at_vcenter.py")
        said = self.shell("vcenter", sys.executable, str(script), self.address("vcenter"),
                          str(self.folder.topology_file), *argv)  # fmt: skip
        return dict(json.loads(said))

    @contextmanager
    def fabric(self, name: str) -> Iterator[FabricClient]:
        """A fake's own socket."""
        client = FabricClient(self.outside_path(f"/run/vadplab/fabric/{name}.sock"))
        try:
            yield client
        finally:
            client.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A lab with one throttled job over one VM, a repository with little space, and one full restore point in it."""
    home = tmp_path_factory.mktemp("trouble")

    def one_job(plan: Document) -> None:
        plan["backup"]["jobs"] = [{"name": JOB, "vms": [VM], "mode": "nbd"}]

    with harness.up(home, "trouble", "--topology", str(harness.drill_topology(home, one_job))) as found:
        lab = Site(home, found.name)
        lab.shell("repository-1", "mount", "-t", "tmpfs", "-o", f"size={SPACE}", "tmpfs", str(lab.inside))
        lab.job(name=JOB, code=0)
        lab.done("job", "edit", JOB, "--throttle", str(SLOW))
        yield lab


@pytest.fixture
def lab(site: Site, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    """The lab with a disk that changed. Afterwards the chain must be as it was, and the next run must succeed."""
    guestdisks.write_blocks(site, VM, 2000, CHANGED, seed=sum(request.node.name.encode()))
    before, points = site.content(), site.chain()
    yield site
    site.done("firewall", "reset")
    assert {path: site.content().get(path) for path in before} == before, "the chain is not as it was"
    assert_next_run_succeeds(site, points, tmp_path)


def assert_next_run_succeeds(site: Site, before: list[Document], folder: Path) -> None:
    """A run over the mended lab: an incremental on the newest point, equal to the truth; nothing else is left anywhere."""
    site.done("job", "edit", JOB, "--set", "rules.throttle=null")
    try:
        document, _ = site.job(name=JOB, code=0)
    finally:
        site.done("job", "edit", JOB, "--throttle", str(SLOW))
    newest = site.chain()[-1]
    assert newest["point"] == document["restore_points"][0]["point"]
    assert newest["point"] not in {p["point"] for p in before}
    assert guestdisks.assert_equals_truth(site, newest, folder) == 2
    assert list(site.repository.glob(f"{JOB}/{VM}/.partial-*")) == []
    assert set(site.snapshots().values()) == {0}
    with site.fabric("storage-datastore1") as storage:
        assert storage.call("disk.attachments") == []


def run_with(lab: Site, trouble: Callable[[], None], *options: str) -> Answer:
    """Runs the job; `trouble` comes when a part of the data is in the repository and most of it is not."""
    job = subprocess.Popen(
        [str(VADPLAB), "--lab", lab.name, "job", "run", JOB, *options, "--json"],
        env={**os.environ, "VADPLAB_HOME": str(lab.home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + COMMAND_DEADLINE
        while lab.partial_bytes() < 2 << 20:
            assert job.poll() is None, f"the job ended before the trouble: {job.communicate()}"
            assert time.monotonic() < end
            time.sleep(0.02)
        trouble()
        out, err = job.communicate(timeout=COMMAND_DEADLINE)
    finally:
        if job.poll() is None:
            job.kill()
            job.wait()
    assert "Traceback" not in err, err
    document = json.loads(out.splitlines()[-1])
    assert document["evidence"] == "consistent", document["problems"]
    return Answer(job.returncode, document, out, err)


def assert_failed(answer: Answer, codes: set[str], step: str) -> Document:
    """The run failed with one of these codes at this step, saved nothing, and says what to do."""
    assert (answer.code, answer.document["result"]) == (1, "failed"), answer.stdout
    error = answer.error
    assert error["code"] in codes, error
    assert error["step"] == step, error
    assert error["message"] and error["next"]
    assert answer.document["restore_points"] == []
    assert "broken" not in answer.document["invariants"].values()
    return error


def requests(answer: Answer, method: str) -> int:
    """How often a method was asked of vCenter in a run; a task's end stands in the journal as well, without a status."""
    journal = harness.lines(Path(answer.document["folder"]) / "vcenter" / "journal.jsonl")
    return sum(entry["method"] == method and entry["status"] is not None for entry in journal)


def fill(lab: Site) -> None:
    """Takes all the space that the repository has left."""
    space = os.statvfs(lab.repository)
    with (lab.repository / ".filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize)


def test_full_repository_is_found_before_the_job_begins(lab: Site) -> None:
    fill(lab)
    try:
        answer = lab("job", "run", JOB)
    finally:
        (lab.repository / ".filler").unlink()
    error = assert_failed(answer, {"job.no-space"}, "5a")
    assert "MiB free" in error["message"]
    assert harness.Run(Path(answer.document["folder"])).gateway() == [], "vCenter was not asked for anything"


def test_disk_that_becomes_full_midway(lab: Site) -> None:
    try:
        answer = run_with(lab, lambda: fill(lab))
    finally:
        (lab.repository / ".filler").unlink()
    error = assert_failed(answer, {"store.full"}, "21")
    assert error["host"] == "repository-1" and str(lab.inside) in error["message"] and "points prune" in error["next"]


def test_read_only_repository(lab: Site) -> None:
    lab.shell("repository-1", "mount", "-o", "remount,ro", str(lab.inside))
    try:
        answer = lab("job", "run", JOB)
    finally:
        lab.shell("repository-1", "mount", "-o", "remount,rw", str(lab.inside))
    error = assert_failed(answer, {"store.read-only"}, "21")
    assert error["host"] == "repository-1" and str(lab.inside) in error["message"]


def test_repository_whose_disk_is_not_mounted(lab: Site) -> None:
    lab.shell("repository-1", "mount", "-t", "tmpfs", "tmpfs", str(lab.inside))
    try:
        answer, written = lab("job", "run", JOB), list(lab.repository.iterdir())
    finally:
        lab.shell("repository-1", "umount", str(lab.inside))
    error = assert_failed(answer, {"store.gone"}, "5a")
    assert error["host"] == "repository-1" and "its disk is not mounted" in error["message"] and written == []


def test_repository_that_cannot_be_reached(lab: Site) -> None:
    lab.done("firewall", "block", "backup-server", "repository-1", "6162", "--with", "reset")
    error = assert_failed(lab("job", "run", JOB), {"connect.refused"}, "5a")
    assert (error["host"], error["target"], error["port"]) == ("backup-server", "repository-1", 6162)


def test_repository_unplugged_midway(lab: Site) -> None:
    def unplug() -> None:
        lab.done("firewall", "block", "any", "repository-1", "any")

    answer = run_with(lab, unplug)
    assert (answer.code, answer.document["result"]) == (1, "failed")
    assert answer.error["next"]
    assert answer.document["restore_points"] == []


def test_lun_gone_midway(lab: Site) -> None:
    with lab.fabric("san-datastore1") as san:
        try:
            answer = run_with(lab, lambda: san.call("lun.offline", on=True), "--mode", "san")
        finally:
            san.call("lun.offline", on=False)
    error = assert_failed(answer, {"san.read"}, "20a")
    assert error["target"] == "san"


def test_vcenter_session_that_expires_midway_is_opened_anew(lab: Site) -> None:
    ended: list[int] = []
    answer = run_with(lab, lambda: ended.append(int(lab.vcenter("end-sessions")["ended"])))
    assert ended[0] > 0, "no session stood"
    assert (answer.code, answer.document["error"]) == (0, None)
    assert len(answer.document["restore_points"]) == 1
    assert requests(answer, "CreateSnapshot_Task") == 1
    assert set(lab.snapshots().values()) == {0}
    logins = 4  # of the manager, of two Data Movers, of the test
    assert requests(answer, "Login") > logins, "nobody logged in again"


def test_a_dead_runs_snapshot_is_committed_by_the_next_run(lab: Site) -> None:
    """Found by the mark in its description alone; nothing else remembers it, and the service is not started anew."""
    lab.vcenter("snapshot", VM, snapshots.description(JOB, lab.chain()[-1]["session"]))
    assert sum(lab.snapshots().values()) == 2, "one snapshot, at the storage and at vCenter"
    answer, _ = lab.job(name=JOB, code=0)
    assert answer["warnings"] == []
    assert set(lab.snapshots().values()) == {0}


def test_snapshot_that_cannot_be_removed_is_tried_again_then_reported(lab: Site) -> None:
    """Somebody else holds the snapshot's disk. The backup is good, the snapshot is reported; the service's next start commits it."""
    held = "files-vm/files-vm.vmdk"
    with lab.fabric("storage-datastore1") as storage:
        try:
            answer = run_with(lab, lambda: storage.call("disk.attach", path=held, by="linux-vm"))
        finally:
            storage.call("disk.detach", path=held, by="linux-vm")
    assert (answer.code, answer.document["result"]) == (0, "warning")
    assert len(answer.document["restore_points"]) == 1
    orphaned = [w for w in answer.document["warnings"] if w["code"] == "snapshot.orphaned"]
    assert len(orphaned) == 1 and VM in orphaned[0]["message"] and orphaned[0]["next"]
    assert answer.document["vms"][0]["orphan"] is True
    assert requests(answer, "RemoveSnapshot_Task") > 1, "it was not tried again"
    assert sum(lab.snapshots().values()) == 2, "one snapshot, at the storage and at vCenter"
    lab.shell("backup-server", "pkill", "-KILL", "backup-service")  # in the lab's own pid namespace
    end = time.monotonic() + COMMAND_DEADLINE
    while set(lab.snapshots().values()) != {0}:
        assert time.monotonic() < end, "nobody committed the snapshot"
        time.sleep(0.2)
