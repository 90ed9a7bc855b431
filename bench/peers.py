# SPDX-License-Identifier: MIT
"""Established tools on the same disk: nbdcopy, qemu-img, restic, borg, and zstd alone. Every result ends on the device."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

TOOLS = {
    "nbdkit": "nbdkit",
    "nbdcopy": "libnbd-bin",
    "nbdinfo": "libnbd-bin",
    "qemu-img": "qemu-utils",
    "restic": "restic",
    "borg": "borgbackup",
    "nbdfuse": "nbdfuse",
    "/usr/sbin/tgtd": "tgt",
}
DEADLINE = 600
_CLUSTER = "compression_type=zstd,cluster_size=65536"


@dataclass(frozen=True)
class Run:
    """One run of a subject: seconds, CPU seconds, bytes that it stored, and a word about it."""

    seconds: float
    cpu: float
    stored: int
    note: str = ""


def nbdcopy(uri: str, out: Path, size: int) -> Run:
    """A raw copy, uncompressed."""
    target = out / "raw"
    target.touch()
    os.truncate(target, size)
    return _timed([["nbdcopy", "--flush", uri, str(target)]], lambda: _blocks(target), target)


def qemu(uri: str, out: Path, *more: str) -> Run:
    """`qemu-img convert -c` to zstd clusters of 64 KiB."""
    target = out / "compressed.qcow2"
    command = ["qemu-img", "convert", *more, "-c", "-O", "qcow2", "-o", _CLUSTER, uri, str(target)]
    return _timed([command], lambda: _blocks(target), target)


def qemu_rebase(changed: Path, base: Path, out: Path) -> Run:
    """`qemu-img convert -c` of what differs from `base`, which it finds by reading both."""
    target = out / "increment.qcow2"
    command = [
        "qemu-img",
        "convert",
        "-c",
        "-O",
        "qcow2",
        "-o",
        _CLUSTER,
        "-B",
        str(base),
        "-F",
        "raw",
        str(changed),
        str(target),
    ]
    return _timed([command], lambda: _blocks(target), target)


def qemu_restore(image: Path, out: Path) -> Run:
    """`qemu-img convert` of a restore point to a raw file."""
    target = out / "restored.raw"
    return _timed([["qemu-img", "convert", "-O", "raw", str(image), str(target)]], lambda: _blocks(target), target)


class Restic:
    """A repository of restic, without a cache of its own outside the scratch folder."""

    def __init__(self, folder: Path) -> None:
        self.repository = folder / "restic"
        self.env = {**os.environ, "RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": str(folder / "restic-cache")}
        self._run("init")

    def backup(self, folder: Path) -> Run:
        """Backs the folder up."""
        before = _tree(self.repository)
        return _timed([self._command("backup", str(folder))], lambda: _tree(self.repository) - before, None, self.env)

    def _command(self, *words: str) -> list[str]:
        return ["restic", "-q", "-r", str(self.repository), *words]

    def _run(self, *words: str) -> None:
        subprocess.run(self._command(*words), check=True, env=self.env, timeout=DEADLINE, stdout=subprocess.DEVNULL)


class Borg:
    """A repository of borg without encryption; `compression` as borg names it."""

    def __init__(self, folder: Path, compression: str) -> None:
        self.repository = folder / f"borg-{compression.replace(',', '-')}"
        self.compression = compression
        self.env = {
            **os.environ,
            "BORG_BASE_DIR": str(folder / "borg-base"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }
        self._archives = 0
        shutil.rmtree(folder / "borg-base", ignore_errors=True)
        subprocess.run(["borg", "init", "-e", "none", str(self.repository)], check=True, env=self.env, timeout=DEADLINE)

    def backup(self, folder: Path) -> Run:
        """Backs the folder up."""
        self._archives += 1
        name = f"{self.repository}::{self._archives}"
        before = _tree(self.repository)
        command = ["borg", "create", "--compression", self.compression, name, str(folder)]
        return _timed([command], lambda: _tree(self.repository) - before, None, self.env)


def zstd_alone(image: Path) -> Run:
    """zstd 1 of every MiB of the image from the page cache by two threads; nothing is written."""
    command = [sys.executable, "-m", "bench.peers", str(image)]
    done = subprocess.run(command, check=True, timeout=DEADLINE, capture_output=True, text=True)
    return Run(**json.loads(done.stdout))


def _alone(image: Path) -> Run:
    size, piece = image.stat().st_size, 1 << 20
    offsets = iter(range(0, size, piece))
    lock, totals = threading.Lock(), [0]

    def work(fd: int) -> None:
        compressor = zstandard.ZstdCompressor(level=1)
        buffer = memoryview(bytearray(piece))
        while True:
            with lock:
                offset = next(offsets, None)
            if offset is None:
                return
            count = os.preadv(fd, [buffer], offset)
            packed = len(compressor.compress(buffer[:count]))
            with lock:
                totals[0] += packed

    with image.open("rb") as file:
        begin, cpu = time.monotonic(), time.process_time()
        threads = [threading.Thread(target=work, args=(file.fileno(),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return Run(time.monotonic() - begin, time.process_time() - cpu, totals[0])


def _timed(commands: list[list[str]], stored: Callable[[], int], sync: Path | None, env: Any = None) -> Run:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.monotonic()
    for command in commands:
        done = subprocess.run(command, env=env, timeout=DEADLINE, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[:3])}: {done.stderr.strip()[-500:]}")
    if sync is not None:
        fd = os.open(sync, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    seconds = time.monotonic() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(seconds, cpu, stored())


def _blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


def _tree(folder: Path) -> int:
    return sum(_blocks(path) for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    print(json.dumps(_alone(Path(sys.argv[1])).__dict__))
