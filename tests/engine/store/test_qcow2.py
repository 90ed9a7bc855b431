# SPDX-License-Identifier: MIT
"""The streamed qcow2 files against QEMU's own tools, and against the reader."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from engine.store.clusters import BATCH, CLUSTER_BITS, Packer, Unpacker
from engine.store.errors import FormatError, StoreError
from engine.store.qcow2.reader import Qcow2Reader
from engine.store.qcow2.writer import Qcow2Writer
from engine.store.verify import walk
from tests.engine.store.disks import allocated

CLUSTER = 1 << CLUSTER_BITS
PIECE = BATCH * CLUSTER


def write(path: Path, content: bytes, *, order: list[int] | None = None, **options: object) -> int:
    """A file with this content; pieces of 1 MiB in the given order."""
    packer = Packer()
    pieces = range(0, len(content), PIECE)
    with Qcow2Writer(path, len(content), **options) as writer:  # type: ignore[arg-type]
        for index in order if order is not None else range(len(pieces)):
            offset = pieces[index]
            batch = packer.pack(offset >> CLUSTER_BITS, memoryview(content)[offset : offset + PIECE])
            writer.add(batch.first, batch.lengths, memoryview(b"".join(batch.parts)))
        return writer.finish()


def read(path: Path) -> bytes:
    unpacker = Unpacker()
    with Qcow2Reader(path) as reader:
        assert walk(reader) == []
        found = b"".join(reader.read(n, unpacker) or bytes(CLUSTER) for n in range(reader.clusters))
        return found[: reader.size]


def qemu_agrees(path: Path, content: bytes) -> None:
    subprocess.run(["qemu-img", "check", "-q", path], check=True)
    raw = path.with_suffix(".raw")
    raw.write_bytes(content)
    subprocess.run(["qemu-img", "compare", "-q", "-F", "raw", "-f", "qcow2", path, raw], check=True)
    raw.unlink()


def mixed(size: int, seed: int) -> bytes:
    """Random, compressible and empty areas of odd lengths."""
    rng = random.Random(seed)
    content = bytearray(size)
    at = 0
    while at < size:
        length = min(rng.choice((512, 4096, CLUSTER, 3 * CLUSTER, 777_777)), size - at)
        kind = rng.randrange(4)
        if kind == 0:
            content[at : at + length] = rng.randbytes(length)
        elif kind == 1:
            content[at : at + length] = (b"%d," % at * length)[:length]
        at += length
    return bytes(content)


@pytest.mark.parametrize(
    "size", [512, 1024, CLUSTER - 512, CLUSTER, CLUSTER + 512, PIECE - 512, PIECE, PIECE + 512, 7 * PIECE + 512 * 7]
)
def test_odd_sizes(tmp_path: Path, size: int) -> None:
    content = mixed(size, size)
    path = tmp_path / "disk.qcow2"
    assert write(path, content) == path.stat().st_size
    assert read(path) == content
    qemu_agrees(path, content)


def test_incompressible(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(9 * PIECE + 512)
    path = tmp_path / "disk.qcow2"
    length = write(path, content)
    assert len(content) < length < len(content) + 8 * CLUSTER
    assert read(path) == content
    qemu_agrees(path, content)


def test_all_zeros_takes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    assert write(path, bytes(4 * PIECE)) == 4 * CLUSTER
    assert read(path) == bytes(4 * PIECE)
    qemu_agrees(path, bytes(4 * PIECE))


def test_a_disk_of_no_size(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    write(path, b"")
    subprocess.run(["qemu-img", "check", "-q", path], check=True)
    assert read(path) == b""


def test_sparse_tebibyte(tmp_path: Path) -> None:
    size, path = 1 << 40, tmp_path / "disk.qcow2"
    places = {0: b"first", (size // 2) + 512: b"middle" * 999, size - 512: b"end".ljust(512, b"!")}
    packer = Packer()
    with Qcow2Writer(path, size) as writer:
        for at, text in places.items():
            offset = at // CLUSTER * CLUSTER
            piece = bytearray(CLUSTER)
            piece[at - offset : at - offset + len(text)] = text
            batch = packer.pack(offset >> CLUSTER_BITS, memoryview(piece))
            writer.add(batch.first, batch.lengths, memoryview(b"".join(batch.parts)))
        assert writer.finish() < 1 << 20
    subprocess.run(["qemu-img", "check", "-q", path], check=True)
    unpacker = Unpacker()
    with Qcow2Reader(path) as reader:
        assert walk(reader) == []
        assert allocated(reader) == [at // CLUSTER for at in places]
        for at, text in places.items():
            cluster = reader.read(at // CLUSTER, unpacker)
            assert cluster is not None and cluster[at % CLUSTER :].startswith(text)


def test_batches_in_any_order(tmp_path: Path) -> None:
    content = mixed(6 * PIECE, 3)
    path = tmp_path / "disk.qcow2"
    write(path, content, order=[4, 0, 5, 2, 1, 3])
    assert read(path) == content
    qemu_agrees(path, content)


def test_more_than_one_segment(tmp_path: Path) -> None:
    content = mixed(12 * PIECE, 11)
    path = tmp_path / "disk.qcow2"
    write(path, content, segment=1 << 18)
    assert read(path) == content
    qemu_agrees(path, content)


def test_a_file_system_without_direct_io(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: object, flags: int, *more: int) -> int:
        if flags & os.O_DIRECT:
            os.close(real(path, flags & ~os.O_DIRECT, *more))  # type: ignore[call-overload]
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *more)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(os, "open", refuse)
    content = mixed(6 * PIECE + 512, 3)
    path = tmp_path / "disk.qcow2"
    write(path, content, segment=1 << 20)
    assert read(path) == content


def test_chain(tmp_path: Path) -> None:
    base, top = mixed(3 * PIECE, 5), bytearray(mixed(3 * PIECE, 5))
    changed = {1: random.Random(2).randbytes(CLUSTER), 20: bytes(CLUSTER), 40: b"text".ljust(CLUSTER, b"t")}
    write(tmp_path / "base.qcow2", base)
    packer = Packer()
    with Qcow2Writer(tmp_path / "top.qcow2", len(top), backing="base.qcow2") as writer:
        for cluster, data in changed.items():
            top[cluster * CLUSTER : (cluster + 1) * CLUSTER] = data
            batch = packer.pack(cluster, memoryview(data))
            writer.add(cluster, batch.lengths, memoryview(b"".join(batch.parts)))
        writer.finish()
    qemu_agrees(tmp_path / "top.qcow2", bytes(top))
    unpacker = Unpacker()
    with Qcow2Reader(tmp_path / "top.qcow2", backing=Qcow2Reader(tmp_path / "base.qcow2")) as reader:
        found = b"".join(reader.read(n, unpacker) or bytes(CLUSTER) for n in range(reader.clusters))
    assert found == top
    with pytest.raises(FormatError, match=r"needs base\.qcow2"):
        Qcow2Reader(tmp_path / "top.qcow2")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sectors=st.integers(1, 5 * PIECE // 512),
    writes=st.lists(
        st.tuples(st.floats(0, 1), st.integers(1, 200_000), st.sampled_from([b"\0", b"ab", None])), max_size=8
    ),
    seed=st.integers(0, 1 << 32),
)
def test_any_disk(tmp_path_factory: pytest.TempPathFactory, sectors: int, writes: list, seed: int) -> None:  # type: ignore[type-arg]
    content = bytearray(sectors * 512)
    rng = random.Random(seed)
    for where, length, pattern in writes:
        at = int(where * (len(content) - 1))
        length = min(length, len(content) - at)
        content[at : at + length] = rng.randbytes(length) if pattern is None else (pattern * length)[:length]
    path = tmp_path_factory.mktemp("any") / "disk.qcow2"
    pieces = list(range(-(-len(content) // PIECE)))
    rng.shuffle(pieces)
    write(path, bytes(content), order=pieces, segment=1 << 20)
    assert read(path) == content
    qemu_agrees(path, bytes(content))


@pytest.mark.parametrize(
    ("first", "lengths", "payload"),
    [(-1, [10], 10), (16, [10], 10), (15, [10, 10], 20), (0, [10], 11), (0, [], 1)],
)
def test_batches_that_do_not_fit(tmp_path: Path, first: int, lengths: list[int], payload: int) -> None:
    with Qcow2Writer(tmp_path / "disk.qcow2", PIECE) as writer:
        with pytest.raises(FormatError):
            writer.add(first, lengths, memoryview(bytes(payload)))


def test_a_cluster_twice(tmp_path: Path) -> None:
    with Qcow2Writer(tmp_path / "disk.qcow2", PIECE) as writer:
        writer.add(3, [10], memoryview(bytes(10)))
        with pytest.raises(FormatError, match="twice"):
            writer.add(3, [10], memoryview(bytes(10)))


def test_a_size_that_is_no_disk(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        Qcow2Writer(tmp_path / "disk.qcow2", 1000)


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "disk.qcow2").write_bytes(b"mine")
    with pytest.raises(StoreError):
        Qcow2Writer(tmp_path / "disk.qcow2", PIECE)
    assert (tmp_path / "disk.qcow2").read_bytes() == b"mine"


def test_without_finish_it_is_no_qcow2(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    with Qcow2Writer(path, PIECE, segment=1 << 17) as writer:
        writer.add(0, [CLUSTER] * 4, memoryview(bytes([1]) * 4 * CLUSTER))
    with pytest.raises(FormatError):
        Qcow2Reader(path)


def test_clusters_of_another_size_are_refused(tmp_path: Path) -> None:
    path, options = tmp_path / "disk.qcow2", "cluster_size=128k,compression_type=zstd"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "1M"], check=True)
    with pytest.raises(FormatError, match="unexpected qcow2 features"):
        Qcow2Reader(path)


@given(st.binary(max_size=200), st.integers(0, 111), st.integers(0, 255))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_reader_against_noise(tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int, value: int) -> None:
    folder = tmp_path_factory.mktemp("noise")
    (folder / "noise").write_bytes(noise)
    with pytest.raises(FormatError):
        Qcow2Reader(folder / "noise")
    content = mixed(3 * CLUSTER, 4)
    write(folder / "disk.qcow2", content)
    data = bytearray((folder / "disk.qcow2").read_bytes())
    data[at] = value
    (folder / "disk.qcow2").write_bytes(data)
    unpacker = Unpacker()
    try:
        with Qcow2Reader(folder / "disk.qcow2") as reader:
            walk(reader)
            for cluster in range(min(reader.clusters, 8)):
                reader.read(cluster, unpacker)
    except FormatError:
        pass
