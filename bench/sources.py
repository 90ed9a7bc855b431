# SPDX-License-Identifier: MIT
"""Opening the disk of a measurement by each way of reading it; `spec` is what `bench.hosts` says of the host."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import nbd

from engine.dialer import Dialer
from engine.modes import san
from engine.modes.device import Device, DeviceSource
from engine.modes.iscsi.session import Login
from engine.modes.layout import Layout
from engine.modes.network import NetworkSession
from engine.modes.source import Extent, Read, Source
from engine.modes.ticket import Ticket


class NbdSource(Source):
    """A disk on a Unix socket, one connection a thread with sync reads (disks reference section 1)."""

    step = "20c"

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._local = threading.local()
        self.capacity = self._handle().get_size()

    def extents(self) -> list[Extent]:
        """By block status."""
        found: list[Extent] = []

        def take(context: str, offset: int, entries: list[int], error: Any) -> None:
            for length, flags in zip(entries[::2], entries[1::2], strict=True):
                if not flags & 1:
                    found.append((offset, min(length, self.capacity - offset)))
                offset += length

        offset = 0
        while offset < self.capacity:
            count = min(self.capacity - offset, 1 << 30)
            self._handle().block_status(count, offset, take)
            offset += count
        return found

    def start(self, offset: int, view: memoryview) -> Read:
        """Reads when it is waited for."""
        return _Pending(self._handle(), offset, view)

    def close(self) -> None:
        """Ends this thread's connection."""
        self._local = threading.local()

    def _handle(self) -> Any:
        handle = getattr(self._local, "handle", None)
        if handle is None:
            handle = self._local.handle = nbd.NBD()
            handle.add_meta_context("base:allocation")
            handle.set_pread_initialize(False)
            handle.connect_uri(self._uri)
        return handle


class _Pending:
    def __init__(self, handle: Any, offset: int, view: memoryview) -> None:
        self._handle, self._offset, self._view = handle, offset, view

    def wait(self) -> None:
        self._view[:] = self._handle.pread(len(self._view), self._offset)


def open_source(dialer: Dialer, spec: dict[str, Any]) -> Source:
    """The disk, by `kind`: `socket`, `nbd`, `nbdssl`, `san`, `hotadd`."""
    match spec["kind"]:
        case "socket":
            return NbdSource(spec["uri"])
        case "nbd" | "nbdssl":
            host = spec["host"]
            ticket = Ticket(host["address"], host["port"], host["thumbprint_sha1"], "vpxa-nfc", spec["ticket"])
            return NetworkSession.connect(dialer, ticket, spec["kind"]).open_disk(host["path"], host["size"])
        case "san":
            layout = Layout(
                spec["naa"], spec["size"], tuple((at, length, where) for at, length, where in spec["areas"])
            )
            login = Login("iqn.2026-01.lab.vadplab:bench", spec["user"], spec["secret"])
            portals = san.Portals((("127.0.0.1", spec["portal"]),), login)
            return san.open_source(dialer, portals, layout, [f"naa.{spec['naa']}"])
        case "hotadd":
            where = {"step": "20b", "host": "proxy-2"}
            return DeviceSource(Device(Path(spec["device"]), write=False, where=where), spec["size"])
        case other:
            raise ValueError(f"no way to read a disk: {other}")
