# SPDX-License-Identifier: MIT
"""Each rule on bytes as vcsim sends them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.vcenter.sanitise import Sanitiser, task_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ReconfigVm", "ReconfigVM_Task"),
        ("CreateSnapshotEx", "CreateSnapshotEx_Task"),
        ("Destroy", "Destroy_Task"),
        ("PowerOn", "PowerOnVM_Task"),
        ("PowerOff", "PowerOffVM_Task"),
        ("CloneVm", "CloneVM_Task"),
        ("AddStandaloneHost_Task", "AddStandaloneHost_Task"),
        ("NoSuchThing", None),
    ],
)
def test_task_names(name: str, expected: str | None) -> None:
    assert task_name(name) == expected


def test_task_info() -> None:
    info = b'<key>task-7</key><task type="Task">task-7</task><name>%s</name><descriptionId>x</descriptionId>'
    clean = Sanitiser().clean
    assert b"<name>ReconfigVM_Task</name>" in clean(info % b"ReconfigVm")
    assert b"<name>" not in clean(info % b"Invented")
    named = Sanitiser(named={b"task-7": "CreateSnapshot_Task"})
    own = b'<key>task-7</key><task type="Task">task-7</task><descriptionId>x</descriptionId>'
    assert b"</task><name>CreateSnapshot_Task</name><desc" in named.clean(own)
    value = b'<name>info.name</name><val xsi:type="xsd:string">Destroy</val>'
    assert b">Destroy_Task<" in clean(value)
    entity = b'<task type="Task">t</task><entity type="FileManager">FileManager</entity><entity type="VirtualMachine">vm-1</entity>'
    assert clean(entity) == b'<task type="Task">t</task><entity type="VirtualMachine">vm-1</entity>'


def test_empty_enumerations_are_dropped_and_others_kept() -> None:
    body = b"<a><faultToleranceState></faultToleranceState><recordReplayState/><powerState>on</powerState></a>"
    assert Sanitiser().clean(body) == b"<a><powerState>on</powerState></a>"
    full = b"<faultToleranceState>notConfigured</faultToleranceState>"
    assert Sanitiser().clean(full) == full


def test_errors_are_said_in_words_and_files_by_their_datastore() -> None:
    clean = Sanitiser().clean
    error = b"<localizedMessage>*types.%s</localizedMessage>"
    assert clean(error % b"InvalidPowerState") == b"<localizedMessage>Invalid power state.</localizedMessage>"
    assert clean(error % b"FileNotFound: /tmp/x") == b"<localizedMessage>File not found.</localizedMessage>"
    for path in (b"/tmp/a/stubs-3/datastore1/vm/vm.vmx", b"/tmp/b/govcsim-12/DC0-datastore1/vm/vm.vmx"):
        assert clean(b"<file>%s</file>" % path) == b"<file>[datastore1] vm/vm.vmx</file>"
    for kept in (b"<file>[datastore1] vm/vm.vmx</file>", b"<file>/etc/passwd</file>"):
        assert clean(kept) == kept


def test_the_gateways_own_session_leaves_lists() -> None:
    one = b'<UserSession xsi:type="UserSession"><key>%s</key><userName>u</userName></UserSession>'
    assert Sanitiser(own_session=b"k.1").clean(one % b"a" + one % b"k.1" + one % b"kx1") == one % b"a" + one % b"kx1"


def test_hidden_tasks_leave_lists_only() -> None:
    rules = Sanitiser(hidden={b"task-1"})
    listed = (
        b'<ManagedObjectReference type="Task" xsi:type="ManagedObjectReference">task-1</ManagedObjectReference>'
        b'<ManagedObjectReference type="Task" xsi:type="ManagedObjectReference">task-10</ManagedObjectReference>'
    )
    assert rules.clean(listed).count(b"task-1<") == 0
    assert b"task-10" in rules.clean(listed)
    reply = b'<returnval type="Task">task-1</returnval>'
    assert rules.clean(reply) == reply


def test_unset_property_of_fetch() -> None:
    wrong = b'<?xml version="1.0"?><Envelope><Body><RetrievePropertiesExResponse xmlns="urn:vim25"><returnval/>'
    assert b"<FetchResponse" in Sanitiser().fetched(wrong)
    assert b"returnval" not in Sanitiser().fetched(wrong)


def test_frozen_files_of_one_snapshot() -> None:
    disk = (
        b'<VirtualDevice xmlns:x="i" x:type="VirtualDisk"><key>2000</key><backing x:type="B">'
        b"<fileName>[d] v/v-000001.vmdk</fileName><uuid>u</uuid><parent><fileName>[d] v/v.vmdk</fileName></parent>"
        b"</backing></VirtualDevice>"
    )
    held = b'<obj type="VirtualMachineSnapshot">snapshot-%d</obj>"VirtualDisk"' + disk
    body = held % 1 + held % 2
    rules = Sanitiser(frozen={"snapshot-2": {2000: ["[d] v/v.vmdk"]}})
    first, second = rules.clean(body).split(b"snapshot-2</obj>")
    assert b"v-000001" in first
    assert b"v-000001" not in second
    assert second.count(b"[d] v/v.vmdk") == 1
    assert b"<parent>" not in second
    assert b"v-000001" not in rules.clean(b'"VirtualDisk"' + disk, this="snapshot-2")


@given(st.binary(max_size=300))
def test_what_is_not_a_defect_passes_unchanged(body: bytes) -> None:
    assert Sanitiser().clean(body) == body


def test_a_fault_has_a_text_a_known_type_and_no_local_path() -> None:
    fault = b'<s><Fault><faultstring>%s</faultstring><detail><%sFault xsi:type="%s"/></detail></Fault></s>'
    clean = Sanitiser().clean
    said = clean(fault % (b"", b"InvalidPowerState", b"InvalidPowerState"))
    assert said == fault % (b"Invalid power state.", b"InvalidPowerState", b"InvalidPowerState")
    known = clean(fault % (b"", b"InvalidPropertyFault", b"InvalidPropertyFault"))
    assert known == fault % (b"Invalid property.", b"InvalidProperty", b"InvalidProperty")
    path = b"mkdir /tmp/x/state/stubs-1/datastore1/web: file exists"
    assert b">mkdir [datastore1] web: file exists<" in clean(fault % (path, b"FileFault", b"FileFault"))


def test_a_task_names_its_vm() -> None:
    info = b'<task type="Task">task-1</task><entity type="VirtualMachine">%s</entity><entityName>%s</entityName>'
    clean = Sanitiser(entity_name={"vm-1": "a & b"}.get).clean
    assert clean(info % (b"vm-1", b"vm-1")).endswith(b"<entityName>a &amp; b</entityName>")
    for kept in ((b"vm-2", b"vm-2"), (b"vm-1", b"web")):
        assert clean(info % kept) == info % kept
