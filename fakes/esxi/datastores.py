# SPDX-License-Identifier: MIT
"""What NFC can open: disks (over NBD) and plain files, both served by the storage service of a datastore.

A datastore path is `[datastore1] vm1/vm1.vmdk`. A ticket reaches the folder of its VM and nothing else. Blocking, one
`Datastores` per connection.
"""

from __future__ import annotations

import base64
import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import nbd

from fakes.core.fabric import FabricClient, FabricError, connect
from fakes.esxi.tickets import Ticket
from fakes.esxi.wire import SECTOR, FileType, NfcCode

_PATH = re.compile(r"\[([^\[\]/]+)\] ?([^\0]+)")
_FABRIC_CODES = {"not-found": NfcCode.NOT_FOUND, "locked": NfcCode.LOCKED, "read-only": NfcCode.READ_ONLY}


class NfcRefused(Exception):
    """An operation is answered with an error frame: `code` (NfcCode) and the text."""

    def __init__(self, code: NfcCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class OpenedFile(Protocol):
    """A file behind a handle. `size` in bytes; `unit` = offsets and lengths must be multiples of it."""

    kind: FileType
    size: int
    unit: int
    writable: bool

    def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Exactly `length` bytes."""

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Writes all of `data`."""

    def flush(self) -> None:
        """What was written is on the datastore."""

    def close(self) -> None:
        """Gives the file back."""


class Watchdog:
    """Cuts the socket of an NBD operation that takes longer than `limit` seconds (libnbd has no time-outs of its own)."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._guarded: dict[socket.socket, float] = {}

    @contextlib.contextmanager
    def guard(self, sock: socket.socket) -> Iterator[None]:
        """Inside the block `sock` is watched."""
        with self._lock:
            self._guarded[sock] = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._guarded.pop(sock, None)

    def expire(self) -> None:
        """Cuts what is over its time; to be called now and then."""
        limit = time.monotonic() - self.limit
        with self._lock:
            late = [sock for sock, since in self._guarded.items() if since < limit]
        for sock in late:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class NbdDisk:
    """A virtual disk, read and written over one NBD connection to storage."""

    kind = FileType.DISK
    unit = SECTOR

    def __init__(self, path: Path, export: str, *, writable: bool, watchdog: Watchdog) -> None:
        sock = connect(path, watchdog.limit)
        self._control = sock.dup()
        self._watchdog = watchdog
        self._dirty = False
        self._nbd = nbd.NBD()
        self.writable = writable
        try:
            self._nbd.set_export_name(export)
            self._nbd.set_pread_initialize(False)
            sock.setblocking(True)
            with watchdog.guard(self._control):
                self._nbd.connect_socket(sock.detach())
                self.size = int(self._nbd.get_size())
                if writable and self._nbd.is_read_only():
                    raise NfcRefused(NfcCode.READ_ONLY, "the disk is read-only")
        except nbd.Error as exc:
            self.close()
            raise NfcRefused(NfcCode.FILE_ERROR, f"disk not available: {exc.string}") from exc
        except NfcRefused:
            self.close()
            raise

    def read(self, offset: int, length: int) -> bytearray:
        with self._operation():
            data: bytearray = self._nbd.pread(length, offset)
            return data

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._dirty = True
        with self._operation():
            self._nbd.pwrite(data, offset)

    def flush(self) -> None:
        if self._dirty and self._nbd.can_flush():
            with self._operation():
                self._nbd.flush()
        self._dirty = False

    def close(self) -> None:
        with contextlib.suppress(nbd.Error), self._watchdog.guard(self._control):
            self._nbd.shutdown()
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()
        del self._nbd  # closes its socket

    @contextlib.contextmanager
    def _operation(self) -> Iterator[None]:
        with self._watchdog.guard(self._control):
            try:
                yield
            except nbd.Error as exc:
                raise NfcRefused(NfcCode.FILE_ERROR, f"disk error: {exc.string}") from exc


class PlainFile:
    """A small file (configuration, descriptor), read as a whole when it is opened. Read-only."""

    unit = 1
    writable = False

    def __init__(self, kind: FileType, data: bytes) -> None:
        self.kind = kind
        self._data = memoryview(data)
        self.size = len(data)

    def read(self, offset: int, length: int) -> memoryview:
        return self._data[offset : offset + length]

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        raise NfcRefused(NfcCode.READ_ONLY, "file is read-only")

    def flush(self) -> None:
        """Nothing was written."""

    def close(self) -> None:
        """Nothing to give back."""


class Datastores:
    """The datastores that a host mounts, reached over the fabric folder.

    Args:
        fabric: the folder with `storage-<ds>.sock` and `nbd-<ds>.sock`.
        mounted: names of the host's datastores; None = whatever the fabric has.
    """

    def __init__(self, fabric: Path, mounted: frozenset[str] | None, watchdog: Watchdog) -> None:
        self._fabric = fabric
        self._mounted = mounted
        self._watchdog = watchdog
        self._clients: dict[str, FabricClient] = {}

    def open(self, ticket: Ticket, path: str, kind: FileType, write: bool) -> OpenedFile:
        """Opens a datastore path as far as the ticket allows. Raises NfcRefused."""
        datastore, name = split(path)
        if not ticket.covers(datastore, name):
            raise NfcRefused(NfcCode.ACCESS, "the path is outside the virtual machine of this ticket")
        if write and ticket.read_only:
            raise NfcRefused(NfcCode.READ_ONLY, "file is read-only")
        if self._mounted is not None and datastore not in self._mounted:
            raise NfcRefused(NfcCode.NOT_FOUND, f"no datastore {datastore} on this host")
        if kind is not FileType.DISK:
            if write:
                raise NfcRefused(NfcCode.NOT_SUPPORTED, "plain files can only be read")
            text = self._call(datastore, "file.read", path=name)
            return PlainFile(kind, base64.b64decode(text))
        found = self._call(datastore, "disk.resolve", path=name, write=write)
        if found.get("vm") != ticket.vm:
            raise NfcRefused(NfcCode.ACCESS, "the disk belongs to another virtual machine")
        if write and not found.get("writable", False):
            raise NfcRefused(NfcCode.READ_ONLY, "file is read-only")
        try:
            return NbdDisk(
                self._fabric / f"nbd-{datastore}.sock", found["export"], writable=write, watchdog=self._watchdog
            )
        except FabricError as exc:
            raise NfcRefused(NfcCode.FILE_ERROR, f"datastore {datastore} does not answer") from exc

    def _call(self, datastore: str, method: str, **params: Any) -> Any:
        client = self._clients.get(datastore)
        if client is None:
            client = FabricClient(self._fabric / f"storage-{datastore}.sock", timeout=self._watchdog.limit)
            self._clients[datastore] = client
        try:
            return client.call(method, **params)
        except FabricError as exc:
            raise NfcRefused(_FABRIC_CODES.get(exc.code, NfcCode.FILE_ERROR), str(exc)) from exc

    def close(self) -> None:
        """Closes the fabric connections."""
        for client in self._clients.values():
            client.close()


def split(path: str) -> tuple[str, str]:
    """Datastore and the path below it. Raises NfcRefused for what is not a plain datastore path (`..`, `//`, NUL)."""
    match = _PATH.fullmatch(path)
    if match is None or any(part in ("", ".", "..") for part in match[2].split("/")):
        raise NfcRefused(NfcCode.INVALID_ARGUMENT, "not a datastore path")
    return match[1], match[2]
