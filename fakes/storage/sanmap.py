# SPDX-License-Identifier: MIT
"""The map of a disk file: where each of its areas lies on the LUN, so that a reader of the LUN finds the disk's data.

A file of ours (`web/web-000001-map` beside `web/web-000001.vmdk`), made at each read; a real host has none: there VMFS
holds it. It covers the whole chain that ends in the disk file; areas that it leaves out read as zero. A frozen file's map
stays true until the snapshot that froze it is removed: LUN grains of a frozen chain are neither written nor moved, and
merging below it changes only which file names them.
"""

from __future__ import annotations

import json

from fakes.core.fabric import FabricError
from fakes.storage.datastore import Datastore
from fakes.storage.grains import GRAIN
from fakes.storage.lun import spans

SCHEMA = "vadplab.san-map/1"
SUFFIX = "-map"


def subject(path: str) -> str | None:
    """The disk file whose map would be at `path`; None if that is no name of a map."""
    return path.removesuffix(SUFFIX) + ".vmdk" if path.endswith(SUFFIX) else None


def exists(store: Datastore, path: str) -> bool:
    """True if `path` names the map of a disk file. The store's lock is held."""
    disk_file = subject(path)
    return disk_file is not None and store.find(disk_file) is not None


def content(store: Datastore, path: str) -> bytes:
    """The map at `path`, JSON; `exists` was true. The store's lock is held.

    `extents` are `[byte of the disk, bytes, byte of the LUN]`, ascending.

    Raises:
        FabricError: `locked`, for the running disk of a powered-on VM.
    """
    disk_file = subject(path)
    found = store.find(disk_file) if disk_file else None
    if disk_file is None or found is None:
        raise FabricError("not-found", f"no file {path}")
    vm, disk, layer = found
    if layer is disk.top and vm.power:
        raise FabricError("locked", f"{disk_file} is the running disk of {vm.name}")
    view = disk.frozen_view(layer)
    document = {
        "schema": SCHEMA,
        "datastore": store.name,
        "lun": {"naa": store.naa, "size": store.lun.capacity},
        "vm": vm.name,
        "key": disk.key,
        "file": disk_file,
        "size": disk.size,
        "grain": GRAIN,
        "extents": [[at, length, where] for at, length, where in spans(view, 0, disk.size) if where >= 0],
    }
    return json.dumps(document, separators=(",", ":")).encode()
