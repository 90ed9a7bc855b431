# SPDX-License-Identifier: MIT
"""The engine's connection to a vCenter (or ESXi host): pyVmomi's SOAP stub over sockets that the dialer opened.

Blocking; callers in asyncio use a thread (`engine.processes.in_thread`). One call at a time goes over one kept connection, which
is re-made when the server ended it; every TCP connection is an event of the step that needed it, and a later step that uses
the kept connection writes a `use` event. The certificate is compared with a thumbprint (SHA-1 or SHA-256).

Nouns: `VmInfo` (with `Disk`, `GuestInfo`), `Snapshot`. Snapshots of the engine carry a *mark* in their description; they
are found by it, never only by a remembered reference.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ssl
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pyVmomi import SoapAdapter, VmomiSupport, vim, vmodl

from engine.dialer import Connection, Dialer
from engine.errors import AuthenticationFailed, ConnectTimedOut, ThumbprintMismatch, VadplabError, from_oserror
from engine.rpc.tuning import tune

CALL_TIMEOUT = 20.0
TASK_POLL = (0.02, 0.5)
"""Seconds between looks at a task: the first pause, and the longest; each is twice the one before."""
FALLBACK_VERSION = "vim.version.v8_0_3_0"

T = TypeVar("T")


class VSphereFault(VadplabError):
    """vCenter answered a call with a fault."""

    code = "vsphere.fault"
    symptom = "refused by vSphere"
    advice = "See the fault's name and the vCenter's log."

    fault: str = ""


class ObjectNotFound(VSphereFault):
    """An object that the engine needs is not (or no longer) in the vCenter's inventory."""

    code = "vsphere.not-found"
    symptom = "not found"
    advice = "Run `infra rescan`; check the name of the VM in the job."


class TaskTimedOut(VSphereFault):
    """A vSphere task did not end before its deadline."""

    code = "vsphere.task-timed-out"
    symptom = "timed out"
    advice = "Look at the task in the vCenter; it may still end."


@dataclass(frozen=True, slots=True)
class Disk:
    """A virtual disk: device key, label, datastore path `[ds] folder/x.vmdk`, capacity in bytes."""

    key: int
    label: str
    path: str
    capacity: int


@dataclass(frozen=True, slots=True)
class GuestInfo:
    """What VMware Tools report: family (`linuxGuest`, `windowsGuest`, ...), host name, first IPv4 address."""

    tools_running: bool
    family: str | None
    hostname: str | None
    address: str | None


@dataclass(frozen=True, slots=True)
class VmInfo:
    """A virtual machine. `vmx` is its configuration file's datastore path, `host` the name of its ESXi host."""

    moref: str
    name: str
    uuid: str
    vmx: str
    powered_on: bool
    host: str
    disks: tuple[Disk, ...]
    guest: GuestInfo


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot: its reference, the VM's reference, name, number, description."""

    moref: str
    vm: str
    name: str
    number: int
    description: str


class _DialedConnection(http.client.HTTPSConnection):
    """An HTTPS connection whose socket comes from the dialer; the peer's certificate is pinned by thumbprint."""

    def __init__(self, owner: VSphere, timeout: float) -> None:
        super().__init__(owner.address, owner.port, timeout=timeout)
        self._owner = owner

    def connect(self) -> None:
        self.sock = self._owner._open_socket(float(self.timeout or CALL_TIMEOUT))


