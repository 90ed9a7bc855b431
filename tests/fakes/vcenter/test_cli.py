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

    def run(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "fakes.vcenter", "--vcsim", str(vcsim.executable), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
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


def test_flags_that_the_simulator_refuses_are_bad_input(start: Any) -> None:
    cases = [
        (("-no-such-flag",), "no-such-flag"),
        (("-dc", "x"), 'invalid value "x"'),
        (("-load", "/no/such/folder"), "/no/such/folder"),
        (("-tls=true",), "--certificate"),
        (("-l", "127.0.0.1:1"), "--listen"),
    ]
    processes = [(start("--", *flags), text) for flags, text in cases]
    for process, text in processes:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 2, err
        assert text in err
        assert "Traceback" not in err


def log_in(process: subprocess.Popen[str]) -> Any:
    """A session with what the first two lines say."""
    port = int(line(process).split(":")[2].split("/")[0])
    words = line(process).replace(",", "").split()
    trust = ssl._create_unverified_context()
    return SmartConnect(host="127.0.0.1", port=port, user=words[1], pwd=words[3], sslContext=trust)


def test_the_simulators_own_user(start: Any) -> None:
    process = start("--", "-username", "backup", "-password=s3cret", "-dc", "0")
    session = log_in(process)
    assert session.RetrieveContent().sessionManager.currentSession.userName == "backup@vsphere.local"
    Disconnect(session)


def test_the_simulator_as_a_lone_host(start: Any) -> None:
    process = start("--", "-esx")
    session = log_in(process)
    content = session.RetrieveContent()
    assert content.about.apiType == "HostAgent"
    vm = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True).view[0]
    task = vm.CreateSnapshot_Task(name="s", memory=False, quiesce=False)
    until(lambda: task.info.state == "success")
    assert vm.snapshot.currentSnapshot == task.info.result
    Disconnect(session)


def test_a_signal_before_or_at_the_first_line_ends_it_cleanly(start: Any, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    at_once = start(environment=environment)
    line(at_once)
    at_once.send_signal(signal.SIGTERM)
    assert at_once.wait(15) == 0
    early = start(environment=environment)
    until(lambda: any(tmp_path.glob("*/state/vcsim-*")))  # vcsim is being started
    early.send_signal(signal.SIGTERM)
    assert early.wait(15) == 0
    assert list(tmp_path.iterdir()) == []


def test_killed_it_leaves_no_folder_and_starts_again_in_its_state(start: Any, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "inventory.yaml").write_text(
        "hosts: [{name: esxi-1, address: 10.0.0.1}]\n"
        "datastores: [{name: store, capacity: 64MiB, hosts: [esxi-1]}]\n"
        "vms: [{name: web, host: esxi-1, datastore: store, disks: [{size: 1MiB}]}]\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    arguments = ["--inventory", str(tmp_path / "inventory.yaml"), "--state", str(tmp_path / "state")]
    for _ in range(2):
        process = start(*arguments, environment=environment)
        assert line(process).startswith("https://")
        process.kill()
        process.wait(10)
    until(lambda: not any((tmp_path / "tmp").iterdir()))
