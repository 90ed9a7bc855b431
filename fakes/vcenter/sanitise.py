# SPDX-License-Identifier: MIT
"""What vcsim's replies need before a strict client may see them (vcsim reference section 8.2); bytes in, bytes out.

Replies are patched, never parsed and serialised anew, so that fields unknown to pyVmomi survive. Each rule names the
defect that it mends.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from pyVmomi import VmomiSupport

from fakes.vcenter import soap

# 8.2 #2: enumerations that vcsim sends empty since v0.53.0; pyVmomi can not read an empty enumeration.
_EMPTY_ENUM = re.compile(rb"<(faultToleranceState|recordReplayState)(?:\s[^>]*)?(?:/>|></\1>)")
# The same defect in the SNMP agent's limits, which vcsim never fills.
_EMPTY_CAPABILITY = re.compile(rb"(</maxBufferSize>)<capability(?:/>|></capability>)")
# 8.2 #3: TaskInfo.name is the simulator's name, not the method's.
_TASK_NAME = re.compile(rb'(<task type="Task">[^<]*</task>)<name>([^<]*)</name>')
_TASK_NAME_VALUE = re.compile(rb"(<name>info\.name</name><val(?:\s[^>]*)?>)([^<]*)(</val>)")
# 8.2 #4: TaskInfo.entity that is no ManagedEntity.
_NO_ENTITY = re.compile(
    rb'<entity type="(?:VirtualDiskManager|FileManager|HostDatastoreBrowser|TaskManager|HostStorageSystem'
    rb'|OvfManager|ServiceInstance|VirtualMachineSnapshot|Task)">[^<]*</entity>'
)
_TASK_REFERENCE = re.compile(rb'<(\w+)(?=[^>]*\stype="Task")[^>]*>(task-[0-9]+)</\1>')
_OWN_TASK = re.compile(rb'(<task type="Task">(task-[0-9]+)</task>)(?!<name>)')
# 8.2 #5: an error without a text of its own is called by its Go type, and files by where vcsim keeps its stubs.
_NO_TEXT = re.compile(rb"<faultstring></faultstring><detail><(\w+)Fault\b")
_GO_TYPE = re.compile(rb"<localizedMessage>\*types\.(\w+)(?:: [^<]*)?</localizedMessage>")
_STUB = re.compile(rb"<file>/[^<]*/(?:stubs-[0-9]+/|govcsim-[0-9]+/[^/<]*-)([^-/<]+)/([^<]*)</file>")
_STUB_PATH = re.compile(rb"/[^<\s]*/(?:stubs-[0-9]+/|govcsim-[0-9]+/[^/<\s]*-)([^-/<\s]+)/([^<\s:]*)")
# Faults that vcsim calls by names of Go types, which no client knows.
_GO_FAULT = re.compile(rb"\b(InvalidProperty|NotFound)Fault(?=Fault\b|\")")
# What vcsim does not know of a lease (vcsim reference section 13).
_LEASE_INFO = re.compile(
    rb'(<lease type="HttpNfcLease">([^<]+)</lease>(?:(?!</lease>).)*?<totalDiskCapacityInKB>)0(?=</totalDiskCapacityInKB>)',
    re.DOTALL,
)
# Of the adapters of every host one has the address of vcsim's own process (vcsim reference section 5).
_LOOPBACK = b"<ipAddress>127.0.0.1</ipAddress>"
_HOST_PART = re.compile(
    rb'(<obj type="Host(?:System|VirtualNicManager|NetworkSystem)">([^<]+)</obj>)(.*?)(?=<obj type="|\Z)', re.DOTALL
)
_NO_THUMBPRINT = re.compile(rb"<sslThumbprint></sslThumbprint>")
_ENTITY_NAME = re.compile(rb'(<entity type="\w+">([^<]+)</entity><entityName>)\2(?=</entityName>)')
# The process behind us is neither the client's address nor the product's version.
_SESSION_ADDRESS = re.compile(rb"<ipAddress>127\.0\.0\.1</ipAddress>(?=<userAgent>)")
_VERSION = re.compile(rb"<version>6\.5\.0</version><build>\d+</build>")
_FULL_NAME = re.compile(rb"(<fullName>VMware (?:vCenter Server|ESXi)) 6\.5\.0 build-\d+")
# A snapshot's config can not be changed in vcsim; its disks' files can, when a snapshot below it has been merged.
_SNAPSHOT_PART = re.compile(
    rb'(<obj type="VirtualMachineSnapshot">(snapshot-[0-9]+)</obj>)(.*?)(?=<obj type="|\Z)', re.DOTALL
)
_DISK = re.compile(rb'<(\w+)(?=[^>]*type="(?:\w+:)?VirtualDisk")[^>]*><key>(-?[0-9]+)</key>.*?</\1>', re.DOTALL)
_FILE_NAME = re.compile(rb"<fileName>[^<]*</fileName>")
_PARENT = re.compile(rb"<parent[\s>].*</parent>|<deltaDiskFormat>[^<]*</deltaDiskFormat>", re.DOTALL)
_SPECIAL = {"PowerOn": "PowerOnVM_Task", "PowerOff": "PowerOffVM_Task", "Suspend": "SuspendVM_Task"}
_SPECIAL |= {"Reset": "ResetVM_Task", "RevertSnapshot": "RevertToCurrentSnapshot_Task"}


@functools.cache
def _task_methods() -> dict[str, str]:
    """Lower-case method name without `_Task` → wsdl name, for all task methods of vim25."""
    names = [
        name for namespace, name in VmomiSupport._wsdlMethodMap if namespace == soap.VIM25 and name.endswith("_Task")
    ]
    return {name.removesuffix("_Task").lower(): name for name in names}


def task_name(name: str) -> str | None:
    """The wsdl name of the method behind one of vcsim's task names; None when there is none."""
    return _SPECIAL.get(name) or _task_methods().get(name.removesuffix("_Task").lower())