class VSphere:
    """A logged-in session. Make it with `login`; end it with `logout`."""

    def __init__(
        self,
        dialer: Dialer,
        *,
        name: str,
        address: str,
        port: int,
        thumbprint: str | None,
        keylog: Path | None,
        timeout: float,
    ) -> None:
        self.dialer = dialer
        self.name = name
        self.address = address
        self.port = port
        self.thumbprint = thumbprint
        self.seen_thumbprint: str | None = None
        self._keylog = keylog
        self._timeout = timeout
        self._lock = threading.RLock()
        self._step: str | None = None
        self._connection: Connection | None = None
        self._opened_by: str | None = None
        self._used_by: set[str] = set()
        self._account: tuple[str, str] | None = None
        self.stub = SoapAdapter.SoapStubAdapter(
            host=address, port=port, version=FALLBACK_VERSION, poolSize=1, acceptCompressedResponses=False
        )
        self.stub.scheme = lambda **_: _DialedConnection(self, timeout)
        self.content: Any = None

    @classmethod
    def login(
        cls,
        dialer: Dialer,
        *,
        name: str,
        address: str,
        port: int = 443,
        thumbprint: str | None,
        username: str,
        password: str,
        step: str,
        keylog: Path | None = None,
        timeout: float = CALL_TIMEOUT,
    ) -> VSphere:
        """Connects, verifies the certificate, agrees on a version and logs in.

        Args:
            name: what events and errors call the server. thumbprint: SHA-1 or SHA-256 in hex, colons allowed; None: any
            certificate, its SHA-256 is then in `seen_thumbprint`. timeout: seconds for each call.

        Raises:
            ConnectError: one subclass per symptom. ThumbprintMismatch. AuthenticationFailed. VSphereFault.
        """
        self = cls(dialer, name=name, address=address, port=port, thumbprint=thumbprint, keylog=keylog, timeout=timeout)
        self._account = (username, password)
        try:
            with self.at(step):
                self._guard(self._negotiate)
                self._guard(self._authenticate)
        except BaseException:
            self.close()
            raise
        return self

    @contextlib.contextmanager
    def at(self, step: str) -> Iterator[VSphere]:
        """Calls within belong to `step`: new connections are its attempts, a kept one is noted as used by it."""
        with self._lock:
            before, self._step = self._step, step
            try:
                if self._connection is not None and self._opened_by != step and step not in self._used_by:
                    self.dialer.events.use(self._connection.attempt, step=step)
                    self._used_by.add(step)
                yield self
            finally:
                self._step = before

    def call(self, function: Callable[[], T], *, step: str, repeatable: bool = True) -> T:
        """Runs `function` (pyVmomi calls) at `step`, with faults and socket errors as errors of the catalogue.

        `repeatable`: may run again after a kept connection or session turned out to be gone.
        """
        with self.at(step):
            try:
                return self._guard(function)
            except (VSphereFault, AuthenticationFailed) as exc:
                if not repeatable or getattr(exc, "fault", "") != "NotAuthenticated":
                    raise
                self._guard(self._authenticate)
                return self._guard(function)
            except VadplabError as exc:
                if not repeatable or exc.code != "connect.cut":
                    raise
                return self._guard(function)

    def logout(self) -> None:
        """Ends the session and the connection; never raises."""
        with contextlib.suppress(Exception), self._lock:
            if self.content is not None and self._connection is not None:
                self.content.sessionManager.Logout()
        self.close()

    def close(self) -> None:
        """Ends the connection without a logout."""
        with contextlib.suppress(Exception):
            self.stub.DropConnections()
        self._connection = None

    # Inventory

    def vms(self, *, step: str, names: list[str] | None = None) -> list[VmInfo]:
        """All VMs, or those with the given names; in the order of their names."""

        def read() -> list[VmInfo]:
            found = self._properties(vim.VirtualMachine, ["name"])
            wanted = [obj for obj, props in found if names is None or props.get("name") in names]
            hosts = {obj._moId: str(props.get("name")) for obj, props in self._properties(vim.HostSystem, ["name"])}
            return sorted((self._vm(obj, hosts) for obj in wanted), key=lambda vm: vm.name)

        return self.call(read, step=step)

    def find_vm(self, name: str, *, step: str) -> VmInfo:
        """The VM of that name. Raises ObjectNotFound (also when two have it)."""
        found = self.vms(step=step, names=[name])
        if len(found) != 1:
            raise ObjectNotFound(
                f"{self.name}: {'no VM' if not found else f'{len(found)} VMs'} with the name {name}", **self.where(step)
            )
        return found[0]

    # Snapshots

    def create_snapshot(
        self, vm: str, name: str, description: str, *, step: str, timeout: float, quiesce: bool = False
    ) -> Snapshot:
        """Creates a snapshot without memory and waits for it. Raises VSphereFault, TaskTimedOut."""
        machine = vim.VirtualMachine(vm, self.stub)
        task = self.call(
            lambda: machine.CreateSnapshot_Task(name=name, description=description, memory=False, quiesce=quiesce),
            step=step,
            repeatable=False,
        )
        result = self.wait(task, step=step, timeout=timeout)
        for snapshot in self.snapshots(vm, step=step):
            if snapshot.moref == result._moId:
                return snapshot
        raise ObjectNotFound(f"{self.name}: the new snapshot {result._moId} is not in the tree", **self.where(step))

    def snapshots(self, vm: str, *, step: str) -> list[Snapshot]:
        """All snapshots of a VM, parents first."""
        machine = vim.VirtualMachine(vm, self.stub)

        def walk(nodes: Any) -> Iterator[Snapshot]:
            for node in nodes or []:
                yield Snapshot(node.snapshot._moId, vm, node.name, int(node.id or 0), node.description or "")
                yield from walk(node.childSnapshotList)

        def read() -> list[Snapshot]:
            tree = self._of(machine, ["snapshot"]).get("snapshot")
            return list(walk(tree.rootSnapshotList)) if tree is not None else []

        return self.call(read, step=step)

    def own_snapshots(self, mark: str, *, step: str, vm_name: str | None = None) -> list[Snapshot]:
        """Snapshots whose description holds `mark`, of one VM or of all."""
        found = []
        for moref, name in self.call(
            lambda: [(obj._moId, props.get("name")) for obj, props in self._properties(vim.VirtualMachine, ["name"])],
            step=step,
        ):
            if vm_name is None or name == vm_name:
                found += [s for s in self.snapshots(moref, step=step) if mark in s.description]
        return found

    def remove_snapshot(self, moref: str, *, step: str, timeout: float) -> None:
        """Commits (removes) a snapshot, not its children, and waits. A snapshot that is gone already is fine."""
        snapshot = vim.vm.Snapshot(moref, self.stub)
        try:
            task = self.call(
                lambda: snapshot.RemoveSnapshot_Task(removeChildren=False, consolidate=True),
                step=step,
                repeatable=False,
            )
            self.wait(task, step=step, timeout=timeout)
        except ObjectNotFound:
            return

    # Devices and storage (HotAdd and Direct SAN)

    def find_by_uuid(self, uuid: str, *, step: str) -> str | None:
        """Reference of the VM with that BIOS UUID; None when there is none."""
        index = self.content.searchIndex
        found = self.call(lambda: index.FindByUuid(uuid=uuid, vmSearch=True, instanceUuid=False), step=step)
        return str(found._moId) if found is not None else None

    def devices(self, vm: str, *, step: str) -> list[Any]:
        """The VM's virtual devices (pyVmomi objects)."""
        machine = vim.VirtualMachine(vm, self.stub)
        return list(
            self.call(
                lambda: self._of(machine, ["config.hardware.device"]).get("config.hardware.device") or [], step=step
            )
        )

    def snapshot_devices(self, snapshot: str, *, step: str) -> list[Any]:
        """The virtual devices as the snapshot's configuration holds them."""
        target = vim.vm.Snapshot(snapshot, self.stub)
        return list(
            self.call(
                lambda: self._of(target, ["config.hardware.device"]).get("config.hardware.device") or [], step=step
            )
        )

    def vmx_path(self, vm: str, *, step: str) -> str:
        """Datastore path of the VM's configuration file."""
        machine = vim.VirtualMachine(vm, self.stub)
        return str(
            self.call(
                lambda: self._of(machine, ["config.files.vmPathName"]).get("config.files.vmPathName") or "", step=step
            )
        )

    def reconfigure(self, vm: str, changes: list[Any], *, step: str, timeout: float) -> None:
        """Adds, removes or edits devices (`VirtualDeviceSpec`) and waits. Raises VSphereFault, TaskTimedOut."""
        machine = vim.VirtualMachine(vm, self.stub)
        spec = vim.vm.ConfigSpec(deviceChange=changes)
        task = self.call(lambda: machine.ReconfigVM_Task(spec=spec), step=step, repeatable=False)
        self.wait(task, step=step, timeout=timeout)

    def datastore_luns(self, vm: str, datastore: str, *, step: str) -> list[str]:
        """Canonical names (`naa.…`) of the LUNs of the VM's datastore of that name; empty when it is not on LUNs."""
        machine = vim.VirtualMachine(vm, self.stub)

        def read() -> list[str]:
            for store in self._of(machine, ["datastore"]).get("datastore") or []:
                props = self._of(store, ["name", "info"])
                if props.get("name") == datastore:
                    vmfs = getattr(props.get("info"), "vmfs", None)
                    return [str(extent.diskName) for extent in getattr(vmfs, "extent", None) or []]
            return []

        return self.call(read, step=step)

    def wait(self, task: Any, *, step: str, timeout: float) -> Any:
        """Waits for a vSphere task and gives its result. Raises VSphereFault (the task's error), TaskTimedOut."""
        end = time.monotonic() + timeout
        pause, longest = TASK_POLL
        while True:
            info = self.call(lambda: task.info, step=step)
            if info.state == vim.TaskInfo.State.success:
                return info.result
            if info.state == vim.TaskInfo.State.error:
                raise self._fault(info.error, step)
            if time.monotonic() > end:
                raise TaskTimedOut(f"{self.name}: {info.descriptionId or 'task'} did not end", **self.where(step))
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def where(self, step: str | None = None) -> dict[str, Any]:
        """The place of an error: step, host, target, port."""
        return {
            "step": step or self._step,
            "host": self.dialer.events.host,
            "target": self.name,
            "port": self.port,
        }

    # Inside

    def _vm(self, obj: Any, hosts: dict[str, str]) -> VmInfo:
        paths = [
            "name", "config.uuid", "config.files.vmPathName", "config.hardware.device", "runtime.host",
            "runtime.powerState", "guest.toolsRunningStatus", "guest.guestFamily", "guest.hostName", "guest.ipAddress",
            "guest.net",
        ]  # fmt: skip
        props = self._of(obj, paths)
        disks = tuple(
            _disk(d) for d in props.get("config.hardware.device") or [] if isinstance(d, vim.vm.device.VirtualDisk)
        )
        host = props.get("runtime.host")
        return VmInfo(
            moref=obj._moId,
            name=str(props.get("name")),
            uuid=str(props.get("config.uuid") or ""),
            vmx=str(props.get("config.files.vmPathName") or ""),
            powered_on=str(props.get("runtime.powerState")) == "poweredOn",
            host=hosts.get(host._moId, "") if host is not None else "",
            disks=disks,
            guest=GuestInfo(
                tools_running=props.get("guest.toolsRunningStatus") == "guestToolsRunning",
                family=props.get("guest.guestFamily"),
                hostname=props.get("guest.hostName"),
                address=_ipv4(props.get("guest.ipAddress"), props.get("guest.net")),
            ),
        )

    def _properties(self, kind: Any, paths: list[str]) -> list[tuple[Any, dict[str, Any]]]:
        view = self.content.viewManager.CreateContainerView(self.content.rootFolder, [kind], True)
        try:
            traverse = vmodl.query.PropertyCollector.TraversalSpec(
                name="view", path="view", skip=False, type=vim.view.ContainerView
            )
            start = vmodl.query.PropertyCollector.ObjectSpec(obj=view, skip=True, selectSet=[traverse])
            return self._retrieve(start, kind, paths)
        finally:
            with contextlib.suppress(Exception):
                view.DestroyView()

    def _of(self, obj: Any, paths: list[str]) -> dict[str, Any]:
        start = vmodl.query.PropertyCollector.ObjectSpec(obj=obj, skip=False)
        found = self._retrieve(start, type(obj), paths)
        return found[0][1] if found else {}

    def _retrieve(self, start: Any, kind: Any, paths: list[str]) -> list[tuple[Any, dict[str, Any]]]:
        collector = self.content.propertyCollector
        spec = vmodl.query.PropertyCollector.FilterSpec(
            objectSet=[start],
            propSet=[vmodl.query.PropertyCollector.PropertySpec(type=kind, pathSet=paths, all=False)],
        )
        options = vmodl.query.PropertyCollector.RetrieveOptions()
        result = collector.RetrievePropertiesEx(specSet=[spec], options=options)
        found: list[tuple[Any, dict[str, Any]]] = []
        while result is not None:
            found += [(o.obj, {p.name: p.val for p in o.propSet or []}) for o in result.objects or []]
            token = result.token
            result = collector.ContinueRetrievePropertiesEx(token=token) if token else None
        return found

    def _negotiate(self) -> None:
        connection = self.stub.GetConnection()
        try:
            connection.request("GET", "/sdk/vimServiceVersions.xml")
            response = connection.getresponse()
            text = response.read(1 << 20)
        except BaseException:
            connection.close()
            raise
        self.stub.ReturnConnection(connection)
        if response.status == 200:
            with contextlib.suppress(ElementTree.ParseError):
                self.stub.version = _newest_common(text)
                self.stub.versionId = f'"urn:{VmomiSupport.GetVersionNamespace(self.stub.version)}"'

    def _authenticate(self) -> None:
        assert self._account is not None
        username, password = self._account
        instance = vim.ServiceInstance("ServiceInstance", self.stub)
        self.content = instance.RetrieveContent()
        self.content.sessionManager.Login(userName=username, password=password)

    def _open_socket(self, timeout: float) -> ssl.SSLSocket:
        connection = self.dialer.connect(self.address, self.port, step=self._step, name=self.name)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # the certificate is pinned by its thumbprint instead
        if self._keylog is not None:
            context.keylog_filename = str(self._keylog)
        tune(connection.sock)
        connection.sock.settimeout(timeout)
        try:
            sock = context.wrap_socket(connection.sock, server_hostname=self.address)
        except (OSError, ssl.SSLError) as exc:
            connection.sock.close()
            raise from_oserror(exc, **self.where()) from exc
        certificate = sock.getpeercert(binary_form=True) or b""
        self.seen_thumbprint = hashlib.sha256(certificate).hexdigest()
        if self.thumbprint is not None and not thumbprint_matches(self.thumbprint, certificate):
            sock.close()
            raise ThumbprintMismatch(
                f"{self.dialer.events.host} to {self.name}:{self.port}: certificate mismatch", **self.where()
            )
        self._connection, self._opened_by, self._used_by = connection, self._step, set()
        return sock

    def _guard(self, function: Callable[[], T]) -> T:
        try:
            with self._lock:
                return function()
        except VadplabError:
            raise
        except vim.fault.InvalidLogin as exc:
            raise AuthenticationFailed(
                f"{self.dialer.events.host} to {self.name}:{self.port}: credentials refused", **self.where()
            ) from exc
        except vmodl.MethodFault as exc:
            raise self._fault(exc, self._step) from exc
        except (http.client.HTTPException, ElementTree.ParseError) as exc:
            if isinstance(exc, ConnectionError):  # RemoteDisconnected
                raise from_oserror(exc, **self.where()) from exc
            raise VSphereFault(f"{self.name}: answer cannot be read ({type(exc).__name__})", **self.where()) from exc
        except TimeoutError as exc:
            raise ConnectTimedOut(
                f"{self.dialer.events.host} to {self.name}:{self.port}: timed out", **self.where()
            ) from exc
        except OSError as exc:
            raise from_oserror(exc, **self.where()) from exc

    def _fault(self, fault: Any, step: str | None) -> VSphereFault:
        name = type(fault).__name__.split(".")[-1]
        kind = ObjectNotFound if isinstance(fault, vmodl.fault.ManagedObjectNotFound) else VSphereFault
        text = str(getattr(fault, "msg", "") or "")
        error = kind(f"{self.name}: {name}{f' ({text})' if text else ''}", **self.where(step))
        error.fault = name
        return error


