# SPDX-License-Identifier: MIT
"""Processes of a lab: readiness, exit codes, logs, namespaces of their own, orphans; and the control socket itself."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.core.fabric import connect
from lab.errors import ControlFailed, LabNotRunning, RemoteLabError
from lab.realise.control import ControlClient, call
from lab.realise.folders import LabFolder
from tests.lab.realise.labs import eventually, needs_lab, run, running

pytestmark = [pytest.mark.lab, needs_lab]
SAMPLE = "tests.lab.realise.sample"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabFolder]:
    with running(tmp_path_factory.mktemp("home")) as lab:
        yield lab


def spawn(lab: LabFolder, name: str, *argv: str, host: str | None = "proxy-1", **params: Any) -> dict[str, Any]:
    result: dict[str, Any] = call(
        lab.control_socket, "spawn", host=host, name=name, module=SAMPLE, argv=list(argv), **params
    )
    return result


def entry(lab: LabFolder, name: str, host: str = "proxy-1") -> dict[str, Any]:
    hosts = call(lab.control_socket, "status")["hosts"]
    processes = next(h["processes"] for h in hosts if h["name"] == host)
    found: dict[str, Any] = next(p for p in processes if p["name"] == name)
    return found


def ended(lab: LabFolder, name: str) -> int | None:
    eventually(lambda: entry(lab, name)["code"] is not None, f"{name} does not end")
    code: int | None = entry(lab, name)["code"]
    return code


def test_ready_line_log_and_exit_code(lab: LabFolder) -> None:
    result = spawn(lab, "ready", "ready", "one", "two")
    assert result["ready"] == "ready ['one', 'two']"
    assert entry(lab, "ready")["state"] == "running"
    log = lab.log("proxy-1", "ready")
    eventually(lambda: "an error" in log.read_text() and "more output" in log.read_text(), "the log is not complete")
    call(lab.control_socket, "kill", host="proxy-1", name="ready")
    assert ended(lab, "ready") == 128 + signal.SIGTERM
    with pytest.raises(RemoteLabError, match="runs no process ready"):
        call(lab.control_socket, "kill", host="proxy-1", name="ready")


def test_killed_process_has_a_shell_s_code(lab: LabFolder) -> None:
    spawn(lab, "deaf", "deaf")
    call(lab.control_socket, "kill", host="proxy-1", name="deaf", signal=9)
    assert ended(lab, "deaf") == 137


@pytest.mark.parametrize(("argv", "code"), [(("exit", "0"), 0), (("exit", "7"), 7)])
def test_exit_codes(lab: LabFolder, argv: tuple[str, ...], code: int) -> None:
    name = f"leaves-{code}"
    assert spawn(lab, name, *argv)["ready"] == "leaving"
    assert ended(lab, name) == code


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("dies",), r"proxy-1: dies-dies ended with code 4 before it was ready:\nlast words$"),
        (("text-exit",), r"ended with code 1 before it was ready:\na reason$"),
        (("raises",), r"(?s)ended with code 125 before it was ready:\nTraceback.*RuntimeError: broken on purpose$"),
    ],
)
def test_death_before_readiness_shows_the_log(lab: LabFolder, argv: tuple[str, ...], expected: str) -> None:
    with pytest.raises(RemoteLabError) as caught:
        spawn(lab, f"dies-{argv[0]}", *argv)
    assert caught.value.fields["code"] == "lab.process-failed"
    assert re.search(expected, caught.value.message), caught.value.message


def test_silence_is_not_readiness(lab: LabFolder) -> None:
    with pytest.raises(RemoteLabError, match=r"silent was not ready after 0\.2 s"):
        spawn(lab, "silent", "silent", ready_timeout=0.2)
    assert ended(lab, "silent") == 137


def test_module_and_program_that_do_not_exist(lab: LabFolder) -> None:
    with pytest.raises(RemoteLabError, match="ModuleNotFoundError"):
        call(lab.control_socket, "spawn", host="proxy-1", name="no-module", module="engine.nothing", argv=[])
    with pytest.raises(RemoteLabError, match=r"code 127 before it was ready:\nno-such-program: No such file"):
        call(lab.control_socket, "spawn", host="proxy-1", name="no-program", argv=["no-such-program"])


def test_unknown_host(lab: LabFolder) -> None:
    with pytest.raises(RemoteLabError) as caught:
        spawn(lab, "lost", "ready", host="proxy-9")
    assert (caught.value.fields["code"], caught.value.exit_status) == ("lab.host-unknown", 2)


def test_process_of_no_host_sees_no_network(lab: LabFolder) -> None:
    result = call(
        lab.control_socket, "spawn", host=None, name="fabric-process",
        argv=["sh", "-c", "echo $(ip -o link | wc -l) links"],
    )  # fmt: skip
    assert result["ready"] == "1 links"
    assert lab.log(None, "fabric-process").exists()


def test_environment_is_the_lab_s_own(lab: LabFolder) -> None:
    names = json.loads(spawn(lab, "environment", "environment")["ready"].replace("'", '"'))
    assert set(names) <= {"PATH", "LANG", "HOME", "PYTHONPATH", "PYTHONUNBUFFERED", "LC_CTYPE", "VADPLAB_CACHE"}


def test_orphans_are_reaped(lab: LabFolder) -> None:
    pid = int(spawn(lab, "orphan", "orphan")["ready"])
    gone = ["sh", "-c", f"! kill -0 {pid} 2>/dev/null"]
    eventually(lambda: run(lab, "proxy-1", *gone)[0] == 0, "the orphan was not reaped")
    _, states, _ = run(lab, "proxy-1", "sh", "-c", "cat /proc/[0-9]*/stat | cut -d' ' -f3")
    assert b"Z" not in states.split()
    call(lab.control_socket, "kill", host="proxy-1", name="orphan", signal=9)


def test_exec_streams_and_code(lab: LabFolder) -> None:
    code, out, err = run(lab, "console", "sh", "-c", "cat; echo to-err >&2; exit 42", stdin=b"through the lab")
    assert (code, out, err) == (42, b"through the lab", b"to-err\n")
    assert run(lab, "console", "no-such-program")[0] == 127
    _, out, _ = run(lab, "esxi-2", "ip", "-4", "-o", "address", "show", "eth0")
    assert b"10.77.8.10/24" in out


def test_exec_leaves_no_entry_and_no_descriptor(lab: LabFolder) -> None:
    def descriptors() -> int:
        return int(run(lab, "console", "sh", "-c", "ls /proc/1/fd | wc -l")[1])

    before = descriptors()
    for _ in range(10):
        run(lab, "console", "true")
    eventually(lambda: descriptors() <= before, "descriptors of ended commands are left")
    assert entry_names(lab, "console") == []


def entry_names(lab: LabFolder, host: str) -> list[str]:
    hosts = call(lab.control_socket, "status")["hosts"]
    return [p["name"] for h in hosts if h["name"] == host for p in h["processes"]]


def test_exec_passes_signals(lab: LabFolder) -> None:
    streams = [os.open(os.devnull, os.O_RDWR) for _ in range(2)]
    read, write = os.pipe()
    try:
        with ControlClient(lab.control_socket) as client:
            script = "trap 'exit 9' INT; echo started; while :; do sleep 0.05; done"
            client.send("exec", host="console", argv=["sh", "-c", script], fds=[streams[0], write, streams[1]])
            assert os.read(read, 100) == b"started\n"
            client.signal(signal.SIGINT)
            assert client.result(10.0) == {"code": 9}
    finally:
        for fd in (*streams, read, write):
            os.close(fd)


def test_exec_ends_with_its_client(lab: LabFolder) -> None:
    read, write = os.pipe()
    nothing = os.open(os.devnull, os.O_RDWR)
    client = ControlClient(lab.control_socket)
    client.send("exec", host="console", argv=["sh", "-c", "echo $$; sleep 300"], fds=[nothing, write, nothing])
    os.close(write)
    pid = int(os.read(read, 100))
    client.close()
    assert os.read(read, 100) == b""  # end of file: nobody holds the pipe any more
    eventually(lambda: run(lab, "console", "kill", "-0", str(pid))[0] != 0, "the command outlives its client")
    os.close(read)
    os.close(nothing)


def test_exec_of_a_module(lab: LabFolder) -> None:
    read, write = os.pipe()
    nothing = os.open(os.devnull, os.O_RDWR)
    with ControlClient(lab.control_socket) as client:
        result = client.call("exec", host="console", module=SAMPLE, argv=["exit", "5"], fds=[nothing, write, nothing])
    os.close(write)
    assert result == {"code": 5}
    assert os.read(read, 100) == b"leaving\n"
    os.close(read)
    os.close(nothing)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"not json\n", "lab.control"),
        (b"[]\n", "lab.control"),
        (b'{"method": 3}\n', "lab.control"),
        (b'{"method": "frobnicate"}\n', "lab.control"),
        (b'{"method": "exec", "params": {"host": "console", "argv": ["true"]}}\n', "lab.control"),
        (b'{"method": "spawn", "params": {"host": "console"}}\n', "lab.control"),
        (b'{"method": "firewall.frobnicate"}\n', None),
    ],
)
def test_bad_requests_get_an_error_each(lab: LabFolder, line: bytes, code: str | None) -> None:
    with connect(lab.control_socket, 5.0) as sock:
        sock.sendall(line)
        reply = json.loads(sock.makefile("rb").readline())
        assert "message" in reply["error"]
        assert code is None or reply["error"]["code"] == code
        sock.sendall(b'{"method": "status"}\n')
        assert json.loads(sock.makefile("rb").readline())["result"]["state"] == "up"


def test_many_clients_at_once(lab: LabFolder) -> None:
    codes: list[int] = []

    def one(number: int) -> None:
        codes.append(run(lab, "console", "sh", "-c", f"sleep 0.05; exit {number}")[0])

    threads = [threading.Thread(target=one, args=(number,)) for number in range(20)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == list(range(20))
    assert time.monotonic() - begun < 10


def test_logs(lab: LabFolder) -> None:
    spawn(lab, "logged", "exit", "0")
    files = [Path(path).name for path in call(lab.control_socket, "logs", host="proxy-1")["files"]]
    assert "logged.log" in files
    with pytest.raises(RemoteLabError, match="no host"):
        call(lab.control_socket, "logs", host="../..")


def test_client_of_no_lab(tmp_path: Path) -> None:
    with pytest.raises(LabNotRunning):
        call(tmp_path / "control.sock", "status")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "control.sock"))
        server.listen()
        with ControlClient(tmp_path / "control.sock") as client, pytest.raises(ControlFailed, match="did not answer"):
            client.call("status", timeout=0.1)
