# SPDX-License-Identifier: MIT
"""Reading calls, writing replies and faults: against pyVmomi's client side, and against hostile XML."""

from __future__ import annotations

import http.client
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyVmomi import SoapAdapter, VmomiSupport, vim, vmodl

from fakes.vcenter import soap
from tests.fakes.vcenter.conftest import Site


def envelope(inner: str) -> bytes:
    """A request as hand-written clients send it."""
    return f'<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>{inner}</s:Body></s:Envelope>'.encode()


class Recorder(SoapAdapter.SoapStubAdapterBase):  # type: ignore[misc]
    """Keeps what pyVmomi would send."""

    requestContext = None
    sent: bytes = b""

    def InvokeMethod(self, mo: Any, info: Any, args: Any, outerStub: Any = None) -> Any:
        self.sent = self.SerializeRequest(mo, info, args)


def calls(stub: Recorder) -> list[Any]:
    """Calls of many shapes."""
    vm = vim.VirtualMachine("vm-1", stub)
    device = vim.vm.device.VirtualDisk(
        key=-1,
        controllerKey=1000,
        unitNumber=3,
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName="[a] b/c.vmdk", diskMode="persistent"),
    )
    spec = vim.vm.ConfigSpec(
        deviceChange=[vim.vm.device.VirtualDeviceSpec(operation="add", device=device)],
        extraConfig=[vim.option.OptionValue(key="a", value="é<&>"), vim.option.OptionValue(key="SET.x", value=7)],
    )
    login = vim.vm.guest.NamePasswordAuthentication(username="u", password="p&", interactiveSession=False)
    program = vim.vm.guest.ProcessManager.ProgramSpec(programPath="/x", arguments='-c "x"', envVariables=["A=1", "B=2"])
    return [
        lambda: vm.ReconfigVM_Task(spec),
        lambda: vm.CreateSnapshotEx_Task("n", "d", False, vim.vm.WindowsQuiesceSpec(timeout=5)),
        lambda: vm.ConsolidateVMDisks_Task(),
        lambda: vim.vm.guest.ProcessManager("g", stub).StartProgramInGuest(vm, login, program),
        lambda: vim.SessionManager("s", stub).Login("u", "p", None),
    ]


def test_requests_of_pyvmomi_round_trip() -> None:
    stub = Recorder(soap.VERSION)
    names = []
    for make in calls(stub):
        make()
        call = soap.identify(stub.sent)
        values = soap.arguments(stub.sent)
        names.append((call.method, call.this))
        info = soap.method_info(call.method)
        expected = [values.get(p.name) for p in info.params]
        again = stub.SerializeRequest(vim.VirtualMachine(call.this_id), info, expected)
        assert soap.arguments(again).keys() == values.keys()
        assert repr(soap.arguments(again)) == repr(values)
    assert names == [
        ("ReconfigVM_Task", "VirtualMachine:vm-1"),
        ("CreateSnapshotEx_Task", "VirtualMachine:vm-1"),
        ("ConsolidateVMDisks_Task", "VirtualMachine:vm-1"),
        ("StartProgramInGuest", "GuestProcessManager:g"),
        ("Login", "SessionManager:s"),
    ]


def test_keys_of_options_are_found_at_any_depth() -> None:
    stub = Recorder(soap.VERSION)
    calls(stub)[0]()
    assert soap.identify(stub.sent).option_keys == ["a", "SET.x"]


def test_replies_and_faults_are_read_back_by_pyvmomi() -> None:
    def read(body: bytes, kind: Any) -> Any:
        return SoapAdapter.SoapResponseDeserializer(None).Deserialize(body, kind)

    info = soap.method_info("ConsolidateVMDisks_Task")
    assert read(soap.reply("ConsolidateVMDisks_Task", vim.Task("task-9")), info.result)._moId == "task-9"
    body = soap.fault(vim.fault.FileFault(file="[a] b<c>"), "it <broke>")
    fault = read(body, None)
    assert (type(fault), fault.file, fault.msg) == (vim.fault.FileFault, "[a] b<c>", "it <broke>")
    assert b'<FileFaultFault xmlns="urn:vim25"' in body


