# SPDX-License-Identifier: MIT
"""Reads of a restore point's disk, asked for by the console that takes single files out of it.

The console asks `read {offset, length}`, one at a time, and gets `data` with that many bytes, each cluster checked against
its digest, or an `error` after which it may go on; `end` ends it. It sends ticks while it has nothing to ask.
"""

from __future__ import annotations

from engine.errors import VadplabError
from engine.mover.datalink import DataLink
from engine.mover.errors import DataProtocol
from engine.store.errors import StoreError
from engine.store.view import DiskView

MOST = 1 << 20
"""Bytes of one read."""


def answer_reads(disk: DiskView, link: DataLink, *, step: str = "r3") -> dict[str, int]:
    """Answers until the console ends. Blocking.

    Returns:
        reads, sent (bytes on the wire).

    Raises:
        DataProtocol, DataLinkSilent, DataLinkCut.
    """
    reads = 0
    try:
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
    except VadplabError as exc:
        exc.step = exc.step or step
        link.fail(exc)
        raise
    finally:
        link.close()
