# SPDX-License-Identifier: MIT
"""Network mode: the disk is read through the VM's host on TCP 902, in clear after authd (`nbd`) or with TLS (`nbdssl`).

One connection per task: first the configuration file is read on it (step 19), then the disk (step 20c).
"""

from __future__ import annotations

from pathlib import Path

from engine.dialer import Dialer
from engine.modes.errors import WriteFailed
from engine.modes.names import NBDSSL, NetworkMode
from engine.modes.nfc.aio import FileType, OpenFile, Packing, parse_written
from engine.modes.nfc.client import NfcClient
from engine.modes.nfc.errors import OpenFailed
from engine.modes.source import Read, Source
from engine.modes.ticket import Ticket
from engine.modes.writer import DiskWriter

_U32 = 0xFFFFFFFF


class NetworkSession:
    """The task's connection to the host. `connect`, then `read_config`, then `open_disk`; blocking."""

    def __init__(self, client: NfcClient, mode: NetworkMode) -> None:
        self.client = client
        self.mode = mode

    @classmethod
    def connect(
        cls,
        dialer: Dialer,
        ticket: Ticket,
        mode: NetworkMode,
        *,
        name: str | None = None,
        step: str = "19",
        keylog: Path | None = None,
    ) -> NetworkSession:
        """Opens and authenticates the connection to the ticket's address. `name`: what events call the host.

        Raises:
            ConnectError: one subclass per symptom. Those of `NfcClient.open`.
        """
        connection = dialer.connect(ticket.host, ticket.port, step=step, name=name)
        client = NfcClient.open(connection, ticket, ssl=mode == NBDSSL, events=dialer.events, step=step, keylog=keylog)
        return cls(client, mode)

    def read_config(self, path: str) -> str:
        """Text of a configuration file, `[datastore] folder/x.vmx`. Raises OpenFailed, ReadFailed."""
        return self.client.read_text(path)

    def open_disk(
        self, path: str, capacity: int, *, step: str = "20c", packing: Packing = Packing.NONE
    ) -> NetworkSource:
        """Opens a disk of `capacity` bytes (as vCenter says) for reading. `packing`: compression on the wire.

        Raises:
            OpenFailed: the host refused, or says another capacity.
        """
        self.client.at_step(step)
        opened = self.client.open_file(path, FileType.DISK)
        self._check(opened, path, capacity)
        return NetworkSource(self.client, opened.handle, capacity, packing)

    def open_writer(self, path: str, capacity: int, *, step: str) -> NetworkWriter:
        """Opens a disk of `capacity` bytes for writing; the ticket must be for that.

        Raises:
            OpenFailed: the host refused, or says another capacity.
        """
        self.client.at_step(step)
        opened = self.client.open_file(path, FileType.DISK, write=True)
        self._check(opened, path, capacity)
        return NetworkWriter(self.client, opened.handle, capacity)

    def _check(self, opened: OpenFile, path: str, capacity: int) -> None:
        # What stands in this 32-bit field is not agreed on: sectors or bytes, cut to 32 bits (nfc reference section 4).
        known = {0, capacity // 512, min(capacity // 512, _U32), capacity & _U32, min(capacity, _U32)}
        if opened.capacity not in known:
            raise OpenFailed(
                f"{self.client.raw.route}: {path} has another capacity than vCenter says ({opened.capacity}, {capacity})",
                **self.client.raw.where,
            )

    def close(self) -> None:
        """Ends the connection; never raises."""
        self.client.close()


class NetworkSource(Source):
    """A disk on an NFC connection. Allocated areas are not told by NFC: all is read, and zeros are dropped by the reader."""

    step = "20c"

    def __init__(self, client: NfcClient, handle: int, capacity: int, packing: Packing) -> None:
        self.capacity = capacity
        self._packing = packing
        self._client = client
        self._handle = handle

    def extents(self) -> None:
        """NFC does not tell."""
        return

    def start(self, offset: int, view: memoryview) -> Read:
        """Sends the request; any waiting thread receives for all."""
        self.check_range(offset, len(view))
        return self._client.start_read(self._handle, offset, view, self._packing)

    def close(self) -> None:
        """Closes disk, session and connection."""
        self._client.close((self._handle,))


class NetworkWriter(DiskWriter):
    """A disk that is written on an NFC connection; each `write` is one request, threads overlap theirs."""

    def __init__(self, client: NfcClient, handle: int, capacity: int) -> None:
        self.capacity = capacity
        self._client = client
        self._handle: int | None = handle

    def write(self, offset: int, data: memoryview) -> None:
        """Sends the data and waits for the host's answer."""
        self.check_range(offset, len(data))
        if self._handle is None:
            raise WriteFailed(f"{self._client.raw.route}: the disk is closed", **self._client.raw.where)
        request = self._client.start_write(self._handle, offset, data)
        request.wait()
        parse_written(request.reply)

    def flush(self) -> None:
        """Closes the disk: the host syncs it then, and NFC has no other word for it. Nothing can be written afterwards."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._client.close_file(handle)

    def close(self) -> None:
        """Closes disk, session and connection."""
        handle, self._handle = self._handle, None
        self._client.close(() if handle is None else (handle,))