def _show_chain(disk: bytes, chain: list[str]) -> bytes:
    """The XML of a disk with that chain of files (base first) in its backing."""
    names = [f"<fileName>{escape(path)}</fileName>".encode() for path in chain]
    parents = b""
    for name in names[:-1]:
        parents = b"<parent>" + name + b"<diskMode>persistent</diskMode>" + parents + b"</parent>"
    disk = _FILE_NAME.sub(lambda _: names[-1], _PARENT.sub(b"", disk), count=1)
    return disk.replace(b"</backing>", parents + b"</backing>", 1)


def _show_chains(part: bytes, chains: dict[int, list[str]]) -> bytes:
    def show(match: re.Match[bytes]) -> bytes:
        chain = chains.get(int(match[2]))
        return _show_chain(match[0], chain) if chain else match[0]

    return _DISK.sub(show, part)


def _rename_info(match: re.Match[bytes]) -> bytes:
    name = task_name(match[2].decode())
    return match[1] + (f"<name>{name}</name>".encode() if name else b"")


def _say(match: re.Match[bytes]) -> bytes:
    return f"<localizedMessage>{soap.words(match[1].decode())}</localizedMessage>".encode()


def _tell(match: re.Match[bytes]) -> bytes:
    return match[0].replace(b"><", f">{soap.words(match[1].decode())}<".encode(), 1)


def _rename_value(match: re.Match[bytes]) -> bytes:
    return match[1] + (task_name(match[2].decode()) or match[2].decode()).encode() + match[3]


