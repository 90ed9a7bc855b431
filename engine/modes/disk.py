# SPDX-License-Identifier: MIT
"""What every open disk is, read or written, whatever the transport mode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class OpenDisk(ABC):
    """An open disk; `capacity` in bytes, a multiple of 512. Blocking."""

    capacity: int

    @abstractmethod
    def close(self) -> None:
        """Ends it; what is under way fails. Harmless when called twice. May raise when the disk cannot be given back."""

    def check_range(self, offset: int, length: int) -> None:
        """Raises ValueError unless the range is aligned, not empty and within the disk."""
        if offset % 512 or length % 512 or length <= 0 or offset < 0 or offset + length > self.capacity:
            raise ValueError(f"{offset}+{length} is not a range of whole sectors in a disk of {self.capacity} bytes")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
