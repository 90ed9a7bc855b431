# SPDX-License-Identifier: MIT
"""Comparing with the parent: its digests over a data link, and exactly the clusters that differ."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import RemoteError, VadplabError
from engine.mover import comparison
from engine.mover.comparison import Comparison
from engine.mover.datalink import DataLink
from engine.store.clusters import Packer
from engine.store.digests import DigestTable
from tests.engine.mover.test_datalink import links
from tests.engine.pki import Pki

CLUSTER = 65536


def table(content: bytes) -> DigestTable:
    made = DigestTable(len(content))
    packer = Packer()
    for at in range(0, len(content), 1 << 20):
        batch = packer.pack(at // CLUSTER, memoryview(content)[at : at + (1 << 20)])
        made.put(batch.first, batch.digests)
    return made


@contextlib.contextmanager
def answering(folder: Path, parent: DigestTable | None) -> Iterator[tuple[DataLink, list[VadplabError]]]:
    """The source's end of a link whose other end answers for `parent`; and what the other end failed with."""
    failures: list[VadplabError] = []
    with links(Pki(folder)) as (source, target):
        comparison.answer(target, parent)

        def serve() -> None:
            try:
                target.receive()
            except VadplabError as exc:
                failures.append(exc)
                target.fail(exc)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        source.start_ticks()
        yield source, failures
        source.send("done")
        thread.join(10)
        assert not thread.is_alive()


def test_digests_travel(tmp_path: Path) -> None:
    mine = DigestTable(9000 * CLUSTER - 512)  # more than one frame of digests
    for cluster in (5, 8191, 8999):
        mine.put(cluster, bytes([cluster % 251]) * 32)
    with answering(tmp_path, mine) as (link, _):
        found = comparison.fetch(link)
    assert found.root() == mine.root() and found.size == mine.size


def test_no_parent(tmp_path: Path) -> None:
    with answering(tmp_path, None) as (link, failures):
        with pytest.raises(RemoteError) as caught:
            comparison.fetch(link)
        assert caught.value.to_dict()["code"] == "data.no-parent"
    assert [failure.code for failure in failures] == ["data.no-parent"]


@given(
    old=st.lists(st.integers(0, 2), min_size=1, max_size=24),
    new=st.lists(st.integers(0, 2), min_size=1, max_size=24),
    cut=st.integers(0, 3),
)
def test_exactly_what_differs(old: list[int], new: list[int], cut: int) -> None:
    def disk(kinds: list[int]) -> bytes:
        return b"".join(bytes([kind]) * CLUSTER for kind in kinds)

    before, after = disk(old), disk(new)[: len(new) * CLUSTER - 512 * cut]
    found: list[int] = []
    view = memoryview(after)
    compare = Comparison(table(before))
    for at in range(0, len(after), 4 * CLUSTER):
        for first, part in compare.differing(at // CLUSTER, view[at : at + 4 * CLUSTER]):
            assert part == view[first * CLUSTER : first * CLUSTER + len(part)]
            found += range(first, first - (-len(part) // CLUSTER))
    padded = after + bytes(512 * cut)
    wanted = [
        n
        for n in range(len(new))
        if padded[n * CLUSTER : (n + 1) * CLUSTER] != before[n * CLUSTER : (n + 1) * CLUSTER].ljust(CLUSTER, b"\0")
    ]
    assert found == wanted
