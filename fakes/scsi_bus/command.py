# SPDX-License-Identifier: MIT
"""`vadplab fake bus`: the virtual SCSI bus of a VM. Prints one line of JSON when it answers; ends on SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
from pathlib import Path

from fakes.core import fabric
from fakes.core.daemon import die_with_parent, ready, until_signal
from fakes.core.fabric import FabricError
from fakes.scsi_bus import janitor
from fakes.scsi_bus.bus import Bus
from fakes.scsi_bus.device import clear, without_fuse

BAD_INPUT, MISSING = 2, 3
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_TELL = 30.0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="vadplab fake bus",
        description="The virtual SCSI bus of a VM: disks that vCenter attaches to it appear as devices.",
    )
    made.add_argument("--vm", required=True, metavar="NAME", help="the VM whose bus it is")
    made.add_argument("--fabric", required=True, type=Path, metavar="FOLDER", help="folder of the socket bus-NAME.sock")
    made.add_argument(
        "--devices", required=True, type=Path, metavar="FOLDER", help="where devices appear, as in /dev/disk/by-id"
    )
    made.add_argument(
        "--even-without-fuse",
        action="store_true",
        help="come up where /dev/fuse can not be used, and refuse every disk (default: exit 3)",
    )
    return made


def _fail(message: str, code: int) -> int:
    print(f"vadplab fake bus: {message}", file=sys.stderr)
    return code


def main(argv: list[str]) -> int:
    """Runs until SIGTERM. Exit codes: 0 ended, 2 bad input, 3 something needed is missing."""
    try:
        options = parser().parse_args(argv)
    except SystemExit as exc:
        return int(exc.code or 0)
    if not _NAME.fullmatch(options.vm):
        return _fail(f"--vm {options.vm!r}: not a VM's name", BAD_INPUT)
    if not options.fabric.is_dir():
        return _fail(f"--fabric {options.fabric}: no such folder", BAD_INPUT)
    if not options.even_without_fuse and (lacking := without_fuse()) is not None:
        return _fail(lacking, MISSING)
    devices = options.devices.absolute()
    try:
        devices.mkdir(parents=True, exist_ok=True)
        held = janitor.lock(devices)
    except (OSError, TimeoutError) as exc:
        return _fail(f"--devices {devices}: {exc}", BAD_INPUT)
    die_with_parent()
    clear(devices)
    janitor.watch(devices, held)
    return asyncio.run(_serve(options.vm, options.fabric.absolute(), devices))


async def _serve(vm: str, folder: Path, devices: Path) -> int:
    bus = Bus(devices)
    path = folder / f"bus-{vm}.sock"
    server = await fabric.serve(path, bus.handle)
    telling = asyncio.create_task(_tell(vm, folder))
    ready(json.dumps({"ready": "bus", "vm": vm, "fabric": str(path), "devices": str(devices), "pid": os.getpid()}))
    try:
        await until_signal()
    finally:
        telling.cancel()
        server.close()
        path.unlink(missing_ok=True)
        await bus.close()
    return 0


async def _tell(vm: str, folder: Path) -> None:
    """A bus that comes up late gets what is attached to its VM by now: vCenter is told."""
    try:
        await fabric.call(folder / "vcenter.sock", "bus.started", deadline=_TELL, vm=vm)
    except FabricError as exc:  # a vCenter that comes up later plugs the disks by itself
        print(f"bus of {vm}: vCenter was not told: {exc}", file=sys.stderr, flush=True)
