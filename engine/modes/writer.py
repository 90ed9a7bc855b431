# SPDX-License-Identifier: MIT
"""The one interface for writing into a disk of a restored VM, whatever the transport mode (`engine.modes.source` for reading)."""

from __future__ import annotations

from abc import abstractmethod

from engine.modes.disk import OpenDisk


class DiskWriter(OpenDisk):
    """A disk opened for writing. Several threads may write different places at once."""

    @abstractmethod
    def write(self, offset: int, data: memoryview) -> None:
        """Writes all of `data` at `offset`; both are multiples of 512 and within the disk. Returns when the disk has it.

        Raises:
            ValueError: they are not. VadplabError: the disk refused, or the writer is closed.
        """

    @abstractmethod
    def flush(self) -> None:
        """Returns when everything written will survive. Raises VadplabError."""
