# SPDX-License-Identifier: MIT
"""Receiving a disk of a restore point from a Data Mover into a sparse file: the console's half of a restore (steps r3 and on).

The Data Mover sends clusters as the repository keeps them; this side expands each and checks it against its digest before it
writes it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from engine.console.links import over_link
from engine.dialer import Connection
from engine.errors import VadplabError
from engine.events import EventLog
from engine.mover import datalink
from engine.mover.batches import batch_of
from engine.mover.datalink import SILENCE, DataLink
from engine.mover.errors import DataProtocol
from engine.rpc.identity import Identity
from engine.store.clusters import CLUSTER_BITS
from engine.store.restore import THREADS, RestoreStats
from engine.store.sparse import SparseFile

Progress = Callable[[dict[str, int]], None]
STEP = "r3"


async def receive_disk(
    connection: Connection,
    identity: Identity,
    token: str,
    size: int,
    to: Path,
    *,
    expect: str,
    events: EventLog | None = None,
    on_progress: Progress | None = None,
) -> RestoreStats:
    """Receives one disk into the new sparse file `to`, which appears only when it is complete and synced.

    Args:
        connection: opened with the dialer (step `r3`) to the `port` that `reader.open` gave; closed at the end.
        identity: this machine's. token, size: from `reader.open`. expect: the machine name of the repository.
        events: where the totals of bytes are written. on_progress: called on the event loop with `{received, total}`
            (bytes of the disk passed, bytes of the disk), about twice a second.

    Returns:
        size, written (bytes; the rest is holes), clusters (each checked), received (bytes over the wire).

    Raises:
        RemoteError: the Data Mover refused, for example `store.damaged` naming point, disk and offset.
        Damaged: a cluster arrived with another content than its digest. DataLinkSilent, DataLinkCut, TlsFailed.
    """
    loop = asyncio.get_running_loop()

    def progress(fields: dict[str, int]) -> None:
        if on_progress is not None:
            loop.call_soon_threadsafe(on_progress, fields)

    def work(links: list[DataLink]) -> RestoreStats:
        return _receive(links, connection, identity, token, size, to, expect, progress)

    return await over_link(connection, events, STEP, work)


def _receive(
    links: list[DataLink],
    connection: Connection,
    identity: Identity,
    token: str,
    size: int,
    to: Path,
    expect: str,
    progress: Progress,
) -> RestoreStats:
    link, welcome = datalink.connect(connection, identity, expect=expect, token=token, step=STEP, silence=SILENCE)
    links.append(link)
    with link:
        if welcome.get("size") != size:
            raise DataProtocol(f"the Data Mover serves {welcome.get('size')} bytes instead of {size}", **link.where)
        target = SparseFile(to, size)
        try:
            _fill(link, target, size, progress)
            target.finish()
        except VadplabError as exc:
            exc.step = exc.step or STEP
            raise
        finally:
            target.discard()
        link.send("received", {"clusters": target.clusters})
        return RestoreStats(size, target.written, target.clusters, link.received)


def _fill(link: DataLink, target: SparseFile, size: int, progress: Progress) -> None:
    """Receives every cluster; threads check and write them meanwhile."""
    clusters = -(-size >> CLUSTER_BITS)
    reported = 0.0
    writing: deque[Future[None]] = deque()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="restore") as pool:
        while (frame := link.receive()).kind != "end":
            first, lengths, digests = batch_of(frame, clusters, link)
            payload = memoryview(bytes(frame.payload))  # the link's buffer is used again
            writing.append(pool.submit(target.put, first, lengths, digests, payload))
            if len(writing) > 2 * THREADS:
                writing.popleft().result()
            if time.monotonic() - reported > 0.5:
                reported = time.monotonic()
                progress({"received": min((first + len(lengths)) << CLUSTER_BITS, size), "total": size})
        for work in writing:
            work.result()
    if frame.fields.get("data") != target.clusters:
        raise DataProtocol(
            f"{target.clusters} clusters received, the Data Mover sent {frame.fields.get('data')}", **link.where
        )
    progress({"received": size, "total": size})
