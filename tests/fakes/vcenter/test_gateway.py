# SPDX-License-Identifier: MIT
"""What the gateway answers itself: guest operations, forbidden keys, sessions on file paths, what hosts report."""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time
from typing import Any

import pytest
from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl

from fakes.core import fabric
from fakes.core.fabric import FabricError
from tests.fakes.vcenter.conftest import HOSTS, PASSWORD, USER, Site
from tests.fakes.vcenter.test_snapshots import files, journal, stored, take, until


def get(
    site: Site,
    path: str,
    session: Any = None,
    method: str = "GET",
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, bytes]:
    """An HTTP request with the session's cookie."""
    connection = http.client.HTTPSConnection("127.0.0.1", site.port, context=site.trust, timeout=30)
    headers = {"Cookie": session._stub.cookie.split(";")[0]} if session is not None else headers or {}
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_no_guest_operation_reaches_vcsim(site: Site, session: Any) -> None:
    manager = session.RetrieveContent().guestOperationsManager
    auth = vim.vm.guest.NamePasswordAuthentication(username="root", password="secret-of-the-guest")
    program = vim.vm.guest.ProcessManager.ProgramSpec(programPath="/bin/true", arguments="")
    on, off = site.vm(session, "linux-vm"), site.vm(session, "files-vm")
    counted = site.gateway.guest.count
    with pytest.raises(vim.fault.GuestOperationsUnavailable):
        manager.processManager.StartProgramInGuest(on, auth, program)
    with pytest.raises(vim.fault.GuestOperationsUnavailable):
        manager.fileManager.ListFilesInGuest(on, auth, "/")
    with pytest.raises(vim.fault.GuestOperationsUnavailable):
        manager.authManager.ValidateCredentialsInGuest(on, auth)
    with pytest.raises(vim.fault.InvalidPowerState):
        manager.processManager.ListProcessesInGuest(off, auth)
    assert site.gateway.guest.count == counted + 4
    last = journal(site, "ListProcessesInGuest")[-1]
    assert last["detail"] == {"guest_operation": counted + 4, "vm": "files-vm"}
    assert last["fault"] == "InvalidPowerState"
    assert "secret-of-the-guest" not in site.journal.read_text()


@pytest.mark.parametrize("key", ["SET.bogus.path", "set.guest.ipAddress", "RUN.container", "ip0"])
def test_keys_that_drive_the_simulator_are_refused(site: Site, session: Any, key: str) -> None:
    vm = site.vm(session, "files-vm")
    spec = vim.vm.ConfigSpec(extraConfig=[vim.option.OptionValue(key=key, value="x")])
    with pytest.raises(vmodl.fault.InvalidArgument):
        vm.ReconfigVM_Task(spec)
    clone = vim.vm.CloneSpec(location=vim.vm.RelocateSpec(), powerOn=False, template=False, config=spec)
    with pytest.raises(vmodl.fault.InvalidArgument):
        vm.CloneVM_Task(folder=vm.parent, name="copy", spec=clone)
    assert vm.name == "files-vm"


def test_other_keys_pass(site: Site, session: Any) -> None:
    vm = site.vm(session, "files-vm")
    options = [vim.option.OptionValue(key="guestinfo.note", value="SET.not.a.key")]
    task = vm.ReconfigVM_Task(vim.vm.ConfigSpec(extraConfig=options))
    assert WaitForTask(task) == "success"
    assert task.info.name.info.wsdlName == "ReconfigVM_Task"
    assert ("guestinfo.note", "SET.not.a.key") in [(o.key, o.value) for o in vm.config.extraConfig]


def test_options_that_would_end_the_simulator_are_refused(site: Site, session: Any) -> None:
    settings = session.RetrieveContent().setting
    for value in ("nonsense", "", "5 s"):
        with pytest.raises(vmodl.fault.InvalidArgument):
            settings.UpdateOptions([vim.option.OptionValue(key="config.vmacore.soap.sessionTimeout", value=value)])
    with pytest.raises(vim.fault.InvalidName):
        settings.UpdateOptions([vim.option.OptionValue(key="vcsim.server.url", value="https://10.0.0.1/sdk")])
    settings.UpdateOptions([vim.option.OptionValue(key="config.vmacore.soap.sessionTimeout", value="30m")])
    site.connect()


def test_any_entity_is_reloaded(site: Site, session: Any) -> None:
    content = session.RetrieveContent()
    content.sessionManager.SetLocale("en_US")
    content.rootFolder.Reload()
    site.vm(session, "files-vm").Reload()
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        vim.Folder("group-d999", session._stub).Reload()


