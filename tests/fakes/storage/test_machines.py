# SPDX-License-Identifier: MIT
"""VMs deleted and made again, disks added and grown, tracking in the `.vmx`."""

from __future__ import annotations

import errno
import random
import threading
from pathlib import Path

import pytest

from fakes.core.fabric import FabricError
from fakes.storage import changes, grains, machines, snapshots
from fakes.storage.datastore import Datastore
from fakes.storage.grains import GRAIN
from tests.fakes.storage.world import BIOS, SIZES, audit, content, digests, live, opened, truth, with_vm


def refused(call: object, *args: object, **params: object) -> str:
    with pytest.raises(FabricError) as caught:
        call(*args, **params)  # type: ignore[operator]
    return caught.value.code


def vmx_of(store: Datastore) -> str:
    return store.files.read("web/web.vmx").decode()


def test_a_deleted_vm_leaves_nothing_but_its_truth(tmp_path: Path) -> None:
    store = opened(tmp_path / "s", 64)
    vm = with_vm(store)
    handle = live(store, 2000)
    handle.write(memoryview(b"x" * GRAIN), 0)
    before = content(handle)
    snapshots.create(store, vm, "one", "")
    handle.write(memoryview(b"y" * GRAIN), GRAIN)
    store.set_power(vm, True)
    assert refused(machines.delete, store, vm) == "locked"
    store.set_power(vm, False)
    machines.delete(store, vm)
    assert truth(store, 1)[2000] == digests(before)  # until then it holds what it has still to read
    assert store.lun.free == store.lun.capacity and not store.files.names()
    for act in (lambda: handle.write(memoryview(b"z"), 0), lambda: content(handle)):
        with pytest.raises(OSError) as caught:
            act()
        assert caught.value.errno == errno.ESHUTDOWN
    handle.flush()
    again = with_vm(store)
    assert content(live(store, 2000)) == bytes(SIZES[2000])
    made = snapshots.create(store, again, "two", "")
    assert made.id == 2
    store.close()
    store = opened(tmp_path / "s", 64)
    assert truth(store, 1)[2000] == digests(before)
    assert truth(store, 2)[2000] == digests(bytes(SIZES[2000]))
    audit(store)
    store.close()


def test_a_truth_record_is_finished_for_a_deleted_vm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path / "s", 64)
    vm = with_vm(store)
    monkeypatch.setattr(store.truth, "submit", lambda job: None)  # its thread never gets to it
    live(store, 2000).write(memoryview(b"x" * GRAIN), 0)
    expected = content(live(store, 2000))
    snapshots.create(store, vm, "one", "")
    machines.delete(store, vm)
    store.close()
    store = opened(tmp_path / "s", 64)
    assert truth(store, 1)[2000] == digests(expected)
    assert store.lun.free == store.lun.capacity
    store.close()


def test_files_of_others_stay(tmp_path: Path) -> None:
    store = opened(tmp_path / "s", 64)
    vm = with_vm(store)
    machines.create(store, "other", BIOS, [], {"note.txt": "x"}, folder="web")
    machines.delete(store, vm)
    assert store.files.names() == ["web/note.txt", "web/other.vmx"]
    machines.delete(store, store.vm("other"))
    assert store.files.names() == [] and not list((tmp_path / "s" / "files").iterdir())
    store.close()


def test_a_vm_gets_its_disks_later(tmp_path: Path) -> None:
    store = opened(tmp_path / "s", 64)
    vm = machines.create(store, "web", BIOS, [], {})
    assert vm.folder == "web"
    machines.add_disk(store, vm, {"key": 2000, "label": "d", "size": GRAIN, "file": "web/web.vmdk"})
    assert 'scsi0:0.fileName = "web.vmdk"' in vmx_of(store)
    live(store, 2000).write(memoryview(b"x" * GRAIN), 0)
    spec = {"key": 2001, "size": GRAIN, "file": "web/web_1.vmdk"}
    assert refused(machines.add_disk, store, vm, {**spec, "key": 2000}) == "exists"
    assert refused(machines.add_disk, store, vm, {**spec, "file": "web/web.vmdk"}) == "exists"
    assert refused(machines.add_disk, store, vm, {**spec, "size": 100}) == "bad-size"
    assert refused(machines.add_disk, store, vm, {**spec, "contents": "?"}) == "bad-contents"
    assert list(vm.disks) == [2000]
    snapshots.create(store, vm, "s", "")
    assert refused(machines.add_disk, store, vm, spec) == "has-snapshots"
    snapshots.remove(store, vm, 1, children=False)
    machines.add_disk(store, vm, spec)
    store.close()
    store = opened(tmp_path / "s", 64)
    assert content(live(store, 2000)) == b"x" * GRAIN and content(live(store, 2001)) == bytes(GRAIN)
    truth(store, 1)  # no pins are left then
    audit(store)
    store.close()


