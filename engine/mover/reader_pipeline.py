# SPDX-License-Identifier: MIT
"""The repository's half of a restore: a restore point's disk, sent whole or as it is asked for.

Whole, it goes in batches to the console or to a proxy's Data Mover. The console that takes single files out of it asks
`read {offset, length}`, one at a time, and gets `data` with that many bytes, each cluster checked against its digest, or an
`error` after which it may go on; `end` ends it. It sends ticks while it has nothing to ask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import VadplabError
from engine.mover.datalink import DataLink
from engine.mover.errors import DataProtocol
from engine.store.errors import StoreError
from engine.store.point_disk import PointDisk
from engine.store.view import DiskView

MOST = 1 << 20
"""Bytes of one read."""


def send_disk(disk: PointDisk, link: DataLink, *, step: str = "r3") -> dict[str, int]:
    """Sends every cluster of `disk`, then waits until the receiver has written and synced it. Blocking.

    Returns:
        clusters, sent (bytes on the wire).

    Raises:
        Damaged: told to the receiver too. DataLinkSilent, DataLinkCut, RemoteError: the receiver failed.
    """
    clusters = 0
    with _until_the_end(link, step):
        link.start_ticks()
        for batch in disk.batches():
            link.heed()
            fields = {"first": batch.first, "lengths": batch.lengths, "digests": batch.digests}
            link.send("data", fields, batch.parts, batch.size)
            clusters += batch.data
        link.stop_ticks()
        link.send("end", {"data": clusters, "size": disk.size})
        answer = link.receive()
        if answer.kind != "received" or answer.fields.get("clusters") != clusters:
            raise DataProtocol("the receiver did not confirm every cluster", **link.where)
    return {"clusters": clusters, "sent": link.sent}


def answer_reads(disk: DiskView, link: DataLink, *, step: str = "r3") -> dict[str, int]:
    """Answers until the console ends. Blocking.

    Returns:
        reads, sent (bytes on the wire).

    Raises:
        DataProtocol, DataLinkSilent, DataLinkCut.
    """
    reads = 0
    with _until_the_end(link, step):
        while (frame := link.receive()).kind == "read":
            offset, length = frame.fields.get("offset"), frame.fields.get("length")
            if type(offset) is not int or type(length) is not int or offset < 0 or not 0 < length <= MOST:
                raise DataProtocol(f"a read of {length} bytes at {offset}", **link.where)
            try:
                data = disk.read(offset, length)
            except StoreError as exc:
                exc.step = exc.step or step
                link.fail(exc)
                continue
            link.send("data", {"offset": offset}, [data], len(data))
            reads += 1
        if frame.kind != "end":
            raise DataProtocol(f"a {frame.kind} frame among reads", **link.where)
    return {"reads": reads, "sent": link.sent}


@contextmanager
def _until_the_end(link: DataLink, step: str) -> Iterator[None]:
    """Closes the link afterwards; an error is told to the other side first."""
    try:
        yield
    except VadplabError as exc:
        exc.step = exc.step or step
        link.stop_ticks()
        link.fail(exc)
        raise
    finally:
        link.close()