@pytest.mark.parametrize(
    "hidden",
    [
        '<x:StartProgramInGuest xmlns:x="urn:vim25"><x:_this type="GuestProcessManager">g</x:_this></x:StartProgramInGuest>',
        '<!-- <Login/> --><StartProgramInGuest xmlns="urn:vim25"><_this  type="GuestProcessManager">g</_this></StartProgramInGuest>',
        '<StartProgramInGuest xmlns="urn:vim25"><_this\ttype="GuestProcessManager"><![CDATA[g]]></_this></StartProgramInGuest>',
        '<StartProgramInGuest xmlns="urn:vim25"><_this type="vim25:GuestProcessManager">&#103;</_this></StartProgramInGuest>',
    ],
)
def test_a_call_can_not_be_hidden(hidden: str) -> None:
    call = soap.identify(envelope(hidden))
    assert (call.method, call.this) == ("StartProgramInGuest", "GuestProcessManager:g")


BAD = [
    b"",
    b"not xml",
    b"<a/>",
    envelope(""),
    envelope("<A/><B/>"),
    envelope("<A>") + b"x",
    b'<!DOCTYPE x [<!ENTITY e "x">]>' + envelope("<A>&e;</A>"),
    b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>',
    envelope("<A>" + "<b>" * 5000 + "</b>" * 5000 + "</A>"),
    envelope("<A>&undefined;</A>"),
    b"\xff\xfe\x00",
    b'<?xml version="1.0" encoding="no-such"?><a/>',
]


@pytest.mark.parametrize("data", BAD)
def test_malformed_calls_are_refused(data: bytes) -> None:
    with pytest.raises(soap.MalformedRequest):
        soap.identify(data)


@given(st.binary(max_size=400) | st.text(max_size=200).map(lambda text: envelope(text)))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_a_call_or_a_refusal(data: bytes) -> None:
    try:
        assert soap.identify(data).method
    except soap.MalformedRequest:
        pass


MUTATED = envelope(
    '<CreateSnapshot_Task xmlns="urn:vim25"><_this type="VirtualMachine">vm-1</_this><name>n</name>'
    "<memory>false</memory><quiesce>false</quiesce></CreateSnapshot_Task>"
)


@given(st.integers(0, len(MUTATED) - 1), st.binary(min_size=0, max_size=4), st.integers(0, 6))
@settings(max_examples=300, deadline=None)
def test_mutated_calls_never_break_the_decoder(at: int, new: bytes, cut: int) -> None:
    data = MUTATED[:at] + new + MUTATED[at + cut :]
    try:
        call = soap.identify(data)
        if call.method == "CreateSnapshot_Task":
            soap.arguments(data)
    except soap.MalformedRequest:
        pass


def test_the_gateway_survives_them_all(site: Site) -> None:
    connection = http.client.HTTPSConnection("127.0.0.1", site.port, context=site.trust, timeout=30)
    wrong = [
        envelope(
            '<CreateSnapshot_Task xmlns="urn:vim25"><_this type="VirtualMachine">vm-1</_this><memory>maybe</memory></CreateSnapshot_Task>'
        ),
        envelope(
            '<CreateSnapshot_Task xmlns="urn:vim25"><_this type="VirtualMachine">vm-1</_this><nonsense/></CreateSnapshot_Task>'
        ),
        envelope('<NfcGetVmFiles xmlns="urn:vim25"><_this type="NfcService">nfcService</_this></NfcGetVmFiles>'),
        envelope('<NoSuchMethod xmlns="urn:vim25"><_this type="Folder">group-d1</_this></NoSuchMethod>'),
        envelope('<RemoveSnapshot_Task xmlns="urn:vim25"/>'),
        envelope('<Fetch xmlns="urn:vim25"><_this type="Nothing">x</_this><prop>y</prop></Fetch>'),
        envelope(
            '<CreateFilter xmlns="urn:vim25"><_this type="PropertyCollector">propertyCollector</_this></CreateFilter>'
        ),
    ]
    for data in [*BAD, *wrong]:
        connection.request("POST", "/sdk", data, {"Content-Type": "text/xml"})
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == 500, (data, text)
        assert b"Fault" in text
    connection.close()
    assert isinstance(site.connect().CurrentTime().year, int)
    assert vmodl.fault.InvalidRequest is not None and VmomiSupport is not None
