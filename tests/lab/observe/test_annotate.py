# SPDX-License-Identifier: MIT
"""Packet comments, checked with tshark."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.observe import packets
from lab.observe.annotate import NotPcapng, annotate
from tests.lab.observe.wire import MS, Conversation, Wire

T0 = 1_790_000_000_000_000_000


def capture(tmp_path: Path) -> Path:
    wire = Wire()
    talk = Conversation(wire, "10.77.4.10", 40000, "10.77.8.10", 902)
    talk.syn(T0, forwarded=False)
    talk.reset_by_router(T0 + MS)
    return wire.write(tmp_path / "c.pcapng")


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark_finds_the_comment_and_nothing_malformed(tmp_path: Path) -> None:
    path = capture(tmp_path)
    assert annotate(path, {1: "rule=H5 row=H5 step=19 verdict=refused", 9: "no such frame"}) == 1
    shown = subprocess.run(
        ["tshark", "-r", str(path), "-Y", 'frame.comment contains "H5"', "-T", "fields", "-e", "frame.number"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.split() == ["1"]
    bad = subprocess.run(["tshark", "-r", str(path), "-Y", "_ws.malformed"], capture_output=True, text=True, check=True)
    assert bad.stdout == ""


def test_packets_stay_the_same(tmp_path: Path) -> None:
    path = capture(tmp_path)
    before = list(packets.read(path))
    annotate(path, {1: "é" * 41, 2: ""})
    assert list(packets.read(path)) == before
    annotate(path, {1: "a second comment"})
    assert list(packets.read(path)) == before


def test_cut_file_loses_only_its_last_block(tmp_path: Path) -> None:
    path = capture(tmp_path)
    path.write_bytes(path.read_bytes()[:-7])
    assert annotate(path, {1: "kept"}) == 1
    assert next(iter(packets.read(path)))["syn_in"] == 1


@given(data=st.binary(max_size=200))
def test_other_bytes_are_refused_and_left_alone(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("x") / "x.pcapng"
    path.write_bytes(data)
    try:
        annotate(path, {1: "x"})
    except NotPcapng:
        assert path.read_bytes() == data
    assert not path.with_name("x.pcapng.new").exists()
