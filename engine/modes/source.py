# SPDX-License-Identifier: MIT
"""The one interface of all transport modes: a disk opened as of a snapshot.

Blocking: the data path's threads use it. `start` may be called by several threads and several times before the first
`wait`, so that reads overlap; how many are really in flight is the mode's business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from types import TracebackType
from typing import ClassVar, Protocol

Extent = tuple[int, int]
"""(offset, length) in bytes."""


class Read(Protocol):
    """A read in flight."""

    def wait(self) -> None:
        """Returns when the buffer is filled. Raises the mode's error of the catalogue when it cannot be."""


class Source(ABC):
    """A disk opened for reading; `capacity` in bytes, a multiple of 512."""

    mode: ClassVar[str]
    step: ClassVar[str]
    """The step that reads: 20a, 20b or 20c."""
    capacity: int

    @abstractmethod
    def extents(self) -> Iterable[Extent] | None:
        """Allocated areas in ascending order, without overlap; None when the mode cannot tell (then all is read)."""

    @abstractmethod
    def start(self, offset: int, view: memoryview) -> Read:
        """Begins to read `len(view)` bytes at `offset` into `view`; both are multiples of 512 and within the disk.

        Raises:
            ValueError: they are not. VadplabError: the source is closed or has failed.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends the source; reads in flight fail. Harmless when called twice."""

    def read(self, offset: int, view: memoryview) -> None:
        """Reads and waits."""
        self.start(offset, view).wait()

    def check_range(self, offset: int, length: int) -> None:
        """Raises ValueError unless the range is aligned, not empty and within the disk."""
        if offset % 512 or length % 512 or length <= 0 or offset < 0 or offset + length > self.capacity:
            raise ValueError(f"{offset}+{length} is not a range of whole sectors in a disk of {self.capacity} bytes")

    def __enter__(self) -> Source:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
