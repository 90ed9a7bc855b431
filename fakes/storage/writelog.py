# SPDX-License-Identifier: MIT
"""The write log: for every grain of a disk, the sequence number that was current at its last write (0: never).

The sequence grows by one at each snapshot. A grain changed after the snapshot with sequence n has a number > n. An
entry is made *before* the data is written, so that a kill in between only claims too much.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

from fakes.storage import grains
from fakes.storage.layer import MappedWords


class WriteLog(MappedWords):
    """The live log of one disk."""

    def note(self, first: int, last: int, sequence: int) -> None:
        """Grains first..last (inclusive) are about to be written."""
        words = self.words
        for grain in range(first, last + 1):
            words[grain] = sequence

    def copy(self) -> array[int]:
        """The log as it is now. Callers hold the gate closed."""
        return array("I", self.words.tobytes())


def changed(log: array[int], since: int) -> Iterator[int]:
    """Grains written after the snapshot whose sequence is `since`."""
    for grain in grains.used(log):
        if log[grain] > since:
            yield grain


def load(path: Path) -> array[int]:
    """A copy kept with a snapshot."""
    log = array("I")
    log.frombytes(path.read_bytes())
    return log
