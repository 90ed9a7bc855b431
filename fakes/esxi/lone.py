# SPDX-License-Identifier: MIT
"""A host without a lab: one VM with one disk, and tickets for whoever asks.

The disk is an nbdkit (file or memory plugin) on a Unix socket; this process answers in storage's place on a private fabric
folder. The VM is powered off, so its disk can be opened for reading and, with a read-write ticket, for writing.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import uuid
from pathlib import Path
from typing import Any

from fakes.core import fabric
from fakes.core.daemon import die_with_parent
from fakes.core.fabric import FabricError
from fakes.esxi.datastores import NbdDisk, NfcRefused, Watchdog
from fakes.esxi.tickets import TicketStore

DATASTORE = "datastore1"
VM = "vm1"
DISK = f"{VM}/{VM}.vmdk"
LIFETIME = 24 * 3600.0
# hands standard input over as the listening socket (nbdkit manual, "SOCKET ACTIVATION")
_HAND_OVER = 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3<&0 </dev/null'


class LoneFailed(Exception):
    """The lone host cannot start; the text says why."""


def descriptor(size: int) -> str:
    """The text of a VMDK descriptor for one flat extent of `size` bytes."""
    sectors = size // 512
    return (
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n"
        f'createType="vmfs"\n\n# Extent description\nRW {sectors} VMFS "{VM}-flat.vmdk"\n\n'
        '# The Disk Data Base\nddb.adapterType = "lsilogic"\n'
    )


class LoneStorage:
    """Storage of one disk on a private fabric folder; `image` (a raw file) or `size` bytes of memory.

    Raises:
        ValueError: such a disk can not be.
    """

    def __init__(self, folder: Path, *, image: Path | None, size: int | None) -> None:
        if image is not None and not image.is_file():
            raise ValueError(f"{image}: no such file")
        self.size = image.stat().st_size if image is not None else int(size or 0)
        if self.size <= 0 or self.size % 512:
            raise ValueError(f"a disk of {self.size} bytes: it must be a positive multiple of 512")
        self._folder = folder
        self._image = image
        self._nbdkit: asyncio.subprocess.Process | None = None
        self._server: asyncio.Server | None = None
        self.files = {
            f"{VM}/{VM}.vmx": f'displayName = "{VM}"\nscsi0:0.fileName = "{VM}.vmdk"\nscsi0:0.present = "TRUE"\n',
            DISK: descriptor(self.size),
        }

    async def start(self, deadline: float = 10.0) -> None:
        """Starts nbdkit and the fabric socket; returns when both answer. Raises LoneFailed."""
        program = shutil.which("nbdkit")
        if program is None:
            raise LoneFailed("nbdkit is missing: apt-get install nbdkit")
        plugin = ["file", str(self._image)] if self._image is not None else ["memory", str(self.size)]
        socket_path = self._folder / f"nbd-{DATASTORE}.sock"
        # not a path given to nbdkit: it may be longer than a socket's path may be
        with fabric.listen(socket_path) as sock:
            self._nbdkit = await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", _HAND_OVER, "sh", program, "--foreground", "--exit-with-parent", *plugin),
                stdin=sock.fileno(),
                preexec_fn=die_with_parent,
            )
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline
        while True:
            if self._nbdkit.returncode is not None:
                raise LoneFailed(f"nbdkit ended with code {self._nbdkit.returncode}")
            with contextlib.suppress(FabricError, NfcRefused):
                NbdDisk(socket_path, "", writable=False, watchdog=Watchdog(1.0)).close()
                break
            if loop.time() > end:
                raise LoneFailed("nbdkit does not answer")
            await asyncio.sleep(0.01)
        self._server = await fabric.serve(self._folder / f"storage-{DATASTORE}.sock", self._handle)

    async def stop(self) -> None:
        """Ends nbdkit."""
        if self._server is not None:
            self._server.close()
        if self._nbdkit is not None and self._nbdkit.returncode is None:
            self._nbdkit.terminate()
            await self._nbdkit.wait()

    async def _handle(self, method: str, params: dict[str, Any]) -> Any:
        path = str(params.get("path"))
        if method == "disk.resolve" and path == DISK:
            return {"export": "", "size": self.size, "vm": VM, "key": 2000, "writable": bool(params.get("write"))}
        if method == "file.read" and path in self.files:
            return base64.b64encode(self.files[path].encode()).decode()
        raise FabricError("not-found", f"{path}: no such file")


class TicketWindow:
    """Hands out tickets of the lone host on a Unix socket (JSON lines): `ticket.new {read_only}` gives `{session_id}`."""

    def __init__(self, tickets: TicketStore) -> None:
        self._tickets = tickets
        self._server: asyncio.Server | None = None

    def new(self, *, read_only: bool, ttl: float = LIFETIME) -> str:
        """A fresh ticket for the one VM."""
        session_id = str(uuid.uuid4())
        self._tickets.issue(session_id, vm=VM, datastore=DATASTORE, folder=VM, read_only=read_only, ttl=ttl)
        return session_id

    async def open(self, path: Path) -> None:
        """Serves on `path`."""
        self._server = await fabric.serve(path, self._handle)

    async def _handle(self, method: str, params: dict[str, Any]) -> Any:
        if method != "ticket.new":
            raise FabricError("unknown-method", "the only method is ticket.new {read_only, ttl}")
        ttl = float(params.get("ttl", LIFETIME))
        return {"session_id": self.new(read_only=bool(params.get("read_only", True)), ttl=ttl)}