def test_growth(tmp_path: Path) -> None:
    store = opened(tmp_path / "s", 64)
    vm = with_vm(store)
    old = live(store, 2001)
    old.write(memoryview(b"x" * 1536), 2 * GRAIN)
    snapshots.create(store, vm, "s", "")
    assert refused(machines.grow, store, vm, 2001, 9 * GRAIN) == "has-snapshots"
    snapshots.remove(store, vm, 1, children=False)
    for size in (SIZES[2001], GRAIN, 9 * GRAIN + 1, -512):
        assert refused(machines.grow, store, vm, 2001, size) == "bad-size"
    assert refused(machines.grow, store, vm, 2009, GRAIN) == "not-found"
    machines.grow(store, vm, 2001, 9 * GRAIN)
    grown = live(store, 2001)
    expected = (bytes(2 * GRAIN) + b"x" * 1536).ljust(9 * GRAIN, b"\0")
    assert content(grown) == expected and content(old) == expected[: SIZES[2001]]
    snapshots.create(store, vm, "t", "")  # the last grain is longer than it was: its digest is taken anew
    assert truth(store, 2)[2001] == digests(expected)
    snapshots.remove(store, vm, 2, children=False)
    grown.write(memoryview(b"y" * GRAIN), 8 * GRAIN)
    assert f"RW {9 * GRAIN // 512} VMFS" in store.descriptor(vm, vm.disks[2001], vm.disks[2001].top)
    store.close()
    store = opened(tmp_path / "s", 64)
    assert content(live(store, 2001)) == expected[: 8 * GRAIN] + b"y" * GRAIN
    audit(store)
    store.close()


def test_tracking_stands_in_the_vmx(tmp_path: Path) -> None:
    store = opened(tmp_path / "s", 64)
    vm = with_vm(store)
    assert vmx_of(store).count("ctkEnabled") == 3 and 'ctkEnabled = "TRUE"' not in vmx_of(store)
    store.ask_tracking(vm, True)
    assert vmx_of(store).count('ctkEnabled = "TRUE"') == 3
    store.close()
    store = opened(tmp_path / "s", 64)
    assert store.vm("web").tracking and store.vm("web").disks[2000].epoch is None
    store.close()


def test_a_disk_grows_under_its_writers(tmp_path: Path) -> None:
    store = opened(tmp_path / "s", 512)
    vm = with_vm(store, {2000: 16 * GRAIN})
    stop = threading.Event()
    written: list[dict[int, int]] = [{}, {}]
    failures: list[BaseException] = []

    def write(number: int) -> None:
        rng = random.Random(number)
        try:
            while not stop.is_set():
                handle = live(store, 2000)  # a new connection sees the new size
                block = rng.randrange(handle.size // 4096 // 2) * 2 + number
                value = rng.randrange(1, 256)
                handle.write(memoryview(bytes([value]) * 4096), block * 4096)
                written[number][block] = value
        except BaseException as exc:
            failures.append(exc)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for each in writers:
        each.start()
    for size in range(17, 97):
        machines.grow(store, vm, 2000, size * GRAIN - (size % 3) * 512)
    stop.set()
    for each in writers:
        each.join()
    assert not failures
    expected = bytearray(96 * GRAIN)
    for block, value in (written[0] | written[1]).items():
        expected[block * 4096 : block * 4096 + 4096] = bytes([value]) * 4096
    assert content(live(store, 2000)) == expected
    assert changes.changed(store, vm, 2000, 0, None) == grains.byte_ranges(
        sorted({block * 4096 // GRAIN for block in written[0] | written[1]} | set(range(16, 96))), 96 * GRAIN
    )
    audit(store)
    store.close()
