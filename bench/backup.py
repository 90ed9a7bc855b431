# SPDX-License-Identifier: MIT
"""A full backup of one disk: the mover pair against `nbdcopy` and `qemu-img convert -c` of the same export.

Everything ends with the result synced. Ours includes reading the whole result back and checking every digest.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import trustme

from bench import disk
from bench.rows import Options, Row, compare

TITLE = "full backup"
TOOLS = {"nbdkit": "nbdkit", "nbdcopy": "libnbd-bin", "nbdinfo": "libnbd-bin", "qemu-img": "qemu-utils"}
NBDCOPY = "nbdcopy (raw, no compression)"
QEMU = "qemu-img convert -c zstd"
QEMU_WIDE = "qemu-img convert -c zstd, -m16 -W"
DEADLINE = 600


def run(options: Options) -> list[Row]:
    """Each subject once a round, in turn."""
    image = options.scratch / "disk.raw"
    disk.make(image, options.size)
    _certificates(options.scratch)
    with _nbdkit(image, options.scratch) as uri, _esxi(image) as host:
        _warm(image)
        subjects: dict[str, Callable[[Path], dict[str, Any]]] = {
            NBDCOPY: lambda out: _tool(["nbdcopy", "--flush", uri, str(out / "raw")], out / "raw", options.size),
            QEMU: lambda out: _tool(_qemu(uri, out / "q", []), out / "q"),
            QEMU_WIDE: lambda out: _tool(_qemu(uri, out / "q", ["-m", "16", "-W"]), out / "q"),
            "vadplab pair, NBD source": lambda out: _pair(options, out, "nbd", uri),
            "vadplab pair, Network mode nbd": lambda out: _pair(options, out, "nfc", _spec(host, "nbd")),
            "vadplab pair, Network mode nbdssl": lambda out: _pair(options, out, "nfc", _spec(host, "nbdssl")),
        }
        rows = {name: Row(name, mib=options.size / (1 << 20)) for name in subjects}
        for _ in range(options.rounds):
            for name, subject in subjects.items():
                out = options.scratch / "out"
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir()
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                start = time.monotonic()
                found = subject(out)
                rows[name].seconds.append(time.monotonic() - start - found.get("outside", 0.0))
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                rows[name].cpu_seconds.append(
                    round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2)
                )
                rows[name].out_mib = round(found["stored"] / (1 << 20), 1)
                rows[name].note = found.get("note", "")
    compare(list(rows.values()), [NBDCOPY, QEMU, QEMU_WIDE])
    return list(rows.values())


def _warm(image: Path) -> None:
    """The source is in the page cache for everyone."""
    with image.open("rb") as file:
        while file.read(1 << 20):
            pass


def _qemu(uri: str, out: Path, more: list[str]) -> list[str]:
    options = "compression_type=zstd,cluster_size=65536"
    return ["qemu-img", "convert", *more, "-c", "-O", "qcow2", "-o", options, uri, str(out)]


def _tool(command: list[str], out: Path, size: int | None = None) -> dict[str, Any]:
    if size is not None:
        out.touch()
        os.truncate(out, size)
    subprocess.run(command, check=True, timeout=DEADLINE, stdout=subprocess.DEVNULL)
    fd = os.open(out, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    return {"stored": out.stat().st_blocks * 512}


def _pair(options: Options, out: Path, kind: str, spec: str) -> dict[str, Any]:
    """Both halves; their start (interpreter, imports) is not part of the backup and is taken off."""
    begin = time.monotonic()
    shutil.rmtree(options.scratch / "pair", ignore_errors=True)
    folder = options.scratch / "pair"
    folder.mkdir()
    for file in options.scratch.glob("*.pem"):
        (folder / file.name).symlink_to(file)
    (folder / "out").symlink_to(out)
    target = _half("target", folder, str(options.size))
    try:
        assert target.stdout is not None
        ready = json.loads(target.stdout.readline())
        source = _half("source", folder, kind, spec, str(ready["port"]), ready["token"])
        try:
            assert source.stdout is not None
            source.stdout.readline()
            outside = time.monotonic() - begin
            sent = json.loads(source.communicate("go\n", timeout=DEADLINE)[0])
            received = json.loads(target.communicate(timeout=DEADLINE)[0])
        finally:
            source.kill()
            source.wait()
    finally:
        target.kill()
        target.wait()
    assert sent["root"] == received["root"]
    note = f"verification {received['commit']:.2f} s of it; {sent['sent'] >> 20} MiB on the wire"
    return {"stored": received["stored"], "note": note, "outside": outside}


def _half(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.pair", *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@contextlib.contextmanager
def _nbdkit(image: Path, folder: Path) -> Iterator[str]:
    socket = folder / "nbd.sock"
    process = subprocess.Popen(["nbdkit", "-f", "--exit-with-parent", "-U", str(socket), "file", str(image)])
    try:
        _answers(f"nbd+unix:///?socket={socket}")
        yield f"nbd+unix:///?socket={socket}"
    finally:
        process.terminate()
        process.wait(10)


def _answers(uri: str) -> None:
    end = time.monotonic() + 10
    while subprocess.run(["nbdinfo", "--size", uri], capture_output=True).returncode:
        if time.monotonic() > end:
            raise TimeoutError("nbdkit does not answer")
        time.sleep(0.02)


@contextlib.contextmanager
def _esxi(image: Path) -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-m", "fakes.esxi", "--listen", "127.0.0.1:0", "--image", str(image), "--tickets", "64"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(10)


def _spec(host: dict[str, Any], mode: str) -> str:
    fields = {name: host[name] for name in ("address", "port", "thumbprint_sha1", "path", "size")}
    return json.dumps({**fields, "ticket": host["tickets"].pop(), "mode": mode})


def _certificates(folder: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name in ("proxy-1", "repository-1"):
        leaf = authority.issue_cert(name, common_name=name)
        chain = b"".join(part.bytes() for part in leaf.cert_chain_pems)
        (folder / f"{name}.pem").write_bytes(leaf.private_key_pem.bytes() + chain)
