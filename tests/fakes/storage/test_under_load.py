# SPDX-License-Identifier: MIT
"""Snapshots, merges, full datastores and kills while writers go on, over NBD."""

from __future__ import annotations

import errno
import hashlib
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbd
import pytest

from fakes.core.fabric import FabricClient, FabricError
from tests.fakes.storage.conftest import MIB, StorageProcess

GRAIN = 65536
SECTOR = 512


class Writer(threading.Thread):
    """Runs `step(n)` for n = 0, 1, … until told to stop; keeps what it raised."""

    def __init__(self, step: Callable[[int], None]) -> None:
        super().__init__(daemon=True)
        self.step = step
        self.done = 0
        self.failure: BaseException | None = None
        self.stopping = threading.Event()

    def run(self) -> None:
        try:
            while not self.stopping.is_set():
                self.step(self.done)
                self.done += 1
        except BaseException as exc:
            self.failure = exc

    def until(self, done: int) -> None:
        deadline = time.monotonic() + 20
        while self.done < done and self.failure is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def finish(self) -> None:
        self.stopping.set()
        self.join(20)
        if self.failure:
            raise self.failure


def digests(data: bytes | bytearray) -> bytes:
    return b"".join(hashlib.sha256(data[at : at + GRAIN]).digest() for at in range(0, len(data), GRAIN))


def truth(storage: StorageProcess, identity: int) -> dict[int, bytes]:
    record = storage.call("truth.get", vm="web", id=identity, wait=20)
    return {disk["key"]: Path(disk["digests"]).read_bytes() for disk in record["disks"]}


def everything(handle: Any) -> bytes:
    return bytes(handle.pread(handle.get_size(), 0))


def test_all_disks_freeze_at_one_instant(storage: StorageProcess) -> None:
    """Write n goes to disk 0, then to disk 1: a snapshot holds a prefix of that order, on both disks the same."""
    storage.make_vm(sizes=(2 * MIB, 2 * MIB))
    disks = [storage.connect(f"live/web/{key}") for key in (2000, 2001)]
    slots = 2 * MIB // 4096

    def step(number: int) -> None:
        for disk in disks:
            disk.pwrite((number + 1).to_bytes(8, "little") * 512, number * 7919 % slots * 4096)

    writer = Writer(step)
    writer.start()
    made = []
    for _ in range(8):
        writer.until(writer.done + 40)
        before = writer.done
        made.append((storage.call("snapshot.create", vm="web", name="s", description=""), before, writer.done))
    writer.finish()
    for snapshot, before, after in made:
        images = [everything(storage.connect(f"file/{disk['frozen']}")) for disk in snapshot["disks"]]
        assert truth(storage, snapshot["id"]) == {2000: digests(images[0]), 2001: digests(images[1])}
        counts = [
            max(int.from_bytes(image[at : at + 8], "little") for at in range(0, len(image), 4096)) for image in images
        ]
        assert before <= counts[1] <= counts[0] <= counts[1] + 1 <= after + 2
        for image, count in zip(images, counts, strict=True):
            expected = bytearray(2 * MIB)
            for number in range(max(0, count - slots), count):
                start = number * 7919 % slots * 4096
                expected[start : start + 4096] = (number + 1).to_bytes(8, "little") * 512
            assert image == expected


