# SPDX-License-Identifier: MIT
"""What every `Source` must do. Each `check_*` method is found by reflection and run for each implementation.

A new transport mode joins by giving `Subject`s: how to open a source on a disk with known bytes.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from engine.errors import VadplabError
from engine.modes.source import Source

MIB = 1 << 20


@dataclass
class Subject:
    """An implementation under test: `open` gives a fresh source on a disk whose bytes are `content`."""

    open: Callable[[], Source]
    content: bytes


class SourceSuite:
    """The statements."""

    def check_capacity_is_that_of_the_disk(self, subject: Subject) -> None:
        with subject.open() as source:
            assert source.capacity == len(subject.content)

    def check_whole_disk_in_pieces(self, subject: Subject) -> None:
        with subject.open() as source:
            found = bytearray(source.capacity)
            view = memoryview(found)
            for offset in range(0, source.capacity, MIB):
                source.read(offset, view[offset : offset + MIB])
            assert found == subject.content

    def check_one_sector_at_odd_places(self, subject: Subject) -> None:
        with subject.open() as source:
            for offset in (0, 512, 65536 - 512, source.capacity - 512):
                buffer = bytearray(512)
                source.read(offset, memoryview(buffer))
                assert buffer == subject.content[offset : offset + 512]

    def check_reads_overlap_and_finish_in_any_order(self, subject: Subject) -> None:
        with subject.open() as source:
            size = 128 << 10
            buffers = [bytearray(size) for _ in range(8)]
            reads = [source.start(n * size, memoryview(buffer)) for n, buffer in enumerate(buffers)]
            for read in reversed(reads):
                read.wait()
            assert b"".join(buffers) == subject.content[: 8 * size]

    def check_threads_share_a_source(self, subject: Subject) -> None:
        with subject.open() as source:
            found, failures = bytearray(source.capacity), []

            def work(first: int) -> None:
                try:
                    view = memoryview(found)
                    for offset in range(first * 65536, source.capacity, 4 * 65536):
                        source.read(offset, view[offset : offset + 65536])
                except BaseException as exc:
                    failures.append(exc)

            threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            assert not failures
            assert found == subject.content

    def check_a_range_outside_the_disk_is_refused(self, subject: Subject) -> None:
        with subject.open() as source:
            for offset, length in (
                (source.capacity, 512),
                (source.capacity - 512, 1024),
                (-512, 512),
                (1, 512),
                (0, 100),
            ):
                with pytest.raises(ValueError):
                    source.start(offset, memoryview(bytearray(length)))

    def check_extents_cover_all_data(self, subject: Subject) -> None:
        with subject.open() as source:
            extents = source.extents()
            if extents is None:
                return  # all is read
            blank = bytearray(subject.content)
            last = 0
            for offset, length in extents:
                assert offset >= last and length > 0 and offset + length <= source.capacity
                last = offset + length
                blank[offset:last] = bytes(length)
            assert not any(blank)

    def check_close_may_be_repeated_and_ends_reads(self, subject: Subject) -> None:
        source = subject.open()
        source.close()
        source.close()
        with pytest.raises(VadplabError):
            source.read(0, memoryview(bytearray(512)))


CHECKS = [name for name, _ in inspect.getmembers(SourceSuite, inspect.isfunction) if name.startswith("check_")]
