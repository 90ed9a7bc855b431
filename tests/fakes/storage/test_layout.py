# SPDX-License-Identifier: MIT
"""Where the allocator puts things, and the text views of disks."""

from __future__ import annotations

from pathlib import Path

from fakes.storage import descriptor, vmx
from fakes.storage.grains import GRAIN
from fakes.storage.lun import spans
from tests.fakes.storage.world import audit, live, opened, with_vm

MIB = 1 << 20


def runs(store: object, key: int) -> list[int]:
    """Lengths in grains of the LUN-contiguous runs of a disk."""
    disk = store.vms["web"].disks[key]  # type: ignore[attr-defined]
    return [length // GRAIN for _, length, at in spans(disk.view, 0, disk.size) if at >= 0]


def test_sequential_writes_stay_contiguous(tmp_path: Path) -> None:
    store = opened(tmp_path / "s", 512)
    with_vm(store, {2000: 8 * MIB, 2001: 8 * MIB})
    for at in range(0, 8 * MIB, 4096):
        live(store, 2000).write(memoryview(b"x" * 4096), at)
    assert runs(store, 2000) == [128]
    audit(store)
    store.close()


def test_interleaved_disks_keep_a_mebibyte_together(tmp_path: Path) -> None:
    store = opened(tmp_path / "s", 512)
    with_vm(store, {2000: 8 * MIB, 2001: 8 * MIB})
    for grain in sorted(range(128), key=lambda g: g * 37 % 128):
        for key in (2000, 2001):
            live(store, key).write(memoryview(b"x" * GRAIN), grain * GRAIN)
    for key in (2000, 2001):
        found = runs(store, key)
        assert sum(found) == 128 and len(found) <= 8
    audit(store)
    store.close()


def test_a_fragmented_lun_is_used_to_the_last_grain(tmp_path: Path) -> None:
    store = opened(tmp_path / "s", 64)
    with_vm(store, {2000: 4 * MIB, 2001: 4 * MIB})
    live(store, 2000).write(memoryview(b"x" * 4 * MIB), 0)
    for grain in range(0, 64, 3):
        live(store, 2000).trim(GRAIN, grain * GRAIN)
    live(store, 2001).write(memoryview(b"y" * 22 * GRAIN), 5 * GRAIN)
    assert store.lun.free == 0
    audit(store)
    store.close()


def test_freed_space_leaves_the_file(tmp_path: Path) -> None:
    store = opened(tmp_path / "s", 512)
    with_vm(store, {2000: 8 * MIB})
    live(store, 2000).write(memoryview(b"x" * 8 * MIB), 0)
    store.lun.sync()
    full = store.lun.path.stat().st_blocks
    live(store, 2000).trim(8 * MIB, 0)
    assert store.lun.path.stat().st_blocks <= full - 8 * MIB // 512
    store.close()


def test_units_and_geometry() -> None:
    assert [vmx.unit(key) for key in (2000, 2006, 2007, 2014)] == [0, 6, 8, 15]
    assert descriptor.geometry(512 * MIB) == (512, 64, 32)
    assert descriptor.geometry(16 << 30) == (2088, 255, 63)
    assert descriptor.disk_uuid("x", 2000) != descriptor.disk_uuid("x", 2001)


def test_vmx_of_others_is_kept() -> None:
    text = '# mine\nscsi0:0.fileName = "old.vmdk"\nnote = "scsi0:1.fileName"'
    fresh = vmx.with_disks(text, {2000: "web-000001.vmdk", 2001: "web_1.vmdk"})
    assert fresh.startswith('# mine\nscsi0:0.fileName = "web-000001.vmdk"\nnote = "scsi0:1.fileName"\n')
    assert 'scsi0:1.fileName = "web_1.vmdk"\n' in fresh
    assert vmx.with_disks(fresh, {2000: "web-000001.vmdk", 2001: "web_1.vmdk"}) == fresh
