# SPDX-License-Identifier: MIT
"""Written disks, as QEMU reads them."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from fakes.vcenter.streamvmdk import NotVmdk, Reader, stream

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


def taken(reader: Reader, data: bytes, size: int, step: int) -> bytes:
    """The disk that a file makes, fed in parts of `step` bytes."""
    disk = bytearray(size)
    for start in range(0, len(data), step):
        for offset, grain in reader.feed(data[start : start + step]):
            disk[offset : offset + len(grain)] = grain
    return bytes(disk)


@pytest.mark.parametrize("step", [1000, 65536, 1 << 30])
@pytest.mark.parametrize("size", [MIB, 33 * MIB + 7 * 512])
def test_what_was_written_is_read_again(size: int, step: int) -> None:
    chance = random.Random(size)
    data = b"".join(chance.choice((bytes(65536), chance.randbytes(65536))) for _ in range(-(-size // 65536)))[:size]
    file = b"".join(stream(size, [(0, size)], lambda offset, length: data[offset : offset + length], "x", "0" * 8))
    reader = Reader(size)
    assert taken(reader, file, size, step) == data and reader.ended
    larger = Reader(2 * size)
    assert taken(larger, file, 2 * size, step)[:size] == data
    cut = Reader(size)
    taken(cut, file[:-512], size, step)
    assert not cut.ended


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="no qemu-img: apt-get install qemu-utils")
def test_what_qemu_writes_is_read(tmp_path: Path) -> None:
    data = bytes(MIB) + random.Random(1).randbytes(MIB) + bytes(40 * MIB) + b"end".ljust(512, b"!")
    (tmp_path / "raw").write_bytes(data)
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", "raw", "x.vmdk"]
    subprocess.run(convert, cwd=tmp_path, check=True)
    reader = Reader(len(data))
    assert taken(reader, (tmp_path / "x.vmdk").read_bytes(), len(data), 100_000) == data and reader.ended


def test_what_is_no_vmdk_for_the_disk_is_refused() -> None:
    file = bytearray(b"".join(stream(MIB, [(0, MIB)], lambda offset, length: b"x" * length, "x", "0" * 8)))
    grain = 65536
    broken = {
        "another file": b"\x7fELF" + bytes(600),
        "a larger disk": bytes(file),
        "a grain beyond the end": bytes(file[:grain]) + struct.pack("<Q", 1 << 40) + bytes(file[grain + 8 :]),
        "a huge grain": bytes(file[:grain]) + struct.pack("<QI", 0, 0xFFFFFFFF) + bytes(600),
        "a broken grain": bytes(file[: grain + 12]) + b"nonsense" + bytes(file[grain + 20 :]),
        "an unknown marker": bytes(file[:grain]) + struct.pack("<QII", 1, 0, 9) + bytes(600),
    }
    for name, data in broken.items():
        with pytest.raises(NotVmdk):
            taken(Reader(MIB // 2 if name == "a larger disk" else MIB), data, MIB, 4096)
            pytest.fail(name)
