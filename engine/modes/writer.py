# SPDX-License-Identifier: MIT
"""The one interface for writing into a disk of a restored VM, whatever the transport mode (`engine.modes.source` for reading)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import ClassVar


class DiskWriter(ABC):
    """A disk opened for writing; `capacity` in bytes. Blocking; several threads may write different places at once."""

    mode: ClassVar[str]
    capacity: int

    @abstractmethod
    def write(self, offset: int, data: memoryview) -> None:
        """Writes all of `data` at `offset`; both are multiples of 512 and within the disk. Returns when the disk has it.

        Raises:
            ValueError: they are not. VadplabError: the disk refused, or the writer is closed.
        """

    @abstractmethod
    def flush(self) -> None:
        """Returns when everything written will survive. Raises VadplabError."""

    @abstractmethod
    def close(self) -> None:
        """Ends the writer. Harmless when called twice. May raise when the disk cannot be given back."""

    def check_range(self, offset: int, length: int) -> None:
        """Raises ValueError unless the range is aligned, not empty and within the disk."""
        if offset % 512 or length % 512 or length <= 0 or offset < 0 or offset + length > self.capacity:
            raise ValueError(f"{offset}+{length} is not a range of whole sectors in a disk of {self.capacity} bytes")

    def __enter__(self) -> DiskWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
