# SPDX-License-Identifier: MIT
"""What hosts and datastores say of the storage below them, so that a client can match a LUN to a datastore.

vcsim has one template of local hardware for all hosts and no VMFS datastore (vcsim reference section 14). Replies are
patched: `Datastore.info` becomes a `VmfsDatastoreInfo` whose extent names the LUN (`naa.…`); a host that mounts a
datastore shows an iSCSI adapter, the LUN as a `HostScsiDisk`, the path between them and the volume that is mounted.
Insertions only: what vcsim says stays.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from typing import Any

from pyVmomi import vim

from fakes.core.inventory import Inventory
from fakes.vcenter import soap

ADAPTER = "vmhba65"
_ADAPTER_KEY = f"key-vim.host.InternetScsiHba-{ADAPTER}"
# vcsim's encoder writes the type as `xsi:type` or, in replies to Fetch, as `_XMLSchema-instance:type`
_TYPE = rb'[\w-]+:type="(?:[\w-]+:)?'
_LOCAL_INFO = re.compile(
    rb"<(?P<tag>val|returnval|info)(?P<a>[^>]*" + _TYPE + rb')LocalDatastoreInfo(?P<b>"[^>]*>)(?P<body>.*?)</(?P=tag)>',
    re.DOTALL,
)
_NAME = re.compile(rb"<name>([^<]*)</name>")
_OBJECT = re.compile(rb'(<obj type="(?:HostSystem|HostStorageSystem)">([^<]+)</obj>)(.*?)(?=<obj type="|\Z)', re.DOTALL)
_SUMMARY = re.compile(
    rb"(<name>)([^<]*)(</name><url>)[^<]*(</url><capacity>)\d+(</capacity><freeSpace>)\d+(</freeSpace>.*?<type>)"
    rb"OTHER(</type>)",
    re.DOTALL,
)
_SUMMARY_TYPE = re.compile(rb"(<name>summary\.type</name><val[^>]*>)OTHER(</val>)")
_SUMMARY_URL = re.compile(rb"(<name>summary\.url</name><val[^>]*>)/[^<]*?([^/<]+)(</val>)")
_BLOCKS = {
    b"hostBusAdapter": (b"ArrayOfHostHostBusAdapter", b"HostHostBusAdapter"),
    b"scsiLun": (b"ArrayOfScsiLun", b"ScsiLun"),
}
# what is appended to → the names that it has as an element
_PARENTS = {
    b"HostScsiTopology": (b"scsiTopology",),
    b"HostMultipathInfo": (b"multipathInfo",),
    b"HostFileSystemVolumeInfo": (b"fileSystemVolume", b"fileSystemVolumeInfo"),
}
_MARKS = (b"scsiLun>", b"ScsiLun", b"HostHostBusAdapter", b"fileSystemVolume", *_PARENTS)


@dataclass(frozen=True)
class Lun:
    """A datastore and the LUN below it; `size` and `free` in bytes.

    `number` is that in the target; `target` and `portal` are known where an array serves it.
    """

    datastore: str
    naa: str
    size: int
    free: int
    number: int
    vendor: str
    model: str
    target: str | None
    portal: str | None

    @property
    def vmfs_uuid(self) -> str:
        """The volume's UUID, as VMFS writes it; stable."""
        digits = uuid.uuid5(uuid.NAMESPACE_URL, f"vmfs:{self.naa}").hex
        return f"{digits[:8]}-{digits[8:16]}-{digits[16:20]}-{digits[20:]}"

    @property
    def url(self) -> str:
        """The datastore's URL."""
        return f"ds:///vmfs/volumes/{self.vmfs_uuid}/"


def lun(info: dict[str, Any]) -> Lun:
    """From the storage's `datastore.info` and the array's `lun.info` (under `array`)."""
    array = info.get("array") or {}
    return Lun(
        datastore=str(info["name"]),
        naa=str(info["lun"]["naa"]),
        size=int(info["lun"]["size"]),
        free=int(info["free"]),
        number=int(array.get("lun", 1)),
        vendor=str(array.get("vendor", "VADPLAB")),
        model=str(array.get("model", "VIRTUAL-DISK")),
        target=array.get("target"),
        portal=array.get("portal"),
    )


