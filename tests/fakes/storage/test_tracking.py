# SPDX-License-Identifier: MIT
"""Changed block tracking over the fabric: change IDs, when it takes effect, errors; and the map of a disk on the LUN."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.core.fabric import FabricError
from fakes.storage import tracking
from fakes.storage.grains import GRAIN
from tests.fakes.storage.conftest import MIB, StorageProcess

FORM = re.compile(r"52( [0-9a-f]{2}){7}-[0-9a-f]{2}( [0-9a-f]{2}){7}/[0-9]+")


def code(call: Any, *args: Any, **params: Any) -> str:
    with pytest.raises(FabricError) as caught:
        call(*args, **params)
    return caught.value.code


def snapshot(storage: StorageProcess, name: str = "s") -> tuple[int, str | None]:
    made = storage.call("snapshot.create", vm="web", name=name)
    return made["id"], made["disks"][0]["change_id"]


def changed(storage: StorageProcess, since: Any, identity: int | None) -> Any:
    return storage.call("disk.changed", vm="web", key=2000, since=since, id=identity)


def disk(storage: StorageProcess) -> dict[str, Any]:
    found: dict[str, Any] = storage.call("vm.get", vm="web")["disks"][0]
    return found


def test_change_ids() -> None:
    text = "52 de c0 d9 b9 43 9d 10-61 d5 4c 1b e9 7b 65 63/81"
    assert tracking.parse(text) == ("52dec0d9b9439d1061d54c1be97b6563", 81)
    assert tracking.parse(text.upper()) == tracking.parse(text)
    assert tracking.text(*tracking.parse(text)) == text
    bad = [
        "",
        "*",
        "81",
        text[1:],
        text[:-3],
        text + " ",
        text + "\n",
        text + "x",
        text.replace("-", " "),
        text + "9" * 9,
    ]
    for each in (*bad, text.replace("/", "/-"), text.replace("52", "g2"), text.replace("81", "٣")):
        assert code(tracking.parse, each) == "malformed"


def test_tracking_takes_effect_at_a_cycle(storage: StorageProcess) -> None:
    storage.make_vm()
    assert snapshot(storage) == (1, None)
    assert code(changed, storage, "*", 1) == code(changed, storage, tracking.text("52" * 16, 0), 1) == "not-tracked"
    asked = storage.call("disk.tracking", vm="web", on=True)
    assert asked["tracking"] is True and asked["disks"][0]["tracked"] is False and disk(storage)["change_id"] is None
    storage.call("snapshot.remove", vm="web", id=1)
    assert disk(storage)["tracked"] is True
    first = disk(storage)["change_id"]
    assert FORM.fullmatch(first)
    _, second = snapshot(storage)
    assert second and second.partition("/")[0] == first.partition("/")[0]
    storage.call("disk.tracking", vm="web", on=False)
    assert disk(storage)["tracked"] is True
    storage.call("vm.power", vm="web", on=True)
    assert disk(storage)["tracked"] is False and changed(storage, "*", 2) == []
    storage.call("disk.tracking", vm="web", on=True)
    storage.call("vm.power", vm="web", on=True)  # it runs: that is no power-on
    assert disk(storage)["tracked"] is False
    identity, third = snapshot(storage)
    assert third and third.partition("/")[0] != first.partition("/")[0]
    assert code(changed, storage, second, identity) == "no-epoch"
    assert changed(storage, third, identity) == []
    assert code(storage.call, "disk.tracking", vm="web", on="yes") == "malformed"
    assert code(storage.call, "disk.tracking", vm="none", on=True) == "not-found"


def test_changed_areas_survive_a_kill(start: Callable[..., StorageProcess]) -> None:
    storage = start()
    storage.make_vm()
    storage.call("disk.tracking", vm="web", on=True)
    storage.connect("live/web/2000").pwrite(b"a" * GRAIN, GRAIN)
    _, first = snapshot(storage)
    storage.connect("live/web/2000").pwrite(b"b", 10 * GRAIN - 1)
    storage.kill()
    storage.start()
    second, later = snapshot(storage)
    assert storage.call("vm.get", vm="web")["snapshots"][0]["disks"][0]["change_id"] == first
    assert changed(storage, first, second) == [[9 * GRAIN, GRAIN]]
    assert changed(storage, "*", 1) == [[GRAIN, GRAIN]]
    assert changed(storage, "*", second) == [[GRAIN, GRAIN], [9 * GRAIN, GRAIN]]
    assert code(changed, storage, later, 1) == code(changed, storage, 99, second) == "mismatch"
    assert code(changed, storage, "nonsense", second) == code(changed, storage, -1, second) == "malformed"
    assert code(changed, storage, None, second) == code(changed, storage, True, second) == "malformed"
    assert code(changed, storage, first, 77) == "not-found"
    assert code(storage.call, "disk.changed", vm="web", key=2001, since="*", id=second) == "not-found"
    storage.make_vm("other")
    storage.call("disk.tracking", vm="other", on=True)
    alien = storage.call("snapshot.create", vm="other", name="s")["disks"][0]["change_id"]
    assert code(changed, storage, alien, second) == "no-epoch"
    storage.call("vm.power", vm="web", on=True)
    assert code(changed, storage, first, None) == "locked"
    storage.call("vm.power", vm="web", on=False)
    storage.connect("live/web/2000").pwrite(b"c", 0)
    assert changed(storage, later, None) == [[0, GRAIN]]


def test_a_snapshot_taken_before_tracking_has_no_epoch(storage: StorageProcess) -> None:
    storage.make_vm()
    snapshot(storage)
    storage.call("disk.tracking", vm="web", on=True)
    _, change_id = snapshot(storage)
    assert code(changed, storage, "*", 1) == code(changed, storage, change_id, 1) == "no-epoch"
    assert changed(storage, 0, 1) == []


def test_revert_over_the_fabric(storage: StorageProcess) -> None:
    storage.make_vm()
    guest = storage.connect("live/web/2000")
    guest.pwrite(b"a" * GRAIN, 0)
    storage.call("disk.tracking", vm="web", on=True)
    first, _ = snapshot(storage)
    guest.pwrite(b"b" * GRAIN, 0)
    second, later = snapshot(storage)
    storage.call("vm.power", vm="web", on=True)
    assert code(storage.call, "snapshot.revert", vm="web", id=second) == "locked"
    storage.call("vm.power", vm="web", on=False)
    assert code(storage.call, "snapshot.revert", vm="web", id=9) == "not-found"
    assert code(storage.call, "snapshot.revert", vm="web", id=first) == "has-children"
    after = storage.call("snapshot.revert", vm="web", id=first, discard_later=True)
    assert after["current"] == first and guest.pread(GRAIN, 0) == b"a" * GRAIN
    assert after["disks"][0]["chain"] == ["web/web.vmdk", "web/web-000003.vmdk"]
    assert changed(storage, later, None) == [[0, GRAIN]]  # nothing was written since, but the disk is another


def test_the_map_of_a_disk_file(storage: StorageProcess) -> None:
    storage.make_vm(sizes=(16 * MIB, 8 * MIB + 512))
    guest = storage.connect("live/web/2001")
    low, high = os.urandom(2 * GRAIN), os.urandom(512)
    guest.pwrite(low, GRAIN)
    guest.pwrite(high, 8 * MIB)
    storage.call("vm.power", vm="web", on=True)
    assert code(storage.call, "file.read", path="web/web_1-map") == "locked"
    storage.call("snapshot.create", vm="web", name="s")
    guest.pwrite(b"later" * 100, GRAIN)
    raw = base64.b64decode(storage.call("file.read", path="web/web_1-map"))
    assert storage.call("file.stat", path="web/web_1-map") == {"size": len(raw), "kind": "text"}
    lun = storage.call("datastore.info")["lun"]
    found = json.loads(raw)
    extents = found.pop("extents")
    assert found == {
        "schema": "vadplab.san-map/1",
        "datastore": "datastore1",
        "lun": {"naa": lun["naa"], "size": lun["size"]},
        "vm": "web",
        "key": 2001,
        "file": "web/web_1.vmdk",
        "size": 8 * MIB + 512,
        "grain": GRAIN,
    }
    image = Path(lun["path"]).read_bytes()
    assert [(at, image[where : where + length]) for at, length, where in extents] == [(GRAIN, low), (8 * MIB, high)]
    assert code(storage.call, "file.write", path="web/web_1-map", data="") == "read-only"
    assert code(storage.call, "file.read", path="web/none-map") == "not-found"
    assert storage.call("file.list", path="web") == [
        *("web-000001.vmdk", "web.vmdk", "web.vmx", "web_1-000001.vmdk", "web_1.vmdk")
    ]
