# SPDX-License-Identifier: MIT
"""Cutting disk data into clusters, and putting clusters back together.

A *batch* is a run of neighbouring clusters: their stored lengths (0 = zeros, cluster size = stored raw, anything else =
one zstd frame), their digests, and one payload that holds the zstd frames first and the raw clusters after them, each
group in cluster order. The raw ones come last because a qcow2 file wants them aligned and the frames not
(disks reference section 4). Batches travel between movers and lie in the file unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import zstandard
from blake3 import blake3

from engine.store.errors import FormatError

CLUSTER_BITS = 16
"""Fixed: manifests, digest files and the data link have no field for another size."""
CLUSTER = 1 << CLUSTER_BITS
DIGEST = 32
ZERO_DIGEST = bytes(DIGEST)
BATCH = 16
"""Clusters of one batch: 1 MiB."""


@dataclass(slots=True)
class Batch:
    """`first` cluster, stored `lengths`, `digests` (32 bytes each), `parts` of the payload in order, payload `size`."""

    first: int
    lengths: list[int]
    digests: bytes
    parts: list[bytes | memoryview]
    size: int

    @property
    def data(self) -> int:
        """Clusters that hold something."""
        return sum(1 for length in self.lengths if length)


class Packer:
    """Makes batches. One per thread: it keeps a compressor and a cluster of zeros."""

    def __init__(self, *, level: int = 1) -> None:
        self._zeros = bytes(CLUSTER)
        # Less than 1/32 saved is not worth a later decompression; raw clusters also read without a copy.
        self._worth = CLUSTER - (CLUSTER >> 5)
        self._compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)

    def pack(self, first: int, view: memoryview) -> Batch:
        """The batch of `view`, which begins at cluster `first`; a short last cluster is filled up with zeros.

        Raw parts refer to `view`: send the batch before its buffer is used again.
        """
        frames: list[bytes | memoryview] = []
        raw: list[bytes | memoryview] = []
        lengths: list[int] = []
        digests: list[bytes] = []
        size = 0
        for at in range(0, len(view), CLUSTER):
            piece: bytes | memoryview = view[at : at + CLUSTER]
            if len(piece) < CLUSTER:
                piece = bytes(piece) + bytes(CLUSTER - len(piece))
            if self._is_zero(piece):
                lengths.append(0)
                digests.append(ZERO_DIGEST)
                continue
            digests.append(blake3(piece).digest())
            frame = self._compressor.compress(piece)
            if len(frame) < self._worth:
                frames.append(frame)
                lengths.append(len(frame))
            else:
                raw.append(piece)
                lengths.append(CLUSTER)
            size += lengths[-1]
        return Batch(first, lengths, b"".join(digests), frames + raw, size)

    def _is_zero(self, piece: bytes | memoryview) -> bool:
        if piece[0] or piece[-1] or piece[CLUSTER // 2]:
            return False
        return bytes(piece) == self._zeros


class Unpacker:
    """Takes batches apart. One per thread: it keeps a decompressor."""

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor()

    def expand(self, frame: bytes | memoryview) -> bytes:
        """The cluster of one zstd frame; bytes after the frame's end are ignored.

        Raises:
            FormatError: not a frame, its checksum is wrong, or it does not hold exactly one cluster.
        """
        try:
            if zstandard.frame_content_size(frame) not in (-1, CLUSTER):
                raise FormatError("a compressed cluster announces another size")
            data = self._decompressor.decompress(frame, max_output_size=CLUSTER)
        except (zstandard.ZstdError, ValueError) as exc:
            raise FormatError(f"a compressed cluster cannot be expanded: {exc}") from exc
        if len(data) != CLUSTER:
            raise FormatError(f"a compressed cluster holds {len(data)} bytes")
        return data

    def unpack(self, lengths: Sequence[int], payload: memoryview) -> Iterator[tuple[int, bytes | memoryview]]:
        """(position in the batch, cluster) of every cluster that is not zeros; raw ones refer to `payload`."""
        frames = at_raw = 0
        for length in lengths:
            if 0 < length < CLUSTER:
                at_raw += length
        for position, length in enumerate(lengths):
            if length == CLUSTER:
                yield position, payload[at_raw : at_raw + length]
                at_raw += length
            elif length:
                yield position, self.expand(payload[frames : frames + length])
                frames += length


def check(piece: bytes | memoryview, digest: bytes | memoryview) -> bool:
    """Whether a cluster has this digest."""
    return bool(blake3(piece).digest() == digest)


def matches(data: bytes | memoryview | None, digest: bytes) -> bool:
    """Whether a cluster (None: zeros) has this entry of the digest table."""
    if data is None:
        return digest == ZERO_DIGEST
    return digest != ZERO_DIGEST and check(data, digest)


def check_batch(first: int, lengths: Sequence[int], digests: bytes, payload: int, *, clusters: int) -> None:
    """Refuses a batch whose parts do not fit together or do not lie in a disk of `clusters` clusters.

    Raises:
        FormatError: with what is wrong.
    """
    if not 0 <= first <= first + len(lengths) <= clusters:
        raise FormatError(f"clusters {first}..{first + len(lengths)} lie outside a disk of {clusters} clusters")
    if len(digests) != DIGEST * len(lengths):
        raise FormatError(f"{len(digests)} bytes of digests for {len(lengths)} clusters")
    if any(not 0 <= length <= CLUSTER for length in lengths):
        raise FormatError("a cluster's stored length is out of range")
    if sum(lengths) != payload:
        raise FormatError(f"a payload of {payload} bytes for clusters of {sum(lengths)}")
