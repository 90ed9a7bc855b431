# SPDX-License-Identifier: MIT
"""What can go wrong in Direct SAN and HotAdd mode, and when no mode works: one class and code for each thing a reader must tell apart."""

from __future__ import annotations

from engine.errors import AuthenticationFailed, ConnectError, ConnectReset, ConnectTimedOut, InputError, VadplabError


class UnsupportedMode(InputError):
    """This version of the engine does not have that transport mode."""

    code = "mode.unsupported"
    exit_code = 1
    symptom = "mode not supported"
    advice = "Use san, hotadd, nbd, nbdssl or auto."


class ModeNotConfigured(VadplabError):
    """This proxy is not set up for that transport mode."""

    code = "mode.not-configured"
    symptom = "not configured"
    advice = "Set `san` (portals) or `proxy` (vm_uuid) in the proxy's configuration, or choose a proxy that has it."


class OpeningStopped(VadplabError):
    """The task was stopped while its disk was being opened."""

    code = "mode.stopped"
    symptom = "stopped"
    advice = "Run the job again."


class SanUnsupported(VadplabError):
    """Where the disk's areas lie on the LUN cannot be found out."""

    code = "san.unsupported"
    symptom = "no layout"
    advice = "The host gives no map of the disk: use HotAdd or Network mode for this datastore."


class SanNotVisible(VadplabError):
    """The proxy does not see the LUN of the datastore."""

    code = "san.not-visible"
    symptom = "LUN not visible"
    advice = "Present the datastore's LUN to the proxy's initiator (zoning, LUN masking, initiator ACL) and check the portals."


class SanLoginRefused(ConnectError):
    """The iSCSI target refused the login."""

    code = "san.login"
    symptom = "login refused"
    advice = "Allow the proxy's initiator name and address on the target."


class SanCredentials(AuthenticationFailed):
    """The iSCSI target refused the CHAP name or secret."""

    code = "san.chap"
    advice = "Correct the CHAP name and secret in the proxy's configuration."


class SanReadFailed(VadplabError):
    """The SAN answered a command with an error."""

    code = "san.read"
    symptom = "read failed"
    advice = "Look at the SAN's log and the state of the LUN."


class SanSilent(ConnectTimedOut):
    """The SAN stopped answering on an open iSCSI session."""

    code = "san.silent"
    advice = "A firewall cut the open iSCSI connection without a reset, or the SAN hangs."


class SanCut(ConnectReset):
    """The iSCSI session ended before the task was done."""

    code = "san.cut"
    advice = "The SAN or a firewall ended the iSCSI connection: look at the SAN's log."


class SanProtocol(VadplabError):
    """The SAN sent something that cannot be used."""

    code = "san.protocol"
    symptom = "protocol error"
    advice = "Check that the portal is an iSCSI target and that the LUN is a disk."


class MissingInitiator(VadplabError):
    """The user-space iSCSI initiator library is not installed on the proxy."""

    code = "san.no-initiator"
    exit_code = 3
    symptom = "missing"
    advice = "Install libiscsi on the proxy: apt-get install libiscsi7"


class ProxyVmNotFound(VadplabError):
    """The proxy's own VM is not in the vCenter's inventory."""

    code = "hotadd.no-proxy-vm"
    symptom = "proxy VM not found"
    advice = "Set `proxy.vm_uuid` to the BIOS UUID of the proxy's VM, and check that this vCenter manages it."


class HotAddRefused(VadplabError):
    """vCenter refused to attach the snapshot's disk to the proxy VM."""

    code = "hotadd.refused"
    symptom = "attach refused"
    advice = "Check that the proxy VM's host sees the datastore, that it has a SCSI controller with a free unit, and the fault's name."


class HotAddNoUnit(HotAddRefused):
    """The proxy VM has no SCSI controller with a free unit."""

    code = "hotadd.no-unit"
    symptom = "no free unit"
    advice = "Add a SCSI controller to the proxy VM, or lower its number of tasks at a time."


class HotAddBusy(HotAddRefused):
    """Another task of this proxy has the same disk attached, or holds the proxy VM for too long."""

    code = "hotadd.busy"
    symptom = "in use"
    advice = "Wait until the other task has ended."


class HotAddNoDevice(VadplabError):
    """The attached disk did not appear on the proxy as a device, or is not the disk that was attached."""

    code = "hotadd.no-device"
    symptom = "device missing"
    advice = "Set `disk.EnableUUID` for the proxy VM; check `proxy.devices` and the proxy's kernel log."


class HotAddLeft(VadplabError):
    """A disk could not be detached from the proxy VM."""

    code = "hotadd.left"
    symptom = "disk left attached"
    advice = "The next run on this proxy, or of a job with this VM, detaches it; until then the VM's snapshot cannot be committed fully."


class DeviceReadFailed(VadplabError):
    """Reading an attached disk failed."""

    code = "hotadd.read"
    symptom = "read failed"
    advice = "Look at the proxy's kernel log and at the datastore."


class DeviceSilent(DeviceReadFailed):
    """An attached disk did not answer in time."""

    code = "hotadd.silent"
    symptom = "timed out"


class WriteFailed(VadplabError):
    """Writing to a disk of the restored VM failed."""

    code = "restore.write"
    symptom = "write failed"
    advice = "Look at the host's log and the space on its datastore; the VM's disk is not complete."
