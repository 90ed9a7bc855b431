# SPDX-License-Identifier: MIT
"""The lab's disks past the engine: what a guest writes, what a restore point holds, what the truth says of it.

*Guest disk*: a VM's running disk, written over the storage's NBD socket as a guest writes it. *Writer*: somebody who writes
there for as long as a test wants. *Point*: one visible restore point, its files read directly.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbd

from engine.store.point_disk import PointDisk
from engine.store.restore import to_file
from lab.disks import truth
from tests.e2e.harness import COMMAND_DEADLINE, Document, Lab

BLOCK = 65536


def socket_of(lab: Lab, datastore: str = "datastore1") -> Path:
    """The storage's NBD socket."""
    return lab.outside_path(f"/run/vadplab/fabric/nbd-{datastore}.sock")


@contextmanager
def guest_disk(lab: Lab, vm: str, key: int) -> Iterator[nbd.NBD]:
    """A VM's running disk, to be written as its guest would."""
    handle = nbd.NBD()
    handle.set_export_name(f"live/{vm}/{key}")
    handle.connect_unix(str(socket_of(lab)))
    try:
        yield handle
        handle.flush()
    finally:
        handle.shutdown()


def write_blocks(lab: Lab, vm: str, key: int, count: int, seed: int) -> int:
    """Writes random bytes, which do not compress, to `count` blocks of 64 KiB all over the disk; gives the bytes."""
    rng = random.Random(seed)
    with guest_disk(lab, vm, key) as disk:
        for block in rng.sample(range(disk.get_size() // BLOCK), count):
            disk.pwrite(rng.randbytes(BLOCK), block * BLOCK)
    return count * BLOCK


@contextmanager
def writing(lab: Lab, vm: str, key: int, seed: int) -> Iterator[list[int]]:
    """Somebody writes small random pieces all over the disk until the block ends; gives what was written, one number each."""
    stop, written, failures = threading.Event(), list[int](), list[BaseException]()
    rng = random.Random(seed)

    def write() -> None:
        try:
            with guest_disk(lab, vm, key) as disk:
                sectors = disk.get_size() // 512
                while not stop.wait(0.002):
                    length = 512 * rng.randint(1, 16)
                    disk.pwrite(rng.randbytes(length), 512 * rng.randrange(sectors - 16))
                    written.append(length)
        except BaseException as exc:
            failures.append(exc)

    writer = threading.Thread(target=write, name="writer")
    writer.start()
    try:
        yield written
    finally:
        stop.set()
        writer.join(COMMAND_DEADLINE)
    assert failures == []
    assert written, "nobody wrote"


def find_point(lab: Lab, point: str, vm: str) -> Document:
    """One visible restore point, as `vadplab points` shows it."""
    return next(p for p in lab.points() if (p["point"], p["vm"]) == (point, vm))


def assert_equals_truth(lab: Lab, point: Document, folder: Path, datastore: str = "datastore1") -> int:
    """Every disk of a point equals the storage's truth at its snapshot, and QEMU's tools read the same; gives the disks.

    Bytes are restored with every digest checked, compared with SHA-256s of the storage, then `qemu-img compare` reads the
    same disk through the chain of qcow2 files.
    """
    store = lab.folder.fakes / f"storage-{datastore}"
    for disk in point["disks"]:
        image, chain = folder / f"{point['point']}-{disk['key']}.img", Path(point["folder"]) / disk["file"]
        with PointDisk(Path(point["folder"]), disk["key"]) as opened:
            to_file(opened, image)
        record = truth.find(store, vm=point["vm"], mark=point["session"], key=disk["key"])
        found = truth.compare(image, record)
        assert found.equal, f"{point['vm']} {disk['label']} in {point['point']}: {found.offsets[:5]}"
        assert found.blocks * BLOCK == disk["capacity"]
        qemu_img("check", "-f", "qcow2", str(chain))
        qemu_img("compare", "-f", "raw", "-F", "qcow2", str(image), str(chain))
        image.unlink()
    return len(point["disks"])


def qemu_img(*argv: str) -> str:
    """What a tool of QEMU says; fails the test when it finds fault."""
    program = shutil.which("qemu-img")
    assert program is not None, "qemu-img is not installed"
    done = subprocess.run([program, *argv], capture_output=True, text=True, timeout=COMMAND_DEADLINE, check=False)
    assert done.returncode == 0, f"qemu-img {' '.join(argv)}: {done.stdout}{done.stderr}"
    return done.stdout


def backing_files(file: Path) -> list[str]:
    """The chain below a qcow2 file, by QEMU's own reading."""
    return [str(one["filename"]) for one in json.loads(qemu_img("info", "--backing-chain", "--output=json", str(file)))]
