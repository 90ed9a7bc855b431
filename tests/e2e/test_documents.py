# SPDX-License-Identifier: MIT
"""`--json` on every command: exactly one document, with a schema that the documentation names and the fields it promises."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lab.realise.mounts import CODE
from tests.e2e import harness
from tests.e2e.harness import JOB, Document, Lab, vadplab

JOB_RUN = {"run", "kind", "job", "result", "error", "warnings", "restore_points", "vms", "started", "ended"}
EVIDENCE = {"evidence", "invariants", "problems", "folder", "exit_code"}
ERROR = {"code", "step", "host", "target", "port", "symptom", "message", "next"}
FLOW = {"step", "steps", "row", "initiator", "responder", "protocol", "port", "predicted", "verdict", "rule", "bytes"}
WITNESSES = {"event", "counter", "packets", "socket"}
INVARIANTS = {"I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9", "I10"}
STATES = {"held", "broken", "not applicable"}
VERDICTS = {"allowed", "refused", "prohibited", "timed out", "not attempted", "could not check"}


@pytest.fixture(scope="module")
def job(drill_lab: Lab) -> Document:
    """The document of one run."""
    return drill_lab.job(code=0)[0]


@pytest.mark.parametrize(
    ("command", "schema", "fields"),
    [
        (
            ("status",),
            "status/1",
            {"name", "state", "mode", "topology", "policy", "vcsim", "started", "hosts", "fabric"},
        ),
        (("labs",), "labs/1", {"labs"}),
        (("logs", "backup-server"), "logs/1", {"host", "logs"}),
        (("logs", "lab"), "logs/1", {"host", "logs"}),
        (("infra", "show"), "infra/1", {"servers", "vms"}),
        (("job", "list"), "job-list/1", {"jobs"}),
        (("job", "show", JOB), "job/1", set()),
        (("points",), "points/1", {"points"}),
        (("runs",), "runs/1", {"lab", "runs"}),
        (("flows",), "flows/1", {"run", "kind", "session", "result", "exit_code", "steps", "flows", "foreign"}),
        (("pcap",), "pcap/1", {"run", "capture", "keys", "mode", "received", "dropped", "complete", "commands"}),
        (("firewall", "show"), "firewall.show/1", {"policy", "profile", "default", "overlays", "rules"}),
        (("firewall", "block", "D2"), "firewall.block/1", {"overlay", "cut"}),
        (("firewall", "allow", "D2"), "firewall.allow/1", {"removed", "overlay"}),
        (("firewall", "reset"), "firewall.reset/1", {"removed"}),
        (("topology", "validate"), "topology.validate/1", {"file", "name", "valid"}),
        (("topology", "schema"), "topology.schema/1", {"json_schema"}),
    ],
)
def test_every_command_prints_one_document(
    drill: Lab, job: Document, command: tuple[str, ...], schema: str, fields: set[str]
) -> None:
    document = drill.done(*command)
    assert document["schema"] == f"vadplab.{schema}"
    assert fields <= set(document)


def test_version_and_doctor_need_no_lab(tmp_path: Path) -> None:
    done = harness.run_text(tmp_path, "--version", "--json")
    assert json.loads(done.stdout)["schema"] == "vadplab.version/1"
    doctor = vadplab(tmp_path, "doctor")
    assert doctor.document["schema"] == "vadplab.doctor/1"
    assert (doctor.code, doctor.document["missing"]) == (0, [])


def test_the_documents_are_documented() -> None:
    """Every schema name that the code prints stands in the documentation."""
    docs = "".join(path.read_text() for path in (CODE / "docs").glob("*.md"))
    printed = set()
    for path in (CODE / "lab" / "cli").glob("*.py"):
        printed |= set(re.findall(r'"([a-z.-]+/1)"', path.read_text()))
    assert "job-run/1" in printed
    missing = {name for name in printed if f"vadplab.{name}" not in docs and f".{name.rpartition('.')[2]}" not in docs}
    assert missing == set()


def test_a_job_s_document_has_the_promised_fields(drill: Lab, job: Document) -> None:
    assert JOB_RUN | EVIDENCE | {"schema"} == set(job)
    assert set(job["invariants"]) == INVARIANTS
    assert set(job["invariants"].values()) <= STATES
    for point in job["restore_points"]:
        assert {"job", "vm", "point", "consistency", "repository", "disks"} <= set(point)
    drill.done("firewall", "block", "M4", "--with", "reset")
    failed, _ = drill.job(code=1)
    assert JOB_RUN | EVIDENCE | {"schema"} == set(failed)
    assert set(failed["error"]) == ERROR
    listed = next(run for run in drill.done("runs")["runs"] if run["run"] == failed["run"])
    assert (listed["kind"], listed["complete"], listed["evidence"]) == ("job", True, "consistent")
    assert listed["invariants"] == failed["invariants"]


def test_a_flow_has_the_promised_fields(drill: Lab, job: Document) -> None:
    document = drill.done("flows", job["run"])
    assert document["run"] == job["run"]
    for flow in document["flows"]:
        assert set(flow) >= FLOW
        assert set(flow["witnesses"]) == WITNESSES
        assert flow["verdict"] in VERDICTS
        assert set(flow["witnesses"].values()) <= VERDICTS | {"not applicable"}
        for witness, said in flow["witnesses"].items():
            assert said != "not applicable" or flow["reasons"][witness]
    for step in document["steps"]:
        assert {"step", "title", "local", "status", "begin", "end", "text", "flows", "evidence"} <= set(step)


def test_rescan_is_a_run_of_its_own(drill: Lab) -> None:
    document = drill.done("infra", "rescan")
    assert document["schema"] == "vadplab.infra-rescan/1"
    assert set(document) >= EVIDENCE
    assert document["evidence"] == "consistent"
    run = harness.Run(Path(document["folder"]))
    assert run.flows["kind"] == "rescan"
    assert run.rows() == {"C1", "H1", "M4"}
    assert run.syns_to(drill.address("linux-guest")) == set()


def test_evidence_stays_when_the_lab_is_down(drill_home: Path, tmp_path: Path) -> None:
    """`runs`, `flows`, `points` and `restore` read the folder of a lab that is down; `--purge` removes it."""
    with harness.up(drill_home, "brief", "--topology", str(drill_home / "drill.yaml")) as lab:
        job = lab.job(code=0)[0]
    assert lab("status").code == 3
    assert job["run"] in {run["run"] for run in lab.done("runs")["runs"]}
    assert lab.done("flows", job["run"])["result"] == "consistent"
    assert lab.done("flows", job["run"], "--again")["result"] == "consistent"
    assert Path(lab.done("pcap", job["run"])["capture"]).is_file()
    for point in lab.points():
        for disk in point["disks"]:
            image = tmp_path / f"{point['vm']}-{disk['key']}"
            argv = ("restore", point["point"], "--vm", point["vm"], "--disk", str(disk["key"]), "--to", str(image))
            restored = lab.done(*argv, "--compare", "--check")
            assert restored["comparison"]["equal"]
    assert lab.done("down", "--purge")["purged"]
    assert not lab.folder.path.exists()