def test_datastore_files_need_a_session(site: Site, session: Any) -> None:
    path = "/folder/files-vm/files-vm.vmx?dcPath=DC1&dsName=datastore1"
    assert get(site, path)[0] == 401
    status, body = get(site, path, session)
    assert status == 200
    assert b'displayName = "files-vm"' in body  # the storage's, vcsim's own is empty
    assert get(site, "/folder/files-vm/none?dcPath=DC1&dsName=datastore1", session)[0] == 404
    assert get(site, path, session, "DELETE")[0] == 403
    assert get(site, "/nfc/x/y", session, "DELETE")[0] == 501
    upload = "/folder/up/load.bin?dcPath=DC1&dsName=datastore1"
    data = bytes(range(256)) * 4096
    assert get(site, upload, session, "PUT", data)[0] in (200, 201)
    assert get(site, upload, session) == (200, data)
    assert get(site, upload, session, "HEAD") == (200, b"")


def test_datastore_files_by_a_ticket_for_one_request(site: Site, session: Any) -> None:
    path = "/folder/files-vm/files-vm.vmx?dcPath=DC1&dsName=datastore1"
    manager = session.RetrieveContent().sessionManager

    def ticket(method: str | None = "httpGet") -> dict[str, str]:
        spec = vim.SessionManager.HttpServiceRequestSpec(method=method, url="https://10.0.0.1" + path)
        return {"Cookie": f'vmware_cgi_ticket="{manager.AcquireGenericServiceTicket(spec).id}"'}

    once = ticket()
    assert get(site, path, headers=once)[0] == 200
    assert get(site, path, headers=once)[0] == 401
    assert get(site, path, headers=ticket(None))[0] == 200
    assert get(site, path, headers=ticket("httpPut"))[0] == 401
    assert get(site, path.replace("files-vm.vmx", "files-vm.vmdk"), headers=ticket())[0] == 401
    assert get(site, path.replace("datastore1", "datastore2"), headers=ticket())[0] == 401
    assert get(site, path, headers={"Cookie": "vmware_cgi_ticket=made-up"})[0] == 401


def test_a_ticket_for_a_path_of_a_host_is_left_there(site: Site, session: Any) -> None:
    path = "/folder/files-vm/files-vm.vmx?dsName=datastore1"
    url = f"https://{HOSTS['esxi-2']}{path}"
    spec = vim.SessionManager.HttpServiceRequestSpec(method="httpGet", url=url)
    ticket = session.RetrieveContent().sessionManager.AcquireGenericServiceTicket(spec)
    assert (ticket.hostName, ticket.sslThumbprint) == (HOSTS["esxi-2"], ":".join(["AB"] * 20))
    assert site.fabric is not None
    assert site.fabric.hosts["esxi-2"].tickets[-1] == {"id": ticket.id, "verb": "GET", "url": url}
    assert get(site, path, headers={"Cookie": f'vmware_cgi_ticket="{ticket.id}"'})[0] == 401


def test_datastore_files_by_a_password(site: Site) -> None:
    path = "/folder/files-vm/files-vm.vmx?dcPath=DC1&dsName=datastore1"

    def basic(text: str) -> dict[str, str]:
        return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}

    assert get(site, path, headers=basic(f"{USER}:{PASSWORD}"))[0] == 200
    for wrong in (f"{USER}:nope", f"nobody:{PASSWORD}", USER, ":", "\0:\x01"):
        assert get(site, path, headers=basic(wrong))[0] == 401, wrong
    assert get(site, path, headers={"Authorization": "Basic ???"})[0] == 401


def test_other_spellings_of_a_path_are_the_same_path(site: Site, session: Any) -> None:
    call = (
        b'<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><StartProgramInGuest xmlns="urn:vim25">'
        b'<_this type="GuestProcessManager">guestOperationsProcessManager</_this></StartProgramInGuest></s:Body></s:Envelope>'
    )
    for path in ("/sdk", "/sdk/", "/%73dk", "/sdk?x=1", "//sdk", "/a/../sdk", "/sdk/vimService"):
        counted = site.gateway.guest.count
        status, body = get(site, path, session, "POST", call)
        assert (status, b"InvalidArgument" in body) == (500, True), path
        assert site.gateway.guest.count == counted + 1
    for path in ("/%66older/files-vm/files-vm.vmx", "//folder/files-vm/files-vm.vmx", "/x/../folder/files-vm/x"):
        assert get(site, path + "?dcPath=DC1&dsName=datastore1")[0] == 401, path


def test_pages_of_the_simulator_are_not_shown(site: Site, session: Any) -> None:
    for path in ("/about", "/debug/vars"):
        assert get(site, path, session)[0] == 404


