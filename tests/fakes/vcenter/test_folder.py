# SPDX-License-Identifier: MIT
"""Files of a real storage's datastore: over HTTP, by the datastore browser, by the file managers."""

from __future__ import annotations

import http.client
import os
import re
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from tests.fakes.vcenter.real import MIB, SIZE, RealSite, disks, done, take
from tests.fakes.vcenter.real import real as real

WHERE = "?dcPath=DC1&dsName=datastore1"


def ask(real: RealSite, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, bytes]:
    """A request with the session's cookie."""
    connection = http.client.HTTPSConnection("127.0.0.1", real.site.port, context=real.site.trust, timeout=30)
    try:
        connection.request(method, path, body, {"Cookie": real.session._stub.cookie.split(";")[0], **headers})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def test_a_base_disk_can_be_read_whole_and_in_parts(real: RealSite) -> None:
    data = os.urandom(MIB)
    real.write("web", 2000, MIB, data)
    flat = "/folder/web/web-flat.vmdk" + WHERE
    status, headers, body = ask(real, "HEAD", flat)
    assert (status, headers["Content-Length"], headers["Accept-Ranges"], body) == (200, str(SIZE), "bytes", b"")
    status, _, body = ask(real, "GET", flat)
    assert status == 200 and body == real.read("live/web/2000")
    for asked, first, last in (
        (f"bytes={MIB}-{MIB + 99}", MIB, MIB + 99),
        (f"bytes={SIZE - 10}-", SIZE - 10, SIZE - 1),
        ("bytes=-10", SIZE - 10, SIZE - 1),
        (f"bytes=5-{SIZE * 9}", 5, SIZE - 1),
    ):
        status, headers, part = ask(real, "GET", flat, Range=asked)
        assert (status, headers["Content-Range"]) == (206, f"bytes {first}-{last}/{SIZE}")
        assert part == body[first : last + 1]
    assert ask(real, "GET", flat, Range=f"bytes={SIZE}-")[0] == 416
    assert len(ask(real, "GET", flat, Range="lines=1-2")[2]) == SIZE

    take(real.vm("web"))
    real.write("web", 2000, MIB, bytes(MIB))
    assert ask(real, "GET", flat)[2] == body  # frozen
    assert ask(real, "GET", "/folder/web/web-000001-flat.vmdk" + WHERE)[0] == 404
    status, _, text = ask(real, "GET", "/folder/web/web-000001.vmdk" + WHERE)
    assert status == 200 and b'parentFileNameHint="web.vmdk"' in text
    assert ask(real, "GET", "/folder/proxy-2/proxy-2-flat.vmdk" + WHERE)[0] == 403  # it runs


def test_folders_are_lists_of_links(real: RealSite) -> None:
    assert ask(real, "PUT", "/folder/a%20b/c%26d.txt" + WHERE, b"text")[0] in (200, 201)
    seen, left = set(), ["/folder"]
    while left:
        path = left.pop()
        status, headers, body = ask(real, "GET", path)
        assert status == (403 if "proxy-2-flat" in path else 200), path  # that one's disk is in use
        if headers["Content-Type"].startswith("text/html"):
            for link in re.findall(r'href="([^"]*)"', body.decode()):
                left.append(link.replace("&amp;", "&"))
        seen.add(path)
    assert "/folder/web/web-flat.vmdk" + WHERE in seen
    assert "/folder/a%20b/c%26d.txt" + WHERE in seen
    assert ask(real, "GET", "/folder/none/" + WHERE)[0] == 404
    assert ask(real, "GET", "/folder/web/web.vmx?dcPath=Other&dsName=datastore1")[0] == 404
    assert ask(real, "GET", "/folder?dcPath=DC1&dsName=none")[0] == 404
    for method in ("GET", "PUT", "DELETE"):
        assert ask(real, method, f"/folder/web/a%00b{WHERE}")[0] == 400


def test_what_belongs_to_a_vm_is_changed_by_nobody_else(real: RealSite) -> None:
    before = ask(real, "GET", "/folder/web/web.vmx" + WHERE)[2]
    for name in ("web/web.vmx", "web/web.vmdk", "web/web-flat.vmdk", "web"):
        assert ask(real, "PUT", f"/folder/{name}{WHERE}", b"x")[0] == 403, name
        assert ask(real, "DELETE", f"/folder/{name}{WHERE}")[0] == 403, name
    assert ask(real, "PUT", f"/folder/web/web.vmdk{WHERE}", bytes(8 * MIB))[0] == 403  # after all of it was sent
    assert ask(real, "GET", "/folder/web/web.vmx" + WHERE)[2] == before

    content = real.session.RetrieveContent()
    center = content.rootFolder.childEntity[0]
    disks, files = content.virtualDiskManager, content.fileManager
    for call in (
        lambda: files.DeleteDatastoreFile_Task("[datastore1] web/web.vmdk", center),
        lambda: files.DeleteDatastoreFile_Task("[datastore1] web", center),
        lambda: files.MoveDatastoreFile_Task("[datastore1] web/web.vmx", center, "[datastore1] web/x", center, True),
        lambda: disks.DeleteVirtualDisk_Task("[datastore1] web/web.vmdk", center),
    ):
        with pytest.raises(vim.fault.FileLocked):
            done(call())
    with pytest.raises(vmodl.fault.NotSupported):
        done(disks.CopyVirtualDisk_Task("[datastore1] web/web.vmdk", center, "[datastore1] web/copy.vmdk", center))


