# SPDX-License-Identifier: MIT
"""The guest's virtual disk as a mounted file system: NBD export → nbdfuse file → loop device → ext4 (guests reference 5.2).

nbdfuse dies with its parent; the loop device frees itself when the last mount of it is gone; so nothing is left whatever
ends first. nbdfuse has a mount namespace without the ext4 in it. Were it the last process of a namespace that has it, its
own exit would unmount the ext4 before it closes /dev/fuse, write the dirty pages through itself, and wait for ever (and with
it every sync(2) of the machine).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from fakes.core.daemon import die_with_parent
from fakes.linux_guest import kernel, loop

_START = 20.0
_SUPERBLOCK = 1024
_EXT4_MAGIC = 0xEF53
_PROBE = 1 << 20
_MOUNT = "noinit_itable"  # the kernel writes no inode tables behind the guest's back: only the guest changes blocks


class DiskFailed(Exception):
    """The disk cannot be attached; the text says why. `missing` when a program or device is not there."""

    def __init__(self, text: str, *, missing: bool = False) -> None:
        super().__init__(text)
        self.missing = missing


def parse_uri(uri: str) -> tuple[str, Path]:
    """Export name and socket of `nbd+unix:///EXPORT?socket=PATH`. Raises ValueError."""
    parts = urlsplit(uri)
    sockets = parse_qs(parts.query).get("socket", [])
    if parts.scheme != "nbd+unix" or parts.netloc or len(sockets) != 1:
        raise ValueError(f"not a disk: {uri!r} (nbd+unix:///EXPORT?socket=PATH)")
    return unquote(parts.path[1:]), Path(sockets[0])


class GuestDisk:
    """One disk, attached below `work` (a folder on a private tmpfs)."""

    def __init__(self, uri: str, work: Path) -> None:
        self.export, self.socket = parse_uri(uri)
        self.mount_point = work / "disk"
        self.device: Path | None = None
        self.fresh = False
        self._mounted = False
        self._file: tuple[int, int] | None = None
        self._fuse = work / "fuse"
        self._pid_file = work / "nbdfuse.pid"
        self._nbdfuse: subprocess.Popen[bytes] | None = None

    def attach(self) -> None:
        """Attaches the disk, makes ext4 on an empty one (`fresh`), and mounts it at `mount_point`. Raises DiskFailed.

        The caller has one thread; it goes on in a mount namespace of its own, nbdfuse keeps the one before.
        """
        self._fuse.mkdir()
        self.mount_point.mkdir()
        self._start_nbdfuse()
        kernel.unshare(kernel.CLONE_NEWNS)
        try:
            device, fd = loop.attach(self._fuse / "disk")
        except OSError as exc:
            raise DiskFailed(f"no loop device: {exc.strerror}", missing=True) from exc
        try:
            self.device, self._file = device, loop.identity(fd)
            self.fresh = self._prepare(fd, device)
            kernel.mount(device, self.mount_point, "ext4", kernel.MS_NOATIME, _MOUNT)
            self._mounted = True
        except OSError as exc:
            raise DiskFailed(f"the disk's ext4 cannot be mounted: {exc.strerror}") from exc
        finally:
            os.close(fd)

    def trouble(self) -> str | None:
        """Why the disk is lost, or None."""
        if self._nbdfuse is not None and self._nbdfuse.poll() is None:
            return None
        return "nbdfuse ended: the guest lost its disk"

    def detach(self) -> None:
        """Unmounts cleanly and gives the loop device back. Raises OSError when something still uses the file system."""
        if self._mounted and self.device is not None:
            kernel.umount(self.mount_point)
            self._mounted = False
            if self._file is not None and not loop.wait_free(self.device, self._file):
                raise OSError(f"{self.device} is still in use")
        if self._nbdfuse is not None:
            with contextlib.suppress(OSError):
                kernel.umount(self._fuse)
            self._nbdfuse.terminate()
            try:
                self._nbdfuse.wait(_START)
            except subprocess.TimeoutExpired:
                self._nbdfuse.kill()
                self._nbdfuse.wait()

    def _start_nbdfuse(self) -> None:
        program = shutil.which("nbdfuse")
        if program is None:
            raise DiskFailed("nbdfuse is missing: apt-get install libnbd-bin", missing=True)
        try:
            folder = os.open(self.socket.parent, os.O_PATH | os.O_DIRECTORY)
        except OSError as exc:
            raise DiskFailed(f"{self.socket.parent}: {exc.strerror}") from exc
        # a socket's path may be longer than 107 bytes: it is reached through the folder's descriptor
        where = quote(f"/proc/self/fd/{folder}/{self.socket.name}")
        uri = f"nbd+unix:///{quote(self.export)}?socket={where}"
        try:
            self._nbdfuse = subprocess.Popen(
                [program, "-P", str(self._pid_file), str(self._fuse / "disk"), uri],
                stdin=subprocess.DEVNULL,
                pass_fds=[folder],
                preexec_fn=die_with_parent,
            )
        finally:
            os.close(folder)
        end = time.monotonic() + _START
        while not (self._pid_file.exists() and self._pid_file.stat().st_size):
            if self._nbdfuse.poll() is not None:
                raise DiskFailed(
                    f"nbdfuse ended with {self._nbdfuse.returncode} (its reason is above; export {self.export})"
                )
            if time.monotonic() > end:
                raise DiskFailed("nbdfuse does not become ready")
            time.sleep(0.01)

    def _prepare(self, fd: int, device: Path) -> bool:
        """True when a file system was made on an empty disk."""
        head = os.pread(fd, _PROBE, 0)
        (magic,) = struct.unpack_from("<H", head, _SUPERBLOCK + 0x38)
        if magic == _EXT4_MAGIC:
            return False
        if head.strip(b"\0"):
            raise DiskFailed("the disk holds something that is not ext4: it will not be formatted")
        program = shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if program is None:
            raise DiskFailed("mkfs.ext4 is missing: apt-get install e2fsprogs", missing=True)
        # The disk reads as zeros, so inode tables and journal need no zeros written; see also `_MOUNT`.
        options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"
        made = subprocess.run(
            [program, "-q", "-F", "-b", "4096", "-L", "guest", "-E", options, str(device)],
            capture_output=True,
            timeout=120,
        )
        if made.returncode:
            raise DiskFailed(f"mkfs.ext4: {' '.join(made.stderr.decode(errors='replace').split())[:200]}")
        return True