def test_chunked_request_bodies(site: Site) -> None:
    connection = http.client.HTTPSConnection("127.0.0.1", site.port, context=site.trust, timeout=30)
    body = (
        b'<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><RetrieveServiceContent xmlns="urn:vim25">'
        b'<_this type="ServiceInstance">ServiceInstance</_this></RetrieveServiceContent></s:Body></s:Envelope>'
    )
    for size in (1, 7, len(body)):
        parts = [body[i : i + size] for i in range(0, len(body), size)]
        connection.request("POST", "/sdk", iter(parts), {"Content-Type": "text/xml"}, encode_chunked=True)
        answer = connection.getresponse()
        assert (answer.status, b"VMware vCenter Server" in answer.read()) == (200, True)
    connection.close()


def test_power_is_told_to_the_storage(site: Site, session: Any) -> None:
    assert site.fabric is not None
    vm = site.vm(session, "files-vm")
    WaitForTask(vm.PowerOnVM_Task())
    until(lambda: site.fabric.storage.vms["files-vm"]["power"] == "on")  # type: ignore[union-attr]
    WaitForTask(vm.PowerOffVM_Task())
    until(lambda: site.fabric.storage.vms["files-vm"]["power"] == "off")  # type: ignore[union-attr]


def test_tools_report(site: Site, session: Any) -> None:
    assert site.fabric is not None
    vm = site.vm(session, "linux-vm")
    assert (vm.guest.toolsRunningStatus, vm.guest.ipAddress) == ("guestToolsNotRunning", None)
    client = fabric.FabricClient(site.fabric.folder / "vcenter.sock")
    report = {"hostname": "linux-guest", "addresses": ["10.77.31.2"], "family": "linux", "full_name": "Debian 12"}
    client.call("tools.report", vm="linux-vm", running=True, **report)
    guest = vm.guest
    assert (guest.toolsRunningStatus, guest.guestState) == ("guestToolsRunning", "running")
    assert (guest.hostName, guest.ipAddress, guest.guestFamily) == ("linux-guest", "10.77.31.2", "linuxGuest")
    assert guest.net[0].ipAddress == ["10.77.31.2"]
    assert vm.summary.guest.ipAddress == "10.77.31.2"
    client.call("tools.report", vm="linux-vm", running=False)
    assert vm.guest.toolsRunningStatus == "guestToolsNotRunning"
    with pytest.raises(FabricError) as caught:
        client.call("tools.report", vm="nobody", running=True)
    assert caught.value.code == "not-found"
    client.close()


def test_clients_at_once(site: Site, session: Any) -> None:
    """Two of them on one VM: their snapshots overlap, and each waits on its session's default collector."""
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            mine = site.connect()
            vm = site.vm(mine, name)
            for number in range(5):
                snapshot = take(vm, f"{name}-{number}")
                assert snapshot.config.name == name
                WaitForTask(snapshot.RemoveSnapshot_Task(removeChildren=False))
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("linux-vm", "files-vm", "linux-vm")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert not any(thread.is_alive() for thread in threads)
    assert site.fabric is not None
    for name in ("linux-vm", "files-vm"):
        vm = site.vm(session, name)
        assert vm.snapshot is None
        assert site.fabric.storage.vms[name]["snapshots"] == []
        assert files(vm.config) == stored(site, name)


def test_a_snapshot_of_the_other_view_is_seen_at_the_next_login(site: Site) -> None:
    assert site.fabric is not None
    snapshot = site.fabric.storage.snapshot_create("files-vm", "from the host", "elsewhere")
    vm = site.vm(site.connect(), "files-vm")
    assert [s.name for s in vm.snapshot.rootSnapshotList] == ["from the host"]
    assert files(vm.config) == stored(site)
    site.fabric.storage.snapshot_remove("files-vm", snapshot["id"], False)
    vm = site.vm(site.connect(), "files-vm")
    assert vm.snapshot is None
    assert files(vm.config) == stored(site)


def test_the_journal_has_every_call_and_no_secret(site: Site, session: Any) -> None:
    session.CurrentTime()
    text = site.journal.read_text()
    entry = json.loads(text.splitlines()[-1])
    assert set(entry) == {"utc", "mono", "client", "method", "this", "status", "fault", "detail"}
    assert abs(time.time_ns() - entry["utc"]) < 600 * 10**9 and 0 < entry["mono"] <= time.monotonic_ns()
    assert (entry["method"], entry["this"], entry["status"]) == ("CurrentTime", "ServiceInstance:ServiceInstance", 200)
    assert "Pa55" not in text
    assert session._stub.cookie.split("=")[1].split(";")[0].strip('"') not in text
