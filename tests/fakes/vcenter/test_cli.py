# SPDX-License-Identifier: MIT
"""`vadplab fake vcenter` as a process: first line, exit codes, SIGTERM, SIGKILL."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim

from fakes.vcenter import source
from tests.fakes.vcenter.test_snapshots import until


@pytest.fixture
def start(vcsim: source.VcsimSource) -> Iterator[Any]:
    """Starts the command; kills what is left at the end."""
    running: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "fakes.vcenter", "--vcsim", str(vcsim.executable), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate(timeout=10)


def line(process: subprocess.Popen[str]) -> str:
    """The next line, within a deadline."""
    assert process.stdout is not None
    timer = threading.Timer(60, process.kill)
    timer.start()
    try:
        return process.stdout.readline().strip()
    finally:
        timer.cancel()


def children(pid: int) -> list[int]:
    """Child processes, and theirs."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for text in (task / "children").read_text().split():
            found += [int(text), *children(int(text))]
    return found


def test_alone_with_the_simulators_own_model(start: Any) -> None:
    process = start("--listen", "127.0.0.1:0", "--", "-dc", "1", "-host", "2", "-vm", "3", "-standalone-host", "0")
    url = line(process)
    assert url.startswith("https://127.0.0.1:")
    assert url.endswith("/sdk")
    words = line(process).replace(",", "").split()
    assert words[0::2] == ["user", "password"]
    port = int(url.split(":")[2].split("/")[0])
    trust = ssl._create_unverified_context()
    session = SmartConnect(host="127.0.0.1", port=port, user=words[1], pwd=words[3], sslContext=trust)
    content = session.RetrieveContent()
    view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True).view
    assert len(view) == 3
    task = view[0].CreateSnapshot_Task(name="s", memory=False, quiesce=False)
    until(lambda: task.info.state == "success")
    assert view[0].snapshot.currentSnapshot == task.info.result
    Disconnect(session)
    below = children(process.pid)
    assert below
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below))


def test_killed_it_leaves_no_process(start: Any) -> None:
    process = start("--listen", "127.0.0.1:0")
    line(process)
    below = children(process.pid)
    assert below
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below))


def test_bad_input(start: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("hosts: 3\n")
    (tmp_path / "good.yaml").write_text("hosts: []\ndatastores: []\n")
    cases = [
        (("--listen", "nowhere"), "not ADDRESS:PORT"),
        (("--inventory", str(tmp_path / "none.yaml")), "none.yaml"),
        (("--inventory", str(tmp_path / "bad.yaml")), "bad.yaml"),
        (("--inventory", str(tmp_path / "good.yaml"), "--", "-dc", "1"), "exclude each other"),
        (("--certificate", str(tmp_path / "none.pem")), "none.pem"),
        (("--attach", "x"), "not HOST:PORT"),
        (("--no-such-option",), "no-such-option"),
    ]
    processes = [(start(*arguments), text) for arguments, text in cases]
    for process, text in processes:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (2, ""), err
        assert text in err
        assert "Traceback" not in err


def test_a_port_in_use_and_a_missing_vcsim(start: Any, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = start("--listen", f"127.0.0.1:{taken.getsockname()[1]}")
        _, err = process.communicate(timeout=60)
        assert process.returncode == 2
        assert "in use" in err
        assert "Traceback" not in err
    process = start("--vcsim", str(tmp_path / "none"))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "no executable file" in err


def test_a_simulator_that_fails_to_start(start: Any) -> None:
    process = start("--", "-no-such-flag")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "no-such-flag" in err or "vcsim ended at its start" in err
    assert "Traceback" not in err
