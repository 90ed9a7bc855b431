# SPDX-License-Identifier: MIT
"""Instant recovery through its own process, read and written with libnbd's and QEMU's tools."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.store.errors import ChainLocked
from engine.store.merge import synthetic_full
from engine.store.points import Points
from tests.engine.store.disks import CLUSTER, content_of, make_chain, point_id, versions
from tests.engine.store.test_qcow2 import mixed
from tests.engine.store.test_verify import flip, places

CONTENTS = versions(mixed((6 << 20) + 512, 1), 4, 7)
DEADLINE = 30


@pytest.fixture
def points(tmp_path: Path) -> Points:
    (tmp_path / "repository").mkdir()
    points = Points(tmp_path / "repository")
    make_chain(points, CONTENTS)
    return points


def command(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "engine.recovery", "--point", str(folder), "--disk", "2000", *options]


@contextlib.contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A recovery process and its URI; it must end by SIGTERM."""
    process = subprocess.Popen(command(folder, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    try:
        uri = process.stdout.readline().strip()
        assert uri, process.stderr.read()
        yield uri, process
        process.terminate()
        assert process.wait(DEADLINE) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()
        process.stderr.close()


def refused(folder: Path, *options: str) -> tuple[int, str]:
    """Exit code and message of a process that does not start."""
    done = subprocess.run(command(folder, *options), capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
    return done.returncode, done.stderr


def run(*arguments: str | Path) -> str:
    return subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=60).stdout


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.02)


def folder_of(points: Points, number: int) -> Path:
    return points.repository / "demo" / "vm1" / point_id(number)


@pytest.mark.parametrize("number", [0, 3])
def test_every_tool_reads_the_disk(points: Points, tmp_path: Path, number: int) -> None:
    content = CONTENTS[number]
    (tmp_path / "raw").write_bytes(content)
    with serving(folder_of(points, number), "--unix", str(tmp_path / "nbd.sock")) as (uri, _):
        assert uri == f"nbd+unix:///?socket={tmp_path}/nbd.sock"
        run("nbdcopy", uri, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == content
        assert f"export-size: {len(content)}" in run("nbdinfo", "--no-content", uri)
        assert "zero" in run("nbdinfo", "--map", uri)
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, tmp_path / "raw")
    assert not (tmp_path / "nbd.sock").exists()


def test_an_address(points: Points, tmp_path: Path) -> None:
    with serving(folder_of(points, 1), "--listen", "127.0.0.1:0") as (uri, _):
        assert uri.startswith("nbd://127.0.0.1:")
        run("nbdcopy", uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == CONTENTS[1]


def write(uri: str, places: dict[int, bytes]) -> None:
    """Writes in one process of libnbd's shell; flushes at the end."""
    script = "".join(f"h.pwrite(bytes.fromhex('{data.hex()}'), {at})\n" for at, data in places.items())
    text = f"import nbd\nh = nbd.NBD()\nh.connect_uri({uri!r})\n{script}h.flush()\nh.shutdown()\n"
    subprocess.run(["/usr/bin/python3", "-"], input=text, text=True, check=True, timeout=60)


def test_writes_go_to_the_overlay_and_survive(points: Points, tmp_path: Path) -> None:
    folder, overlay = folder_of(points, 3), tmp_path / "overlay"
    rng = random.Random(3)
    expected = bytearray(CONTENTS[3])
    first = {CLUSTER - 512: rng.randbytes(3 * CLUSTER), 3 << 20: b"x" * 512, len(expected) - 512: b"e" * 512}
    second = {CLUSTER: b"again" * 100, 5 << 20: bytes(CLUSTER)}
    for number, batch in enumerate((first, second)):
        where = ("--unix", str(tmp_path / f"s{number}"), "--overlay", str(overlay))
        with serving(folder, *where) as (uri, _):
            write(uri, batch)
            for at, data in batch.items():
                expected[at : at + len(data)] = data
            run("nbdcopy", uri, tmp_path / "copy")
            assert (tmp_path / "copy").read_bytes() == expected
            code, text = refused(folder, "--unix", str(tmp_path / "other"), "--overlay", str(overlay))
            assert code == 1 and "store.locked" in text, "two processes on one overlay"
    assert content_of(folder, tmp_path / "out") == CONTENTS[3], "the restore point is as it was"
    assert overlay.stat().st_blocks * 512 < 8 * CLUSTER
    code, text = refused(folder_of(points, 2), "--unix", str(tmp_path / "x"), "--overlay", str(overlay))
    assert code == 2 and "recovery.overlay" in text
    overlay.write_bytes(b"something else")
    assert refused(folder, "--unix", str(tmp_path / "x"), "--overlay", str(overlay))[0] == 2
    assert overlay.read_bytes() == b"something else"


def test_without_an_overlay_file_writes_are_gone(points: Points, tmp_path: Path) -> None:
    for content in (b"w" * 512, None):
        with serving(folder_of(points, 3), "--unix", str(tmp_path / "s")) as (uri, _):
            if content:
                write(uri, {0: content})
            run("nbdcopy", uri, tmp_path / "copy")
            assert ((tmp_path / "copy").read_bytes() == CONTENTS[3]) is (content is None)


def test_the_chain_is_locked_meanwhile(points: Points, tmp_path: Path) -> None:
    with serving(folder_of(points, 1), "--unix", str(tmp_path / "s")):
        with pytest.raises(ChainLocked):
            synthetic_full(points, "demo", "vm1", point_id(2), wait=0.1)
        points.begin("demo", "vm1", point_id(9), kind="incremental", parent=point_id(3))
        points.abort("demo", "vm1", point_id(9))
    synthetic_full(points, "demo", "vm1", point_id(2))


def test_damage_is_an_error_never_wrong_bytes(points: Points, tmp_path: Path) -> None:
    folder = folder_of(points, 0)
    cluster, (offset, _) = sorted(places(folder / "disk-2000.qcow2").items())[-1]
    flip(folder / "disk-2000.qcow2", offset + 5)
    with serving(folder, "--unix", str(tmp_path / "s")) as (uri, process):
        done = subprocess.run(["nbdcopy", uri, tmp_path / "copy"], capture_output=True, text=True, timeout=60)
        assert done.returncode != 0 and "Input/output error" in done.stderr
        process.terminate()
        process.wait(DEADLINE)
        assert process.stderr is not None
        assert f"refused at offset {cluster * CLUSTER}" in process.stderr.read()


def test_what_cannot_be_served(points: Points, tmp_path: Path) -> None:
    folder, sock = folder_of(points, 0), str(tmp_path / "s")
    for arguments, code, text in (
        ((tmp_path / "nothing", "--unix", sock), 2, "store.not-found"),
        ((folder, "--disk", "2001", "--unix", sock), 2, "store.not-found"),
        ((folder, "--listen", "nonsense"), 2, "not an address"),
        ((folder, "--listen", "192.0.2.1:1"), 2, "cannot listen"),
        ((folder, "--unix", str(tmp_path / "no" / "folder")), 2, "cannot listen"),
        ((folder,), 2, "required"),
    ):
        assert (got := refused(*arguments))[0] == code and text in got[1], got  # type: ignore[arg-type]
    (folder / "manifest.json").write_text("{}")
    assert "store.format" in refused(folder, "--unix", sock)[1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_dies_with_its_parent(points: Points, tmp_path: Path, number: int) -> None:
    """The parent is a shell that is killed, or the process itself is: nbdkit must be gone and the chain free."""
    script = "import subprocess,sys; p=subprocess.Popen(sys.argv[1:]); print(p.pid, flush=True); p.wait()"
    arguments = [sys.executable, "-c", script, *command(folder_of(points, 3), "--unix", str(tmp_path / "s"))]
    parent = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert parent.stdout.readline().startswith("nbd+unix")
    with pytest.raises(ChainLocked):
        synthetic_full(points, "demo", "vm1", point_id(2), wait=0)
    os.kill(parent.pid if number == signal.SIGKILL else child, signal.SIGKILL)
    parent.wait(DEADLINE)
    parent.stdout.close()

    def free() -> bool:
        try:
            synthetic_full(points, "demo", "vm1", point_id(2), wait=0)
        except ChainLocked:
            return False
        return True

    until(free)
    until(lambda: not Path(f"/proc/{child}").exists())
