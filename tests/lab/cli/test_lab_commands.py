# SPDX-License-Identifier: MIT
"""The command line with a real lab, as a person uses it: processes, terminals, exit codes."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from lab.cli import main
from lab.realise.folders import LabFolder
from lab.realise.mounts import CODE
from tests.lab.realise.labs import eventually, needs_lab, running

pytestmark = [pytest.mark.lab, needs_lab]
VADPLAB = [sys.executable, "-m", "lab.cli"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def lab(home: Path) -> Iterator[LabFolder]:
    with running(home, "one") as lab:
        yield lab


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "VADPLAB_HOME": str(home), "PYTHONPATH": str(CODE), "SHELL": "/bin/sh"}


def vadplab(home: Path, *argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*VADPLAB, *argv], input=stdin, capture_output=True, text=True, timeout=60, check=False, env=environment(home)
    )


def quick(home: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """As `vadplab`, in this process: for commands that use no terminal and no descriptors."""
    out, err = io.StringIO(), io.StringIO()
    with mock.patch.dict(os.environ, {"VADPLAB_HOME": str(home)}), redirect_stdout(out), redirect_stderr(err):
        code = main(list(argv))
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_life_of_a_lab(tmp_path: Path) -> None:
    up = vadplab(tmp_path, "--lab", "mine", "up", "--empty", "--json")
    assert (up.returncode, up.stderr) == (0, "")
    assert document(up)["schema"] == "vadplab.up/1"
    try:
        again = quick(tmp_path, "--lab", "mine", "up", "--empty")
        assert again.returncode == 2
        assert again.stderr.startswith("error [lab.running] the lab mine is up already\nnext: ")
        second = quick(tmp_path, "up", "--empty")
        assert second.returncode == 0
        assert "✓ firewall (policy default-12.3" in second.stderr
        assert second.stdout.startswith("the lab lab is up after ")
        several = quick(tmp_path, "status", "--json")
        assert (several.returncode, document(several)["code"]) == (2, "lab.ambiguous")
        labs = document(quick(tmp_path, "labs", "--json"))["labs"]
        assert [(found["name"], found["running"], found["phase"]) for found in labs] == [
            ("lab", True, "up"),
            ("mine", True, "up"),
        ]
        purged = quick(tmp_path, "--lab", "lab", "down", "--purge", "--json")
        assert (purged.returncode, document(purged)["purged"]) == (0, True)
        assert not (tmp_path / "labs" / "lab").exists()
        status = document(quick(tmp_path, "status", "--json"))
        assert (status["schema"], status["name"]) == ("vadplab.status/1", "mine")
        run = quick(tmp_path, "job", "run", "demo", "--json")
        assert (run.returncode, document(run)["code"]) == (3, "lab.empty")
    finally:
        down = quick(tmp_path, "--lab", "mine", "down")
    assert (down.returncode, down.stderr) == (0, "")
    assert quick(tmp_path, "down").returncode == 3
    assert quick(tmp_path, "--lab", "mine", "down", "--purge").returncode == 0


def test_killed_lab_is_shown_as_killed(tmp_path: Path) -> None:
    assert quick(tmp_path, "up", "--empty").returncode == 0
    state = LabFolder(tmp_path / "labs" / "lab").state()
    os.kill(state["launcher"]["pid"], signal.SIGKILL)
    eventually(lambda: not LabFolder(tmp_path / "labs" / "lab").running(), "the lab still runs")
    labs = document(quick(tmp_path, "labs", "--json"))["labs"]
    assert [(found["phase"], found["running"]) for found in labs] == [("killed", False)]


def test_status_as_a_table(home: Path, lab: LabFolder) -> None:
    lines = quick(home, "status").stdout.splitlines()
    assert lines[0].startswith("the lab one is up (topology demo, as ")
    assert lines[1].split() == ["host", "role", "zone", "address", "processes"]
    assert ["isolated-guest", "guest_isolated", "guests", "no", "network"] in [line.split() for line in lines]


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_exec_passes_the_exit_code(home: Path, lab: LabFolder, code: int) -> None:
    done = vadplab(home, "exec", "console", "--", "sh", "-c", f"cat; echo error >&2; exit {code}", stdin="input")
    assert (done.returncode, done.stdout, done.stderr) == (code, "input", "error\n")


def test_exec_keeps_arguments_folder_and_environment(home: Path, lab: LabFolder, tmp_path: Path) -> None:
    done = subprocess.run(
        [*VADPLAB, "exec", "console", "--", "sh", "-c", 'pwd; echo "$MINE"; printf "%s\n" "$@"', "x", "--json", "-a b", "--"],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path, env={**environment(home), "MINE": "kept"},
    )  # fmt: skip
    assert done.stdout.splitlines() == [str(tmp_path), "kept", "--json", "-a b", "--"]


def test_exec_failures_of_ours_are_255(home: Path, lab: LabFolder) -> None:
    done = vadplab(home, "exec", "nowhere", "--", "true")
    assert (done.returncode, done.stdout) == (255, "")
    assert done.stderr.startswith("error [lab.host-unknown] no host nowhere; the hosts are console, ")


def test_exec_is_interrupted_with_the_command_line(home: Path, lab: LabFolder) -> None:
    script = "trap 'echo caught; exit 33' INT; echo started; while :; do sleep 0.05; done"
    process = subprocess.Popen(
        [*VADPLAB, "exec", "console", "--", "sh", "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(home),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[0] == "caught\n"
    assert process.returncode == 33


def test_shell_reads_commands_from_a_pipe(home: Path, lab: LabFolder) -> None:
    done = vadplab(home, "shell", "esxi-1", stdin="ip -4 -o address show eth0\nexit 5\n")
    assert done.returncode == 5
    assert "10.77.7.10/24" in done.stdout


def test_shell_on_a_terminal(home: Path, lab: LabFolder) -> None:
    pid, master = pty.fork()
    if pid == 0:
        os.environ.update(environment(home))
        os.execv(sys.executable, [*VADPLAB, "shell", "proxy-1"])
    seen = b""

    def expect(text: bytes) -> None:
        nonlocal seen
        end = time.monotonic() + 20
        while text not in seen:
            assert time.monotonic() < end, seen
            if select.select([master], [], [], 0.1)[0]:
                seen += os.read(master, 4096)

    os.write(master, b"test -t 0 && echo terminal-$((40+2)); stty size\n")
    expect(b"terminal-42")
    os.write(master, b"sleep 300\n")
    end = time.monotonic() + 20
    while b"still-44" not in seen:  # nothing is read before Ctrl-C has ended the sleep
        assert time.monotonic() < end, seen
        os.write(master, b"\x03echo still-$((40+4))\n")
        if select.select([master], [], [], 0.3)[0]:
            seen += os.read(master, 4096)
    os.write(master, b"exit 6\n")
    status = None
    end = time.monotonic() + 20
    while status is None and time.monotonic() < end:
        done, found = os.waitpid(pid, os.WNOHANG)
        status = found if done else None
        try:
            if select.select([master], [], [], 0.05)[0]:
                os.read(master, 4096)
        except OSError:
            pass
    os.close(master)
    assert status is not None
    assert os.waitstatus_to_exitcode(status) == 6


def test_logs(home: Path, lab: LabFolder) -> None:
    log = lab.log("console", "noted")
    log.write_text("one\ntwo\nthree\n")
    assert quick(home, "logs", "console", "noted", "-n", "2").stdout == "two\nthree\n"
    found = document(quick(home, "logs", "console", "--json"))
    assert (found["schema"], found["logs"][0]["lines"]) == ("vadplab.logs/1", ["one", "two", "three"])
    assert "launcher" in quick(home, "logs", "lab").stdout
    missing = quick(home, "logs", "console", "nothing")
    assert (missing.returncode, missing.stderr.split("\n")[0]) == (
        3,
        "error [lab.no-log] console has no log of a process nothing",
    )
    assert quick(home, "logs", "..").returncode == 2


def test_output_to_a_closed_pipe(home: Path, lab: LabFolder) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{' '.join(VADPLAB)} status | head -1"],
        capture_output=True, text=True, timeout=60, check=False, env=environment(home),
    )  # fmt: skip
    assert done.stdout.startswith("the lab one is up")
    assert "Traceback" not in done.stderr
