# SPDX-License-Identifier: MIT
"""The service as its clients see it: fabric messages and NBD exports, by independent NBD clients."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import nbd
import pytest

from fakes.core.fabric import FabricError
from tests.fakes.storage.conftest import BIOS, MIB, StorageProcess


def refused(call: Any, *args: Any, **params: Any) -> str:
    with pytest.raises(FabricError) as caught:
        call(*args, **params)
    return caught.value.code


def test_vm_and_files(storage: StorageProcess) -> None:
    made = storage.make_vm(sizes=(16 * MIB, 8 * MIB))
    assert made["power"] == "off" and made["current"] is None and made["folder"] == "web"
    assert [d["chain"] for d in made["disks"]] == [["web/web.vmdk"], ["web/web_1.vmdk"]]
    assert storage.call("vm.list") == [made] and storage.call("vm.get", vm="web") == made
    assert storage.call("file.list", path="web") == ["web.vmdk", "web.vmx", "web_1.vmdk"]
    assert storage.call("file.list", path="") == ["web"]
    vmx = base64.b64decode(storage.call("file.read", path="web/web.vmx")).decode()
    assert 'uuid.bios = "56 4d 4e 6f 1a 2b 4c 3d-8e 4f 5a 6b 7c 8d 9e 0f"' in vmx
    assert 'scsi0:1.fileName = "web_1.vmdk"' in vmx
    descriptor = base64.b64decode(storage.call("file.read", path="web/web.vmdk")).decode()
    assert 'RW 32768 VMFS "web-flat.vmdk"' in descriptor and "parentCID=ffffffff" in descriptor
    assert storage.call("file.stat", path="web/web.vmdk") == {"size": 16 * MIB, "kind": "disk"}
    assert storage.call("file.stat", path="web/web.vmx")["kind"] == "text"
    info = storage.call("datastore.info")
    assert info["capacity"] == info["free"] == 256 * MIB
    assert info["lun"]["naa"].startswith("naa.6") and len(info["lun"]["naa"]) == 36


def test_snapshot_names_and_locks(storage: StorageProcess) -> None:
    storage.make_vm()
    storage.call("vm.power", vm="web", on=True)
    assert refused(storage.call, "disk.resolve", path="web/web.vmdk", write=False) == "locked"
    snap = storage.call("snapshot.create", vm="web", name="one", description="d")
    assert snap["disks"] == [
        {
            "key": 2000,
            "frozen": "web/web.vmdk",
            "live": "web/web-000001.vmdk",
            "sequence": 1,
            "change_id": None,
        }
    ]
    found = storage.call("disk.resolve", path="web/web.vmdk", write=False)
    assert found == {"export": "file/web/web.vmdk", "size": 16 * MIB, "vm": "web", "key": 2000, "writable": False}
    assert refused(storage.call, "disk.resolve", path="web/web.vmdk", write=True) == "read-only"
    assert refused(storage.call, "disk.resolve", path="web/web-000001.vmdk", write=False) == "locked"
    assert refused(storage.call, "disk.resolve", path="web/web-000002.vmdk", write=False) == "not-found"
    delta = base64.b64decode(storage.call("file.read", path="web/web-000001.vmdk")).decode()
    assert 'parentFileNameHint="web.vmdk"' in delta and 'createType="seSparse"' in delta
    assert (
        'scsi0:0.fileName = "web-000001.vmdk"'
        in base64.b64decode(storage.call("file.read", path="web/web.vmx")).decode()
    )
    storage.call("snapshot.label", vm="web", id=snap["id"], ref="snapshot-7")
    storage.call("snapshot.rename", vm="web", id=snap["id"], name="renamed", description=None)
    [renamed] = storage.call("vm.get", vm="web")["snapshots"]
    assert (renamed["name"], renamed["description"], renamed["ref"]) == ("renamed", snap["description"], "snapshot-7")
    second = storage.call("snapshot.create", vm="web", name="two", description="")
    assert second["parent"] == snap["id"]
    storage.call("snapshot.remove", vm="web", id=snap["id"], children=False)
    vm = storage.call("vm.get", vm="web")
    assert vm["disks"][0]["chain"] == ["web/web.vmdk", "web/web-000002.vmdk"]
    assert vm["snapshots"][0]["disks"][0]["frozen"] == "web/web.vmdk" and vm["snapshots"][0]["parent"] is None
    assert refused(storage.call, "snapshot.remove", vm="web", id=snap["id"], children=False) == "not-found"
    storage.call("vm.power", vm="web", on=False)
    assert storage.call("disk.resolve", path="web/web-000002.vmdk", write=True)["writable"] is True


@pytest.mark.parametrize(
    "path", ["../etc/passwd", "/etc/passwd", "web/../../x", "web", "web/a/b", "web/", "", "web/x\n", "web/..", "./web"]
)
def test_paths_outside_are_refused(storage: StorageProcess, path: str) -> None:
    for method in ("file.stat", "file.read", "disk.resolve", "disk.extents"):
        assert refused(storage.call, method, path=path) == "bad-path"
    assert refused(storage.call, "file.write", path=path, data="") == "bad-path"


def test_bad_requests(storage: StorageProcess) -> None:
    storage.make_vm()
    disk = {"key": 2000, "label": "x", "size": MIB, "file": "b/b.vmdk", "contents": "empty"}
    create = ("vm.create",)
    assert refused(storage.call, *create, vm="web", uuid=BIOS, disks=[disk], files={}) == "exists"
    assert refused(storage.call, *create, vm="../x", uuid=BIOS, disks=[disk], files={}) == "bad-name"
    assert refused(storage.call, *create, vm="b", uuid="nonsense", disks=[disk], files={}) == "malformed"
    assert refused(storage.call, *create, vm="b", uuid=BIOS, disks=[{**disk, "size": 100}], files={}) == "bad-size"
    assert refused(storage.call, *create, vm="b", uuid=BIOS, disks=[], files={}, folder="../x") == "bad-path"
    assert (
        refused(storage.call, *create, vm="b", uuid=BIOS, disks=[{**disk, "contents": "?"}], files={}) == "bad-contents"
    )
    assert (
        refused(storage.call, *create, vm="b", uuid=BIOS, disks=[{**disk, "file": "../x.vmdk"}], files={}) == "bad-path"
    )
    assert refused(storage.call, "vm.get", vm="b") == "not-found"
    assert refused(storage.call, "vm.fly") == "unknown-method"
    assert refused(storage.call, "snapshot.create") == "malformed"
    assert refused(storage.call, "file.write", path="web/web.vmdk", data="") == "is-disk"
    assert refused(storage.call, "truth.get", vm="web", id=9, wait=0) == "not-found"
    assert [v["vm"] for v in storage.call("vm.list")] == ["web"]


def test_unknown_export(storage: StorageProcess) -> None:
    storage.make_vm()
    for name in ("live/web/2001", "live/none/2000", "file/web/none.vmdk", "web", ""):
        with pytest.raises(nbd.Error):
            storage.connect(name).size if name else storage.connect("nothing")
    listed = subprocess.run(
        ["nbdinfo", "--list", "--json", storage.uri("")], capture_output=True, text=True, check=True, timeout=30
    )
    names = [e["export-name"] for e in json.loads(listed.stdout)["exports"]]
    assert names == ["live/web/2000", "file/web/web.vmdk"]


def test_live_and_frozen_by_foreign_clients(storage: StorageProcess, tmp_path: Path) -> None:
    storage.make_vm()
    live = storage.connect("live/web/2000")
    first = os.urandom(300_000)
    live.pwrite(first, 70_000)
    snap = storage.call("snapshot.create", vm="web", name="s", description="")
    live.pwrite(b"\xff" * 200_000, 100_000)
    image = bytearray(16 * MIB)
    image[70_000 : 70_000 + len(first)] = first
    subprocess.run(["nbdcopy", storage.uri("file/web/web.vmdk"), str(tmp_path / "a.raw")], check=True, timeout=60)
    assert (tmp_path / "a.raw").read_bytes() == image
    subprocess.run(
        ["qemu-img", "convert", "-O", "raw", storage.uri("file/web/web.vmdk"), str(tmp_path / "b.raw")],
        check=True,
        timeout=60,
    )
    assert (tmp_path / "b.raw").read_bytes() == image
    record = storage.call("truth.get", vm="web", id=snap["id"], wait=10)
    digests = Path(record["disks"][0]["digests"]).read_bytes()
    blocks = [hashlib.sha256(image[at : at + 65536]).digest() for at in range(0, len(image), 65536)]
    assert digests == b"".join(blocks)
    mapped = json.loads(
        subprocess.run(
            ["nbdinfo", "--map", "--json", storage.uri("file/web/web.vmdk")],
            capture_output=True,
            check=True,
            timeout=30,
        ).stdout
    )
    allocated = [[e["offset"], e["length"]] for e in mapped if e["type"] == 0]
    assert allocated == [[65536, 5 * 65536]] == storage.call("disk.extents", path="web/web.vmdk")
    live.shutdown()
