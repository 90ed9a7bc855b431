# SPDX-License-Identifier: MIT
"""HotAdd mode: vCenter attaches the snapshot's disk to the proxy's own VM, and the proxy reads it as a device (step 20b).

The disk's data has no network path: only the calls to vCenter (443) are seen. The disk is attached independent-nonpersistent,
so nothing that happens on the proxy can reach it. A disk that a killed run left attached (`engine.vsphere.attached`: no task of
this proxy holds its lock) is detached before the next one is attached.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyVmomi import vim

from engine.errors import VadplabError
from engine.events import EventLog
from engine.modes.device import Device, DeviceSource, DeviceWriter
from engine.modes.errors import HotAddBusy, HotAddLeft, HotAddNoDevice, HotAddNoUnit, HotAddRefused, ProxyVmNotFound
from engine.modes.proxy_lock import ProxyLock
from engine.vsphere import ObjectNotFound, VSphere, VSphereFault, attached
from engine.vsphere.attached import NONPERSISTENT, PERSISTENT, path_of, same_path

STEP = "20b"
ATTACH_DEADLINE = 60.0
DEVICE_DEADLINE = 30.0
VANISH_DEADLINE = 10.0
_POLL = 0.05
_UNITS = 16
_CONTROLLER_UNIT = 7


@dataclass(frozen=True, slots=True)
class Attached:
    """A disk attached to the proxy VM: its device key there, datastore path, SCSI identity (32 hex digits) and lock."""

    key: int
    path: str
    identity: str
    lock: ProxyLock


class ProxyVm:
    """The proxy's own VM in vCenter.

    Args:
        vsphere: a session of this task; it is kept until the disk was detached.
        uuid: the BIOS UUID. devices: folder of stable device names. step: the step in events and errors.
    """

    def __init__(self, vsphere: VSphere, uuid: str, devices: Path, events: EventLog, *, step: str = STEP) -> None:
        self.vsphere = vsphere
        self.uuid = uuid.lower()
        self.devices = devices
        self.step = step
        self._events = events
        moref = vsphere.find_by_uuid(uuid, step=step)
        if moref is None:
            raise ProxyVmNotFound(f"{vsphere.name}: no VM with the BIOS UUID {uuid}", **vsphere.where(step))
        self.moref = moref

    def attach(self, path: str, mode: str, *, identity: str | None = None) -> Attached:
        """Detaches what crashed runs left, then attaches the disk at datastore path `path`.

        Args:
            identity: the disk's SCSI identity where it is known already; a device of that name must be gone first.

        Raises:
            HotAddBusy, HotAddNoUnit, HotAddRefused: not attached. ConnectError.
        """
        lock = self._lock_of(path)
        with ProxyLock("vm", self.uuid) as machine:  # one task at a time looks for a free unit
            if not machine.take(ATTACH_DEADLINE):
                raise HotAddBusy("another task holds the proxy VM for too long", **self.vsphere.where(self.step))
            self._sweep(path)
            if not lock.try_take():
                raise HotAddBusy(f"{path}: attached by another task", **self.vsphere.where(self.step))
            try:
                if identity and not self._gone(identity, VANISH_DEADLINE):
                    raise HotAddBusy(f"a device of {path} is there already", **self.vsphere.where(self.step))
                self._add(path, mode)
                return self._found(path, identity, lock)
            except BaseException:
                lock.release()
                raise

    def _sweep(self, wanted: str) -> None:
        """Detaches disks that crashed runs left, also of restores the disk `wanted`. Raises HotAddLeft."""
        for device in attached.left_over(self.vsphere, self.moref, [wanted], step=self.step):
            path = path_of(device)
            with self._lock_of(path) as lock:
                if not lock.try_take():
                    continue  # a task that is running has it
                self._events.note(
                    f"{path} was left attached by an earlier run: detaching it", step=self.step, disk=path
                )
                self._remove(path)
                identity = identity_of(device)
                if identity:
                    self._gone(identity, VANISH_DEADLINE)

    def detach(self, disk: Attached) -> None:
        """Detaches the disk and waits until its device is gone.

        Raises:
            HotAddLeft: it could not be detached.
        """
        try:
            self._remove(disk.path)
            if not self._gone(disk.identity, VANISH_DEADLINE):
                self._events.note(f"the device of {disk.path} is still there after detaching", step=self.step)
        finally:
            disk.lock.release()

    def open_device(self, disk: Attached, capacity: int, *, write: bool = False) -> Device:
        """The attached disk's device, once it is there and can be read.

        Raises:
            HotAddNoDevice: it did not come before the deadline, or has another size.
        """
        where = self.vsphere.where(self.step) | {"target": None, "port": None}
        end = time.monotonic() + DEVICE_DEADLINE
        problem = "it did not appear"
        while True:
            for name in _names(disk.identity):
                path = self.devices / name
                try:
                    device = Device(path, write=write, where=where)
                except OSError as exc:
                    problem = problem if isinstance(exc, FileNotFoundError) else f"{path}: {exc.strerror or exc}"
                    continue
                if device.size == capacity:
                    return device
                problem = f"{path} has {device.size} bytes instead of {capacity}"
                device.close()
            if time.monotonic() > end:
                wanted = self.devices / _names(disk.identity)[0]
                raise HotAddNoDevice(f"{disk.path} was attached, but not found at {wanted}: {problem}", **where)
            time.sleep(_POLL)

    def _lock_of(self, path: str) -> ProxyLock:
        return ProxyLock("disk", self.uuid, path)

    def _disks(self) -> list[Any]:
        return attached.disks(self.vsphere, self.moref, step=self.step)

    def _add(self, path: str, mode: str) -> None:
        controller, unit = self._free_unit()
        backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=path, diskMode=mode)
        disk = vim.vm.device.VirtualDisk(
            key=-1, controllerKey=controller, unitNumber=unit, backing=backing, capacityInKB=0
        )
        change = vim.vm.device.VirtualDeviceSpec(operation="add", device=disk)
        try:
            self.vsphere.reconfigure(self.moref, [change], step=self.step, timeout=ATTACH_DEADLINE)
        except VSphereFault as exc:
            self._remove_quietly(path)  # a task that timed out may still have attached it
            raise HotAddRefused(f"attach of {path}: {exc.message}", **self.vsphere.where(self.step)) from exc

    def _free_unit(self) -> tuple[int, int]:
        devices = self.vsphere.devices(self.moref, step=self.step)
        for controller in devices:
            if not isinstance(controller, vim.vm.device.VirtualSCSIController):
                continue
            used = {d.unitNumber for d in devices if d.controllerKey == controller.key and d.unitNumber is not None}
            used.add(int(getattr(controller, "scsiCtlrUnitNumber", None) or _CONTROLLER_UNIT))
            for unit in range(_UNITS):
                if unit not in used:
                    return int(controller.key), unit
        raise HotAddNoUnit("no SCSI controller of the proxy VM has a free unit", **self.vsphere.where(self.step))

    def _found(self, path: str, identity: str | None, lock: ProxyLock) -> Attached:
        for device in self._disks():
            if same_path(path_of(device), path):
                found = identity_of(device) or identity
                if found is None:
                    break
                return Attached(int(device.key), path, found, lock)
        self._remove_quietly(path)
        raise HotAddRefused(f"attach of {path}: the disk has no identity in the VM", **self.vsphere.where(self.step))

    def _remove_quietly(self, path: str) -> None:
        try:
            self._remove(path)
        except VadplabError as exc:
            self._events.note(f"{path}: {exc.message}", step=self.step, code=exc.code)

    def _remove(self, path: str) -> None:
        try:
            found = [device for device in self._disks() if same_path(path_of(device), path)]
            attached.remove(self.vsphere, self.moref, found, step=self.step, timeout=ATTACH_DEADLINE)
        except VadplabError as exc:
            message = f"{path} could not be detached from the proxy VM: {exc.message}"
            raise HotAddLeft(message, **self.vsphere.where(self.step)) from exc

    def _gone(self, identity: str, deadline: float) -> bool:
        """Whether no device of that identity is there, at the latest after `deadline` seconds."""
        end = time.monotonic() + deadline
        while any((self.devices / name).exists() for name in _names(identity)):
            if time.monotonic() > end:
                return False
            time.sleep(_POLL)
        return True


def open_source(
    vsphere: VSphere, proxy: tuple[str, Path], path: str, capacity: int, identity: str | None, events: EventLog
) -> DeviceSource:
    """The snapshot's disk as a source; closing it detaches the disk and logs out.

    Args:
        vsphere: a session; it belongs to the source when this returns.
        proxy: BIOS UUID of the proxy VM and folder of stable device names.
        path: datastore path of the disk as of the snapshot. capacity: bytes. identity: its SCSI identity where known.
    """
    device, end = _attach(vsphere, proxy, path, capacity, identity, events, NONPERSISTENT, step=STEP)
    return DeviceSource(device, capacity, end)


def open_writer(
    vsphere: VSphere,
    proxy: tuple[str, Path],
    path: str,
    capacity: int,
    identity: str | None,
    events: EventLog,
    *,
    step: str,
) -> DeviceWriter:
    """The disk of a restored VM (powered off, without snapshots) as a writer; closing it detaches the disk and logs out."""
    device, end = _attach(vsphere, proxy, path, capacity, identity, events, PERSISTENT, step=step)
    return DeviceWriter(device, capacity, end)


def _attach(
    vsphere: VSphere,
    proxy: tuple[str, Path],
    path: str,
    capacity: int,
    identity: str | None,
    events: EventLog,
    mode: str,
    *,
    step: str,
) -> tuple[Device, Callable[[], None]]:
    vm = ProxyVm(vsphere, proxy[0], proxy[1], events, step=step)
    disk = vm.attach(path, mode, identity=identity)
    events.note(f"{path} is attached to the proxy VM", step=step, disk=path, identity=disk.identity)
    try:
        device = vm.open_device(disk, capacity, write=mode == PERSISTENT)
    except BaseException:
        vm.detach(disk)
        raise

    def end() -> None:
        try:
            vm.detach(disk)
            events.note(f"{path} is detached from the proxy VM", step=step, disk=path)
        finally:
            with vsphere.at(step):
                vsphere.logout()

    return device, end


def identity_of(device: Any) -> str | None:
    """The SCSI identity (32 hex digits) of a virtual disk: its backing's UUID; None when it has none."""
    text = re.sub(r"[^0-9a-f]", "", str(getattr(device.backing, "uuid", None) or "").lower())
    return text if len(text) == 32 else None


def snapshot_identity(vsphere: VSphere, snapshot: str | None, key: int, *, step: str) -> str | None:
    """The identity of the disk with that device key, as the snapshot's configuration says; None where it does not."""
    if snapshot is None:
        return None
    try:
        for device in vsphere.snapshot_devices(snapshot, step=step):
            if device.key == key and isinstance(device, vim.vm.device.VirtualDisk):
                return identity_of(device)
    except ObjectNotFound:
        return None
    return None


def _names(identity: str) -> tuple[str, ...]:
    """Names that udev gives a disk of that identity."""
    return f"wwn-0x{identity}", f"scsi-3{identity}"
