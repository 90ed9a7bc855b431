# SPDX-License-Identifier: MIT
"""Writing a restored disk: everything arrives, and nothing that is damaged, too much or too little is called done."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from engine.errors import RemoteError, VadplabError
from engine.modes.errors import WriteFailed
from engine.modes.writer import DiskWriter
from engine.mover.datalink import DataLink
from engine.mover.writer_pipeline import WriterPipeline
from engine.store.clusters import Packer
from tests.engine.modes.esxi import sample
from tests.engine.mover.test_datalink import links
from tests.engine.pki import Pki

SIZE = (5 << 20) + 512 * 7
CONTENT = sample(SIZE)


class MemoryWriter(DiskWriter):
    """A disk in memory. `fail_at`: a write there fails."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.capacity = SIZE
        self.content = bytearray(SIZE)
        self.flushed = False
        self.fail_at = fail_at

    def write(self, offset: int, data: memoryview) -> None:
        self.check_range(offset, len(data))
        if self.fail_at is not None and offset <= self.fail_at < offset + len(data):
            raise WriteFailed("made to fail")
        self.content[offset : offset + len(data)] = data

    def flush(self) -> None:
        self.flushed = True

    def close(self) -> None:
        pass


def send(
    link: DataLink, spoil: Callable[[dict[str, Any], bytearray], None] | None = None, end: int = 0
) -> dict[str, Any]:
    """The sender's half: all of CONTENT; `spoil` changes fields and payload of a batch, `end` is added to the number sent."""
    packer, blocks = Packer(), 0
    for at in range(0, SIZE, 1 << 20):
        batch = packer.pack(at >> 16, memoryview(CONTENT)[at : at + (1 << 20)])
        fields: dict[str, Any] = {"first": batch.first, "lengths": batch.lengths, "digests": batch.digests}
        payload = bytearray(b"".join(batch.parts))
        if spoil is not None:
            spoil(fields, payload)
        link.heed()
        link.send("data", fields, [payload], len(payload))
        blocks += batch.data
    link.send("end", {"data": blocks + end, "size": SIZE})
    return link.receive().fields


def run(pki: Pki, writer: MemoryWriter, **sending: Any) -> tuple[Any, Any]:
    """What the pipeline and the sender gave, or failed with."""
    results: list[Any] = [None, None]
    with links(pki) as (mine, theirs):

        def write() -> None:
            try:
                results[0] = WriterPipeline(writer, mine, step="v7", workers=3).run()
            except VadplabError as exc:
                results[0] = exc

        thread = threading.Thread(target=write)
        thread.start()
        try:
            results[1] = send(theirs, **sending)
        except VadplabError as exc:
            results[1] = exc
        thread.join(20)
        assert not thread.is_alive()
    return results[0], results[1]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


def test_everything_is_written(pki: Pki) -> None:
    writer = MemoryWriter()
    written, answer = run(pki, writer)
    assert writer.content == CONTENT and writer.flushed
    assert answer == {"clusters": written["clusters"]}
    assert written["written"] >= sum(1 for at in range(0, SIZE, 65536) if any(CONTENT[at : at + 65536]))


def test_damaged_on_the_way(pki: Pki) -> None:
    def spoil(fields: dict[str, Any], payload: bytearray) -> None:
        if fields["first"] == 32:
            fields["digests"] = bytes([fields["digests"][0] ^ 1]) + fields["digests"][1:]

    assert any(CONTENT[32 << 16 : 33 << 16]), "the test's disk holds something there"
    writer = MemoryWriter()
    failure, answer = run(pki, writer, spoil=spoil)
    assert failure.code == "store.damaged" and f"offset {32 << 16}" in failure.message and not writer.flushed
    assert isinstance(answer, RemoteError) and answer.to_dict()["code"] == "store.damaged"


def test_a_disk_that_refuses(pki: Pki) -> None:
    writer = MemoryWriter(fail_at=next(at for at in range(0, SIZE, 512) if CONTENT[at]))
    failure, answer = run(pki, writer)
    assert (failure.code, failure.step) == ("restore.write", "v7") and not writer.flushed
    assert isinstance(answer, RemoteError) and answer.to_dict()["code"] == "restore.write"


def test_another_number_of_blocks(pki: Pki) -> None:
    writer = MemoryWriter()
    failure, answer = run(pki, writer, end=1)
    assert failure.code == "data.protocol" and not writer.flushed
    assert isinstance(answer, RemoteError)
