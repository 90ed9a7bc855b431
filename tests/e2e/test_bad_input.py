# SPDX-License-Identifier: MIT
"""Bad input and missing things: one clear error with its code, and nothing half-built."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lab.realise.mounts import CODE
from tests.e2e import harness
from tests.e2e.harness import COMMAND_DEADLINE, JOB, VADPLAB, Answer, Document, Lab, vadplab
from tests.lab.realise.labs import eventually

BAD, MISSING = 2, 3


def assert_error(answer: Answer, code: str, status: int, *words: str) -> None:
    """Exactly one error document, with its code, its exit code and what it is about in words."""
    assert answer.document["schema"] == "vadplab.error/1", answer.stdout
    error = answer.document
    assert (error["code"], answer.code, error["exit_code"]) == (code, status, status), error
    for word in words:
        assert word in error["message"], error
    assert error["next"]


def assert_nothing_built(home: Path) -> None:
    """No lab of this home runs, and no process on this machine knows of the home."""
    assert [lab["name"] for lab in vadplab(home, "labs").document["labs"] if lab["running"]] == []
    eventually(lambda: not processes_of(home), f"processes of {home} are left")
    assert str(home) not in Path("/proc/self/mountinfo").read_text()


def processes_of(home: Path) -> list[str]:
    """Command lines of processes whose arguments or environment name a home."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                about = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue  # it ended meanwhile
            if os.fsencode(home) in about:
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home."""
    path = tmp_path / "home"
    path.mkdir()
    return path


def two_on_one_subnet(plan: Document) -> None:
    plan["hosts"]["esxi-2"]["address"] = "10.77.7.77/24"


def unknown_datastore(plan: Document) -> None:
    plan["vsphere"]["vms"][0]["datastore"] = "nowhere"


def unknown_vm_in_job(plan: Document) -> None:
    plan["backup"]["jobs"][0]["vms"].append("ghost-vm")


def misspelt_field(plan: Document) -> None:
    plan["hosts"]["san"]["adress"] = plan["hosts"]["san"].pop("address")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (two_on_one_subnet, ("esxi-2", "overlaps", "esxi-1")),
        (unknown_datastore, ("datastore", "nowhere")),
        (unknown_vm_in_job, ("ghost-vm",)),
        (misspelt_field, ("san", "adress")),
    ],
)
def test_a_broken_topology(home: Path, change: Callable[[Document], None], words: tuple[str, ...]) -> None:
    path = harness.drill_topology(home, change)
    for command in (("topology", "validate", str(path)), ("up", "--topology", str(path))):
        answer = vadplab(home, *command)
        assert_error(answer, "topology.invalid", BAD, "drill.yaml:", *words)
    assert not (home / "labs").exists()
    assert_nothing_built(home)


def test_a_topology_that_is_no_yaml_or_is_not_there(home: Path) -> None:
    (home / "cut.yaml").write_text("hosts: [")
    assert_error(vadplab(home, "up", "--topology", "cut.yaml"), "topology.invalid", BAD, "cut.yaml:")
    assert_error(vadplab(home, "up", "--topology", "none.yaml"), "topology.invalid", BAD, "none.yaml")
    assert not (home / "labs").exists()


def test_a_policy_with_an_unknown_role(home: Path) -> None:
    policy = yaml.safe_load((CODE / "firewall_rules" / "policies" / "default-12.3.yaml").read_text())
    policy["rules"][3]["from"] = "prxy"
    (home / "mine.yaml").write_text(yaml.safe_dump(policy))
    assert_error(vadplab(home, "up", "--policy", "mine.yaml"), "rules.policy", BAD, "prxy", "D1")
    assert not (home / "labs").exists()
    assert_nothing_built(home)


@pytest.mark.parametrize("program", ["nbdkit", "nbdfuse", "dumpcap"])
def test_a_missing_component(home: Path, program: str) -> None:
    """The program is hidden behind an empty file, in a mount namespace of its own."""
    path = shutil.which(program)
    assert path is not None
    topology = harness.drill_topology(home)
    hide = f'mount --bind /dev/null "$(readlink -f {path})" && exec "$@"'
    argv = ["unshare", "-m", "sh", "-c", hide, "sh", str(VADPLAB), "--lab", "x", "up", "--topology", str(topology)]
    done = subprocess.run(
        [*argv, "--json"],
        env={**os.environ, "VADPLAB_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=COMMAND_DEADLINE,
        check=False,
    )
    answer = Answer(done.returncode, json.loads(done.stdout), done.stdout, done.stderr)
    code = "run.tool-missing" if program == "dumpcap" else "lab.component-missing"
    assert_error(answer, code, MISSING, program)
    assert "apt-get install" in answer.document["message"] + answer.document["next"]
    assert_nothing_built(home)


def test_a_missing_vcsim(home: Path) -> None:
    answer = vadplab(home, "up", "--vcsim", "/nowhere/vcsim")
    assert_error(answer, "vcsim.missing", MISSING, "/nowhere/vcsim")
    assert not (home / "labs").exists()


def test_without_a_lab(home: Path) -> None:
    for command in (("down",), ("status",), ("job", "run", JOB), ("infra", "show"), ("firewall", "show")):
        assert_error(vadplab(home, *command), "lab.not-running", MISSING)
    assert_error(vadplab(home, "--lab", "ghost", "down"), "lab.not-running", MISSING, "ghost")
    for command in (("flows",), ("runs",), ("points",), ("pcap",), ("down", "--purge"), ("logs", "vcenter")):
        assert_error(vadplab(home, *command), "lab.unknown", MISSING)
    assert vadplab(home, "labs").document["labs"] == []
    assert not (home / "labs").exists(), "asking made a folder"


def test_words_that_are_none(home: Path) -> None:
    for command in (
        ("nonsense",),
        ("--lab", "Not A Name", "up"),
        ("up", "--capture", "half"),
        ("job", "run", JOB, "--mode", "pigeon"),
        ("restore", "point"),
    ):
        assert_error(vadplab(home, *command), "input.invalid", BAD)
    assert not (home / "labs").exists()


def test_a_second_up(drill: Lab) -> None:
    before = drill.folder.state()
    assert_error(drill("up"), "lab.running", BAD, "drill")
    assert drill.folder.state() == before
    assert drill.done("status")["state"] == "up"


def test_a_full_datastore(home: Path) -> None:
    """Disks that do not fit are refused before a VM is half there."""

    def small(plan: Document) -> None:
        plan["vsphere"]["datastores"][0]["capacity"] = "64MiB"

    answer = vadplab(home, "up", "--topology", str(harness.drill_topology(home, small)))
    assert answer.code in (1, BAD), answer.stdout
    assert "datastore1" in answer.document["message"]
    assert_nothing_built(home)


def test_wrong_names_in_a_running_lab(drill: Lab, tmp_path: Path) -> None:
    runs = len(drill.done("runs")["runs"])
    job = drill("job", "run", "nightly")
    assert job.code == BAD, job.stdout
    assert "nightly" in job.error["message"]
    assert drill("job", "show", "nightly").code == BAD
    assert_error(drill("firewall", "block", "H99"), "firewall.target", BAD, "H99")
    assert_error(drill("firewall", "block", "proxy-9", "esxi-1", "902"), "firewall.target", BAD, "proxy-9")
    assert_error(drill("firewall", "block", "proxy-1", "esxi-1", "99999"), "firewall.target", BAD, "99999")
    assert_error(drill("firewall", "allow", "proxy-1", "esxi-1"), "firewall.request", BAD)
    assert drill.done("firewall", "reset")["removed"] == []
    assert_error(drill("logs", "proxy-9"), "lab.host-unknown", BAD, "proxy-9", "proxy-1")
    assert_error(drill("logs", "proxy-1", "ghost"), "lab.no-log", MISSING, "ghost")
    assert_error(drill("flows", "ghost-run"), "run.unknown", MISSING, "ghost-run")
    assert_error(drill("pcap", "ghost-run"), "run.unknown", MISSING)
    to = ("--disk", "1", "--to", str(tmp_path / "disk"))
    assert_error(drill("restore", "20010101T000000Z-0000", *to), "restore.point-unknown", BAD, "20010101T000000Z-0000")
    assert not (tmp_path / "disk").exists()
    assert len(drill.done("runs")["runs"]) <= runs + 1, "only the refused job was worth a record"


def test_exec_on_a_host_that_is_none(drill: Lab) -> None:
    """`exec` passes the command's own code on: 255 is a failure of ours."""
    answer = drill("exec", "proxy-9", "--", "true")
    assert (answer.code, answer.document["code"]) == (255, "lab.host-unknown")
    assert answer.document["exit_code"] == BAD
    for code in (0, 3, 77):
        done = harness.run_text(drill.home, "--lab", "drill", "exec", "proxy-1", "--", "sh", "-c", f"exit {code}")
        assert done.returncode == code


def test_restores_that_can_not_be(drill: Lab, tmp_path: Path) -> None:
    points = drill.points()
    if not points:
        drill.job(code=0)
        points = drill.points()
    point = next(p for p in points if p["vm"] == "files-vm")
    argv = ("restore", point["point"], "--vm", "files-vm")
    there = tmp_path / "there"
    there.write_text("mine")
    assert_error(drill(*argv, "--disk", "2", "--to", str(there)), "restore.target-exists", BAD, "there")
    assert there.read_text() == "mine"
    assert_error(
        drill(*argv, "--disk", "2", "--to", str(tmp_path / "no" / "x")), "restore.target-exists", BAD, "no folder"
    )
    assert_error(
        drill(*argv, "--disk", "7", "--to", str(tmp_path / "x")), "restore.disk-unknown", BAD, "7", "Hard disk 1"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there"]
