# SPDX-License-Identifier: MIT
"""NfcService: the hidden managed object that hands out one-time tickets for port 902 (NFC reference section 1).

A ticket is a random UUID made here and stored with the VM's host over the fabric (`esxi-<host>.sock`); single use and
expiry are decided there. Methods answer in the namespace in which they are asked (`urn:vim25`, `urn:nfc`).
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from pyVmomi import vim, vmodl

from fakes.core import fabric
from fakes.core.fabric import FabricError
from fakes.core.inventory import EsxiHost, VirtualMachine
from fakes.vcenter import soap
from fakes.vcenter.admin import reference
from fakes.vcenter.calls import Context, Handler, SoapFault, invalid_argument, not_found
from fakes.vcenter.http import Reply
from fakes.vcenter.journal import mark
from fakes.vcenter.machine import folder

PORT = 902
TTL = 300  # seconds; how long a real ticket lives is not known
LIBRARY_VERSION = 11  # on ESXi 8 (NFC reference section 3)
VERSIONS = b"""<?xml version="1.0" encoding="UTF-8" ?>
<namespaces version="1.0">
 <namespace>
  <name>urn:nfc</name>
  <version>8.0.3.0</version>
  <priorVersions>
   <version>7.0.3.2</version>
   <version>1.0</version>
  </priorVersions>
 </namespace>
