# SPDX-License-Identifier: MIT
"""`vadplab fake esxi` as a process, without a lab."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fakes.core.fabric import FabricClient
from tests.fakes.esxi.nfc_client import session


def _start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fakes.esxi", "--listen", "127.0.0.1:0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _first_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.stderr and process.stderr.read()
    loaded: dict[str, Any] = json.loads(line)
    return loaded


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_alone_with_an_image(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(os.urandom(1 << 20))
    with _start("--image", str(image), "--tickets", "1", "--ticket-socket", str(tmp_path / "tickets.sock")) as process:
        told = _first_line(process)
        address = (told["address"], told["port"])
        assert told["url"] == f"nfc://{address[0]}:{address[1]}"
        with session(address, told["tickets"][0]) as nfc:
            handle, _ = nfc.open(told["path"])
            assert nfc.read(handle, 0, told["size"]) == image.read_bytes()
            nfc.close()
        window = FabricClient(Path(told["ticket_socket"]), timeout=5)
        ticket = window.call("ticket.new", read_only=False)["session_id"]
        window.close()
        with session(address, ticket, service="nfcssl") as nfc:
            handle, _ = nfc.open(told["path"], write=True)
            nfc.write(handle, 0, b"changed!" * 64)
            nfc.close_file(handle)
            nfc.close()
        assert image.read_bytes()[:8] == b"changed!"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert not Path(told["ticket_socket"]).exists()


def test_below_a_folder_too_deep_for_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(deep))
    with _start("--size", "1MiB", "--tickets", "1") as process:
        told = _first_line(process)
        with session((told["address"], told["port"]), told["tickets"][0]) as nfc:
            handle, _ = nfc.open(told["path"])
            assert nfc.read(handle, 0, 512) == bytes(512)
            nfc.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert not list(deep.iterdir())


def test_sigkill_leaves_no_child_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with _start("--size", "1MiB") as process:
        _first_line(process)
        assert list(tmp_path.iterdir())
        children = _children(process.pid)
        assert children
        process.kill()
        process.wait(10)
    deadline = time.monotonic() + 5
    while (list(tmp_path.iterdir()) or any(map(_running, children))) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not list(tmp_path.iterdir())
    assert not [pid for pid in children if _running(pid)]


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ((), 2, "--fabric"),
        (("--size", "1MiB", "--image", "x"), 2, "exclude"),
        (("--size", "lots"), 2, "not a size"),
        (("--size", "1000"), 2, "multiple of 512"),
        (("--image", "/nonexistent.raw"), 2, "no such file"),
        (("--fabric", "/nonexistent"), 2, "--certificate"),
        (("--fabric", "/nonexistent", "--certificate", "x"), 2, "no such folder"),
        (("--size", "1MiB", "--listen", "127.0.0.1:none"), 2, "--listen"),
        (("--size", "1MiB", "--listen", "192.0.2.1:0"), 2, "assign"),
    ],
)
def test_bad_command_lines(arguments: tuple[str, ...], code: int, text: str) -> None:
    with _start(*arguments) as process:
        _, error = process.communicate(timeout=20)
    assert process.returncode == code, error
    assert text in error
    assert "Traceback" not in error
