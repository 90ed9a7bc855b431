# SPDX-License-Identifier: MIT
"""Frames to flows, on captures crafted with scapy."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.observe import headers, packets
from tests.lab.observe.wire import MS, Conversation, Wire, block, ping, udp

A, B = "10.77.4.10", "10.77.8.10"
T0 = 1_790_000_000_000_000_000


def flows(path: Path, kind: str = "tcp") -> list[dict[str, Any]]:
    return [line for line in packets.read(path) if line["kind"] == kind]


def test_open_connection(tmp_path: Path) -> None:
    wire = Wire()
    talk = Conversation(wire, A, 40000, B, 902)
    talk.open(T0)
    talk.say(T0 + 10 * MS, 300, mine=False)
    talk.say(T0 + 11 * MS, 40)
    talk.say(T0 + 900 * MS, 5000, mine=False)
    talk.close(T0 + 1000 * MS)
    (flow,) = flows(wire.write(tmp_path / "c.pcapng"))
    assert (flow["src"], flow["sport"], flow["dst"], flow["dport"]) == (A, 40000, B, 902)
    assert flow["start"] == T0
    assert (flow["syn_in"], flow["syn_out"]) == (1, 1)
    assert flow["synack_in"] == T0 + MS
    assert flow["synack_out"] == T0 + MS + 5000
    assert (flow["sent"], flow["received"], flow["retransmits"]) == (40, 5300, 0)
    assert [a[2:] for a in flow["activity"]] == [[40, 300], [0, 5000]]
    assert flow["activity"][1][0] == T0 + 900 * MS + 5000
    assert flow["fin"] == T0 + 1000 * MS + 5000
    assert flow["rst"] == [] and flow["icmp"] == []


def test_dropped_syn_counts_repeats_in_one_flow(tmp_path: Path) -> None:
    wire = Wire()
    talk = Conversation(wire, A, 40000, B, 902)
    for wait in (0, 1000, 3000):
        talk.syn(T0 + wait * MS, forwarded=False)
    (flow,) = flows(wire.write(tmp_path / "c.pcapng"))
    assert (flow["syn_in"], flow["syn_out"], flow["retransmits"]) == (3, 0, 2)
    assert flow["synack_in"] is None


def test_who_reset(tmp_path: Path) -> None:
    wire = Wire()
    by_router = Conversation(wire, A, 40000, B, 902)
    by_router.syn(T0, forwarded=False)
    by_router.reset_by_router(T0 + MS)
    by_responder = Conversation(wire, A, 40001, B, 903)
    by_responder.syn(T0 + 10 * MS)
    by_responder.reset(T0 + 11 * MS)
    by_initiator = Conversation(wire, A, 40002, B, 904)
    by_initiator.open(T0 + 20 * MS)
    by_initiator.reset(T0 + 30 * MS, mine=True)
    found = flows(wire.write(tmp_path / "c.pcapng"))
    assert [[r["by"] for r in f["rst"]] for f in found] == [["router"], ["responder"], ["initiator"]]
    assert found[1]["rst"][0]["forwarded"] is True


def test_icmp_prohibited_is_joined_to_its_flow(tmp_path: Path) -> None:
    wire = Wire()
    talk = Conversation(wire, A, 40000, B, 902)
    talk.syn(T0, forwarded=False)
    talk.prohibited(T0 + MS)
    lines = list(packets.read(wire.write(tmp_path / "c.pcapng")))
    (flow,) = [x for x in lines if x["kind"] == "tcp"]
    assert [(e["type"], e["code"]) for e in flow["icmp"]] == [(3, 13)]
    assert not [x for x in lines if x["kind"] == "other"]


def test_same_tuple_again_is_a_second_flow(tmp_path: Path) -> None:
    wire = Wire()
    Conversation(wire, A, 40000, B, 902, isn=1).open(T0)
    Conversation(wire, A, 40000, B, 902, isn=777).open(T0 + 100 * MS)
    assert [f["start"] for f in flows(wire.write(tmp_path / "c.pcapng"))] == [T0, T0 + 100 * MS]


def test_connection_older_than_the_capture_has_no_start(tmp_path: Path) -> None:
    wire = Wire()
    Conversation(wire, A, 40000, B, 902).say(T0, 100)
    (flow,) = flows(wire.write(tmp_path / "c.pcapng"))
    assert flow["start"] is None and flow["sent"] == 100


def test_retransmission_adds_no_bytes_and_lost_frame_is_counted(tmp_path: Path) -> None:
    wire = Wire()
    talk = Conversation(wire, A, 40000, B, 902, isn=0xFFFFFF00)
    talk.open(T0)
    talk.say(T0 + 10 * MS, 400)
    talk.seq[True] = (talk.seq[True] - 400) & 0xFFFFFFFF
    talk.say(T0 + 20 * MS, 400)  # the same bytes again
    talk.seq[True] += 1000  # a frame that the capture did not keep
    talk.say(T0 + 30 * MS, 100)
    (flow,) = flows(wire.write(tmp_path / "c.pcapng"))
    assert (flow["sent"], flow["retransmits"]) == (1500, 1)


def test_other_packets_and_summary(tmp_path: Path) -> None:
    wire = Wire()
    wire.forward(T0, udp(A, 5353, B, 53))
    wire.frame(T0 + MS, udp(A, 5353, B, 53), out=False)
    wire.frame(T0 + 2 * MS, ping(A, B), out=False)
    wire.frame(T0 + 3 * MS, udp("127.0.0.1", 1, "127.0.0.1", 9), out=True)
    wire.frame(T0 + 4 * MS, ping(A, B), out=False, ethertype=0x0806)
    lines = list(packets.read(wire.write(tmp_path / "c.pcapng")))
    assert [(x["protocol"], x["packets"], x["incoming"], x["outgoing"]) for x in lines[:2]] == [
        ("udp", 3, 2, 1),
        ("icmp", 1, 1, 0),
    ]
    assert lines[-1]["kind"] == "capture" and (lines[-1]["packets"], lines[-1]["ignored"]) == (6, 2)


def test_unreadable_files_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.pcapng"
    bad.write_bytes(b"not a capture at all")
    assert packets.main([str(bad)]) == 2
    assert packets.main([str(tmp_path / "absent")]) == 2
    assert packets.main([]) == 2
    ethernet = Wire().write(tmp_path / "e.pcapng")
    raw = ethernet.read_bytes().replace(b"\x14\x01\x00\x00", b"\x01\x00\x00\x00", 1)
    body = b"\0" * 20
    ethernet.write_bytes(raw + block(6, b"\0" * 12 + b"\x14\0\0\0\x14\0\0\0" + body))
    assert packets.main([str(ethernet)]) == 2
    assert "cooked" in capsys.readouterr().err


@pytest.mark.parametrize("link", [headers.SLL, headers.SLL2])
@given(data=st.binary(max_size=120), wire=st.integers(0, 1 << 20))
def test_any_bytes_give_a_frame_or_nothing(link: int, data: bytes, wire: int) -> None:
    got = headers.parse(data, link, wire)
    assert got is None or got.payload >= 0


def test_hundred_thousand_frames_in_seconds(tmp_path: Path) -> None:
    wire = Wire()
    talk = Conversation(wire, A, 40000, B, 902)
    talk.open(T0)
    talk.say(T0 + 10 * MS, 1400)
    first, second = wire.blocks[-2:]
    path = wire.write(tmp_path / "c.pcapng")
    path.write_bytes(path.read_bytes() + (first[1] + second[1]) * 50_000)
    start = time.process_time()
    done = subprocess.run(
        [sys.executable, "-m", "lab.observe.packets", str(path)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1])["packets"] == 100_008
    assert time.process_time() - start < 30
