# SPDX-License-Identifier: MIT
"""The command line without a lab: versions, help, bad input, exit codes, JSON documents, start-up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab.cli import main
from lab.cli.app import chosen, rearranged
from lab.cli.registry import COMMANDS
from lab.realise import folders
from lab.realise.mounts import CODE


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VADPLAB_HOME", str(tmp_path))
    return tmp_path


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1, lines
    found: dict[str, Any] = json.loads(lines[0])
    return found


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("vadplab 0.")
    assert main(["--version", "--json"]) == 0
    assert document(capsys)["schema"] == "vadplab.version/1"


def test_version_imports_nothing_heavy() -> None:
    script = (
        "import sys; from lab.cli import main; main(['--version'])\n"
        "heavy = {'sqlalchemy', 'scapy', 'pyVmomi', 'cryptography', 'asyncssh', 'docker'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=CODE, timeout=30, capture_output=True)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for entry in COMMANDS:
        assert f" {entry.name} " in text


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_each_command_has_its_module_and_help(entry: Any, capsys: pytest.CaptureFixture[str]) -> None:
    if not (CODE / Path(*entry.module.split("."))).with_suffix(".py").exists():
        pytest.skip(f"{entry.module} is not written yet")
    assert main([entry.name, "--help"]) == 0
    assert "Usage: vadplab" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        ([], None),
        (["--lab", "x", "up"], "up"),
        (["--lab=x", "down", "--force"], "down"),
        (["--version"], None),
        (["exec", "up", "--", "down"], "exec"),
    ],
)
def test_chosen_command(argv: list[str], command: str | None) -> None:
    assert chosen(argv) == command


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--json", "--lab", "x", "status"], ["--lab", "x", "status", "--json"]),
        (["--json", "exec", "h", "--", "ls", "--json"], ["exec", "h", "--json", "--", "ls", "--json"]),
        (["exec", "h", "--", "ls", "--json"], ["exec", "h", "--", "ls", "--json"]),
        (["--lab", "x", "job", "list", "--json"], ["--lab", "x", "job", "list", "--json"]),
        (["--json"], ["--json"]),
    ],
)
def test_json_may_stand_before_the_command(argv: list[str], words: list[str]) -> None:
    assert rearranged(argv) == words


def test_json_before_the_command_gives_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "labs"]) == 0
    assert document(capsys) == {"schema": "vadplab.labs/1", "labs": []}
    assert main(["--json", "--version"]) == 0
    assert document(capsys)["schema"] == "vadplab.version/1"


@pytest.mark.parametrize("group", ["job", "infra", "firewall", "topology", "fake", "rest"])
def test_a_group_without_a_verb_says_so(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([group]) == 2
    said = capsys.readouterr()
    assert "Usage: vadplab" in said.out
    assert f"{group} needs one of the commands above" in said.err


@pytest.mark.parametrize(
    ("argv", "exit_code", "code", "message"),
    [
        (["frobnicate"], 2, "input.invalid", "there is no command frobnicate"),
        (["up", "--frob"], 2, "input.invalid", "No such option: --frob"),
        (["exec"], 2, "input.invalid", "Missing argument"),
        (["up", "--capture", "some"], 2, "input.invalid", "Invalid value for '--capture': 'some' is not one of"),
        (["up", "--topology", "nothing"], 2, "topology.invalid", "nothing: no such file"),
        (["up", "--policy", "nothing"], 2, "rules.file", "no policy 'nothing'"),
        (["--lab", "Bad/Name", "up"], 2, "input.invalid", "'Bad/Name' is no name for a lab"),
        (["down"], 3, "lab.not-running", "no lab is running"),
        (["--lab", "x", "down"], 3, "lab.not-running", "there is no lab x"),
        (["--lab", "x", "down", "--purge"], 3, "lab.unknown", "there is no lab x"),
        (["status"], 3, "lab.not-running", "no lab is running"),
        (["shell", "console"], 3, "lab.not-running", "no lab is running"),
        (["exec", "console", "--", "true"], 255, "lab.not-running", "no lab is running"),
        (["logs", "console"], 3, "lab.unknown", "there is no lab"),
        (["topology", "validate", "nothing.yaml"], 2, "topology.invalid", "nothing.yaml: no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_errors_in_text_and_json(
    argv: list[str], exit_code: int, code: str, message: str, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    assert main(argv) == exit_code
    text = capsys.readouterr()
    assert text.out == ""
    assert text.err.startswith(f"error [{code}] ")
    assert message in text.err
    assert "\nnext: " in text.err
    dashes = argv.index("--") if "--" in argv else len(argv)
    assert main([*argv[:dashes], "--json", *argv[dashes:]]) == exit_code
    found = document(capsys)
    assert found["schema"] == "vadplab.error/1"
    assert (found["code"], message in found["message"]) == (code, True)
    assert set(found) >= {"step", "host", "target", "port", "symptom", "next", "exit_code"}
    assert not list(home.iterdir()), "a refused command left something"


def test_topology_commands(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["topology", "validate"]) == 0
    assert capsys.readouterr().out == "demo.yaml is good: 13 hosts, 3 vms, 1 jobs\n"
    assert main(["topology", "validate", "--json"]) == 0
    assert document(capsys)["schema"] == "vadplab.topology.validate/1"
    assert main(["topology", "schema"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main(["topology", "schema", "--json"]) == 0
    assert document(capsys)["json_schema"] == plain
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: x\nzones: [a]\nhosts: {h: {role: x, zone: a}}\n")
    assert main(["topology", "validate", str(broken)]) == 2
    assert "broken.yaml:3: hosts.h.role: 'x' is not one of 'router'" in capsys.readouterr().err


def test_labs_without_one(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert main(["labs"]) == 0
    assert capsys.readouterr().out == f"there is no lab below {home}\n"
    assert main(["labs", "--json"]) == 0
    assert document(capsys) == {"schema": "vadplab.labs/1", "labs": []}


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json"])
    found = document(capsys)
    assert code == (3 if found["missing"] else 0)
    checks = {check["name"]: check for check in found["checks"]}
    assert {"nbdkit", "nft", "dumpcap", "namespaces, veth, nftables", "ports"} <= set(checks)
    assert {check["kind"] for check in checks.values()} == {"component", "power", "port"}
    for check in checks.values():
        assert check["state"] in ("ok", "missing", "substitute", "optional")
        assert check["state"] != "missing" or check["fix"], check


def test_doctor_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from lab.realise import probe

    monkeypatch.setattr(probe, "SYSTEM_PATH", "/nonexistent")
    assert main(["doctor", "--json"]) == 3
    found = document(capsys)
    assert {"nbdkit", "nft", "ip"} <= set(found["missing"])
    nbdkit = next(check for check in found["checks"] if check["name"] == "nbdkit")
    assert nbdkit["fix"] == "apt-get install nbdkit"
    sshd = next(check for check in found["checks"] if check["name"] == "sshd")
    assert (sshd["state"], sshd["detail"]) == ("substitute", "an asyncssh server answers")


def test_fake_passes_its_arguments_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    seen: list[list[str]] = []
    fake = types.ModuleType("fakes.storage")
    fake.main = lambda argv: seen.append(argv) or 5  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fakes.storage", fake)
    assert main(["fake", "disk", "--name", "a", "--help", "--", "-x", "--json"]) == 5
    assert main(["--lab", "fake", "fake", "disk"]) == 5
    assert seen == [["--name", "a", "--help", "--", "-x", "--json"], []]


def test_a_wrong_option_names_the_command_whose_usage_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["firewall", "block", "H5", "--with", "drip"]) == 2
    assert "`vadplab firewall block --help`" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["labs"], ["labs", "--json"]])
def test_ctrl_c_in_a_command_with_nothing_to_take_back(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folders, "existing", interrupted)
    assert main(words) == 1
    said = capsys.readouterr()
    assert "console.interrupted" in (said.out if "--json" in words else said.err)
