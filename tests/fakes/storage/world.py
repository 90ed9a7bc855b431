# SPDX-License-Identifier: MIT
"""A datastore inside the test's process, checks of its inner order, and what its disks should hold."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fakes.storage import machines
from fakes.storage.datastore import Datastore
from fakes.storage.exports import Exports
from fakes.storage.grains import GRAIN, ZEROED
from fakes.storage.handles import OpenDisk
from fakes.storage.vm import Vm

BIOS = "564d4e6f-1a2b-4c3d-8e4f-5a6b7c8d9e0f"
SIZES = {2000: 7 * GRAIN, 2001: 2 * GRAIN + 3 * 512}


def opened(state: Path, grains: int) -> Datastore:
    state.mkdir(exist_ok=True)
    return Datastore(state, "datastore1", grains * GRAIN)


def with_vm(store: Datastore, sizes: dict[int, int] | None = None) -> Vm:
    disks = [
        {
            "key": key,
            "label": f"Hard disk {key - 1999}",
            "size": size,
            "file": f"web/web_{key}.vmdk",
            "contents": "empty",
        }
        for key, size in (sizes or SIZES).items()
    ]
    return machines.create(store, "web", BIOS, disks, {})


def live(store: Datastore, key: int) -> OpenDisk:
    return Exports(store).open(f"live/web/{key}")


def frozen(store: Datastore, path: str) -> OpenDisk:
    return Exports(store).open(f"file/{path}")


def content(handle: OpenDisk) -> bytes:
    buffer = bytearray(b"\xa5" * handle.size)
    handle.read(memoryview(buffer), 0)
    return bytes(buffer)


def digests(data: bytes) -> bytes:
    return b"".join(hashlib.sha256(data[at : at + GRAIN]).digest() for at in range(0, len(data), GRAIN))


def truth(store: Datastore, identity: int, wait: float = 20.0) -> dict[int, bytes]:
    record = store.truth.get("web", identity, wait)
    return {d["key"]: Path(d["digests"]).read_bytes() for d in record["disks"]}


def audit(store: Datastore) -> None:
    """No LUN grain has two owners, the allocator agrees with the maps, and the view with the chain."""
    named: list[int] = []
    for vm in store.vms.values():
        for disk in vm.disks.values():
            flat = [0] * disk.grains
            for layer in disk.chain:
                entries = layer.words.tolist()
                named += [e - 1 for e in entries if e not in (0, ZEROED)]
                flat = [e or below for e, below in zip(entries, flat, strict=True)]
            assert [0 if e == ZEROED else e for e in flat] == disk.view.tolist()
            assert ZEROED not in disk.chain[0].words.tolist()
    assert len(named) == len(set(named))
    assert store.lun.free == store.lun.capacity - GRAIN * len(named)
    assert not any(store.lun.pins)