</namespaces>
"""


class NfcService:
    """The calls on NfcService, for a vCenter (`nfcService`) or for a host (`ha-nfc`)."""

    def __init__(
        self,
        view: str,
        hosts: dict[str, EsxiHost],
        vms: dict[str, VirtualMachine],
        fabric_folder: Path | None,
    ) -> None:
        self._view = view
        self._hosts = hosts
        self._vms = vms
        self._fabric = fabric_folder

    def handlers(self) -> dict[str, Handler]:
        """By wsdl name."""
        return {
            "RetrieveInternalContent": self.internal_content,
            "NfcGetVmFiles": self.get_vm_files,
            "NfcRandomAccessOpenReadonly": self.open_read_only,
            "NfcRandomAccessOpenDisk": self.open_disk,
            "NfcGetServerNfcLibVersion": self.library_version,
        }

    @property
    def _names(self) -> tuple[str, ...]:
        return ("nfcService",) if self._view == "vcenter" else ("ha-nfc", "ha-nfc-service")

    async def internal_content(self, context: Context) -> Reply:
        """RetrieveInternalContent: where NfcService is."""
        inner = f'<returnval><nfcService type="NfcService">{self._names[0]}</nfcService></returnval>'
        return Reply.xml(200, soap.response(context.call.method, inner, context.call.namespace or soap.VIM25))

    async def get_vm_files(self, context: Context) -> Reply:
        """NfcGetVmFiles(vm): a read-only ticket for any file of the VM."""
        vm = await self._begin(context)
        return await self._ticket(context, vm, read_only=True)

    async def open_read_only(self, context: Context) -> Reply:
        """NfcRandomAccessOpenReadonly(vm, diskDeviceKey, hostForAccess): a read-only ticket."""
        vm = await self._begin(context)
        self._check_disk(context, vm)
        return await self._ticket(context, vm, read_only=True)

    async def open_disk(self, context: Context) -> Reply:
        """NfcRandomAccessOpenDisk(vm, diskDeviceKey, hostForAccess): a read-write ticket; not while the VM runs."""
        vm = await self._begin(context)
        self._check_disk(context, vm)
        state = await context.world.admin.properties(context.world.places.vms[vm.name], "runtime.powerState")
        if state.get("runtime.powerState") == "poweredOn":
            value = vim.fault.InvalidPowerState(existingState="poweredOn", requestedState="poweredOff")
            raise SoapFault(value, "The attempted operation cannot be performed in the current state (Powered on).")
        return await self._ticket(context, vm, read_only=False)

    async def library_version(self, context: Context) -> Reply:
        """NfcGetServerNfcLibVersion(hostForAccess)."""
        self._check_object(context)
        await context.require_login()
        self._host(context, required=True)
        inner = f"<returnval>{LIBRARY_VERSION}</returnval>"
        return Reply.xml(200, soap.response(context.call.method, inner, context.call.namespace or soap.VIM25))

    def _check_object(self, context: Context) -> None:
        call = context.call
        if call.this_type != "NfcService" or call.this_id not in self._names:
            raise not_found(reference(call.this_type, call.this_id))

    async def _begin(self, context: Context) -> VirtualMachine:
        self._check_object(context)
        await context.require_login()
        moid = context.call.leaf.get("vm", "").strip()
        if not moid or context.call.leaf_type.get("vm", "VirtualMachine") != "VirtualMachine":
            raise invalid_argument("vm")
        places = context.world.places
        name = places.vm_name(moid)
        if name is not None and name in self._vms:
            return self._vms[name]
        unknown = vim.VirtualMachine(moid, None)
        try:
            await context.world.admin.properties(unknown, "name")
        except vmodl.fault.ManagedObjectNotFound as exc:
            raise not_found(unknown) from exc
        raise SoapFault(vmodl.fault.NotSupported(), "This VM's host has no NFC service: it is not in the inventory.")

    def _host(self, context: Context, *, required: bool = False) -> str | None:
        moid = context.call.leaf.get("hostForAccess", "").strip()
        if not moid:
            if required:
                raise invalid_argument("hostForAccess")
            return None
        name = context.world.places.host_name(moid)
        if name is None and self._hosts:
            raise invalid_argument("hostForAccess")
        return name

    def _check_disk(self, context: Context, vm: VirtualMachine) -> None:
        host = self._host(context)
        if host is not None and host != vm.host:
            raise invalid_argument("hostForAccess")
        keys = {str(vm.disk_key(index)) for index in range(len(vm.disks))}
        if context.call.leaf.get("diskDeviceKey", "").strip() not in keys:
            raise invalid_argument("diskDeviceKey")

    async def _ticket(self, context: Context, vm: VirtualMachine, *, read_only: bool) -> Reply:
        host = self._hosts[vm.host]
        session = str(uuid.uuid4())
        context.detail = {"vm": vm.name, "host": host.name, "address": str(host.address), "read_only": read_only}
        thumbprint = await self._store(host, vm, session, read_only)
        context.detail["session"] = mark(session)
        through_vcenter = self._view == "vcenter"
        value: Any = vim.HostServiceTicket(
            host=str(host.address) if through_vcenter else None,
            port=PORT,
            sslThumbprint=thumbprint,
            service="vpxa-nfc" if through_vcenter else "nfc",
            serviceVersion="1.1",
            sessionId=session,
        )
        namespace = context.call.namespace or soap.VIM25
        inner = soap.serialise(value, "returnval", vim.HostServiceTicket)
        if namespace != soap.VIM25:
            inner = inner.replace("<returnval", f"<returnval xmlns:vim25={quoteattr(soap.VIM25)}", 1).replace(
                'xsi:type="HostServiceTicket"', 'xsi:type="vim25:HostServiceTicket"'
            )
        return Reply.xml(200, soap.response(context.call.method, inner, namespace))

    async def _store(self, host: EsxiHost, vm: VirtualMachine, session: str, read_only: bool) -> str:
        unreachable = vmodl.fault.HostNotReachable()
        if self._fabric is None:
            raise SoapFault(unreachable, f"The host {host.name} does not answer: no fabric is given.")
        path = self._fabric / f"esxi-{host.name}.sock"
        try:
            info = await fabric.call(path, "host.info")
            await fabric.call(
                path,
                "ticket.issue",
                session_id=session,
                vm=vm.name,
                datastore=vm.datastore,
                folder=folder(vm),
                read_only=read_only,
                ttl=TTL,
            )
        except FabricError as exc:
            raise SoapFault(unreachable, f"The host {host.name} gives no ticket: {exc}") from exc
        return str(info["thumbprint_sha1"])