@dataclass
class HostStorage:
    """What is patched into replies. `luns` by datastore; `mounts`: reference of a host or of its storage system → luns."""

    luns: dict[str, Lun] = field(default_factory=dict)
    mounts: dict[str, tuple[str, list[Lun]]] = field(default_factory=dict)

    def set(self, inventory: Inventory, luns: list[Lun], references: dict[str, tuple[str, ...]]) -> None:
        """Takes what the storages say. `references`: host's name → references of the host and of its storage system."""
        self.luns = {each.datastore: each for each in luns}
        self.mounts = {}
        for host, names in references.items():
            seen = [
                self.luns[store.name]
                for store in inventory.datastores
                if host in store.hosts and store.name in self.luns
            ]
            for name in names:
                self.mounts[name] = (host, seen)

    def patch(self, body: bytes, this: str = "") -> bytes:
        """A reply of a call on object `this` (of Fetch: whose property it is)."""
        if not self.luns:
            return body
        if b"LocalDatastoreInfo" in body:
            body = _LOCAL_INFO.sub(self._datastore, body)
        if b"OTHER" in body:
            body = _SUMMARY_TYPE.sub(rb"\1VMFS\2", _SUMMARY.sub(self._summary, body))
        if b"summary.url" in body:
            body = _SUMMARY_URL.sub(self._url, body)
        if any(mark in body for mark in _MARKS):
            if this in self.mounts:
                return self._host(body, self.mounts[this])
            return _OBJECT.sub(self._object, body)
        return body

    def _object(self, match: re.Match[bytes]) -> bytes:
        mounted = self.mounts.get(match[2].decode())
        return match[1] + self._host(match[3], mounted) if mounted else match[0]

    def _datastore(self, match: re.Match[bytes]) -> bytes:
        name = _NAME.search(match["body"])
        found = self.luns.get(name[1].decode()) if name else None
        if found is None:
            return match[0]
        text = soap.serialise(vmfs_info(found), "x", vim.host.VmfsDatastoreInfo)
        inner = text[text.index(">") + 1 : text.rindex("</")].encode()
        tag = match["tag"]
        return b"<" + tag + match["a"] + b"VmfsDatastoreInfo" + match["b"] + inner + b"</" + tag + b">"

    def _summary(self, match: re.Match[bytes]) -> bytes:
        found = self.luns.get(match[2].decode())
        if found is None:
            return match[0]
        capacity, free = str(found.size).encode(), str(found.free).encode()
        url = found.url.encode()
        return (
            match[1] + match[2] + match[3] + url + match[4] + capacity + match[5] + free + match[6] + b"VMFS" + match[7]
        )

    def _url(self, match: re.Match[bytes]) -> bytes:
        found = self.luns.get(match[2].decode())
        return match[0] if found is None else match[1] + found.url.encode() + match[3]

    def _host(self, body: bytes, mounted: tuple[str, list[Lun]]) -> bytes:
        """Appends to the last element of each kind: in a HostStorageDeviceInfo, and in arrays of its parts."""
        host, luns = mounted
        if not luns:
            return body
        adapter = serialised(iscsi_adapter(host, luns), vim.host.InternetScsiHba)
        disks = [serialised(scsi_disk(each), vim.host.ScsiDisk) for each in luns]
        for block, inserted in ((b"hostBusAdapter", [adapter]), (b"scsiLun", disks)):
            array, element = _BLOCKS[block]
            whole = b"".join(b"<" + block + each + b"</" + block + b">" for each in inserted)
            # a property of its own: <val xsi:type="ArrayOfScsiLun"><ScsiLun …>…</ScsiLun></val>
            part = b"".join(b"<" + element + each + b"</" + element + b">" for each in inserted)
            body = re.sub(
                rb"(<(val|returnval)[^>]*" + _TYPE + array + rb'"[^>]*>.*?)(</\2>)',
                lambda match, part=part: match[1] + part + match[3],  # type: ignore[misc]
                body,
                flags=re.DOTALL,
            )
            # inside HostStorageDeviceInfo, in a run of siblings: after the last of the run
            body = re.sub(
                rb"((?:<" + block + rb"[ >](?:(?!</" + block + rb">).)*</" + block + rb">)+)",
                lambda match, whole=whole: match[1] + (whole if _complete(match[1]) else b""),  # type: ignore[misc]
                body,
                flags=re.DOTALL,
            )
        for parent, children in _children(luns).items():
            body = _append(body, parent, children)
        return _software_adapter(body)


