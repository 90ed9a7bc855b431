# SPDX-License-Identifier: MIT
"""A recorded command whose recording goes wrong: what the engine said stays, and the exit code says that nobody judged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import VadplabError
from engine.store.points import Points
from lab.cli import console, main, recorded
from lab.errors import ConsoleFailed, ControlFailed
from lab.observe.errors import EvidenceMissing
from lab.realise import control
from lab.realise.folders import LabFolder
from tests.engine.store.disks import POINT, make_point

RESULT = {"schema": "vadplab.job-result/1", "job": "demo", "result": "success", "restore_points": []}


class Desk:
    """Stands in for the supervisor and the console; `calls` in their order."""

    def __init__(self, tmp_path: Path) -> None:
        self.calls: list[str] = []
        self.argv: list[str] = []
        self.end: Callable[[], None] = lambda: None
        self.answer: Callable[[], tuple[int, dict[str, Any]]] = lambda: (0, dict(RESULT))
        self.folder = tmp_path / "run"

    def control(self, socket: Path, method: str, **params: Any) -> dict[str, Any]:
        self.calls.append(method)
        if method == "run.end":
            self.end()
        return {"run": params["run"], "folder": str(self.folder)}

    def console(self, lab: LabFolder, argv: list[str], on_line: Any = None) -> tuple[int, dict[str, Any]]:
        self.calls.append("console")
        self.argv = argv
        return self.answer()


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    desk = Desk(tmp_path)
    monkeypatch.setattr(control, "call", desk.control)
    monkeypatch.setattr(console, "run", desk.console)
    return desk


def run(tmp_path: Path) -> recorded.Recorded:
    return recorded.run(LabFolder(tmp_path), "job", ["job", "run", "demo"])


def fail(error: VadplabError | KeyboardInterrupt) -> Any:
    raise error


def test_a_recording_that_can_not_be_ended_keeps_the_result(desk: Desk, tmp_path: Path) -> None:
    desk.end = lambda: fail(ControlFailed("the supervisor does not answer"))
    found = run(tmp_path)
    assert (found.code, found.document["result"], found.report) == (0, "success", None)
    assert found.evidence()["evidence"] == "not judged"
    assert [p["code"] for p in found.evidence()["problems"]] == [ControlFailed.code]
    assert found.exit_code == ControlFailed("x").exit_code != 0


def test_a_run_that_can_not_be_judged_keeps_the_result(desk: Desk, tmp_path: Path) -> None:
    found = run(tmp_path)
    assert isinstance(found.unjudged, EvidenceMissing) and found.document["result"] == "success"
    assert found.exit_code == 3


def test_a_failed_job_stays_failed_when_its_recording_fails_too(desk: Desk, tmp_path: Path) -> None:
    desk.answer = lambda: (1, {"result": "failed"})
    desk.end = lambda: fail(ControlFailed("gone"))
    assert run(tmp_path).exit_code == 1


@pytest.mark.parametrize("error", [ControlFailed("the console is gone"), KeyboardInterrupt()])
def test_the_commands_own_failure_counts_and_the_recording_is_ended(
    desk: Desk, tmp_path: Path, error: VadplabError | KeyboardInterrupt
) -> None:
    desk.answer = lambda: fail(error)
    desk.end = lambda: fail(ControlFailed("the recording too"))
    with pytest.raises(type(error)) as caught:
        run(tmp_path)
    assert caught.value is error and desk.calls == ["run.begin", "console", "run.end"]


@pytest.mark.parametrize(
    ("options", "passed"),
    [
        ((), []),
        (("--mode", "auto"), ["--mode", "auto"]),
        (("--mode", "san", "--no-failover"), ["--mode", "san", "--no-failover"]),
        (("--failover",), ["--failover"]),
        (("--mode", "hotadd", "--full"), ["--mode", "hotadd", "--full"]),
        (("--data-direction", "repository-to-proxy"), ["--data-direction", "repository-to-proxy"]),
    ],
)
def test_options_of_a_job_run_reach_the_console(
    desk: Desk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    passed: list[str],
) -> None:
    monkeypatch.setattr("lab.cli.job.running_lab", lambda context: LabFolder(tmp_path))
    main(["job", "run", "demo", *options, "--json"])
    assert desk.argv[:3] == ["job", "run", "demo"] and desk.argv[3:-2] == passed
    assert json.loads(capsys.readouterr().out)["schema"] == "vadplab.job-run/1"


@pytest.mark.parametrize("options", [("--mode", "fax"), ("--mode",), ("--failover=no",), ("--fulll",), ("second",)])
def test_wrong_options_of_a_job_run_start_nothing(
    desk: Desk, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    assert main(["job", "run", "demo", *options, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["schema"] == "vadplab.error/1" and desk.calls == []


def test_a_console_that_says_nothing_is_an_error_with_words(desk: Desk, tmp_path: Path) -> None:
    desk.answer = lambda: (2, {})
    found = run(tmp_path)
    assert (
        found.document["error"]["code"] == ConsoleFailed.code and "said nothing" in found.document["error"]["message"]
    )
    assert found.exit_code == 2


@pytest.mark.parametrize(
    ("options", "passed"),
    [
        ((), []),
        (("--mode", "hotadd", "--no-failover"), ["--mode", "hotadd", "--no-failover"]),
        (("--host", "esxi-2", "--datastore", "ds"), ["--host", "esxi-2", "--datastore", "ds"]),
        (("--data-direction", "repository-to-proxy"), ["--data-direction", "repository-to-proxy"]),
    ],
)
def test_options_of_a_restored_vm_reach_the_console(
    desk: Desk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    passed: list[str],
) -> None:
    points = Points(tmp_path / "repository")
    points.repository.mkdir()
    make_point(points, b"x" * 65536)
    monkeypatch.setattr("lab.cli.restore.running_lab", lambda context: LabFolder(tmp_path))
    monkeypatch.setattr("lab.cli.points.repositories", lambda lab: {"repository-1": points.repository})
    main(["restore", "vm", POINT, "--name", "new", *options, "--json"])
    assert desk.argv[:-2] == ["restore", "vm", POINT, "--name", "new", "--vm", "vm1", *passed]
    assert json.loads(capsys.readouterr().out)["schema"] == "vadplab.restore-vm/1"


@pytest.mark.parametrize("options", [(), ("--name", "new", "--mode", "san"), ("--name", "n", "--disk", "1")])
def test_wrong_options_of_a_restored_vm_start_nothing(
    desk: Desk, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    assert main(["restore", "vm", POINT, *options, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["schema"] == "vadplab.error/1" and desk.calls == []
