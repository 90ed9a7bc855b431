# SPDX-License-Identifier: MIT
"""A source over bytes in memory: the test double that proves the conformance suite, and feeds pipelines."""

from __future__ import annotations

import threading

from engine.modes.nfc.errors import ReadFailed
from engine.modes.source import Extent, Read, Source


class _Copied:
    def wait(self) -> None:
        pass


class MemorySource(Source):
    """`content` as a disk. `extents_known`: tells which 64 KiB blocks are not zeros. `fail_at`: reads there fail."""

    step = "20c"

    def __init__(self, content: bytes, *, extents_known: bool = False, fail_at: int | None = None) -> None:
        self.capacity = len(content)
        self.reads = 0
        self.gate = threading.Event()
        self.gate.set()
        self._content = content
        self._known = extents_known
        self._fail_at = fail_at
        self._closed = False

    def extents(self) -> list[Extent] | None:
        if not self._known:
            return None
        step = 65536
        return [
            (at, min(step, self.capacity - at))
            for at in range(0, self.capacity, step)
            if any(self._content[at : at + step])
        ]

    def start(self, offset: int, view: memoryview) -> Read:
        self.check_range(offset, len(view))
        self.gate.wait(30)
        if self._closed:
            raise ReadFailed("closed")
        if self._fail_at is not None and offset <= self._fail_at < offset + len(view):
            raise ReadFailed(f"read at offset {offset}: made to fail", step="20c")
        view[:] = self._content[offset : offset + len(view)]
        self.reads += 1
        return _Copied()

    def close(self) -> None:
        self._closed = True
        self.gate.set()
