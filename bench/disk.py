# SPDX-License-Identifier: MIT
"""The test disk: program files, random areas and holes, the same bytes for the same machine and size."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

PIECE = 1 << 20


def make(path: Path, size: int) -> int:
    """Writes a sparse image: about 60 % program files, 8 % random, the rest holes; returns the bytes that are not holes."""
    rng = random.Random(1)
    files = _programs()
    written = 0
    with path.open("wb") as out:
        out.truncate(size)
        for offset in range(0, size, PIECE):
            kind = rng.random()
            if kind > 0.68:
                continue
            data = rng.randbytes(PIECE) if kind < 0.08 else next(files)
            out.seek(offset)
            out.write(data[: size - offset])
            written += len(data)
        out.flush()
        os.fsync(out.fileno())
    return written


def _programs() -> Iterator[bytes]:
    """Pieces of 1 MiB of the machine's own program files, again from the start when they end."""
    pending = bytearray()
    while True:
        for folder in ("/usr/lib", "/usr/bin", "/usr/share"):
            for root, _, names in sorted(os.walk(folder)):
                for name in sorted(names):
                    path = Path(root, name)
                    if path.is_file() and not path.is_symlink():
                        pending += path.read_bytes()
                    while len(pending) >= PIECE:
                        yield bytes(pending[:PIECE])
                        del pending[:PIECE]