def thumbprint_matches(thumbprint: str, certificate: bytes) -> bool:
    """Whether `thumbprint` (SHA-1 or SHA-256, hex, colons allowed) is that of a DER certificate."""
    wanted = thumbprint.replace(":", "").replace(" ", "").lower()
    return bool(wanted) and wanted in (hashlib.sha1(certificate).hexdigest(), hashlib.sha256(certificate).hexdigest())


def _newest_common(document: bytes) -> str:
    """The newest version of `urn:vim25` that the server offers and pyVmomi knows."""
    for namespace in ElementTree.fromstring(document).iter("namespace"):
        if namespace.findtext("name") == "urn:vim25":
            offered = [namespace.findtext("version") or ""]
            offered += [v.text or "" for v in namespace.iterfind("priorVersions/version")]
            for version in offered:
                if known := VmomiSupport.versionMap.get(f"vim25/{version}"):
                    return str(known)
    return FALLBACK_VERSION


def _disk(device: Any) -> Disk:
    size = getattr(device, "capacityInBytes", None)
    capacity = int(size) if size else int(device.capacityInKB) * 1024
    label = str(device.deviceInfo.label) if device.deviceInfo is not None else f"disk {device.key}"
    return Disk(int(device.key), label, str(getattr(device.backing, "fileName", "") or ""), capacity)


def _ipv4(first: str | None, nics: Any) -> str | None:
    addresses = [first] if first else []
    addresses += [a for nic in nics or [] for a in nic.ipAddress or []]
    return next((a for a in addresses if a and ":" not in a), None)