def _append(body: bytes, parent: bytes, children: bytes) -> bytes:
    """`children` behind the last child of each `parent`, be it an element or a property of its own."""
    for name in _PARENTS[parent]:
        body = body.replace(b"</" + name + b">", children + b"</" + name + b">")
    return re.sub(
        rb"(<(val|returnval)[^>]*" + _TYPE + parent + rb'"[^>]*>.*?)(</\2>)',
        lambda match: match[1] + children + match[3],
        body,
        flags=re.DOTALL,
    )


def _children(luns: list[Lun]) -> dict[bytes, bytes]:
    paths = [soap.serialise(logical_unit(each), "lun", vim.host.MultipathInfo.LogicalUnit) for each in luns]
    mounted = [soap.serialise(mount(each), "mountInfo", vim.host.FileSystemMountInfo) for each in luns]
    adapter = soap.serialise(topology(luns), "adapter", vim.host.ScsiTopology.Interface)
    return {
        b"HostScsiTopology": adapter.encode(),
        b"HostMultipathInfo": "".join(paths).encode(),
        b"HostFileSystemVolumeInfo": "".join(mounted).encode(),
    }


def _complete(run: bytes) -> bool:
    # adapters and LUNs of the template carry a type; the like-named references in topologies do not
    return b":type=" in run[: run.index(b">")]


def _software_adapter(body: bytes) -> bytes:
    return body.replace(
        b"<softwareInternetScsiEnabled>false</softwareInternetScsiEnabled>",
        b"<softwareInternetScsiEnabled>true</softwareInternetScsiEnabled>",
    )


def serialised(value: Any, kind: Any) -> bytes:
    """An element without its tags' names: ` xsi:type="…">…`, to be put between `<name` and `</name>`."""
    text = soap.serialise(value, "x", vim.host.HostBusAdapter if kind is vim.host.InternetScsiHba else vim.host.ScsiLun)
    return text[2 : text.rindex("</")].encode()


def vmfs_volume(found: Lun) -> Any:
    """The volume on the LUN."""
    return vim.host.VmfsVolume(
        type="VMFS",
        name=found.datastore,
        capacity=found.size,
        blockSizeMb=1,
        blockSize=1024,
        unmapGranularity=1024,
        unmapPriority="low",
        maxBlocks=63963136,
        majorVersion=6,
        version="6.82",
        uuid=found.vmfs_uuid,
        extent=[vim.host.ScsiDisk.Partition(diskName=found.naa, partition=1)],
        vmfsUpgradable=False,
        ssd=False,
        local=False,
        scsiDiskType="native512",
    )


def mount(found: Lun) -> Any:
    """The volume as a host has mounted it."""
    path = f"/vmfs/volumes/{found.vmfs_uuid}"
    return vim.host.FileSystemMountInfo(
        mountInfo=vim.host.MountInfo(path=path, accessMode="readWrite", mounted=True, accessible=True),
        volume=vmfs_volume(found),
        vStorageSupport="vStorageUnsupported",
    )


def vmfs_info(found: Lun) -> Any:
    """The datastore as VMFS on its LUN."""
    return vim.host.VmfsDatastoreInfo(
        name=found.datastore,
        url=found.url,
        freeSpace=found.free,
        maxFileSize=70368744177664,
        maxVirtualDiskCapacity=68169720922112,
        maxMemoryFileSize=70368744177664,
        maxPhysicalRDMFileSize=70368744177664,
        maxVirtualRDMFileSize=68169720922112,
        vmfs=vmfs_volume(found),
    )


def _disk_uuid(found: Lun) -> str:
    return f"0200{found.number:02x}0000{found.naa.removeprefix('naa.')}{found.model[:6].encode().hex()}"


def _disk_key(found: Lun) -> str:
    return f"key-vim.host.ScsiDisk-{_disk_uuid(found)}"


def topology(luns: list[Lun]) -> Any:
    """Which LUNs are behind the iSCSI adapter; all are of one target."""
    kind = vim.host.ScsiTopology
    seen = [
        kind.Lun(key=f"key-vim.host.ScsiTopology.Lun-{_disk_uuid(each)}", lun=each.number, scsiLun=_disk_key(each))
        for each in luns
    ]
    target = kind.Target(key=f"key-vim.host.ScsiTopology.Target-{ADAPTER}:0:0", target=0, lun=seen)
    return kind.Interface(key=f"key-vim.host.ScsiTopology.Interface-{ADAPTER}", adapter=_ADAPTER_KEY, target=[target])


