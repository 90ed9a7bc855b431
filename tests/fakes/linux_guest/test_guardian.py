# SPDX-License-Identifier: MIT
"""The guardian as a process: who leaves something with it, who takes it back, who just disappears."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.linux_guest import guardian
from fakes.linux_guest.guardian import Ward
from tests.fakes.linux_guest.site import eventually


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    path = tmp_path / "guardian.sock"
    process = subprocess.Popen(
        [sys.executable, "-m", "fakes.linux_guest.guardian", "--socket", str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == f"ready {path}\n"
    try:
        yield process, path
    finally:
        process.stdin.close()
        process.kill()
        process.wait(10)
        for end in (process.stdout, process.stderr):
            assert end is not None
            end.close()


def _ward(path: Path, folder: Path) -> tuple[Ward, subprocess.Popen[bytes], list[int]]:
    """A ward whose "guest" is a sleeping process and whose file system is that of `folder`."""
    guest = subprocess.Popen(["sleep", "60"])
    fds = [os.open(folder, os.O_RDONLY), os.pidfd_open(guest.pid), os.open(folder / "log", os.O_WRONLY | os.O_CREAT)]
    return Ward(path, vm="lin", mount="/", fd=fds[0], init=fds[1], log=fds[2]), guest, fds


def _open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_release_gives_everything_back(running: tuple[subprocess.Popen[str], Path], tmp_path: Path) -> None:
    process, path = running
    before = _open_files(process.pid)
    ward, guest, fds = _ward(path, tmp_path)
    assert _open_files(process.pid) >= before + 3
    ward.release()
    eventually(lambda: _open_files(process.pid) == before)
    guest.kill()
    guest.wait(10)
    for fd in fds:
        os.close(fd)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may thaw")
def test_it_outlives_its_watch_as_long_as_a_guest_lives(
    running: tuple[subprocess.Popen[str], Path], tmp_path: Path
) -> None:
    process, path = running
    ward, guest, fds = _ward(path, tmp_path)
    assert process.stdin is not None
    process.stdin.close()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    os.close(ward.fileno())  # the supervising process is gone, but its guest still dies
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    guest.kill()
    assert process.wait(10) == 0
    guest.wait(10)
    assert (tmp_path / "log").read_text() == ""  # nothing was frozen, so nothing was thawed
    for fd in fds:
        os.close(fd)
    ward._sock.detach()


def test_nonsense_does_not_harm_it(running: tuple[subprocess.Popen[str], Path], tmp_path: Path) -> None:
    process, path = running
    for data in (b"", b"\xff\xfe", b"[]", b'{"mount": 1}', b"x" * 9000):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(path))
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):  # it closed with our bytes unread
                assert sock.recv(4096) in (b"", b"three descriptors are needed\n")
    assert process.poll() is None
    ward, guest, fds = _ward(path, tmp_path)
    ward.release()
    guest.kill()
    guest.wait(10)
    for fd in fds:
        os.close(fd)


def test_launch_and_the_end_of_the_watch(tmp_path: Path) -> None:
    """`outside`, as a lab's caretaker calls it, in a process of one thread."""
    code = (
        "import os, socket, sys\nfrom pathlib import Path\nfrom fakes.core import fabric\n"
        "from fakes.linux_guest import guardian\n"
        "class Caretaker: cleanups = []\n"
        "care = Caretaker()\nlistener = fabric.listen(Path(sys.argv[1]))\n"
        "result, _ = guardian.outside(care, {}, [listener.detach()])\n"
        "print(result['pid'], flush=True)\nsys.stdin.read()\ncare.cleanups[0]()\n"
    )
    path = tmp_path / "g.sock"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        pid = int(process.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        ward, guest, fds = _ward(path, tmp_path)
        process.stdin.close()
        assert process.wait(10) == 0
        assert Path(f"/proc/{pid}").exists(), "the guardian left its ward alone"
        ward.release()
        eventually(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text())
    guest.kill()
    guest.wait(10)
    for fd in fds:
        os.close(fd)


def test_record(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "freeze.jsonl", os.O_WRONLY | os.O_CREAT)
    guardian.record(fd, "frozen", "/", "backup")
    os.close(fd)
    entry = json.loads((tmp_path / "freeze.jsonl").read_text())
    assert (entry["event"], entry["mount"], entry["by"]) == ("frozen", "/", "backup")
    assert entry["utc"] > entry["mono"] > 0
