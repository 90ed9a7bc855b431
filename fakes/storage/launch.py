# SPDX-License-Identifier: MIT
"""Starts a storage service: makes the NBD listening socket and becomes nbdkit, so that one process is all there is.

Two ways: as the datastore of a lab (`--name --state --fabric --capacity`; prints one line of JSON when ready), or as a disk
alone (`--listen HOST:PORT | --unix PATH` with `--image FILE` or `--size SIZE`; its first line is the NBD URI).
The listening socket is handed over as in systemd's socket activation (nbdkit manual, "SOCKET ACTIVATION"), because a
path given to nbdkit itself could not be longer than 107 bytes.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import uuid
from pathlib import Path
from urllib.parse import quote

from fakes.core import fabric
from fakes.core.daemon import die_with_parent
from fakes.storage.datastore import only_one
from fakes.storage.ending import SIGNALS
from fakes.storage.grains import GRAIN

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LISTEN_FD = 3
_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_ALONE = "disk"


def size(value: str) -> int:
    """Bytes from `512MiB` and the like."""
    match = re.fullmatch(r"(\d+)([KMGT]iB|B)?", value)
    if not match or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"not a size: {value!r} (for example 512MiB)")
    return int(match[1]) * _UNITS[match[2] or ""]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="vadplab fake disk", description="Disks of a datastore, served over NBD.")
    made.add_argument("--name", help="datastore name")
    made.add_argument("--state", type=Path, help="folder that keeps the LUN (standalone: default temporary)")
    made.add_argument("--fabric", type=Path, help="folder of the sockets storage-NAME.sock and nbd-NAME.sock")
    made.add_argument("--capacity", type=size, help="size of the LUN")
    alone = made.add_argument_group("a disk alone")
    where = alone.add_mutually_exclusive_group()
    where.add_argument("--listen", metavar="HOST:PORT", help="serve NBD over TCP (port 0: any)")
    where.add_argument("--unix", type=Path, metavar="PATH", help="serve NBD on a Unix socket")
    alone.add_argument("--image", type=Path, metavar="FILE", help="raw image to import (it is not changed)")
    alone.add_argument("--size", type=size, help="size of a new disk")
    alone.add_argument("--contents", choices=("empty", "files"), default="empty", help="what the new disk holds")
    return made


def main(argv: list[str]) -> int:
    """Entry of the process; becomes nbdkit, or returns 2 (bad input) or 3 (nbdkit is missing) with a line on stderr."""
    die_with_parent()
    made = parser()
    options = made.parse_args(argv)
    nbdkit = shutil.which("nbdkit", path=_SYSTEM_PATH) or shutil.which("nbdkit")
    if nbdkit is None:
        print("vadplab fake disk: nbdkit is missing: apt-get install nbdkit nbdkit-plugin-python", file=sys.stderr)
        return 3
    try:
        sock, keys = _alone(options) if options.listen or options.unix else _datastore(options)
    except (ValueError, OSError) as exc:
        print(f"vadplab fake disk: {exc}", file=sys.stderr)
        return 2
    _become(nbdkit, sock, keys)
    return 3


def _datastore(options: argparse.Namespace) -> tuple[socket.socket, dict[str, str]]:
    for name in ("name", "state", "fabric", "capacity"):
        if getattr(options, name) is None:
            raise ValueError(f"a datastore needs --{name} (a disk alone needs --listen or --unix)")
    if options.image or options.size:
        raise ValueError("--image and --size are for a disk alone (--listen or --unix)")
    if options.capacity % GRAIN:
        raise ValueError("--capacity must be a multiple of 64KiB")
    if not options.fabric.is_dir():
        raise ValueError(f"no folder {options.fabric}")
    options.state.mkdir(parents=True, exist_ok=True)
    os.close(only_one(options.state))  # before the sockets of a service that is running are replaced
    data = options.fabric.absolute() / f"nbd-{options.name}.sock"
    control = options.fabric.absolute() / f"storage-{options.name}.sock"
    ready = {
        "ready": "storage",
        "datastore": options.name,
        "nbd": str(data),
        "fabric": str(control),
        "pid": os.getpid(),
    }
    keys = {
        "state": str(options.state.absolute()),
        "name": options.name,
        "capacity": str(options.capacity),
        "fabric": str(control),
        "greet": str(data),
        "ready": json.dumps(ready),
    }
    return fabric.listen(data), keys


def _alone(options: argparse.Namespace) -> tuple[socket.socket, dict[str, str]]:
    if (options.image is None) == (options.size is None):
        raise ValueError("a disk alone needs either --image FILE or --size SIZE")
    if options.image and not options.image.is_file():
        raise ValueError(f"no image {options.image}")
    length = options.size or options.image.stat().st_size
    if length <= 0 or length % 512:
        raise ValueError(f"a disk's size is a positive multiple of 512 bytes, not {length}")
    name = options.name or _ALONE
    export = f"live/{name}/2000"
    if options.unix:
        path = options.unix.absolute()
        if not path.parent.is_dir():
            raise ValueError(f"no folder {path.parent}")
        sock, greet = fabric.listen(path), str(path)
        uri = f"nbd+unix:///{export}?socket={quote(str(path))}"
    else:
        sock = _listen_tcp(options.listen)
        host, port = sock.getsockname()[:2]
        greet = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        uri = f"nbd://{greet}/{export}"
    state = options.state or Path(tempfile.mkdtemp(prefix="vadplab-disk-"))
    state.mkdir(parents=True, exist_ok=True)
    disk = {"key": 2000, "label": "Hard disk 1", "size": length, "file": f"{name}/{name}.vmdk"}
    disk |= (
        {"contents": "image", "image": str(options.image.absolute())}
        if options.image
        else {"contents": options.contents}
    )
    bios = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.vm.vadplab"))
    keys = {
        "state": str(state.absolute()),
        "name": "datastore1",
        # room for a whole second copy: every grain may be written anew after a snapshot
        "capacity": str(options.capacity or -(-length // GRAIN) * GRAIN * 2 + 16 * GRAIN),
        "greet": greet,
        "ready": uri,
        "vm": json.dumps({"name": name, "bios": bios, "disks": [disk], "files": {}}),
        "scratch": "0" if options.state else "1",
    }
    if options.fabric:
        keys["fabric"] = str(options.fabric.absolute() / "storage-datastore1.sock")
    return sock, keys


def _listen_tcp(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"not an address: {address!r} (for example 127.0.0.1:10809)")
    family, kind, proto, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind, proto)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(where)
    sock.listen(64)
    return sock


def _inheritable_stdout() -> int:
    kept = fcntl.fcntl(1, fcntl.F_DUPFD, 10)
    os.set_inheritable(kept, True)
    return kept


def _become(nbdkit: str, sock: socket.socket, keys: dict[str, str]) -> None:
    """Replaces this process by nbdkit with the listening socket as descriptor 3."""
    here = Path(__file__).absolute()
    fd = sock.detach()
    if fd == _LISTEN_FD:
        os.set_inheritable(fd, True)
    else:
        os.dup2(fd, _LISTEN_FD, inheritable=True)
    keys["listener"] = str(_LISTEN_FD)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    keys["stdout"] = str(_inheritable_stdout())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {
        "PATH": _SYSTEM_PATH,  # the interpreter inside nbdkit finds its library through the first python3 on PATH
        "PYTHONPATH": str(here.parents[2]),
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDS": "1",
    }
    arguments = [nbdkit, "--foreground", "--exit-with-parent", "python", str(here.with_name("plugin.py"))]
    os.execve(nbdkit, [*arguments, *(f"{key}={value}" for key, value in keys.items())], environment)