def test_no_write_is_lost_between_snapshots_and_merges(storage: StorageProcess) -> None:
    """Four connections own every fourth sector of the same grains, while snapshots come and go."""
    size = 16 * GRAIN
    storage.make_vm(sizes=(size,))
    last: list[dict[int, int]] = [{} for _ in range(4)]

    def stepper(owner: int) -> Callable[[int], None]:
        handle = storage.connect("live/web/2000")
        rng = random.Random(owner)

        def step(number: int) -> None:
            sector = rng.randrange(size // SECTOR // 4) * 4 + owner
            handle.pwrite(number.to_bytes(8, "little") * (SECTOR // 8), sector * SECTOR)
            last[owner][sector] = number

        return step

    writers = [Writer(stepper(owner)) for owner in range(4)]
    for writer in writers:
        writer.start()
    for round_ in range(12):
        made = [
            storage.call("snapshot.create", vm="web", name="s", description="")["id"] for _ in range(1 + round_ % 3)
        ]
        random.Random(round_).shuffle(made)
        for identity in made:
            storage.call("snapshot.remove", vm="web", id=identity, children=False)
    for writer in writers:
        writer.finish()
    assert all(writer.done > 50 for writer in writers)
    found = everything(storage.connect("live/web/2000"))
    for owned in last:
        for sector, number in owned.items():
            assert found[sector * SECTOR : (sector + 1) * SECTOR] == number.to_bytes(8, "little") * (SECTOR // 8)


def test_truth_survives_removal_at_once(storage: StorageProcess) -> None:
    storage.make_vm(sizes=(16 * MIB,))
    handle = storage.connect("live/web/2000")
    rng = random.Random(1)
    image = bytearray(16 * MIB)
    for round_ in range(6):
        for _ in range(20):
            start, data = rng.randrange(15 * MIB), rng.randbytes(rng.choice((4096, 200_000)))
            handle.pwrite(data, start)
            image[start : start + len(data)] = data
        identity = storage.call("snapshot.create", vm="web", name="s", description="")["id"]
        expected = digests(image)
        if round_ % 2:
            storage.call("snapshot.remove", vm="web", id=identity, children=True)
        handle.pwrite(rng.randbytes(8 * MIB), 0)
        handle.trim(2 * MIB, 10 * MIB)
        image[: 8 * MIB] = handle.pread(8 * MIB, 0)
        image[10 * MIB : 12 * MIB] = bytes(2 * MIB)
        assert truth(storage, identity) == {2000: expected}
    assert everything(handle) == image


def test_full_datastore(start: Callable[..., StorageProcess]) -> None:
    storage = start("8MiB")
    storage.make_vm(sizes=(16 * MIB,))
    handle = storage.connect("live/web/2000")
    handle.pwrite(b"a" * 5 * MIB, 0)
    identity = storage.call("snapshot.create", vm="web", name="s", description="")["id"]
    handle.pwrite(b"b" * 2 * MIB, 0)
    with pytest.raises(nbd.Error) as caught:
        handle.pwrite(b"c" * 3 * MIB, MIB)
    assert caught.value.errnum == errno.ENOSPC
    expected = b"b" * 2 * MIB + b"a" * 3 * MIB + bytes(11 * MIB)
    assert everything(handle) == expected
    assert everything(storage.connect("file/web/web.vmdk")) == b"a" * 5 * MIB + bytes(11 * MIB)
    assert storage.call("datastore.info")["free"] == MIB
    truth(storage, identity)
    storage.call("snapshot.remove", vm="web", id=identity, children=False)
    assert storage.call("datastore.info")["free"] == 3 * MIB
    handle.pwrite(b"c" * 3 * MIB, 5 * MIB)
    handle.trim(8 * MIB, 0)
    assert storage.call("datastore.info")["free"] == 8 * MIB


def test_a_vm_that_does_not_fit_leaves_nothing(start: Callable[..., StorageProcess]) -> None:
    storage = start("4MiB")
    with pytest.raises(FabricError) as caught:
        storage.make_vm(sizes=(MIB, 64 * MIB), contents="files")
    assert caught.value.code == "no-space"
    assert storage.call("vm.list") == []
    assert storage.call("datastore.info")["free"] == 4 * MIB
    assert [p for p in storage.state.rglob("*") if p.name.startswith(("web", "contents"))] == []
    storage.make_vm(sizes=(MIB, MIB))


def test_kill_and_start_again(storage: StorageProcess) -> None:
    """What was acknowledged is there after a SIGKILL, in the middle of whatever was going on."""
    storage.make_vm(sizes=(8 * MIB,))
    image = bytearray(8 * MIB)
    rng = random.Random(7)
    for round_ in range(6):
        handle = storage.connect("live/web/2000")
        state: dict[str, Any] = {}

        def step(number: int, handle: Any = handle, state: dict[str, Any] = state) -> None:
            data, at = rng.randbytes(3000), rng.randrange(8 * MIB - 3000)
            state["started"] = (at, data)
            handle.pwrite(data, at)
            image[at : at + 3000] = data
            state.pop("started")

        writer = Writer(step)
        writer.start()
        writer.until(50)
        made = [storage.call("snapshot.create", vm="web", name="s", description="")["id"] for _ in range(2)]
        remover = threading.Thread(target=_remove_quietly, args=(storage.fabric, made[round_ % 2]), daemon=True)
        remover.start()
        if round_ % 3:
            remover.join(0.002 * round_)
        storage.kill()
        writer.stopping.set()
        writer.join(10)
        remover.join(10)
        storage.start()
        found = everything(storage.connect("live/web/2000"))
        if "started" in state:  # this one was not acknowledged: each grain of it may be old or new
            at, data = state["started"]
            new = bytearray(image)
            new[at : at + len(data)] = data
            for start in range(0, len(image), GRAIN):
                part = slice(start, start + GRAIN)
                assert found[part] in (image[part], new[part])
            image[:] = found
        assert found == image
        left = [s["id"] for s in storage.call("vm.get", vm="web")["snapshots"]]
        for identity in left:
            truth(storage, identity)
        for identity in left:
            storage.call("snapshot.remove", vm="web", id=identity, children=False)
        assert everything(storage.connect("live/web/2000")) == image


def _remove_quietly(fabric: Path, identity: int) -> None:
    client = FabricClient(fabric / "storage-datastore1.sock")
    try:
        client.call("snapshot.remove", vm="web", id=identity, children=False)
    except FabricError:
        pass  # it was killed before it answered
    finally:
        client.close()


def test_handles_of_merged_files_are_stale(storage: StorageProcess) -> None:
    storage.make_vm()
    live = storage.connect("live/web/2000")
    live.pwrite(b"a" * GRAIN, 0)
    first = storage.call("snapshot.create", vm="web", name="s", description="")["id"]
    base = storage.connect("file/web/web.vmdk")
    assert base.is_read_only() and bytes(base.pread(4, 0)) == b"aaaa"
    live.pwrite(b"b" * GRAIN, 0)
    assert bytes(base.pread(4, 0)) == b"aaaa"
    with pytest.raises(nbd.Error) as refused:
        base.pwrite(b"x", 0)
    assert refused.value.errnum == errno.EPERM
    storage.call("snapshot.remove", vm="web", id=first, children=False)
    with pytest.raises(nbd.Error):
        base.pread(4, 0)
    assert bytes(live.pread(4, 0)) == b"bbbb"


def test_power_locks_and_unlocks_the_top(storage: StorageProcess) -> None:
    storage.make_vm()
    top = storage.connect("file/web/web.vmdk")
    assert not top.is_read_only()
    top.pwrite(b"x" * 512, 0)
    storage.call("vm.power", vm="web", on=True)
    with pytest.raises(nbd.Error):
        top.pread(1, 0)
    with pytest.raises(nbd.Error):
        top.pwrite(b"y", 0)
    with pytest.raises(nbd.Error):
        storage.connect("file/web/web.vmdk")
    storage.call("vm.power", vm="web", on=False)
    assert bytes(top.pread(1, 0)) == b"x"


def test_holes_and_zeros(storage: StorageProcess) -> None:
    storage.make_vm(sizes=(4 * MIB,))
    handle = storage.connect("live/web/2000")
    handle.pwrite(b"x" * 4 * MIB, 0)

    def map_() -> list[tuple[int, bool]]:
        found: list[tuple[int, bool]] = []

        def keep(_context: str, _offset: int, entries: list[int], _error: object) -> None:
            found.extend((entries[at], entries[at + 1] == 0) for at in range(0, len(entries), 2))

        handle.block_status(4 * MIB, 0, keep)
        return found

    free = storage.call("datastore.info")["free"]
    handle.zero(MIB, 0)
    handle.zero(MIB, MIB, nbd.CMD_FLAG_NO_HOLE)
    handle.trim(MIB + 100, 2 * MIB)
    handle.zero(1000, 3 * MIB + 500)
    assert map_() == [(MIB, False), (MIB, True), (MIB, False), (MIB, True)]
    expected = bytes(3 * MIB) + b"x" * 500 + bytes(1000) + b"x" * (MIB - 1500)
    assert everything(handle) == expected
    assert storage.call("datastore.info")["free"] == free + 2 * MIB
    handle.flush()
    handle.pwrite(b"y" * 10, 5, nbd.CMD_FLAG_FUA)
    assert (
        handle.can_multi_conn() and handle.can_fua() and handle.can_trim() and handle.can_zero() and handle.can_flush()
    )


def test_the_fabric_answers_while_disks_are_busy(storage: StorageProcess) -> None:
    storage.make_vm(sizes=(64 * MIB,))
    handle = storage.connect("live/web/2000")
    handle.pwrite(b"z" * 32 * MIB, 0)

    def read(number: int) -> None:
        handle.pread(16 * MIB, 0)

    reader = Writer(read)
    reader.start()
    reader.until(2)
    slowest, before = 0.0, reader.done
    for _ in range(50):
        begun = time.monotonic()
        storage.call("datastore.info")
        slowest = max(slowest, time.monotonic() - begun)
    reader.until(before + 2)
    reader.finish()
    assert slowest < 1.0