def logical_unit(found: Lun) -> Any:
    """The one path to a LUN."""
    kind, key = vim.host.MultipathInfo, f"key-vim.host.MultipathInfo.LogicalUnit-{_disk_uuid(found)}"
    name = f"{ADAPTER}:C0:T0:L{found.number}"
    path = kind.Path(
        key=f"key-vim.host.MultipathInfo.Path-{name}",
        name=name,
        pathState="active",
        state="active",
        isWorkingPath=True,
        adapter=_ADAPTER_KEY,
        lun=key,
    )
    policy = kind.FixedLogicalUnitPolicy(policy="VMW_PSP_FIXED", prefer=name)
    return kind.LogicalUnit(key=key, id=_disk_uuid(found), lun=_disk_key(found), path=[path], policy=policy)


def scsi_disk(found: Lun) -> Any:
    """The LUN as a host sees it."""
    path = f"/vmfs/devices/disks/{found.naa}"
    return vim.host.ScsiDisk(
        deviceName=path,
        deviceType="disk",
        key=_disk_key(found),
        uuid=_disk_uuid(found),
        descriptor=[vim.host.ScsiLun.Descriptor(quality="highQuality", id=found.naa)],
        canonicalName=found.naa,
        displayName=f"{found.vendor} iSCSI Disk ({found.naa})",
        lunType="disk",
        vendor=found.vendor,
        model=found.model,
        revision="0001",
        scsiLevel=6,
        serialNumber="unavailable",
        queueDepth=128,
        operationalState=["ok"],
        capacity=vim.host.DiskDimensions.Lba(blockSize=512, block=found.size // 512),
        devicePath=path,
        ssd=False,
        localDisk=False,
        emulatedDIXDIFEnabled=False,
        scsiDiskType="native512",
    )


def iscsi_adapter(host: str, luns: list[Lun]) -> Any:
    """The host's software iSCSI adapter, with the targets that it was given."""
    targets = {(each.portal, each.target) for each in luns if each.portal and each.target}
    send, static = [], []
    for portal, name in sorted((str(p), str(n)) for p, n in targets):
        address, _, port = portal.rpartition(":")
        address = address.strip("[]")
        send.append(vim.host.InternetScsiHba.SendTarget(address=address, port=int(port)))
        static.append(vim.host.InternetScsiHba.StaticTarget(address=address, port=int(port), iScsiName=name))
    return vim.host.InternetScsiHba(
        key=_ADAPTER_KEY,
        device=ADAPTER,
        bus=65,
        status="online",
        model="iSCSI Software Adapter",
        driver="iscsi_vmk",
        storageProtocol="scsi",
        isSoftwareBased=True,
        canBeDisabled=True,
        networkBindingSupport="optional",
        discoveryCapabilities=vim.host.InternetScsiHba.DiscoveryCapabilities(
            iSnsDiscoverySettable=False,
            slpDiscoverySettable=False,
            staticTargetDiscoverySettable=True,
            sendTargetsDiscoverySettable=True,
        ),
        discoveryProperties=vim.host.InternetScsiHba.DiscoveryProperties(
            iSnsDiscoveryEnabled=False,
            slpDiscoveryEnabled=False,
            staticTargetDiscoveryEnabled=True,
            sendTargetsDiscoveryEnabled=True,
        ),
        authenticationCapabilities=vim.host.InternetScsiHba.AuthenticationCapabilities(
            chapAuthSettable=True,
            krb5AuthSettable=False,
            srpAuthSettable=False,
            spkmAuthSettable=False,
            mutualChapSettable=True,
            targetChapSettable=True,
            targetMutualChapSettable=True,
        ),
        authenticationProperties=vim.host.InternetScsiHba.AuthenticationProperties(chapAuthEnabled=False),
        ipCapabilities=vim.host.InternetScsiHba.IPCapabilities(
            addressSettable=False,
            ipConfigurationMethodSettable=False,
            subnetMaskSettable=False,
            defaultGatewaySettable=False,
            primaryDnsServerAddressSettable=False,
            alternateDnsServerAddressSettable=False,
            ipv6Supported=False,
            arpRedirectSettable=False,
            mtuSettable=False,
            hostNameAsTargetAddress=False,
        ),
        ipProperties=vim.host.InternetScsiHba.IPProperties(dhcpConfigurationEnabled=False),
        iScsiName=f"iqn.1998-01.com.vmware:{host}-{uuid.uuid5(uuid.NAMESPACE_DNS, host).hex[:8]}",
        iScsiAlias=host,
        configuredSendTarget=send,
        configuredStaticTarget=static,
    )
