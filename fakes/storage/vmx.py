# SPDX-License-Identifier: MIT
"""The `.vmx` file: a VM's configuration as text, `key = "value"` a line, with the keys that ESXi writes."""

from __future__ import annotations

import re
import uuid

_DISK = re.compile(r'^(\s*scsi0:(\d+)\.fileName\s*=\s*")[^"]*(".*)$', re.MULTILINE)
_TRACKING = re.compile(r'^(\s*(?:scsi0:\d+\.)?ctkEnabled\s*=\s*)"[^"]*"', re.MULTILINE)


def unit(key: int) -> int:
    """SCSI unit of a device key: 2000 is unit 0; unit 7 is the controller's own and is left out."""
    number = key - 2000
    return number if number < 7 else number + 1


def bios_uuid(value: str) -> str:
    """A UUID as a `.vmx` writes it: `56 4d 4e 6f 1a 2b 3c 4d-5e 6f …`."""
    octets = [f"{byte:02x}" for byte in uuid.UUID(value).bytes]
    return " ".join(octets[:8]) + "-" + " ".join(octets[8:])


def text(name: str, bios: str, guest_os: str = "debian11-64", memory_mib: int = 512, cpus: int = 1) -> str:
    """A new `.vmx`; its disks come with `with_disks`.

    Args:
        bios: the BIOS UUID, in the usual form with hyphens.
        guest_os: VMware's short guest name (`debian11-64`, `windows2019srv-64`, `other-64`).
    """
    location = bios_uuid(bios)
    instance = bios_uuid(str(uuid.uuid5(uuid.UUID(bios), "instance")))
    octets = uuid.uuid5(uuid.UUID(bios), "ethernet0").bytes
    mac = f"00:50:56:{octets[0] & 0x3F | 0x80:02x}:{octets[1]:02x}:{octets[2]:02x}"
    settings = {
        ".encoding": "UTF-8",
        "config.version": "8",
        "virtualHW.version": "19",
        "displayName": name,
        "guestOS": guest_os,
        "memSize": str(memory_mib),
        "numvcpus": str(cpus),
        "firmware": "bios",
        "nvram": f"{name}.nvram",
        "uuid.bios": location,
        "uuid.location": location,
        "vc.uuid": instance,
        "floppy0.present": "FALSE",
        "pciBridge0.present": "TRUE",
        "pciBridge4.present": "TRUE",
        "pciBridge4.virtualDev": "pcieRootPort",
        "pciBridge4.functions": "8",
        "scsi0.present": "TRUE",
        "scsi0.virtualDev": "pvscsi",
        "ethernet0.present": "TRUE",
        "ethernet0.virtualDev": "vmxnet3",
        "ethernet0.networkName": "VM Network",
        "ethernet0.addressType": "vpx",
        "ethernet0.generatedAddress": mac,
        "tools.syncTime": "FALSE",
        "disk.EnableUUID": "TRUE",
        "ctkEnabled": "FALSE",
    }
    return "".join(f'{key} = "{value}"\n' for key, value in settings.items())


def with_tracking(content: str, on: bool) -> str:
    """`content` with every `ctkEnabled` as asked for."""
    return _TRACKING.sub(lambda match: f'{match[1]}"{"TRUE" if on else "FALSE"}"', content)


def with_disks(content: str, names: dict[int, str]) -> str:
    """`content` with the present file name of each disk (by device key); missing disks are added."""
    units = {unit(key): name for key, name in names.items()}
    seen = set()

    def fresh(match: re.Match[str]) -> str:
        number = int(match[2])
        seen.add(number)
        return f"{match[1]}{units.get(number, match[0])}{match[3]}" if number in units else match[0]

    content = _DISK.sub(fresh, content)
    if content and not content.endswith("\n"):
        content += "\n"
    for number, name in units.items():
        if number not in seen:
            prefix = f"scsi0:{number}"
            content += f'{prefix}.deviceType = "scsi-hardDisk"\n{prefix}.fileName = "{name}"\n'
            content += f'{prefix}.ctkEnabled = "FALSE"\n{prefix}.present = "TRUE"\n'
    return content
