# SPDX-License-Identifier: MIT
"""The firewall's log over netlink: rule ids, addresses, marks, files, losses; and the parser on arbitrary bytes."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firewall_rules.load import load_policy
from lab.observe import nflog
from lab.observe.nflog import LogReader, LogRecord
from lab.observe.nfnetlink import Message, attribute, attributes, messages
from lab.realise.firewall import Firewall, Target
from tests.lab.realise.routed import CLIENT, SERVER, WORLD, needs_root, routed


def packet_message(sequence: int, prefix: bytes = b"H5\0", payload: bytes = b"") -> Message:
    body = attribute(10, prefix) + attribute(12, struct.pack(">I", sequence)) + attribute(9, payload)
    return Message(4 << 8, 0, 0, 2, 5, body)


def tcp_syn() -> bytes:
    ip = bytes([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]) + socket.inet_aton("10.0.0.1") + socket.inet_aton("10.0.0.2")
    return ip + struct.pack(">HHIIBB", 40000, 902, 1, 0, 0x50, 0x02) + bytes(6)


def test_a_record_holds_the_rule_and_the_five_tuple() -> None:
    found = nflog.parse(packet_message(7, payload=tcp_syn()), lambda index: "", now=1234)
    assert found is not None
    record, sequence = found
    assert (record.prefix, record.src, record.dst, record.sport, record.dport) == (
        "H5",
        "10.0.0.1",
        "10.0.0.2",
        40000,
        902,
    )
    assert (record.proto, record.flags, record.length, record.utc, sequence) == ("tcp", "SYN", 40, 1234, 7)
    assert record.to_dict()["in"] == ""


@given(st.binary(max_size=200), st.binary(max_size=120))
def test_the_parser_survives_any_bytes(body: bytes, payload: bytes) -> None:
    nflog.parse(Message(4 << 8, 0, 0, 2, 5, body), lambda index: "", now=0)
    nflog.parse(packet_message(1, payload=payload), lambda index: "", now=0)
    list(messages(body))
    attributes(body)


def test_a_gap_in_the_numbers_is_a_loss() -> None:
    reader = LogReader(None)
    for sequence in (5, 6, 9, 10):
        reader._count(sequence)
    assert (reader.received, reader.lost, reader.complete) == (4, 2, False)


root = pytest.mark.skipif(needs_root, reason="namespaces need root")


@pytest.mark.root
@root
def test_each_first_packet_is_logged_with_its_rule(tmp_path: Path) -> None:
    async def scenario() -> list[LogRecord]:
        seen: list[LogRecord] = []
        with routed() as world:
            firewall = Firewall(world.router)
            await firewall.apply(load_policy("default-12.3"), WORLD)
            world.answer(SERVER, 902)
            reader = LogReader(world.router, on_record=seen.append)
            await reader.start(tmp_path / "nflog.jsonl")
            with pytest.raises(OSError):
                await LogReader(world.router).start()
            assert await world.connect(CLIENT, SERVER, 902) == "open"
            await firewall.block(Target(row="H5"), "reset")
            assert await world.connect(CLIENT, SERVER, 902) == "refused"
            assert await world.connect(CLIENT, SERVER, 22, deadline=0.3) == "timed out"
            await reader.stop()
            counted = await firewall.counters()
            await firewall.close()
            assert reader.complete and reader.received == len(seen)
            for rule in ("H5", "block-1", "default"):
                assert counted[rule].packets == sum(r.prefix == rule for r in seen)
        return seen

    seen = asyncio.run(scenario())
    assert [r.prefix for r in seen[:3]] == ["H5", "block-1", "default"]
    first = seen[0]
    assert (first.src, first.dst, first.dport, first.proto, first.flags) == (
        "10.9.1.10",
        "10.9.2.10",
        902,
        "tcp",
        "SYN",
    )
    assert (first.inside, first.outside) == (CLIENT, SERVER)
    assert first.mark in (7, None), "not every kernel hands the connection's mark to the log"
    lines = [json.loads(line) for line in (tmp_path / "nflog.jsonl").read_text().splitlines()]
    assert lines == [record.to_dict() for record in seen]


@pytest.mark.root
@root
def test_a_flood_is_logged_or_its_loss_is_counted(tmp_path: Path) -> None:
    async def scenario() -> None:
        with routed() as world:
            firewall = Firewall(world.router)
            await firewall.apply(load_policy("default-12.3"), WORLD)
            sender = world.socket(CLIENT, socket.SOCK_DGRAM)
            for buffer, may_lose in ((8 << 20, False), (4096, True)):
                await firewall.zero()
                reader = LogReader(world.router, receive_buffer=buffer)
                await reader.start(tmp_path / f"{buffer}.jsonl")
                for sent in range(1, 3001):
                    sender.sendto(b"denied", (world.address(SERVER), 9999))
                    while not may_lose and sent % 50 == 0 and reader._read():
                        pass
                # One more after the buffer was emptied: its number shows how many are missing.
                while reader._read():
                    pass
                sender.sendto(b"last", (world.address(SERVER), 9999))
                await reader.stop()
                counted = (await firewall.counters())["default"].packets
                assert counted == 3001 == reader.received + reader.lost
                assert reader.complete == (not may_lose)
                lines = (tmp_path / f"{buffer}.jsonl").read_text().splitlines()
                assert len(lines) == reader.received
            await firewall.close()

    asyncio.run(scenario())


@pytest.mark.root
@root
def test_records_can_be_awaited() -> None:
    async def scenario() -> None:
        with routed() as world:
            firewall = Firewall(world.router)
            await firewall.apply(load_policy("default-12.3"), WORLD)
            reader = LogReader(world.router)
            await reader.start()
            collected: list[str] = []
            arrived = asyncio.Event()

            async def collect() -> None:
                async for record in reader.records():
                    collected.append(record.prefix)
                    arrived.set()

            task = asyncio.create_task(collect())
            await asyncio.sleep(0)
            await world.connect(CLIENT, SERVER, 902, deadline=1)
            await asyncio.wait_for(arrived.wait(), 2)
            await reader.stop()
            await asyncio.wait_for(task, 2)
            assert collected[0] == "H5"
            await firewall.close()

    asyncio.run(scenario())


def test_the_mark_comes_from_connection_tracking_before_the_packet() -> None:
    tracked = attribute(18 | 0x8000, attribute(8, struct.pack(">I", 9)))
    packet = attribute(2, struct.pack(">I", 3))
    for body, mark in ((tracked + packet, 9), (packet, 3), (b"", None)):
        found = nflog.parse(Message(4 << 8, 0, 0, 2, 5, body), lambda index: "", now=0)
        assert found is not None and found[0].mark == mark
