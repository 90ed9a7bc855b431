# SPDX-License-Identifier: MIT
"""Disks that leave by a lease, and the descriptor beside them."""

from __future__ import annotations

import hashlib
import http.client
import os
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest
from pyVmomi import vim, vmodl

from fakes.vcenter import export
from tests.fakes.vcenter.real import MIB, RealSite, done, take
from tests.fakes.vcenter.real import real as real


def taken(real: RealSite, url: str, method: str = "GET") -> tuple[int, bytes]:
    """What a URL of a lease gives, without a login."""
    parts = urlsplit(url)
    assert parts.port == real.site.port
    connection = http.client.HTTPSConnection("127.0.0.1", parts.port, context=real.site.trust, timeout=30)
    try:
        connection.request(method, parts.path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def raw(data: bytes, folder: Path) -> bytes:
    """The disk in a VMDK, read by QEMU."""
    (folder / "disk.vmdk").write_bytes(data)
    convert = ["qemu-img", "convert", "-f", "vmdk", "-O", "raw", "disk.vmdk", "disk.raw"]
    subprocess.run(convert, cwd=folder, check=True)
    return (folder / "disk.raw").read_bytes()


def test_a_vm_is_exported_as_the_storage_has_it(real: RealSite, tmp_path: Path) -> None:
    vm, data = real.vm("web"), os.urandom(300_000)
    real.write("web", 2000, 100 << 10, data[: 4 << 16])
    lease = vm.ExportVm()
    assert vm.snapshot is None and lease.state == "ready"
    info = lease.info
    assert info.totalDiskCapacityInKB == 6 << 10 and info.entity == vm
    assert [(each.targetId, each.disk) for each in info.deviceUrl] == [("web.vmdk", True), ("web_1.vmdk", True)]
    assert all(len(each.sslThumbprint) == 59 for each in info.deviceUrl)
    for number, each in enumerate(info.deviceUrl):
        status, body = taken(real, each.url)
        assert status == 200
        assert raw(body, tmp_path) == real.read(f"live/web/{2000 + number}")
        lease.HttpNfcLeaseProgress(50 * (number + 1))
        entry = lease.HttpNfcLeaseGetManifest()[number]
        assert (entry.key, entry.sha1) == (each.key, hashlib.sha1(body).hexdigest())
        assert (entry.size, entry.capacity) == (len(body), len(real.read(f"live/web/{2000 + number}")))
    url = info.deviceUrl[0].url
    assert taken(real, url, "PUT")[0] == 405
    assert taken(real, url + "x")[0] == 404
    lease.HttpNfcLeaseComplete()
    assert taken(real, url)[0] == 401
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        _ = lease.state


def test_a_snapshot_is_exported_as_it_was(real: RealSite, tmp_path: Path) -> None:
    vm = real.vm("web")
    real.write("web", 2000, 0, b"a" * 65536)
    first = take(vm, "first")
    real.write("web", 2000, 0, b"b" * 65536)
    take(vm, "second")
    lease = first.ExportSnapshot()
    assert raw(taken(real, lease.info.deviceUrl[0].url)[1], tmp_path)[:65536] == b"a" * 65536
    lease.HttpNfcLeaseAbort()
    lease = vm.ExportVm()
    assert raw(taken(real, lease.info.deviceUrl[0].url)[1], tmp_path)[:65536] == b"b" * 65536
    lease.HttpNfcLeaseAbort()
    assert [each.name for each in vm.snapshot.rootSnapshotList] == ["first"]
    assert len(real.call("vm.get", vm="web")["snapshots"]) == 2


def test_what_can_not_be_exported(real: RealSite) -> None:
    with pytest.raises(vim.fault.InvalidPowerState):
        real.vm("proxy-2").ExportVm()
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        vim.VirtualMachine("vm-999", real.session._stub).ExportVm()


def test_a_lease_without_progress_ends(real: RealSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "LEASE", 0.5)
    lease = real.vm("web").ExportVm()
    url = lease.info.deviceUrl[0].url
    deadline = time.monotonic() + 20
    while True:
        try:
            assert lease.state == "ready" and time.monotonic() < deadline
        except vmodl.fault.ManagedObjectNotFound:
            break
        time.sleep(0.05)
    assert taken(real, url)[0] == 401


def test_a_download_that_breaks_off_leaves_no_connection(real: RealSite) -> None:
    real.write("web", 2000, 0, os.urandom(4 * MIB))
    lease = real.vm("web").ExportVm()
    url = urlsplit(lease.info.deviceUrl[0].url)
    for _ in range(4):
        connection = http.client.HTTPSConnection("127.0.0.1", url.port, context=real.site.trust, timeout=30)
        connection.request("GET", url.path)
        assert len(connection.getresponse().read(70_000)) == 70_000
        connection.close()
    lease.HttpNfcLeaseComplete()
    done(real.vm("web").PowerOnVM_Task())  # nothing holds the disk
    done(real.vm("web").PowerOffVM_Task())


def test_the_descriptor_lists_the_hardware(real: RealSite) -> None:
    content: Any = real.session.RetrieveContent()
    files = [vim.OvfManager.OvfFile(deviceId=f"d{n}", path=f"disk-{n}.vmdk", size=10 + n) for n in range(2)]
    params = vim.OvfManager.CreateDescriptorParams(ovfFiles=files, name="a <b>")
    tree = ElementTree.fromstring(content.ovfManager.CreateDescriptor(real.vm("web"), params).ovfDescriptor)
    space = {"o": "http://schemas.dmtf.org/ovf/envelope/1"}
    ovf = "{http://schemas.dmtf.org/ovf/envelope/1}"
    assert [each.get(ovf + "href") for each in tree.findall("o:References/o:File", space)] == [
        "disk-0.vmdk",
        "disk-1.vmdk",
    ]
    disks = tree.findall("o:DiskSection/o:Disk", space)
    assert [each.get(ovf + "capacity") for each in disks] == [str(4 * MIB), str(2 * MIB)]
    system = tree.find("o:VirtualSystem", space)
    assert system is not None and system.findtext("o:Name", None, space) == "a <b>"
    assert len(system.findall("o:VirtualHardwareSection/o:Item", space)) == 5
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        content.ovfManager.CreateDescriptor(vim.VirtualMachine("vm-999", None), params)
