# SPDX-License-Identifier: MIT
"""Tickets of NfcService, asked for as disk libraries do: types registered by hand, or SOAP written by hand."""

from __future__ import annotations

import http.client
import json
import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from pyVim.task import WaitForTask
from pyVmomi import VmomiSupport, vim, vmodl

from fakes.vcenter import soap
from fakes.vcenter.journal import mark
from tests.fakes.vcenter.conftest import HOSTS, MakeSite, Site

VERSION = "vim.version.version1"
OPEN = (
    ("vm", "vim.VirtualMachine", VERSION, 0, None),
    ("diskDeviceKey", "int", VERSION, 0, None),
    ("hostForAccess", "vim.HostSystem", VERSION, VmomiSupport.F_OPTIONAL, None),
)
TICKET = (0, "vim.HostServiceTicket", "vim.HostServiceTicket")


HOST = (("hostForAccess", "vim.HostSystem", VERSION, VmomiSupport.F_OPTIONAL, None),)
METHODS = [
    ("getVmFiles", "NfcGetVmFiles", VERSION, OPEN[:1], TICKET, None, None),
    ("openReadonly", "NfcRandomAccessOpenReadonly", VERSION, OPEN, TICKET, None, None),
    ("open", "NfcRandomAccessOpenDisk", VERSION, OPEN, TICKET, None, None),
    ("libVersion", "NfcGetServerNfcLibVersion", VERSION, HOST, (0, "int", "int"), None, None),
]


@pytest.fixture(scope="module")
def nfc_type() -> Iterator[Any]:
    """The managed type that pyVmomi does not ship, as clients register it.

    pyVmomi keeps one table of methods a process; another client's entries (the engine's, in its own tests) are put aside.
    """
    table = VmomiSupport._wsdlMethodMap
    aside = {key: table.pop(key) for key in [(soap.VIM25, method[1]) for method in METHODS] if key in table}
    VmomiSupport.CreateManagedType(
        "vim.ClientNfcService", "ClientNfcService", "vmodl.ManagedObject", VERSION, [], METHODS
    )
    kind = VmomiSupport.GetVmodlType("vim.ClientNfcService")
    kind._wsdlName = "NfcService"
    types, name = VmomiSupport._wsdlTypeMap, (soap.VIM25, "NfcService")
    other = types.get(name)
    types[name] = kind  # faults name the object
    yield kind
    if other is None:
        del types[name]
    else:
        types[name] = other
    for method in METHODS:
        del table[soap.VIM25, method[1]]
    table.update(aside)


@pytest.fixture(scope="module")
def nfc(nfc_type: Any, session: Any) -> Any:
    """The service of the vCenter."""
    return nfc_type("nfcService", session._stub)


def post(site: Site, inner: str, cookie: str = "") -> tuple[int, str]:
    """A SOAP call written by hand."""
    connection = http.client.HTTPSConnection("127.0.0.1", site.port, context=site.trust, timeout=30)
    body = (
        '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/">'
        f"<s:Body>{inner}</s:Body></s:Envelope>"
    )
    try:
        connection.request("POST", "/sdk", body, {"Content-Type": "text/xml", "Cookie": cookie})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_read_only_ticket(site: Site, session: Any, nfc: Any) -> None:
    assert site.fabric is not None
    vm = site.vm(session, "linux-vm")
    ticket = nfc.NfcGetVmFiles(vm)
    assert (ticket.host, ticket.port, ticket.service, ticket.serviceVersion) == (
        HOSTS["esxi-1"],
        902,
        "vpxa-nfc",
        "1.1",
    )
    assert ticket.sslThumbprint == ":".join(["AB"] * 20)
    uuid.UUID(ticket.sessionId)
    issued = site.fabric.hosts["esxi-1"].tickets[-1]
    assert issued == {
        "session_id": ticket.sessionId,
        "vm": "linux-vm",
        "datastore": "datastore1",
        "folder": "linux-vm",
        "read_only": True,
        "ttl": 300,
    }
    assert nfc.NfcGetVmFiles(vm).sessionId != ticket.sessionId
    text = site.journal.read_text()
    assert ticket.sessionId not in text
    entries = [json.loads(line) for line in text.splitlines()]
    details = [e["detail"] for e in entries if e["method"] == "NfcGetVmFiles"]
    assert {
        "vm": "linux-vm",
        "host": "esxi-1",
        "address": HOSTS["esxi-1"],
        "read_only": True,
        "session": mark(ticket.sessionId),
    } in details


def test_disk_tickets(site: Site, session: Any, nfc: Any) -> None:
    assert site.fabric is not None
    vm = site.vm(session, "files-vm")
    host = vm.runtime.host
    assert nfc.NfcRandomAccessOpenReadonly(vm, 2001, host).host == HOSTS["esxi-2"]
    assert site.fabric.hosts["esxi-2"].tickets[-1]["read_only"] is True
    assert nfc.NfcRandomAccessOpenDisk(vm, 2000, host).service == "vpxa-nfc"
    assert site.fabric.hosts["esxi-2"].tickets[-1]["read_only"] is False


