# SPDX-License-Identifier: MIT
"""The repository's half of a restore: checked blocks of a restore point, sent to the console, or to a proxy's Data Mover."""

from __future__ import annotations

from engine.errors import VadplabError
from engine.mover.datalink import DataLink
from engine.mover.errors import DataProtocol
from engine.store.point_disk import PointDisk


def send_disk(disk: PointDisk, link: DataLink, *, step: str = "r3") -> dict[str, int]:
    """Sends every block of `disk`, then waits until the receiver has written and synced it. Blocking.

    Returns:
        blocks, sent (bytes on the wire).

    Raises:
        Damaged: told to the console too. DataLinkSilent, DataLinkCut, RemoteError: the console failed.
    """
    blocks = 0
    link.start_ticks()
    try:
        for batch in disk.batches():
            link.heed()
            fields = {"first": batch.first, "lengths": batch.lengths, "digests": batch.digests}
            link.send("data", fields, batch.parts, batch.size)
            blocks += batch.data
        link.stop_ticks()
        link.send("end", {"data": blocks, "size": disk.size})
        answer = link.receive()
        if answer.kind != "received" or answer.fields.get("blocks") != blocks:
            raise DataProtocol("the console did not confirm every block", **link.where)
        return {"blocks": blocks, "sent": link.sent}
    except VadplabError as exc:
        exc.step = exc.step or step
        link.stop_ticks()
        link.fail(exc)
        raise
    finally:
        link.close()
