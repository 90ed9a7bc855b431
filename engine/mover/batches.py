# SPDX-License-Identifier: MIT
"""The `data` frames of a data connection (`docs/datalink.md`): which clusters one carries."""

from __future__ import annotations

from typing import Any

from engine.mover.datalink import DataLink, Frame
from engine.mover.errors import DataProtocol
from engine.store.clusters import check_batch
from engine.store.errors import FormatError


def batch_of(frame: Frame, clusters: int, link: DataLink) -> tuple[int, list[int], bytes]:
    """First cluster, lengths and digests of a `data` frame for a disk of `clusters` clusters.

    Raises:
        DataProtocol: the frame is of another kind, or its parts do not fit together.
    """
    fields: dict[str, Any] = frame.fields
    first, lengths, digests = fields.get("first"), fields.get("lengths"), fields.get("digests")
    if frame.kind != "data" or not isinstance(first, int) or not isinstance(lengths, list) or not lengths:
        raise DataProtocol(f"a {frame.kind} frame is not a batch", **link.where)
    if not isinstance(digests, bytes) or not all(type(length) is int for length in lengths):
        raise DataProtocol("a batch without lengths or digests", **link.where)
    try:
        check_batch(first, lengths, digests, len(frame.payload), clusters=clusters)
    except FormatError as exc:
        raise DataProtocol(exc.message, **link.where) from exc
    return first, lengths, digests