def test_refusals(site: Site, session: Any, nfc: Any, nfc_type: Any) -> None:
    on, off = site.vm(session, "linux-vm"), site.vm(session, "files-vm")
    with pytest.raises(vim.fault.InvalidPowerState):
        nfc.NfcRandomAccessOpenDisk(on, 2000, on.runtime.host)
    for key, host, wrong in ((2007, off.runtime.host, "diskDeviceKey"), (2000, on.runtime.host, "hostForAccess")):
        with pytest.raises(vmodl.fault.InvalidArgument) as caught:
            nfc.NfcRandomAccessOpenReadonly(off, key, host)
        assert caught.value.invalidProperty == wrong
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        nfc.NfcGetVmFiles(vim.VirtualMachine("vm-9999", session._stub))
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        nfc_type("ha-nfc", session._stub).NfcGetVmFiles(off)


def test_library_version(site: Site, session: Any, nfc: Any) -> None:
    assert nfc.NfcGetServerNfcLibVersion(site.vm(session, "files-vm").runtime.host) == 11
    with pytest.raises(vmodl.fault.InvalidArgument) as caught:
        nfc.NfcGetServerNfcLibVersion(None)
    assert caught.value.invalidProperty == "hostForAccess"


def test_namespace_of_the_question_is_that_of_the_answer(site: Site, session: Any) -> None:
    vm = site.vm(session, "linux-vm")._moId
    call = (
        '<NfcGetVmFiles xmlns="urn:nfc"><_this type="NfcService">nfcService</_this>'
        f'<vm type="VirtualMachine">{vm}</vm></NfcGetVmFiles>'
    )
    status, text = post(site, call, session._stub.cookie.split(";")[0])
    assert status == 200
    assert '<NfcGetVmFilesResponse xmlns="urn:nfc">' in text
    assert re.search(r"<sessionId>[0-9a-f-]{36}</sessionId>", text)
    status, text = post(site, call)
    assert status == 500
    assert "NotAuthenticatedFault" in text
    assert "<sessionId>" not in text


@pytest.mark.parametrize("namespace", ["urn:vim25", "urn:internalvim25"])
def test_internal_content(site: Site, namespace: str) -> None:
    status, text = post(
        site,
        f'<RetrieveInternalContent xmlns="{namespace}"><_this type="ServiceInstance">ServiceInstance</_this>'
        "</RetrieveInternalContent>",
    )
    assert status == 200
    assert f'<RetrieveInternalContentResponse xmlns="{namespace}">' in text
    assert '<nfcService type="NfcService">nfcService</nfcService>' in text


def test_versions(site: Site) -> None:
    connection = http.client.HTTPSConnection("127.0.0.1", site.port, context=site.trust, timeout=30)
    connection.request("GET", "/sdk/nfcServiceVersions.xml")
    assert b"<name>urn:nfc</name>" in connection.getresponse().read()
    connection.close()


def test_a_host_that_is_gone(make_site: MakeSite, nfc_type: Any) -> None:
    site = make_site()
    session = site.connect()
    assert site.fabric is not None
    (site.fabric.folder / "esxi-esxi-1.sock").unlink()
    with pytest.raises(vmodl.fault.HostNotReachable):
        nfc_type("nfcService", session._stub).NfcGetVmFiles(site.vm(session, "linux-vm"))


def test_host_view(make_site: MakeSite, nfc_type: Any) -> None:
    site = make_site(view="host", host="esxi-2", username="root")
    assert site.fabric is not None
    session = site.connect_as("root")
    content = session.RetrieveContent()
    assert content.about.apiType == "HostAgent"
    machines = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True).view
    assert [vm.name for vm in machines] == ["files-vm"]
    [host] = content.viewManager.CreateContainerView(content.rootFolder, [vim.HostSystem], True).view
    assert host.name == "esxi-2"
    vm = site.vm(session, "files-vm")
    ticket = nfc_type("ha-nfc", session._stub).NfcGetVmFiles(vm)
    assert (ticket.host, ticket.service) == (None, "nfc")
    assert site.fabric.hosts["esxi-2"].tickets[-1]["session_id"] == ticket.sessionId
    task = vm.CreateSnapshot_Task(name="here", memory=False, quiesce=False)
    assert WaitForTask(task) == "success"
    assert [s["name"] for s in site.fabric.storage.vms["files-vm"]["snapshots"]] == ["here"]
    assert WaitForTask(task.info.result.RemoveSnapshot_Task(removeChildren=False)) == "success"
    assert site.fabric.storage.vms["files-vm"]["snapshots"] == []
    site.fabric.storage.fail["snapshot.create"] = "failed"
    with pytest.raises(vim.fault.GenericVmConfigFault):
        vm.CreateSnapshot_Task(name="no", memory=False, quiesce=False)
