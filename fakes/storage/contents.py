# SPDX-License-Identifier: MIT
"""What a new disk holds: nothing (`empty`, `guest`), an ext4 file system with seeded files (`files`), or an image's data.

*Seeded*: the same VM and disk give the same files in every lab. Images are imported sparse: holes and grains of zeros
take no space in the LUN.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from fakes.core.fabric import FabricError
from fakes.storage import grains
from fakes.storage.disk import Disk
from fakes.storage.grains import GRAIN

KINDS = ("empty", "guest", "files", "image")
_PIECE = 16 * GRAIN
_MKFS_SECONDS = 120
_WORDS = (
    *("backup", "restore", "proxy", "repository", "snapshot", "datastore", "cluster"),
    *("vmdk", "change", "block", "ticket", "transport", "chain"),
)
_EPOCH = 1_700_000_000  # a fixed time for the files, so that it differs from no run to the next


def fill(disk: Disk, kind: str, *, seed: str, scratch: Path, image: Path | None = None) -> None:
    """Fills a disk that no VM shows yet.

    Raises:
        FabricError: `bad-contents` for an unknown kind, `missing` without mkfs.ext4. OSError: ENOSPC.
    """
    if kind in ("empty", "guest"):
        return
    if kind == "image" and image is not None:
        import_image(disk, image)
    elif kind == "files":
        with tempfile.TemporaryDirectory(prefix="contents-", dir=scratch) as folder:
            made = Path(folder) / "disk.img"
            make_file_system(made, disk.size, Path(folder) / "root", seed)
            import_image(disk, made)
    else:
        raise FabricError("bad-contents", f"unknown contents {kind!r}: one of {', '.join(KINDS[:3])}")


def make_file_system(image: Path, size: int, root: Path, seed: str) -> None:
    """A sparse file `image` of `size` bytes with an ext4 file system holding seeded files; needs no root."""
    mkfs = shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin:/bin") or shutil.which("mkfs.ext4")
    if mkfs is None:
        raise FabricError("missing", "mkfs.ext4 is not installed: apt-get install e2fsprogs")
    root.mkdir()
    seeded_files(root, size // 8, random.Random(seed))
    with open(image, "wb") as file:
        file.truncate(size)
    identity = str(uuid.uuid5(uuid.NAMESPACE_DNS, seed))
    options = ["-q", "-F", "-U", identity, "-E", f"hash_seed={identity},root_owner=0:0,lazy_itable_init=1"]
    run = subprocess.run(
        [mkfs, *options, "-d", str(root), str(image)],
        capture_output=True,
        text=True,
        timeout=_MKFS_SECONDS,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if run.returncode:
        raise OSError(errno.EIO, f"mkfs.ext4 failed: {run.stderr.strip()}")


def seeded_files(root: Path, budget: int, rng: random.Random) -> None:
    """Folders with text (compresses well), random bytes (do not compress) and sparse files, about `budget` bytes."""
    budget = min(budget, 96 << 20)
    spent = number = 0
    while spent < budget and number < 400:
        folder = root / f"data-{number % 8}"
        folder.mkdir(exist_ok=True)
        length = min(rng.choice((700, 5_000, 40_000, 300_000, 2_000_000)), budget - spent)
        kind = ("text", "text", "random", "sparse")[number % 4]
        place = folder / f"{kind}-{number:04d}.{'txt' if kind == 'text' else 'bin'}"
        if kind == "text":
            line = " ".join(rng.choices(_WORDS, k=40)).encode() + b"\n"
            place.write_bytes((line * (length // len(line) + 1))[:length])
        elif kind == "random":
            place.write_bytes(rng.randbytes(length))
        else:
            with open(place, "wb") as file:
                file.write(rng.randbytes(min(length, 4096)))
                file.seek(max(length * 2 - 4096, 0), os.SEEK_CUR)
                file.write(rng.randbytes(100))
            length = min(length, 8192)
        os.utime(place, (_EPOCH + number, _EPOCH + number))
        spent += length
        number += 1
    for folder in sorted(root.iterdir()):
        os.utime(folder, (_EPOCH, _EPOCH))


def import_image(disk: Disk, image: Path) -> None:
    """Copies a raw image into the disk, grain by grain, leaving out holes and zeros."""
    with open(image, "rb", buffering=0) as file:
        end = os.fstat(file.fileno()).st_size
        if end > disk.size:
            raise FabricError("bad-size", f"{image} holds {end} bytes, the disk {disk.size}")
        for start, stop in _data(file.fileno(), end):
            for at in range(start, stop, _PIECE):
                _import_piece(disk, os.pread(file.fileno(), min(_PIECE, stop - at), at), at)


def _data(fd: int, end: int) -> Iterator[tuple[int, int]]:
    """Stretches of a file that hold data, widened to whole grains, `end` at most."""
    at = 0
    while at < end:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        start = max(at, data // GRAIN * GRAIN)
        at = min(-(-os.lseek(fd, data, os.SEEK_HOLE) // GRAIN) * GRAIN, end)
        yield start, at


def _import_piece(disk: Disk, piece: bytes, at: int) -> None:
    """Writes the grains of `piece` that are not all zeros, neighbours together."""
    blank = bytes(GRAIN)
    count = -(-len(piece) // GRAIN)
    wanted = [n for n in range(count) if piece[n * GRAIN : (n + 1) * GRAIN] != blank[: len(piece) - n * GRAIN]]
    for first, length in grains.joined(wanted):
        epoch = disk.gate.enter()
        try:
            disk.write(memoryview(piece)[first * GRAIN : (first + length) * GRAIN], at + first * GRAIN)
        finally:
            disk.gate.leave(epoch)
