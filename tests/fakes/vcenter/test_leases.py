# SPDX-License-Identifier: MIT
"""Disks that leave and come by a lease, and the descriptor beside them."""

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

from fakes.vcenter import leases, streamvmdk
from tests.fakes.vcenter.real import MIB, RealSite, done, take
from tests.fakes.vcenter.real import real as real


def taken(real: RealSite, url: str, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
    """What a URL of a lease gives, without a login."""
    parts = urlsplit(url)
    assert parts.port == real.site.port
    connection = http.client.HTTPSConnection("127.0.0.1", parts.port, context=real.site.trust, timeout=30)
    try:
        connection.request(method, parts.path, body)
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
    monkeypatch.setattr(leases, "LEASE", 0.5)
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


def imported(real: RealSite, name: str) -> Any:
    """A ready lease for a new VM with the hardware of `web`."""
    content, vm = real.session.RetrieveContent(), real.vm("web")
    out = vm.ExportVm()
    files = [vim.OvfManager.OvfFile(deviceId=e.key, path=e.targetId, size=1) for e in out.info.deviceUrl]
    out.HttpNfcLeaseAbort()
    text = content.ovfManager.CreateDescriptor(vm, vim.OvfManager.CreateDescriptorParams(ovfFiles=files)).ovfDescriptor
    params = vim.OvfManager.CreateImportSpecParams(entityName=name, diskProvisioning="thin")
    wanted = content.ovfManager.CreateImportSpec(text, vm.resourcePool, vm.datastore[0], params)
    lease = vm.resourcePool.ImportVApp(wanted.importSpec, vm.parent)
    assert lease.state == "ready"
    assert [e.importKey for e in lease.info.deviceUrl] == [e.deviceId for e in wanted.fileItem]
    return lease


def vmdk(data: bytes) -> bytes:
    """A disk as clients send it."""
    read = lambda offset, length: data[offset : offset + length]  # noqa: E731
    return b"".join(streamvmdk.stream(len(data), [(0, len(data))], read, "disk.vmdk", "12345678"))


def test_a_vm_is_imported_with_its_disks(real: RealSite) -> None:
    lease = imported(real, "back")
    data = [os.urandom(65536 * 3).ljust(4 * MIB, b"\0"), bytes(MIB) + os.urandom(MIB)]
    for number, (each, disk) in enumerate(zip(lease.info.deviceUrl, data, strict=True)):
        assert taken(real, each.url)[0] == 405
        assert taken(real, each.url, "PUT" if number else "POST", vmdk(disk))[0] == 200
    assert [e.size for e in lease.HttpNfcLeaseGetManifest()] == [len(vmdk(disk)) for disk in data]
    lease.HttpNfcLeaseComplete()
    vm = real.vm("back")
    assert [real.read(f"live/back/{key}") for key in (2000, 2001)] == data
    done(vm.PowerOnVM_Task())
    take(vm)


def test_an_import_that_is_given_up_leaves_nothing(real: RealSite, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = imported(real, "back")
    url = lease.info.deviceUrl[0].url
    for body in (b"no disk", vmdk(bytes(8 * MIB)), vmdk(os.urandom(MIB))[:-600]):
        status, text = taken(real, url, "PUT", body)
        assert status == 400, text
    with pytest.raises(vim.fault.DuplicateName):
        imported(real, "back")
    lease.HttpNfcLeaseAbort()
    assert "back" not in {each["vm"] for each in real.call("vm.list")}

    monkeypatch.setattr(leases, "LEASE", 0.5)
    imported(real, "late")
    deadline = time.monotonic() + 20
    while "late" in {each["vm"] for each in real.call("vm.list")}:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(StopIteration):
        real.vm("late")
