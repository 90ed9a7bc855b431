# SPDX-License-Identifier: MIT
"""What a VM shows of its guest: before its Tools have said anything, and after a `tools.report` over the fabric.

Values are property paths for `devices.assign`. A guest may name its family `linux` or, as vSphere does, `linuxGuest`.
"""

from __future__ import annotations

from typing import Any

from pyVmomi import vim

from fakes.core.inventory import VirtualMachine
from fakes.vcenter import builder


def guest_defaults(vm: VirtualMachine) -> dict[str, Any]:
    """What a VM shows of its guest before its Tools have reported."""
    family = builder.FAMILIES[vm.os]
    return {
        "guest.toolsStatus": "toolsNotRunning",
        "guest.toolsVersionStatus2": "guestToolsUnmanaged",
        "guest.toolsRunningStatus": "guestToolsNotRunning",
        "guest.guestState": "notRunning",
        "guest.guestFamily": family,
        "guest.guestOperationsReady": False,
        "summary.guest.toolsStatus": "toolsNotRunning",
        "summary.guest.toolsRunningStatus": "guestToolsNotRunning",
    }


def guest_report(vm: VirtualMachine, report: dict[str, Any]) -> dict[str, Any]:
    """What a VM shows after its Tools said `{running, hostname, addresses, family, full_name}`."""
    if not report.get("running"):
        return guest_defaults(vm)
    addresses = [str(address) for address in report.get("addresses") or []]
    family = str(report.get("family") or builder.FAMILIES[vm.os])
    values: dict[str, Any] = {
        "guest.toolsStatus": "toolsOk",
        "guest.toolsVersionStatus2": "guestToolsUnmanaged",
        "guest.toolsRunningStatus": "guestToolsRunning",
        "guest.guestState": "running",
        "guest.guestFamily": builder.FAMILIES.get(family, family),
        "guest.guestFullName": str(report.get("full_name") or ""),
        "guest.hostName": str(report.get("hostname") or ""),
        "guest.guestOperationsReady": False,
        "guest.toolsVersion": "12352",
        "summary.guest.toolsStatus": "toolsOk",
        "summary.guest.toolsRunningStatus": "guestToolsRunning",
        "guest.net": vim.vm.GuestInfo.NicInfo.Array(
            [
                vim.vm.GuestInfo.NicInfo(
                    network="VM Network",
                    ipAddress=addresses,
                    macAddress=builder.mac_address(vm),
                    connected=True,
                    deviceConfigId=4000,
                    ipConfig=vim.net.IpConfigInfo(
                        ipAddress=[
                            vim.net.IpConfigInfo.IpAddress(ipAddress=a, prefixLength=24, state="preferred")
                            for a in addresses
                        ]
                    ),
                )
            ]
            if addresses
            else []
        ),
    }
    if addresses:
        values["guest.ipAddress"] = addresses[0]
        values["summary.guest.ipAddress"] = addresses[0]
    return values