def test_no_path_leads_out_of_a_datastore(real: RealSite, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    content, vm = real.session.RetrieveContent(), real.vm("web")
    center, files = content.rootFolder.childEntity[0], content.fileManager
    out = f"[datastore1] {'../' * 12}{tmp_path}"
    iso = vim.vm.device.VirtualCdrom.IsoBackingInfo(fileName=f"{out}/kept")
    drive = vim.vm.device.VirtualCdrom(key=-1, controllerKey=200, backing=iso)
    change = vim.vm.device.VirtualDeviceSpec(operation="add", device=drive)
    for call in (
        lambda: search(real, out),
        lambda: search(real, "[datastore1] web/../.."),
        lambda: files.MakeDirectory(f"{out}/made", center, True),
        lambda: done(files.DeleteDatastoreFile_Task(f"{out}/kept", center)),
        lambda: done(files.CopyDatastoreFile_Task(f"{out}/kept", center, "[datastore1] web/kept", center, True)),
        lambda: done(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change]))),
    ):
        with pytest.raises(vim.fault.InvalidDatastorePath):
            call()
    assert [each.name for each in tmp_path.iterdir()] == ["kept"]
    for root in ("[datastore1]", "[datastore1] .", "[datastore1] web/", "[datastore1] ./web//web.vmx"):
        with pytest.raises(vim.fault.FileLocked):
            done(files.DeleteDatastoreFile_Task(root, center))
    system = vm.runtime.host.configManager.datastoreSystem
    with pytest.raises(vmodl.fault.NotSupported):
        system.CreateLocalDatastore("mine", str(tmp_path))
    vm.Reload()
    done(vm.ReconfigVM_Task(vim.vm.ConfigSpec(annotation="[a] note ... and so on")))


def test_a_disk_says_its_uuid_and_geometry(real: RealSite) -> None:
    content, vm = real.session.RetrieveContent(), real.vm("web")
    manager, center = content.virtualDiskManager, content.rootFolder.childEntity[0]
    backing = disks(vm.config)[0].backing
    found = manager.QueryVirtualDiskUuid(backing.fileName, center)
    assert found.replace(" ", "").replace("-", "").lower() == backing.uuid.replace("-", "").lower()
    chs = manager.QueryVirtualDiskGeometry(backing.fileName, center)
    assert (chs.cylinder, chs.head, chs.sector) == (4, 64, 32)
    with pytest.raises(vim.fault.FileNotFound):
        manager.QueryVirtualDiskUuid("[datastore1] web/none.vmdk", center)


def test_other_files_can_be_deleted(real: RealSite) -> None:
    for name in ("up/one.bin", "web/note.txt"):
        path = f"/folder/{name}{WHERE}"
        assert ask(real, "PUT", path, b"12345")[0] in (200, 201)
        assert ask(real, "GET", path, Range="bytes=1-2")[::2] == (206, b"23")
        assert ask(real, "DELETE", path)[0] == 204
        assert ask(real, "GET", path)[0] == ask(real, "DELETE", path)[0] == 404


def search(real: RealSite, path: str, *, below: bool = False, **spec: Any) -> Any:
    """A finished search of datastore1."""
    content = real.session.RetrieveContent()
    store = next(each for each in content.rootFolder.childEntity[0].datastore if each.name == "datastore1")
    method = store.browser.SearchDatastoreSubFolders_Task if below else store.browser.SearchDatastore_Task
    return done(method(path, vim.host.DatastoreBrowser.SearchSpec(**spec)))


def test_the_browser_shows_the_storage(real: RealSite) -> None:
    take(real.vm("web"))
    kinds = vim.host.DatastoreBrowser
    details = kinds.FileInfo.Details(fileType=True, fileSize=True, modification=True, fileOwner=True)
    found = search(real, "[datastore1] web", details=details)
    assert found.folderPath == "[datastore1] web/"
    by_name = {each.path: each for each in found.file}
    assert {"web.vmx", "web.vmdk", "web-flat.vmdk", "web-000001.vmdk", "web-000001-sesparse.vmdk"} <= set(by_name)
    assert by_name["web-flat.vmdk"].fileSize == SIZE
    assert isinstance(by_name["web.vmdk"], kinds.VmDiskInfo) and isinstance(by_name["web.vmx"], kinds.VmConfigInfo)
    assert all(each.modification for each in found.file)

    found = search(real, "[datastore1] web/", query=[kinds.VmDiskQuery()], details=details)
    assert [(each.path, each.capacityKb) for each in found.file] == [
        ("web-000001.vmdk", SIZE >> 10),
        ("web.vmdk", SIZE >> 10),
        ("web_1-000001.vmdk", 2 << 10),
        ("web_1.vmdk", 2 << 10),
    ]
    assert [each.path for each in search(real, "[datastore1]").file] == ["proxy-2", "web"]
    exact = search(real, "[datastore1] web", matchPattern=["WEB.VMX"], searchCaseInsensitive=False)
    assert not exact.file
    everywhere = search(real, "[datastore1]", below=True, matchPattern=["*.VMX"])
    assert [(each.folderPath, [f.path for f in each.file]) for each in everywhere] == [
        ("[datastore1] ", []),
        ("[datastore1] proxy-2/", ["proxy-2.vmx"]),
        ("[datastore1] web/", ["web.vmx"]),
    ]
    with pytest.raises(vim.fault.FileNotFound):
        search(real, "[datastore1] none")
    with pytest.raises(vim.fault.InvalidDatastorePath):
        search(real, "web")