@dataclass
class Sanitiser:
    """The rules, with what they must know about this gateway.

    `replace`: identities of the vcsim process → those of this gateway (they are unique tokens).
    `hidden`: tasks of the gateway's own doing, which a vCenter would not list. `named`: tasks it owns → method.
    `own_session`: key of the gateway's own login, which no vCenter would list either.
    `entity_name` tells the name of a VM by its reference, which vcsim puts in its place in the gateway's own tasks.
    `addresses`: host, its managers of adapters → its address.
    `leases`: lease → capacity of its disks in KiB; `thumbprint` of the certificate behind their URLs.
    `frozen`: snapshot → disk key → files (base first), where they differ from what vcsim keeps. `host_storage` patches
    what hosts and datastores say of LUNs, in the reply of a call on an object (its second argument).
    """

    replace: dict[bytes, bytes] = field(default_factory=dict)
    hidden: set[bytes] = field(default_factory=set)
    named: dict[bytes, str] = field(default_factory=dict)
    own_session: bytes = b""
    frozen: dict[str, dict[int, list[str]]] = field(default_factory=dict)
    addresses: dict[str, bytes] = field(default_factory=dict)
    leases: dict[bytes, int] = field(default_factory=dict)
    thumbprint: bytes = b""
    host_storage: Callable[[bytes, str], bytes] | None = None
    entity_name: Callable[[str], str | None] | None = None

    def clean(self, body: bytes, client: str = "", this: str = "") -> bytes:
        """The reply of a call on object `this`, as the client at that address may see it."""
        if self.frozen and b'"VirtualDisk"' in body:
            body = self._frozen(body, this)
        if b"State" in body:
            body = _EMPTY_ENUM.sub(b"", body)
        if b"<maxBufferSize>" in body:
            body = _EMPTY_CAPABILITY.sub(rb"\1", body)
        if b'type="Task"' in body:
            body = self._tasks(body)
        if b"info.name" in body:
            body = _TASK_NAME_VALUE.sub(_rename_value, body)
        if self.addresses and _LOOPBACK in body:
            body = self._adapters(body, this)
        if b"<userAgent>" in body and client:
            body = _SESSION_ADDRESS.sub(f"<ipAddress>{client}</ipAddress>".encode(), body)
        if self.own_session and self.own_session in body:
            own = re.escape(self.own_session)
            body = re.sub(rb"<UserSession\b[^>]*><key>" + own + rb"</key>.*?</UserSession>", b"", body, flags=re.DOTALL)
        if b"*types." in body:
            body = _GO_TYPE.sub(_say, body)
        if b"<faultstring>" in body[:800]:
            body = _GO_FAULT.sub(rb"\1", body)
            body = _NO_TEXT.sub(_tell, body)
            body = _STUB_PATH.sub(rb"[\1] \2", body)
        if self.leases and b"<totalDiskCapacityInKB>" in body:
            body = _LEASE_INFO.sub(self._lease, body)
            body = _NO_THUMBPRINT.sub(rb"<sslThumbprint>" + self.thumbprint + rb"</sslThumbprint>", body)
        if b"<file>/" in body:
            body = _STUB.sub(rb"<file>[\1] \2</file>", body)
        if b"6.5.0" in body:
            body = _VERSION.sub(b"<version>8.0.3</version><build>24022515</build>", body)
            body = _FULL_NAME.sub(rb"\1 8.0.3 build-24022515", body)
        if self.host_storage is not None:
            body = self.host_storage(body, this)
        return self.rename(body)

    def rename(self, body: bytes) -> bytes:
        """Identities of the vcsim process become those of the gateway."""
        for old, new in self.replace.items():
            body = body.replace(old, new)
        return body

    def _frozen(self, body: bytes, this: str) -> bytes:
        if this in self.frozen:
            return _show_chains(body, self.frozen[this])

        def show(match: re.Match[bytes]) -> bytes:
            chains = self.frozen.get(match[2].decode())
            return match[1] + _show_chains(match[3], chains) if chains else match[0]

        return _SNAPSHOT_PART.sub(show, body)

    def _tasks(self, body: bytes) -> bytes:
        body = _TASK_NAME.sub(_rename_info, body)
        if self.named:
            body = _OWN_TASK.sub(self._name, body)
        body = _NO_ENTITY.sub(b"", body)
        body = _ENTITY_NAME.sub(self._entity, body)
        if self.hidden:
            body = _TASK_REFERENCE.sub(self._hide, body)
        return body

    def _name(self, match: re.Match[bytes]) -> bytes:
        name = self.named.get(match[2])
        return match[0] + (f"<name>{name}</name>".encode() if name else b"")

    def _adapters(self, body: bytes, this: str) -> bytes:
        if this in self.addresses:
            return body.replace(_LOOPBACK, b"<ipAddress>%s</ipAddress>" % self.addresses[this])

        def show(match: re.Match[bytes]) -> bytes:
            address = self.addresses.get(match[2].decode())
            return match[1] + (
                match[3].replace(_LOOPBACK, b"<ipAddress>%s</ipAddress>" % address) if address else match[3]
            )

        return _HOST_PART.sub(show, body)

    def _lease(self, match: re.Match[bytes]) -> bytes:
        return match[1] + str(self.leases.get(match[2], 0)).encode()

    def _entity(self, match: re.Match[bytes]) -> bytes:
        name = self.entity_name(match[2].decode()) if self.entity_name is not None else None
        return match[1] + (escape(name).encode() if name else match[2])

    def _hide(self, match: re.Match[bytes]) -> bytes:
        # only lists lose a member (ArrayOfManagedObjectReference, recentTask); a reply or an info keeps its reference
        if match[1] in (b"ManagedObjectReference", b"recentTask") and match[2] in self.hidden:
            return b""
        return match[0]

    def fetched(self, body: bytes, client: str = "", this: str = "") -> bytes:
        """The reply to `Fetch`, which vcsim answers in a wrong shape when the property is unset (8.2 #1)."""
        if b"<RetrievePropertiesExResponse" in body[:800]:
            return soap.response("Fetch", "")
        return self.clean(body, client, this)
