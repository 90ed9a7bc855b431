# SPDX-License-Identifier: MIT
"""A device: one disk that a VM sees, as a file that nbdfuse serves, under the names that udev would give it.

*Names*: a VMware disk with `disk.EnableUUID` answers the SCSI inquiry (VPD page 83h) with its UUID as NAA identifier, so
udev makes `/dev/disk/by-id/wwn-0x<32 hex>` and `scsi-3<32 hex>`. Both are links here too; what they point to lies in the
hidden folder `.disks`, as `sda` lies beside `disk/by-id`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import time
import uuid as uuids
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fakes.core.daemon import die_with_parent
from fakes.core.fabric import FabricError

HIDDEN = ".disks"
READ_AHEAD_KIB = 4096  # a sequential reader then has several requests in flight
_MNT_DETACH = 2
_APPEAR = 10.0
_END = 5.0
_POLL = 0.005


@dataclass(frozen=True)
class Disk:
    """What is plugged: `uuid` (32 hex digits), the NBD export that shows it and its socket, size in bytes."""

    uuid: str
    export: str
    socket: Path
    size: int
    read_only: bool

    @property
    def name(self) -> str:
        """`wwn-0x6000c29…`."""
        return f"wwn-0x{self.uuid}"

    @property
    def links(self) -> tuple[str, ...]:
        """All names below `/dev/disk/by-id`."""
        return (self.name, f"scsi-3{self.uuid}")


def hex_of(value: str) -> str:
    """The 32 hex digits of a UUID in any of its usual forms (also VMware's, with spaces). FabricError `malformed`."""
    try:
        return uuids.UUID(value.replace(" ", "")).hex
    except (ValueError, AttributeError) as exc:
        raise FabricError("malformed", f"not a UUID: {value!r}") from exc


def without_fuse() -> str | None:
    """Why no device can be made on this machine, or None."""
    if os.access("/dev/fuse", os.R_OK | os.W_OK):
        return None
    return "/dev/fuse can not be used here, and devices are FUSE files (modprobe fuse, or chmod 666 /dev/fuse, as root)"


class Device:
    """A disk while it is plugged."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self.disk = disk
        self._folder = folder
        self._mount = folder / HIDDEN / disk.name
        self._process: asyncio.subprocess.Process | None = None

    @property
    def path(self) -> Path:
        """The stable path."""
        return self._folder / self.disk.name

    @property
    def alive(self) -> bool:
        """Whether it still answers."""
        return self._process is not None and self._process.returncode is None

    def shown(self) -> dict[str, Any]:
        """As the fabric shows it."""
        disk = self.disk
        return {
            "uuid": disk.uuid,
            "name": disk.name,
            "path": str(self.path),
            "export": disk.export,
            "size": disk.size,
            "read_only": disk.read_only,
            "alive": self.alive,
        }

    async def plug(self) -> None:
        """Makes the device appear; it can be read when this returns.

        Raises:
            FabricError: `missing` (nbdfuse or /dev/fuse), `no-device` (it did not come up: its text says why), `bad-size`.
        """
        nbdfuse = shutil.which("nbdfuse")
        if nbdfuse is None:
            raise FabricError("missing", "nbdfuse is missing: apt-get install nbdfuse fuse3")
        if (lacking := without_fuse()) is not None:
            raise FabricError("missing", lacking)
        self._mount.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.disk.socket.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            # through the folder's descriptor, since a socket's path may be longer than the kernel takes
            socket = f"/proc/self/fd/{folder}/{self.disk.socket.name}"
            options = ["-r"] if self.disk.read_only else []
            if os.geteuid() == 0:
                options += ["-o", "allow_other"]
            self._process = await asyncio.create_subprocess_exec(
                nbdfuse,
                *options,
                str(self._mount / "disk"),
                f"nbd+unix:///{quote(self.disk.export)}?socket={quote(socket)}",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(folder,),
                preexec_fn=die_with_parent,
            )
        finally:
            os.close(folder)
        try:
            await self._appear()
        except BaseException:
            await self.unplug()
            raise

    async def _appear(self) -> None:
        file, end = self._mount / "disk", time.monotonic() + _APPEAR
        assert self._process is not None
        while True:
            with contextlib.suppress(OSError):
                if (size := (await asyncio.to_thread(file.stat)).st_size) != self.disk.size:
                    raise FabricError("bad-size", f"{self.disk.export} has {size} bytes, not {self.disk.size}")
                break
            if self._process.returncode is not None or time.monotonic() > end:
                raise FabricError("no-device", f"{self.disk.export}: {await self._reason() or 'nbdfuse did not mount'}")
            await asyncio.sleep(_POLL)
        self._read_ahead(file)
        for link in self.disk.links:
            at = self._folder / link
            at.unlink(missing_ok=True)
            at.symlink_to(f"{HIDDEN}/{self.disk.name}/disk")

    @staticmethod
    def _read_ahead(file: Path) -> None:
        number = file.stat().st_dev
        with contextlib.suppress(OSError):  # only speed: without the right to set it, 128 KiB stay
            tunable = Path(f"/sys/class/bdi/{os.major(number)}:{os.minor(number)}/read_ahead_kb")
            tunable.write_text(str(READ_AHEAD_KIB))

    async def _reason(self) -> str:
        if self._process is None or self._process.stderr is None or self._process.returncode is None:
            return ""
        return (await self._process.stderr.read(4096)).decode(errors="replace").strip().replace("\n", "; ")

    async def unplug(self) -> None:
        """Makes the device vanish: names first, then the file; who has it open gets I/O errors."""
        for link in self.disk.links:
            (self._folder / link).unlink(missing_ok=True)
        await asyncio.to_thread(unmount, self._mount)
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), _END)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()
        with contextlib.suppress(OSError):
            self._mount.rmdir()


def unmount(mount: Path) -> None:
    """Takes a mount away, also a busy or a dead one; nothing if none is there."""
    libc = ctypes.CDLL(None, use_errno=True)
    while libc.umount2(os.fsencode(mount), _MNT_DETACH) == 0:
        pass


def clear(folder: Path) -> None:
    """Takes everything away that a bus left in its folder."""
    for link in (*folder.glob("wwn-0x*"), *folder.glob("scsi-3*")):
        if link.is_symlink() and link.readlink().parts[0] == HIDDEN:
            link.unlink(missing_ok=True)
    if not (folder / HIDDEN).is_dir():
        return
    for mount in list((folder / HIDDEN).iterdir()):
        unmount(mount)
        with contextlib.suppress(OSError):
            mount.rmdir()
