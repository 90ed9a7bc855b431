# SPDX-License-Identifier: MIT
"""FastLZ blocks written by hand from the format's description, and by a small packer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.esxi.fastlz import decompress
from tests.fakes.esxi import nfc_client

LONG = bytes(i * 7 % 251 for i in range(8192))
FAR = bytes((0x20 | 31,)) + LONG[:32] + b"".join(b"\x1f" + LONG[at : at + 32] for at in range(32, 8192, 32))


@pytest.mark.parametrize(
    ("block", "plain"),
    [
        (b"\x02abc", b"abc"),
        (b"\x02abc\x80\x02", b"abcabcabc"),  # 6 bytes from 3 back
        (b"\x00a\xe0\x05\x00\x00b", b"a" * 15 + b"b"),  # 9 + 5 bytes from 1 back
        (b"\x22abc\x80\x02", b"abcabcabc"),  # the same in level 2
        (b"\x20a\xe0\xff\x03\x00", b"a" * (1 + 9 + 255 + 3)),  # a length of more bytes
        (FAR + b"\x3f\xff\x00\x00", LONG + LONG[:3]),  # 3 bytes from 8192 back
    ],
)
def test_blocks(block: bytes, plain: bytes) -> None:
    assert decompress(block, len(plain)) == plain
    with pytest.raises(ValueError, match="longer"):
        decompress(block, len(plain) - 1)
    with pytest.raises(ValueError, match="FastLZ"):
        decompress(block[:-1], len(plain))


@given(st.lists(st.one_of(st.binary(max_size=40), st.integers(1, 600).map(bytes)), max_size=12).map(b"".join))
def test_what_is_packed_comes_back(data: bytes) -> None:
    if data:
        assert decompress(nfc_client.fastlz(data), len(data)) == data


@given(st.binary(max_size=200))
def test_anything_ends_with_at_most_what_was_announced(data: bytes) -> None:
    try:
        assert len(decompress(data, 1000)) <= 1000
    except ValueError:
        pass
