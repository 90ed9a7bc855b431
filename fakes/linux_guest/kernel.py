# SPDX-License-Identifier: MIT
"""System calls that Python 3.11 does not offer: namespaces, mounts, freezing, capabilities. All raise OSError."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_NOATIME = 1024
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

_PR_CAPBSET_DROP = 24
_FIFREEZE = 0xC0045877
_FITHAW = 0xC0045878
# What a guest must not have, being root of a kernel that is not its own: linux/capability.h
DROPPED_CAPABILITIES = {
    "CAP_LINUX_IMMUTABLE": 9,
    "CAP_SYS_MODULE": 16,
    "CAP_SYS_RAWIO": 17,
    "CAP_SYS_PACCT": 20,
    "CAP_SYS_BOOT": 22,
    "CAP_SYS_TIME": 25,
    "CAP_MKNOD": 27,
    "CAP_MAC_OVERRIDE": 32,
    "CAP_MAC_ADMIN": 33,
    "CAP_SYSLOG": 34,
    "CAP_WAKE_ALARM": 35,
}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(fd: int, kind: int) -> None:
    """setns(2)."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)), "setns")


def mount(source: str | Path, target: str | Path, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            kind.encode() or None,
            ctypes.c_ulong(flags),
            data.encode() or None,
        ),
        f"mount {target}",
    )


def bind_read_only(source: Path, target: Path, *, extra: int = 0) -> None:
    """A bind mount that cannot be written through."""
    mount(source, target, flags=MS_BIND)
    mount("none", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY | extra)


def umount(target: str | Path, *, lazy: bool = False) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), ctypes.c_int(MNT_DETACH if lazy else 0)), f"umount {target}")


def pivot_root(new: Path) -> None:
    """The mount at `new` becomes the root; the old one is detached with all below it."""
    os.chdir(new)
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    umount(".", lazy=True)
    os.chdir("/")


def set_hostname(name: str) -> None:
    """sethostname(2)."""
    data = name.encode()
    _check(_libc.sethostname(data, len(data)), "sethostname")


def drop_capabilities() -> None:
    """Takes `DROPPED_CAPABILITIES` from every program that this process will execute."""
    for number in DROPPED_CAPABILITIES.values():
        _check(_libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(number), 0, 0, 0), "prctl")


def name_process(title: str) -> None:
    """Overwrites the command line that others see (`/proc/PID/cmdline`): it may have held a password."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start, arg_end: proc(5), fields 48 and 49
    if 0 < start < end:
        text = title.encode()[: end - start - 1]
        ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


def sync(folder: Path) -> None:
    """syncfs(2): everything of the file system that holds `folder` is on its device."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.syncfs(fd), "syncfs")
    finally:
        os.close(fd)


def freeze(fd: int) -> None:
    """FIFREEZE: returns when everything is on the device and writers wait. EBUSY when it is frozen already."""
    fcntl.ioctl(fd, _FIFREEZE, 0)


def thaw(fd: int) -> bool:
    """FITHAW; False when the file system was not frozen."""
    try:
        fcntl.ioctl(fd, _FITHAW, 0)
    except OSError as exc:
        if exc.errno == errno.EINVAL:
            return False
        raise
    return True
