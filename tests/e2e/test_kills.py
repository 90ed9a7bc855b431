# SPDX-License-Identifier: MIT
"""SIGKILL at the worst instants: nothing stays frozen, no snapshot is orphaned after recovery, the next run succeeds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fakes.core.fabric import FabricClient
from lab.realise import lifecycle
from tests.e2e.harness import COMMAND_DEADLINE, JOB, VADPLAB, Answer, Lab, lines, up
from tests.lab.realise.labs import Remains

pytestmark = [
    pytest.mark.lab,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="the guest of the shipped topology needs root"),
]

RECOVERY = 60.0
SLOW = 1 << 20  # bytes a second


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with up(tmp_path_factory.mktemp("kills"), "kills") as found:
        yield found


def run_until(lab: Lab, step: str, act: Callable[[subprocess.Popen[str]], None]) -> Answer:
    """Makes a full backup, so slow that it still reads at the kill; when `step` begins, `act` gets the command's process.

    Fails when that step never began.
    """
    lab.done("job", "edit", JOB, "--throttle", str(SLOW))
    logs = {path: path.stat().st_size for path in lab.folder.path.glob("hosts/*/var/events.jsonl")}
    job = subprocess.Popen(
        [str(VADPLAB), "--lab", lab.name, "job", "run", JOB, "--full", "--json"],
        env={**os.environ, "VADPLAB_HOME": str(lab.home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + COMMAND_DEADLINE
        while not any(
            _began(path, logs.get(path, 0), step) for path in lab.folder.path.glob("hosts/*/var/events.jsonl")
        ):
            assert job.poll() is None, f"the job ended before step {step}: {job.communicate()}"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        act(job)
        out, err = job.communicate(timeout=COMMAND_DEADLINE)
    finally:
        if job.poll() is None:
            job.kill()
            job.wait()
    assert "Traceback" not in err, err
    return Answer(job.returncode, json.loads(out.splitlines()[-1]), out, err)


def _began(path: Path, offset: int, step: str) -> bool:
    with path.open("rb") as file:
        file.seek(offset)
        for line in file.read().splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue  # being written
            if event.get("kind") == "step" and event["step"] == step and event["phase"] == "begin":
                return True
    return False


def kill(lab: Lab, host: str, *pattern: str) -> None:
    """SIGKILL for processes inside the lab's own pid namespace only."""
    done = subprocess.run(
        [str(VADPLAB), "--lab", lab.name, "exec", host, "--", "pkill", "-KILL", *pattern],
        env={**os.environ, "VADPLAB_HOME": str(lab.home)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, f"nothing matched {pattern}"


def storage(lab: Lab) -> FabricClient:
    return FabricClient(lab.outside_path("/run/vadplab/fabric/storage-datastore1.sock"))


def assert_recovered(lab: Lab) -> None:
    """No guest frozen, no snapshot left (once recovery has had its time), and the next run succeeds."""
    client, guest = storage(lab), FabricClient(lab.outside_path("/run/vadplab/fabric/guest-linux-vm.sock"))
    try:
        deadline = time.monotonic() + RECOVERY
        while True:
            left = [s["name"] for vm in client.call("vm.list") for s in vm["snapshots"]]
            frozen = guest.call("tools.state")["frozen"]
            if not left and not frozen:
                break
            assert time.monotonic() < deadline, f"snapshots left: {left}, frozen: {frozen}"
            time.sleep(0.1)
    finally:
        client.close()
        guest.close()
    lab.done("job", "edit", JOB, "--set", "rules.throttle=null")
    document, run = lab.job(code=0)
    assert document["result"] == "success"
    assert run.freezes("linux-vm") == ["frozen", "thawed"]


@pytest.mark.parametrize(
    ("step", "host", "pattern", "code"),
    [
        ("16", "backup-server", ("-f", "engine.manager"), "manager.died"),
        ("20c", "backup-server", ("-f", "engine.manager"), "manager.died"),
        ("20c", "proxy-1", ("-f", "role source"), None),
        ("21", "repository-1", ("-f", "role target"), None),
        ("16", "backup-server", ("backup-service",), "wire.closed"),
    ],
    ids=["manager-frozen", "manager-reading", "mover-proxy", "mover-repository", "service-frozen"],
)
def test_killed_engine_process(lab: Lab, step: str, host: str, pattern: tuple[str, ...], code: str | None) -> None:
    before = {p["point"] for p in lab.points()}
    answer = run_until(lab, step, lambda job: kill(lab, host, *pattern))
    assert answer.code == 1, answer.document["problems"]
    assert answer.document["result"] == "failed"
    error = answer.document["error"]
    assert code is None or error["code"] == code
    if code is None:
        assert error["step"] in ("19", "20c", "21"), error
    assert {p["point"] for p in lab.points()} == before, "a partial restore point is visible"
    assert_recovered(lab)


@pytest.mark.parametrize("step", ["16", "20c"])
def test_killed_vcsim_is_rebuilt(lab: Lab, step: str) -> None:
    answer = run_until(lab, step, lambda job: kill(lab, "vcenter", "-x", "vcsim"))
    assert answer.document["result"] in ("success", "warning", "failed")
    assert answer.document["result"] == "failed" or answer.code == 0
    assert_recovered(lab)


def test_interrupted_job_cleans_up(lab: Lab) -> None:
    answer = run_until(lab, "20c", lambda job: job.send_signal(signal.SIGINT))
    assert answer.code == 1
    assert answer.document["error"]["code"] == "job.stopped"
    assert answer.document["invariants"]["I8"] == "held" and answer.document["invariants"]["I9"] == "held"
    assert_recovered(lab)


@pytest.mark.parametrize("step", ["16", "20c"])
def test_killed_supervisor_leaves_nothing(tmp_path: Path, step: str) -> None:
    lab = Lab(tmp_path, "gone")
    lab.done("up")
    try:
        remains = Remains(lab.folder)
        supervisor = int(lab.folder.state()["supervisor"]["pid"])
        answer = run_until(lab, step, lambda job: os.kill(supervisor, signal.SIGKILL))
        assert answer.code == 3, answer.stdout
        remains.assert_gone()
        record = lines(lab.folder.fakes / "guest-linux-vm" / "freeze.jsonl")
        assert not record or record[-1]["event"] == "thawed"
        lab.done("up")
        assert_recovered(lab)
    finally:
        if lab.folder.running():
            lifecycle.down(lab.folder)
