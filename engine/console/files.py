# SPDX-License-Identifier: MIT
"""Single files of a restore point: a Data Mover on the repository reads the disk, this side knows its file system (step r3).

Only what the files need goes over the wire; nothing of the disk's names and links reaches the repository.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from engine.console.links import over_link
from engine.dialer import Connection
from engine.events import EventLog
from engine.filesystem import files
from engine.mover import datalink
from engine.mover.datalink import DataLink
from engine.mover.errors import DataProtocol
from engine.mover.reader_pipeline import MOST
from engine.rpc.identity import Identity
from engine.store.clusters import CLUSTER
from engine.store.view import CACHED, pieces


class RemoteDisk:
    """A disk of `size` bytes that a Data Mover reads (`engine.mover.reader_pipeline`). Small reads are kept by cluster."""

    def __init__(self, link: DataLink, size: int) -> None:
        self.size = size
        self._link = link
        self._cluster = functools.lru_cache(CACHED)(lambda number: self._ask(number * CLUSTER, CLUSTER))

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the disk; what lies beyond its end is left out.

        Raises:
            RemoteError: for example `store.damaged`, naming point, disk and offset. DataLinkSilent, DataLinkCut, DataProtocol.
        """
        length = max(0, min(length, self.size - offset))
        if length > CLUSTER:
            end = offset + length
            return b"".join(self._ask(at, min(MOST, end - at)) for at in range(offset, end, MOST))
        return b"".join(
            self._cluster(number)[begin : begin + count] for number, begin, _, count in pieces(offset, length)
        )

    def _ask(self, offset: int, length: int) -> bytes:
        length = min(length, self.size - offset)
        with self._link.turn():
            self._link.send("read", {"offset": offset, "length": length})
            frame = self._link.receive()
            if frame.kind != "data" or len(frame.payload) != length:
                raise DataProtocol(f"{len(frame.payload)} bytes of {frame.kind} for {length}", **self._link.where)
            return bytes(frame.payload)


async def fetch(
    connection: Connection,
    identity: Identity,
    token: str,
    size: int,
    paths: list[str],
    to: Path | None,
    partition: int | None,
    *,
    expect: str,
    events: EventLog,
) -> list[dict[str, Any]]:
    """What became of each path (`engine.filesystem.files`); the connection is closed at the end.

    Raises:
        NoFileSystem, RemoteError, TlsFailed, DataLinkSilent, DataLinkCut.
    """

    def work(links: list[DataLink]) -> list[dict[str, Any]]:
        link, _ = datalink.connect(connection, identity, expect=expect, token=token, step="r3")
        links.append(link)
        with link:
            link.start_ticks()
            try:
                found = files.fetch(RemoteDisk(link, size), paths, to, partition)
            finally:
                link.stop_ticks()
            link.send("end")
            return found

    return await over_link(connection, events, "r3", work)
