# SPDX-License-Identifier: MIT
"""Disk files attached to another VM: what it sees and writes, what is refused meanwhile, and what outlives a kill."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbd
import pytest

from fakes.core.fabric import FabricError
from fakes.storage.exports import Exports
from fakes.storage.grains import GRAIN
from fakes.storage.hotadd import HotAdd
from tests.fakes.storage.conftest import MIB, StorageProcess
from tests.fakes.storage.world import content, frozen, live, opened, with_vm

PROXY = "564d1111-2222-3333-4444-555566667777"
BASE = "web/web.vmdk"


def refused(call: Any, *args: Any, **params: Any) -> str:
    with pytest.raises(FabricError) as caught:
        call(*args, **params)
    return caught.value.code


def attached(storage: StorageProcess, path: str = BASE, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = storage.call("disk.attach", path=path, by=PROXY, **more)
    return made


def test_a_frozen_file_is_attached_nonpersistently(storage: StorageProcess) -> None:
    storage.make_vm()
    running = storage.connect("live/web/2000")
    data = os.urandom(3 * GRAIN)
    running.pwrite(data, GRAIN)
    storage.call("vm.power", vm="web", on=True)
    assert refused(attached, storage) == "locked"
    storage.call("snapshot.create", vm="web", name="s")
    found = attached(storage)
    assert found == {
        "path": BASE,
        "by": PROXY,
        "mode": "independent_nonpersistent",
        "export": f"attached/{PROXY}/{BASE}",
        "size": 16 * MIB,
        "vm": "web",
        "key": 2000,
    }
    assert storage.call("disk.attachments") == [found] == storage.call("disk.attachments", by=PROXY)
    assert storage.call("disk.attachments", by="another") == []
    one, two = storage.connect(found["export"]), storage.connect(found["export"])
    assert one.pread(3 * GRAIN, GRAIN) == data
    one.pwrite(b"n" * 1000, 2 * GRAIN - 500)  # across grains; the rest of both stays
    one.zero(GRAIN, 8 * GRAIN)
    changed = data[: GRAIN - 500] + b"n" * 1000 + data[GRAIN + 500 :]
    assert two.pread(3 * GRAIN, GRAIN) == changed
    assert storage.connect(f"file/{BASE}").pread(3 * GRAIN, GRAIN) == data
    assert running.pread(3 * GRAIN, GRAIN) == data
    storage.call("disk.detach", path=BASE, by=PROXY)
    with pytest.raises(nbd.Error):
        one.pread(512, 0)
    with pytest.raises(nbd.Error):
        storage.connect(found["export"]).get_size()
    assert attached(storage)["export"] == found["export"]
    assert storage.connect(found["export"]).pread(3 * GRAIN, GRAIN) == data


def test_what_is_refused_while_a_file_is_attached(storage: StorageProcess) -> None:
    storage.make_vm()
    first = storage.call("snapshot.create", vm="web", name="1")["id"]
    second = storage.call("snapshot.create", vm="web", name="2")["id"]
    storage.call("snapshot.create", vm="web", name="3")
    middle = "web/web-000001.vmdk"
    attached(storage, middle)
    assert refused(attached, storage, middle) == "locked"
    assert refused(storage.call, "disk.attach", path=middle, by="another") == "locked"
    for snapshot in (first, second):  # the one below is part of what is read, the other changes what it shows
        assert refused(storage.call, "snapshot.remove", vm="web", id=snapshot) == "in-use"
    assert refused(storage.call, "snapshot.remove", vm="web", id=first, children=True) == "in-use"
    assert refused(storage.call, "snapshot.revert", vm="web", id=first, discard_later=True) == "in-use"
    assert refused(storage.call, "vm.delete", vm="web") == "in-use"
    assert [s["name"] for s in storage.call("vm.get", vm="web")["snapshots"]] == ["1", "2", "3"]
    storage.call("snapshot.remove", vm="web", id=3)
    assert refused(storage.call, "disk.detach", path=middle, by="another") == "not-found"
    storage.call("disk.detach", path=middle, by=PROXY)
    assert refused(storage.call, "disk.detach", path=middle, by=PROXY) == "not-found"
    storage.call("snapshot.remove", vm="web", id=first, children=True)
    storage.call("vm.delete", vm="web")


def test_a_persistent_disk_of_a_vm_that_is_off(storage: StorageProcess) -> None:
    storage.make_vm()
    assert refused(attached, storage, mode="shared") == "bad-mode"
    assert refused(attached, storage, "web/none.vmdk") == "not-found"
    assert refused(attached, storage, "../x") == "bad-path"
    assert refused(storage.call, "disk.attach", path=BASE, by="a/b") == "bad-name"
    found = attached(storage, mode="persistent")
    disk = storage.connect(found["export"])
    disk.pwrite(b"p" * GRAIN, 5 * GRAIN)
    disk.flush()
    assert storage.connect("live/web/2000").pread(GRAIN, 5 * GRAIN) == b"p" * GRAIN
    assert refused(storage.call, "vm.power", vm="web", on=True) == "in-use"
    assert refused(storage.call, "snapshot.create", vm="web", name="s") == "in-use"
    assert refused(storage.call, "disk.grow", vm="web", key=2000, size=32 * MIB) == "in-use"
    assert refused(storage.call, "disk.resolve", path=BASE, write=True) == "locked"
    storage.call("disk.detach", path=BASE, by=PROXY)
    storage.call("vm.power", vm="web", on=True)
    storage.call("snapshot.create", vm="web", name="s")
    assert refused(attached, storage, mode="persistent") == "read-only"
    assert refused(attached, storage, "web/web-000001.vmdk") == "locked"


def test_attachments_survive_a_kill_but_what_was_thrown_away_does_not(start: Callable[..., StorageProcess]) -> None:
    storage = start()
    storage.make_vm()
    storage.connect("live/web/2000").pwrite(b"o" * GRAIN, 0)
    storage.call("snapshot.create", vm="web", name="s")
    found = attached(storage)
    storage.connect(found["export"]).pwrite(b"t" * GRAIN, 0)
    storage.kill()
    storage.start()
    assert storage.call("disk.attachments") == [found]
    assert storage.connect(found["export"]).pread(GRAIN, 0) == b"o" * GRAIN
    assert refused(storage.call, "snapshot.remove", vm="web", id=1) == "in-use"
    storage.call("disk.detach", path=BASE, by=PROXY)
    storage.call("snapshot.remove", vm="web", id=1)


def test_a_throw_away_layer_against_plain_bytes(tmp_path: Path) -> None:
    store = opened(tmp_path / "s", 64)
    with_vm(store)
    for key, at in ((2000, GRAIN), (2001, 2 * GRAIN)):
        live(store, key).write(memoryview(os.urandom(1536)), at)
    exports = Exports(store)
    rng = random.Random(5)
    for path, key in (("web/web_2000.vmdk", 2000), ("web/web_2001.vmdk", 2001)):
        below = content(frozen(store, path))
        expected = bytearray(below)
        handle = exports.open(str(HotAdd(store, exports).attach(path, PROXY)["export"]))
        for _ in range(60):
            start = rng.randrange(len(expected))
            length = min(rng.choice((1, 512, GRAIN, 2 * GRAIN + 7)), len(expected) - start)
            data = rng.randbytes(length) if rng.random() < 0.7 else bytes(length)
            if any(data):
                handle.write(memoryview(data), start)
            else:
                handle.zero(length, start)
            expected[start : start + length] = data
            assert content(handle) == expected
            covered = list(handle.extents(len(expected), 0))
            assert [a for a, _, _ in covered] == [0, *(a + n for a, n, _ in covered[:-1])]
            assert sum(n for _, n, _ in covered) == len(expected)
            assert not any(any(expected[a : a + n]) for a, n, allocated in covered if not allocated)
        assert content(live(store, key)) == below
    store.close()
