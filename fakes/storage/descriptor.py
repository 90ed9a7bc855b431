# SPDX-License-Identifier: MIT
"""The descriptor of a virtual disk: the small text file `<vm>.vmdk` that names the extent, the parent and the geometry.

It is a view, made anew from the chain at each read. Form: VMware "Virtual Disk Format 5.0" (text descriptor), values as
an ESXi host with VMFS-6 writes them: `vmfs` for a base, `seSparse` for a delta.
"""

from __future__ import annotations

import hashlib

from fakes.storage.layer import Layer

_NO_PARENT = "ffffffff"


def disk_uuid(vm_uuid: str, key: int) -> str:
    """The disk's UUID as `ddb.uuid` writes it: it begins with VMware's `60 00 C2 9`."""
    digest = hashlib.sha256(f"{vm_uuid}/{key}".encode()).hexdigest()
    octets = ["60", "00", "C2", "9" + digest[0], *(digest[i : i + 2] for i in range(1, 25, 2))]
    return " ".join(octets[:8]) + "-" + " ".join(octets[8:])


def content_id(vm_uuid: str, key: int, layer: int) -> str:
    """The CID of a layer's file: 8 hex digits, not those of "no parent"."""
    value = hashlib.sha256(f"{vm_uuid}/{key}/{layer}".encode()).hexdigest()[:8]
    return value if value != _NO_PARENT else "fffffffe"


def geometry(size: int) -> tuple[int, int, int]:
    """Cylinders, heads, sectors for a disk of `size` bytes, as the lsilogic and pvscsi adapters compute them."""
    heads, sectors = (64, 32) if size < 1 << 30 else (128, 32) if size < 2 << 30 else (255, 63)
    return max(1, size // 512 // (heads * sectors)), heads, sectors


def text(vm_uuid: str, key: int, size: int, layer: int, name: str, parent: Layer | None) -> str:
    """The descriptor of file `name` (layer id `layer`), whose parent in the chain is `parent`."""
    stem = name.rpartition("/")[2].removesuffix(".vmdk")
    cylinders, heads, sectors = geometry(size)
    long_id = hashlib.sha256(f"{vm_uuid}/{key}/{layer}/long".encode()).hexdigest()[:24]
    own = content_id(vm_uuid, key, layer)
    lines = ["# Disk DescriptorFile", "version=1", 'encoding="UTF-8"', f"CID={own}"]
    if parent:
        lines += [
            f"parentCID={content_id(vm_uuid, key, parent.id)}",
            'createType="seSparse"',
            f'parentFileNameHint="{parent.name.rpartition("/")[2]}"',
        ]
        extent = f'RW {size // 512} SESPARSE "{stem}-sesparse.vmdk"'
    else:
        lines += [f"parentCID={_NO_PARENT}", 'createType="vmfs"']
        extent = f'RW {size // 512} VMFS "{stem}-flat.vmdk"'
    lines += [
        "",
        "# Extent description",
        extent,
        "",
        "# The Disk Data Base ",
        "#DDB",
        "",
        'ddb.adapterType = "lsilogic"',
        f'ddb.geometry.cylinders = "{cylinders}"',
        f'ddb.geometry.heads = "{heads}"',
        f'ddb.geometry.sectors = "{sectors}"',
        f'ddb.longContentID = "{long_id[:-8]}{own}"',
        'ddb.thinProvisioned = "1"',
        f'ddb.uuid = "{disk_uuid(vm_uuid, key)}"',
        'ddb.virtualHWVersion = "19"',
    ]
    return "\n".join(lines) + "\n"
