# SPDX-License-Identifier: MIT
"""Comparing with the restore point below, where vCenter cannot say what changed: its digests travel over the data link.

The proxy's mover asks (`digests?`), the repository's answers with the digest table of the parent's disk (`digests`, pages
that hold something; then `digests.end` with the root). Then the proxy reads the disk and sends only clusters that differ.
"""

from __future__ import annotations

from collections.abc import Iterator

from blake3 import blake3

from engine.mover.datalink import DataLink, Frame
from engine.mover.errors import DataProtocol, NoParent
from engine.store.clusters import CLUSTER, DIGEST, ZERO_DIGEST
from engine.store.digests import DigestTable
from engine.store.errors import FormatError

REQUEST = "digests?"
PAGE = 8192
"""Digests of one frame."""


def answer(link: DataLink, parent: DigestTable | None) -> None:
    """Makes the receiving side of `link` answer requests for the digests of `parent` (None: there is no parent)."""

    def reply(_frame: Frame) -> None:
        if parent is None:
            raise NoParent("the source asks for the parent's digests, but the disk has no parent", **link.where)
        for first in range(0, parent.clusters, PAGE):
            count = min(PAGE, parent.clusters - first)
            if parent.holds(first, first + count):
                page = parent.get(first, count)
                link.send("digests", {"first": first}, [page], len(page))
        link.send("digests.end", {"root": parent.root(), "size": parent.size})

    link.answers[REQUEST] = reply


def fetch(link: DataLink) -> DigestTable:
    """The digests of the disk below, from the other side of `link`; blocking.

    Raises:
        RemoteError (`data.no-parent`): there is none. DataProtocol, DataLinkSilent, DataLinkCut.
    """
    pages: list[tuple[int, bytes]] = []
    with link.turn():
        link.send(REQUEST)
        while (frame := link.receive()).kind == "digests":
            pages.append((_number(frame, "first", link), bytes(frame.payload)))
        if frame.kind != "digests.end":
            raise DataProtocol(f"{frame.kind} instead of digests", **link.where)
        table = DigestTable(_number(frame, "size", link))
        root = frame.fields.get("root")
    try:
        for first, digests in pages:
            table.put(first, digests)
    except FormatError as exc:
        raise DataProtocol(exc.message, **link.where) from exc
    if table.root() != root:
        raise DataProtocol("the parent's digests did not arrive as they were sent", **link.where)
    return table


class Comparison:
    """Finds which clusters of what was read differ from the parent. Clusters beyond the parent's end count as zeros there."""

    def __init__(self, parent: DigestTable) -> None:
        self._parent = parent
        self._zeros = bytes(CLUSTER)

    def differing(self, first: int, view: memoryview) -> Iterator[tuple[int, memoryview]]:
        """Runs of neighbouring clusters that differ, as (first cluster, bytes); `view` begins at cluster `first`."""
        size = CLUSTER
        known = self._known(first, -(-len(view) // size))
        begin: int | None = None
        for position, at in enumerate(range(0, len(view), size)):
            same = self._digest(view[at : at + size]) == known[position * DIGEST : (position + 1) * DIGEST]
            if same and begin is not None:
                yield first + begin, view[begin * size : at]
                begin = None
            elif not same and begin is None:
                begin = position
        if begin is not None:
            yield first + begin, view[begin * size :]

    def _known(self, first: int, count: int) -> bytes:
        inside = max(0, min(count, self._parent.clusters - first))
        return self._parent.get(first, inside) + bytes((count - inside) * DIGEST)

    def _digest(self, piece: memoryview) -> bytes:
        if bytes(piece) == self._zeros[: len(piece)]:  # a view would be compared byte by byte
            return ZERO_DIGEST
        if len(piece) == CLUSTER:
            return blake3(piece).digest()
        return blake3(bytes(piece) + bytes(CLUSTER - len(piece))).digest()


def _number(frame: Frame, name: str, link: DataLink) -> int:
    value = frame.fields.get(name)
    if type(value) is not int or value < 0:
        raise DataProtocol(f"a {frame.kind} frame without {name}", **link.where)
    return value
