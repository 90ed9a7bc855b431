# SPDX-License-Identifier: MIT
"""Written disks, as QEMU reads them."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from fakes.vcenter.streamvmdk import stream

MIB = 1 << 20


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="no qemu-img: apt-get install qemu-utils")
@pytest.mark.parametrize("size", [512, MIB, 33 * MIB + 7 * 512, 70 * MIB])
def test_qemu_reads_the_same(size: int, tmp_path: Path) -> None:
    chance = random.Random(size)
    data = bytearray(size)
    extents = []
    for start in sorted(chance.sample(range(0, size, 512), min(20, size // 512))):
        length = min(size - start, chance.randrange(1, 400) * 512)
        data[start : start + length] = chance.randbytes(length)
        extents.append((start, length))
    asked: list[tuple[int, int]] = []

    def read(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        return bytes(data[offset : offset + length])

    (tmp_path / "raw").write_bytes(data)
    with (tmp_path / "disk.vmdk").open("wb") as file:
        file.writelines(stream(size, extents, read, "disk.vmdk", "0123abcd"))
    compare = ["qemu-img", "compare", "-f", "vmdk", "-F", "raw", "disk.vmdk", "raw"]
    plain = subprocess.run(compare, cwd=tmp_path, capture_output=True, text=True)
    assert plain.returncode == 0, plain.stdout + plain.stderr
    checked = subprocess.run(["qemu-img", "check", "disk.vmdk"], cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert len(asked) == len(set(asked)) <= -(-size // 65536)


def test_a_disk_of_zeros_has_no_grain() -> None:
    size = 64 * MIB
    assert sum(map(len, stream(size, [(0, MIB)], lambda _, length: bytes(length), "x", "0" * 8))) < 70_000
    assert sum(map(len, stream(size, [], lambda *_: b"", "x", "0" * 8))) < 70_000
