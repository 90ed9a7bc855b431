# SPDX-License-Identifier: MIT
"""One-time tickets for NFC: asked of vCenter's (or a host's) hidden `NfcService` (step 18; nfc reference section 1).

The service is not in the published API, so its managed type is registered here with the methods that are needed.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from typing import Any

from pyVmomi import VmomiSupport, vim

from engine.vsphere import ObjectNotFound, VSphere, VSphereFault

PORT = 902
_VCENTER_SERVICE = "nfcService"
_HOST_SERVICES = ("ha-nfc", "ha-nfc-service")
_VERSION = "vim.version.version1"
_TYPE = "vim.NfcService"
_RESULT = (0, "vim.HostServiceTicket", "vim.HostServiceTicket")
_VM = ("vm", "vim.VirtualMachine", _VERSION, 0, None)
_METHODS = [
    ("getVmFiles", "NfcGetVmFiles", _VERSION, (_VM,), _RESULT, None, None),
    (
        "randomAccessOpenDisk",
        "NfcRandomAccessOpenDisk",
        _VERSION,
        (
            _VM,
            ("diskDeviceKey", "int", _VERSION, 0, None),
            ("hostForAccess", "vim.HostSystem", _VERSION, VmomiSupport.F_OPTIONAL, None),
        ),
        _RESULT,
        None,
        None,
    ),
]
_REGISTER = threading.Lock()


class NoTicket(VSphereFault):
    """vCenter gave no ticket for the VM's files."""

    code = "nfc.no-ticket"
    symptom = "no ticket"
    advice = "Check that the account may download files of the datastore and that the VM's host is connected."


@dataclass(frozen=True, slots=True)
class Ticket:
    """Permission for one NFC connection.

    `host` and `port` are the server's choice (a host may have an adapter of its own for backups). `thumbprint`: SHA-1 of the
    host's certificate. `service`: `vpxa-nfc` through vCenter, `nfc` from a host. `session` is secret and valid once.
    """

    host: str
    port: int
    thumbprint: str
    service: str
    session: str

    def __repr__(self) -> str:
        return f"Ticket({self.service} on {self.host}:{self.port})"


def request_ticket(vsphere: VSphere, vm: str, *, step: str, write_disk: int | None = None) -> Ticket:
    """Asks for access to the files of the VM with that managed object reference. Blocking.

    Args:
        write_disk: device key of the disk to write (`NfcRandomAccessOpenDisk`); None: reading only (`NfcGetVmFiles`).

    Raises:
        NoTicket: refused, or the answer cannot be used. ConnectError.
    """
    machine = vim.VirtualMachine(vm, vsphere.stub)
    host_agent = vsphere.content is not None and vsphere.content.about.apiType == "HostAgent"

    def ask(service: Any) -> Any:
        if write_disk is None:
            return service.NfcGetVmFiles(machine)
        return service.NfcRandomAccessOpenDisk(machine, write_disk)

    failure: VSphereFault | None = None
    for moref in _HOST_SERVICES if host_agent else (_VCENTER_SERVICE,):
        service = _service_type()(moref, vsphere.stub)
        try:
            return _ticket(vsphere.call(partial(ask, service), step=step), vsphere, step)
        except ObjectNotFound as exc:
            failure = exc
        except VSphereFault as exc:
            raise NoTicket(f"no ticket: {exc.message}", **vsphere.where(step)) from exc
    raise NoTicket(f"no ticket: {failure.message if failure else 'no NFC service'}", **vsphere.where(step)) from failure


def _ticket(answer: Any, vsphere: VSphere, step: str) -> Ticket:
    if answer is None or not answer.sessionId or answer.service not in ("nfc", "vpxa-nfc"):
        raise NoTicket(f"{vsphere.name}: the ticket cannot be used", **vsphere.where(step))
    return Ticket(
        host=str(answer.host or vsphere.address),
        port=int(answer.port or PORT),
        thumbprint=str(answer.sslThumbprint or ""),
        service=str(answer.service),
        session=str(answer.sessionId),
    )


def _service_type() -> Any:
    """The managed type, registered once a process."""
    with _REGISTER:
        if not _registered():
            VmomiSupport.CreateManagedType(_TYPE, "NfcService", "vmodl.ManagedObject", _VERSION, None, _METHODS)
        return VmomiSupport.GetVmodlType(_TYPE)


def _registered() -> bool:
    try:
        VmomiSupport.GetVmodlType(_TYPE)
    except KeyError:
        return False
    return True
