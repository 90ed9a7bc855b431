# SPDX-License-Identifier: MIT
"""Contents of a disk over NBD, against nbdkit."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.core.fabric import FabricError
from fakes.vcenter.contents import Contents, opened

MIB = 1 << 20


@pytest.fixture
def socket(tmp_path: Path) -> Iterator[Path]:
    """An nbdkit with 4 MiB of memory."""
    program = shutil.which("nbdkit")
    if program is None:
        pytest.skip("no nbdkit: apt-get install nbdkit")
    path = tmp_path / "nbd.sock"
    process = subprocess.Popen([program, "--foreground", "--unix", str(path), "memory", str(4 * MIB)])
    deadline = time.monotonic() + 20
    try:
        while not path.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        yield path
    finally:
        process.terminate()
        process.wait(20)


def test_what_is_written_is_read(socket: Path) -> None:
    data = os.urandom(MIB)
    with opened(socket, "") as contents:
        contents.write(MIB, data)
        contents.flush()
        assert contents.read(MIB - 5, 10) == bytes(5) + data[:5]
    with opened(socket, "") as contents:
        assert contents.read(MIB, MIB) == data


def test_nothing_is_kept_of_what_was_read_and_written(socket: Path) -> None:
    def pass_through() -> None:
        with opened(socket, "") as contents:
            for _ in range(16):
                contents.write(0, contents.read(0, MIB))

    pass_through()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(4):
        pass_through()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # KiB, of 128 MiB


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(FabricError):
        Contents(tmp_path / "none.sock", "")
