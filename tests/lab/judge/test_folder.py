# SPDX-License-Identifier: MIT
"""Run folders as files: what is missing is said, documents and comments are written, the command lines read them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lab.cli.app import run as vadplab
from lab.judge import judge as judging
from lab.judge.folder import read
from lab.observe.errors import EvidenceMissing
from tests.lab.judge.builder import IP, RunBuilder, demo, utc


@pytest.mark.parametrize(
    "name",
    [
        "run.json",
        "events.jsonl",
        "capture.pcapng",
        "nflog.jsonl",
        "conntrack.jsonl",
        "counters-before.json",
        "counters-after.json",
        "policy.yaml",
        "topology.yaml",
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = demo().write(tmp_path / "r")
    (folder / name).unlink()
    with pytest.raises(EvidenceMissing, match=name.replace(".", r"\.")):
        read(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", "{"),
        ("run.json", "[]"),
        ("counters-after.json", "x"),
        ("nflog.jsonl", "x\n{}\n"),
        ("capture.pcapng", "x"),
        ("policy.yaml", "rules: 3\n"),
        ("overlays.jsonl", '{"overlays": []}\n{}\n'),
        ("packets.jsonl", '{"kind": "tcp"}\n'),
    ],
)
def test_a_damaged_file_is_an_error_of_the_catalogue(tmp_path: Path, name: str, content: str) -> None:
    folder = demo().write(tmp_path / "r")
    (folder / name).write_text(content)
    with pytest.raises(EvidenceMissing):
        read(folder)


def test_a_recording_cut_short_can_not_be_judged(tmp_path: Path) -> None:
    folder = demo().write(tmp_path / "r")
    about = json.loads((folder / "run.json").read_text())
    del about["ended"]
    (folder / "run.json").write_text(json.dumps(about))
    with pytest.raises(EvidenceMissing, match="cut short"):
        read(folder)


def test_last_line_cut_by_a_crash_is_left_out(tmp_path: Path) -> None:
    folder = demo().write(tmp_path / "r")
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"kind": "att')
    assert judging.judge(folder).exit_code == 0


def test_connections_outside_the_run_do_not_count(tmp_path: Path) -> None:
    run = demo()
    run.connect("before", -500, "8", "backup-server", "vcenter", 443, "H1", event=False, logged=False, tracked=False)
    run.connect("after", 6000, "8", "backup-server", "vcenter", 443, "H1", event=False, logged=False, tracked=False)
    report = judging.judge(run.write(tmp_path / "r"))
    assert report.exit_code == 0 and report.foreign == []


def test_documents_are_written_and_say_the_same_when_judged_again(tmp_path: Path) -> None:
    folder = demo().write(tmp_path / "r")
    first = judging.judge(folder)
    assert json.loads((folder / "flows.json").read_text()) == json.loads(json.dumps(first.to_flows()))
    assert json.loads((folder / "report.json").read_text())["schema"] == "vadplab.report/1"
    assert judging.judge(folder).to_report() == first.to_report()


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_comments_name_rule_row_step_and_verdict(tmp_path: Path) -> None:
    run = demo()
    run.connect("stop", 2000, "19", "proxy-1", "esxi-1", 902, "default", result="prohibit", task="linux-vm:2000")
    folder = run.write(tmp_path / "r")
    judging.judge(folder)
    found = subprocess.run(
        ["tshark", "-r", str(folder / "capture.pcapng"), "-Y", 'frame.comment contains "step=19 verdict=prohibited"',
         "-T", "fields", "-e", "_ws.col.Protocol"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.split() == ["TCP", "ICMP"]


def test_module_command_line(tmp_path: Path) -> None:
    folder = demo().write(tmp_path / "r")
    done = subprocess.run([sys.executable, "-m", "lab.judge", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout)["result"] == "consistent"
    empty = subprocess.run([sys.executable, "-m", "lab.judge", str(tmp_path)], capture_output=True, text=True)
    assert empty.returncode == 3 and "run.evidence-missing" in empty.stderr
    assert judging.main([]) == 2


# --- vadplab runs, flows, pcap with the lab down -------------------------------------------------------------------


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lab folder without a lab."""
    monkeypatch.setenv("VADPLAB_HOME", str(tmp_path))
    runs = tmp_path / "labs" / "lab" / "runs"
    runs.mkdir(parents=True)
    return runs


def command(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    code = vadplab(list(argv))
    return code, capsys.readouterr().out


def test_flows_of_the_latest_run(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo().write(lab / "r1")
    code, out = command(capsys, "flows", "--json")
    document = json.loads(out)
    assert code == 0 and document["schema"] == "vadplab.flows/1" and document["run"] == "r1"
    assert [s["step"] for s in document["steps"]][:4] == ["1", "2", "3", "4"] and len(document["steps"]) == 25
    needed = {"step", "steps", "row", "initiator", "responder", "protocol", "port", "predicted", "verdict", "rule"}
    assert all(needed | {"bytes", "witnesses"} <= set(f) for f in document["flows"])
    code, text = command(capsys, "flows")
    assert code == 0 and "proxy-1 → esxi-1:902" in text and "held I1 I2 I3 I4 I5 I6 I7 I8 I9 I10" in text


def test_flows_of_a_broken_run(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = demo()
    run.connect("back", 3500, "-", "linux-guest", "backup-server", 9392, "default", result="reset", event=False)
    run.connect("stop", 2000, "19", "proxy-1", "esxi-1", 902, "H5", result="closed", task="linux-vm:2000")
    run.write(lab / "r1")
    code, text = command(capsys, "flows", "r1")
    assert code == 1  # foreign packets break a run through I1 and I2 only
    assert "foreign packets" in text and "broken I2" in text and "refused" in text
    assert command(capsys, "flows", "r1", "--json")[0] == 1


def test_flows_of_nothing(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = command(capsys, "flows", "--json")
    assert code == 3 and json.loads(out)["code"] == "run.unknown"
    RunBuilder().write(lab / "r1")
    code, out = command(capsys, "flows", "--json")
    assert code == 3 and json.loads(out)["result"] == "nothing checked"


def test_runs_and_pcap(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo().write(lab / "r1")
    (lab / "cut").mkdir()
    code, out = command(capsys, "runs", "--json")
    by_name = {r["run"]: r for r in json.loads(out)["runs"]}
    assert code == 0 and (by_name["r1"]["evidence"], by_name["cut"]["evidence"]) == ("not judged", "cut short")
    command(capsys, "flows", "r1")
    _, out = command(capsys, "runs", "--json")
    judged = {r["run"]: r for r in json.loads(out)["runs"]}["r1"]
    assert judged["evidence"] == "consistent" and judged["invariants"]["I3"] == "held" and judged["checked"] == 15
    code, out = command(capsys, "pcap", "r1", "--json")
    document = json.loads(out)
    assert code == 0 and Path(document["capture"]).is_file() and document["complete"] and document["annotated"]
    code, text = command(capsys, "pcap", "r1")
    assert code == 0 and "tls.keylog_file" in text
    assert command(capsys, "pcap", "cut", "--json")[0] == 3
    assert command(capsys, "runs")[0] == 0


def test_words_in_brackets_survive(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = demo()
    run.step("22", 3300, 3310, phase="failed", text="[datastore1] files-vm: locked", task="files-vm")
    run.log.append(run.record(2000, "H4", IP["proxy-1"], 55555, IP["vcenter"], 443))
    run.write(lab / "r1")
    assert "[datastore1] files-vm: locked" in command(capsys, "flows")[1]
    assert utc(0)
