# SPDX-License-Identifier: MIT
"""What lies on the guest's disk: a small Debian-like root without /usr, written when the disk is new and refreshed at boot.

/usr is the host's, bound read-only by `init`; /bin, /lib and the like are the usual links into it. Everything else that
survives a boot is on the disk: /etc, /root, /home, /var, /srv.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

FREEZE_TOOL = "/usr/sbin/fsfreeze"
LEDGER = "/var/lib/ledger/ledger.db"
RUN = "/run/guest"
RPCI = f"{RUN}/rpci.sock"
_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_FOLDERS = {
    "dev": 0o755, "proc": 0o555, "sys": 0o555, "run": 0o755, "tmp": 0o1777, "usr": 0o755, "etc": 0o755, "root": 0o700,
    "home": 0o755, "var": 0o755, "srv": 0o755, "mnt": 0o755, "opt": 0o755, "etc/ssh": 0o755, "var/lib": 0o755,
    "var/log": 0o755, "var/tmp": 0o1777, "var/lib/ledger": 0o700,
}  # fmt: skip
_SYSTEM_USERS = (
    ("root", 0, "/root", "/bin/sh"),
    ("nobody", 65534, "/nonexistent", "/usr/sbin/nologin"),
    ("sshd", 101, "/run/sshd", "/usr/sbin/nologin"),
)
_SSHD = """\
Port 22
ListenAddress {address}
HostKey /etc/ssh/ssh_host_key
PidFile /run/sshd.pid
UsePAM no
UseDNS no
PermitRootLogin yes
AllowUsers {user}
PasswordAuthentication yes
KbdInteractiveAuthentication no
PubkeyAuthentication yes
AuthorizedKeysFile /etc/ssh/authorized_keys
StrictModes no
PrintLastLog no
PrintMotd no
X11Forwarding no
MaxStartups 50:30:100
Subsystem sftp internal-sftp
"""


class RootFailed(Exception):
    """The host cannot lend its /usr, or a file of the guest cannot be made; the text says why."""


@dataclass(frozen=True, slots=True)
class Account:
    """The account that backup software uses. It has uid 0, because freezing a file system needs that."""

    name: str
    password: str = field(repr=False)
    authorized_key: str | None = None


@dataclass(frozen=True, slots=True)
class Guest:
    """What makes this guest different from another one."""

    hostname: str
    address: str
    account: Account
    host_key: Path | None = None


def check_host() -> None:
    """Raises RootFailed when this host's /usr cannot serve a guest."""
    for name in ("bin", "lib"):
        if not Path("/", name).is_symlink():
            raise RootFailed(f"/{name} is not a link into /usr: a merged /usr is needed")
    for program, package in (("/usr/sbin/sshd", "openssh-server"), (FREEZE_TOOL, "util-linux")):
        if not Path(program).exists():
            raise RootFailed(f"{program} is missing: apt-get install {package}")
    if not interpreter().startswith("/usr/"):
        raise RootFailed(f"the Python of this program ({interpreter()}) is not in /usr, where guests could see it")


def interpreter() -> str:
    """The Python that guests see too."""
    return os.path.realpath("/proc/self/exe")


def install(root: Path, guest: Guest, *, fresh: bool) -> None:
    """Writes the guest's files below `root`. Raises RootFailed or OSError."""
    for name, mode in _FOLDERS.items():
        (root / name).mkdir(exist_ok=True)
        (root / name).chmod(mode)
    for name in _LINKS:
        if Path("/usr", name).is_dir() and not (root / name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    _accounts(root / "etc", guest.account)
    _ssh(root / "etc" / "ssh", guest)
    _names(root / "etc", guest)
    for record in ("lastlog", "wtmp", "btmp"):  # a login must not wait for a frozen disk
        link = root / "var/log" / record
        if not link.is_symlink():
            link.symlink_to(f"/run/{record}")
    if not (root / "var/run").is_symlink():
        (root / "var/run").symlink_to("/run")
    if fresh:
        _documents(root / "srv" / "documents")


def _accounts(etc: Path, account: Account) -> None:
    users = [*_SYSTEM_USERS, (account.name, 0, "/root", "/bin/sh")]
    _write(etc / "passwd", "".join(f"{n}:x:{uid}:{uid}:{n}:{home}:{shell}\n" for n, uid, home, shell in users))
    _write(etc / "group", "root:x:0:\ntty:x:5:\nsshd:x:101:\nnogroup:x:65534:\n")
    hashed = _crypt(account.password)
    shadow = "".join(f"{name}:{hashed if name == account.name else '*'}:19000:0:99999:7:::\n" for name, *_ in users)
    _write(etc / "shadow", shadow, 0o600)


def _crypt(password: str) -> str:
    """SHA-512 crypt(3) of the C library: no program sees the password in its arguments."""
    try:
        library = ctypes.CDLL("libcrypt.so.1")
    except OSError as exc:
        raise RootFailed("libcrypt.so.1 is missing: apt-get install libcrypt1") from exc
    library.crypt.restype = ctypes.c_char_p
    salt = "".join(
        random.SystemRandom().choices("./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", k=12)
    )
    made: bytes | None = library.crypt(password.encode(), f"$6$rounds=1000${salt}".encode())
    if not made or not made.startswith(b"$6$"):
        raise RootFailed("crypt(3) refuses SHA-512")
    return made.decode()


def _ssh(folder: Path, guest: Guest) -> None:
    _write(folder / "sshd_config", _SSHD.format(address=guest.address, user=guest.account.name))
    key = folder / "ssh_host_key"
    if guest.host_key is not None:
        _write(key, guest.host_key.read_text(), 0o600)
    elif not key.exists():
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", guest.hostname, "-f", str(key)],
            check=True, stdin=subprocess.DEVNULL, timeout=30,
        )  # fmt: skip
    _write(folder / "authorized_keys", (guest.account.authorized_key or "").rstrip("\n") + "\n")


def _names(etc: Path, guest: Guest) -> None:
    _write(etc / "hostname", guest.hostname + "\n")
    _write(etc / "hosts", f"127.0.0.1 localhost\n{guest.address} {guest.hostname}\n")
    _write(etc / "nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files\n")
    _write(etc / "fstab", "/dev/disk/by-label/guest / ext4 defaults,noatime 0 1\n")
    if not (etc / "os-release").is_symlink():
        (etc / "os-release").symlink_to("../usr/lib/os-release")
    # programs of /usr are often links through /etc/alternatives (awk, for one)
    shutil.rmtree(etc / "alternatives", ignore_errors=True)
    if Path("/etc/alternatives").is_dir():
        shutil.copytree("/etc/alternatives", etc / "alternatives", symlinks=True)


def _documents(folder: Path) -> None:
    """Files whose contents are known, with their digests, so that a restored disk can be checked."""
    folder.mkdir()
    source = random.Random(20)
    lines = []
    for number in range(40):
        data = source.randbytes(source.randrange(1_000, 120_000)) if number % 2 else _text(source)
        name = f"document-{number:02}.{'bin' if number % 2 else 'txt'}"
        (folder / name).write_bytes(data)
        lines.append(f"{hashlib.sha256(data).hexdigest()}  {name}\n")
    _write(folder / "SHA256SUMS", "".join(lines))


def _text(source: random.Random) -> bytes:
    words = [
        "backup",
        "snapshot",
        "proxy",
        "repository",
        "ticket",
        "datastore",
        "manager",
        "transport",
        "guest",
        "block",
    ]
    return " ".join(source.choices(words, k=source.randrange(200, 8_000))).encode() + b"\n"


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.touch(mode=mode)
    path.chmod(mode)
    path.write_text(text)
