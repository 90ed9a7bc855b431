# SPDX-License-Identifier: MIT
"""The test disk: program files, random areas and holes, the same bytes for the same machine and size; and the same disk later."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

PIECE = 1 << 20
CLUSTER = 1 << 16


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


def change(image: Path, later: Path, share: float, *, seed: int = 2) -> list[tuple[int, int]]:
    """Makes `later`, in which that share of the disk's clusters of 64 KiB has other bytes; returns them as (offset, length).

    They lie in runs of up to eight, as writes of a guest do, in areas that are not holes; half of the new bytes compress.
    """
    rng = random.Random(seed)
    subprocess.run(["cp", "--sparse=always", str(image), str(later)], check=True, timeout=600)
    size = image.stat().st_size
    wanted = max(1, round(size // CLUSTER * share))
    touched: set[int] = set()
    with image.open("rb") as old, later.open("r+b") as new:
        while len(touched) < wanted:
            first = rng.randrange(size // CLUSTER)
            old.seek(first * CLUSTER)
            if not any(old.read(CLUSTER)):
                continue
            for cluster in range(first, min(first + rng.randint(1, 8), size // CLUSTER)):
                if len(touched) < wanted and cluster not in touched:
                    new.seek(cluster * CLUSTER)
                    new.write(rng.randbytes(CLUSTER // 2) + bytes([rng.randrange(1, 255)]) * (CLUSTER // 2))
                    touched.add(cluster)
        new.flush()
        os.fsync(new.fileno())
    ranges: list[tuple[int, int]] = []
    for cluster in sorted(touched):
        if ranges and sum(ranges[-1]) == cluster * CLUSTER:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + CLUSTER)
        else:
            ranges.append((cluster * CLUSTER, CLUSTER))
    return ranges


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
