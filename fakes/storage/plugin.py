# SPDX-License-Identifier: MIT
"""nbdkit's callbacks. Runs inside nbdkit (`nbdkit python plugin.py KEY=VALUE…`), which owns the one `_Process` below.

Keys: `state` (folder), `name` (datastore), `capacity` (bytes), `fabric` (path of the fabric socket), `listener` (descriptor
of the NBD listening socket), `greet` (its address: a path, or HOST:PORT), `ready` (the line to print once both sockets
answer), `stdout` (where to print it: nbdkit points its own standard output at /dev/null), `scratch` (1: remove `state`
at the end), `vm` (JSON of a VM to create first).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbdkit

from fakes.core import fabric
from fakes.core.fabric import FabricError
from fakes.storage import machines
from fakes.storage.datastore import Datastore
from fakes.storage.ending import Ending
from fakes.storage.handles import OpenDisk
from fakes.storage.service import FabricThread, Service

API_VERSION = 2
_SWITCH_SECONDS = 0.0005  # a thread that computes hands the interpreter on ten times sooner than Python's default
_GREETING_SECONDS = 30.0


class _Process:
    """What this process serves."""

    def __init__(self) -> None:
        self.keys: dict[str, str] = {}
        self.store: Datastore | None = None
        self.service: Service | None = None
        self.fabric: FabricThread | None = None
        self.ending: Ending | None = None

    def open(self) -> None:
        keys = self.keys
        missing = {"state", "name", "capacity"} - keys.keys()
        if missing:
            raise ValueError(f"missing {', '.join(sorted(missing))}")
        self.store = Datastore(Path(keys["state"]), keys["name"], int(keys["capacity"]))
        self.service = Service(self.store)

    def serve(self) -> None:
        sys.setswitchinterval(_SWITCH_SECONDS)
        if self.store is None or self.service is None:
            raise RuntimeError("the datastore is not open")
        if "listener" in self.keys:
            self.ending = Ending(int(self.keys["listener"]), nbdkit.shutdown)
            self.ending.start()
        if "vm" in self.keys:
            spec = json.loads(self.keys["vm"])
            if spec["name"] not in self.store.vms:
                machines.create(self.store, **spec)
        if "fabric" in self.keys:
            self.fabric = FabricThread(self.service, Path(self.keys["fabric"]))
            self.fabric.start()
        threading.Thread(target=self._announce, name="ready", daemon=True).start()

    def _announce(self) -> None:
        if "greet" in self.keys:
            try:
                _await_greeting(self.keys["greet"])
            except OSError as exc:
                print(f"storage: NBD does not answer on {self.keys['greet']}: {exc}", file=sys.stderr, flush=True)
                nbdkit.shutdown()
                return
        if "ready" in self.keys:
            with contextlib.suppress(BrokenPipeError):
                os.write(int(self.keys["stdout"]), self.keys["ready"].encode() + b"\n")

    def close(self) -> None:
        if self.ending:
            self.ending.ended()
        if self.fabric:
            self.fabric.stop()
        if self.store:
            self.store.close()
        greet = self.keys.get("greet", "")
        if greet.startswith("/"):
            Path(greet).unlink(missing_ok=True)
        if self.keys.get("scratch") == "1":
            shutil.rmtree(self.keys["state"], ignore_errors=True)


_process = _Process()


def _await_greeting(address: str) -> None:
    """Returns when the NBD server has greeted and agreed to part again (NBD_OPT_ABORT)."""
    if address.startswith("/"):
        sock = fabric.connect(Path(address), _GREETING_SECONDS)
    else:
        host, _, port = address.rpartition(":")
        sock = socket.create_connection((host.strip("[]"), int(port)), timeout=_GREETING_SECONDS)
    with sock:
        if sock.recv(18, socket.MSG_WAITALL)[:16] != b"NBDMAGICIHAVEOPT":
            raise OSError(errno.EPROTO, "not an NBD greeting")
        sock.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 2, 0))
        sock.recv(20, socket.MSG_WAITALL)


@contextlib.contextmanager
def _errno() -> Iterator[None]:
    """Tells nbdkit the errno of an OSError, so that the client sees it."""
    try:
        yield
    except OSError as exc:
        nbdkit.set_error(exc.errno or errno.EIO)
        raise


def thread_model() -> int:
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def config(key: str, value: str) -> None:
    _process.keys[key] = value


def get_ready() -> None:
    _or_exit(_process.open)


def after_fork() -> None:
    _or_exit(_process.serve)


def _or_exit(start: Callable[[], None]) -> None:
    """Runs a step of the start; what the user can mend ends the process with one line and code 2, not a traceback."""
    try:
        start()
    except (ValueError, OSError, FabricError) as exc:
        print(f"vadplab fake disk: {exc}", file=sys.stderr, flush=True)
        _process.close()
        os._exit(2)


def cleanup() -> None:
    _process.close()


def list_exports(readonly: bool, is_tls: bool) -> list[tuple[str, str]]:
    return _service().exports.names()


def default_export(readonly: bool, is_tls: bool) -> str:
    names = _service().exports.names()
    return names[0][0] if names else ""


def open(readonly: bool) -> OpenDisk:
    with _errno():
        return _service().exports.open(nbdkit.export_name())


def _service() -> Service:
    if _process.service is None:
        raise RuntimeError("the datastore is not open")
    return _process.service


def get_size(handle: OpenDisk) -> int:
    return handle.size


def block_size(handle: OpenDisk) -> tuple[int, int, int]:
    return 1, 65536, 32 << 20


def can_write(handle: OpenDisk) -> bool:
    return handle.writable


def can_flush(handle: OpenDisk) -> bool:
    return True


def can_trim(handle: OpenDisk) -> bool:
    return True


def can_zero(handle: OpenDisk) -> bool:
    return True


def can_fast_zero(handle: OpenDisk) -> bool:
    return True


def can_fua(handle: OpenDisk) -> int:
    return int(nbdkit.FUA_EMULATE)


def can_multi_conn(handle: OpenDisk) -> bool:
    return True  # one LUN and one view behind all connections; a flush covers the writes of all of them


def can_extents(handle: OpenDisk) -> bool:
    return True


def is_rotational(handle: OpenDisk) -> bool:
    return False


def pread(handle: OpenDisk, buffer: Any, offset: int, flags: int) -> None:
    with _errno():
        handle.read(memoryview(buffer), offset)


def pwrite(handle: OpenDisk, buffer: Any, offset: int, flags: int) -> None:
    with _errno():
        handle.write(memoryview(buffer), offset)


def flush(handle: OpenDisk, flags: int) -> None:
    with _errno():
        handle.flush()


def trim(handle: OpenDisk, count: int, offset: int, flags: int) -> None:
    with _errno():
        handle.trim(count, offset)


def zero(handle: OpenDisk, count: int, offset: int, flags: int) -> None:
    with _errno():
        if not flags & nbdkit.FLAG_MAY_TRIM:
            raise OSError(errno.EOPNOTSUPP, "the client wants the space kept: nbdkit writes zeros")
        handle.zero(count, offset)


def extents(handle: OpenDisk, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    hole = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
    found = []
    with _errno():
        for start, length, allocated in handle.extents(count, offset):
            found.append((start, length, 0 if allocated else hole))
            if flags & nbdkit.FLAG_REQ_ONE:
                break
    return found


def close(handle: OpenDisk) -> None:
    """Nothing to give back: a handle holds no descriptor of its own."""
