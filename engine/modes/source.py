# SPDX-License-Identifier: MIT
"""The one interface of all transport modes: a disk opened as of a snapshot.

Blocking: the data path's threads use it. `start` may be called by several threads and several times before the first
`wait`, so that reads overlap; how many are really in flight is the mode's business.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Protocol

from engine.modes.disk import OpenDisk

Extent = tuple[int, int]
"""(offset, length) in bytes."""


class Read(Protocol):
    """A read in flight."""

    def wait(self) -> None:
        """Returns when the buffer is filled. Raises the mode's error of the catalogue when it cannot be."""


class Source(OpenDisk):
    """A disk opened for reading."""

    step: ClassVar[str]
    """The step that reads: 20a, 20b or 20c."""

    @abstractmethod
    def extents(self) -> Iterable[Extent] | None:
        """Allocated areas in ascending order, without overlap; None when the mode cannot tell (then all is read)."""

    @abstractmethod
    def start(self, offset: int, view: memoryview) -> Read:
        """Begins to read `len(view)` bytes at `offset` into `view`; both are multiples of 512 and within the disk.

        Raises:
            ValueError: they are not. VadplabError: the source is closed or has failed.
        """

    def read(self, offset: int, view: memoryview) -> None:
        """Reads and waits."""
        self.start(offset, view).wait()
