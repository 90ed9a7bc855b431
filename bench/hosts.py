# SPDX-License-Identifier: MIT
"""Whoever serves the measured disk: an NBD export, a lone ESXi host, a real iSCSI array, a VM's SCSI bus. Each has its CPU counted."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme

from fakes.core.fabric import FabricClient

NAA = "600112233445566778899aabbccddee1"
UUID = "6000c29bdeadbeef0123456789abcdef"
USER, SECRET = "proxy", "a-secret-of-the-SAN"
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Host:
    """A running host: what a source must know of it, and its process. `tickets`: of a lone ESXi host."""

    spec: dict[str, Any]
    process: subprocess.Popen[str]
    tickets: list[str] = field(default_factory=list)

    def cpu(self) -> float:
        """CPU seconds of its processes so far."""
        return sum(_cpu(pid) for pid in _family(self.process.pid))


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(each for child in children for each in _family(int(child)))]


def _cpu(pid: int) -> float:
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / _TICK


@contextlib.contextmanager
def _running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, text=True, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def export(image: Path, folder: Path, name: str) -> Iterator[Host]:
    """The image on a Unix socket, by nbdkit."""
    path = folder / f"{name}.sock"
    with _running(["nbdkit", "-f", "--exit-with-parent", "-U", str(path), "file", str(image)]) as process:
        uri = f"nbd+unix:///?socket={path}"
        end = time.monotonic() + 10
        while subprocess.run(["nbdinfo", "--size", uri], capture_output=True, check=False).returncode:
            if time.monotonic() > end:
                raise TimeoutError("nbdkit does not answer")
            time.sleep(0.02)
        yield Host({"kind": "socket", "uri": uri, "socket": str(path)}, process)


@contextlib.contextmanager
def esxi(image: Path) -> Iterator[Host]:
    """A host with the disk on 902, nbdkit behind it."""
    command = [sys.executable, "-m", "fakes.esxi", "--listen", "127.0.0.1:0", "--image", str(image), "--tickets", "64"]
    with _running(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        names = ("address", "port", "thumbprint_sha1", "path", "size")
        yield Host({"host": {name: said[name] for name in names}}, process, said["tickets"])


@contextlib.contextmanager
def array(image: Path, folder: Path, name: str) -> Iterator[Host]:
    """The image as the LUN of tgtd, with CHAP; the disk's layout names its allocated areas one to one."""
    (folder / "secret").write_text(f"{SECRET}\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    command = [
        sys.executable, "-m", "fakes.san", "--listen", f"127.0.0.1:{port}", "--lun", str(image), "--naa", f"naa.{NAA}",
        "--name", name, "--chap", USER, "--chap-password-file", str(folder / "secret"), "--state", str(folder / f"san-{name}"),
    ]  # fmt: skip
    with _running(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError("the iSCSI array does not start")
        spec = {"kind": "san", "portal": port, "naa": NAA, "size": image.stat().st_size, "user": USER, "secret": SECRET}
        yield Host({**spec, "areas": [(at, length, at) for at, length in areas(image)]}, process)


@contextlib.contextmanager
def bus(image: Path, folder: Path, exported: Host) -> Iterator[Host]:
    """The image as a device of a VM's SCSI bus, which is a FUSE file over the NBD export."""
    devices, fabric = folder / "devices", folder / "fabric"
    fabric.mkdir(exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "fakes.scsi_bus",
        "--vm",
        "proxy-2",
        "--fabric",
        str(fabric),
        "--devices",
        str(devices),
    ]
    with _running(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError("the SCSI bus does not start")
        size = image.stat().st_size
        client = FabricClient(fabric / "bus-proxy-2.sock", timeout=20)
        client.call("disk.plug", uuid=UUID, export="", socket=exported.spec["socket"], size=size, read_only=True)
        try:
            yield Host({"kind": "hotadd", "device": str(devices / f"wwn-0x{UUID}"), "size": size}, process)
        finally:
            client.call("disk.unplug", uuid=UUID)
            client.close()


def areas(image: Path) -> list[tuple[int, int]]:
    """(offset, length) of what is not a hole, in whole sectors."""
    found = []
    size = image.stat().st_size
    with image.open("rb") as file:
        at = 0
        while at < size:
            try:
                begin = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # only a hole is left
                break
            at = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            begin = begin // 512 * 512
            at = min(-(-at // 512) * 512, size)
            found.append((begin, at - begin))
    return found


def certificates(folder: Path) -> None:
    """An authority and the identities of proxy and repository."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name in ("proxy-1", "repository-1"):
        leaf = authority.issue_cert(name, common_name=name)
        chain = b"".join(part.bytes() for part in leaf.cert_chain_pems)
        (folder / f"{name}.pem").write_bytes(leaf.private_key_pem.bytes() + chain)
