# SPDX-License-Identifier: MIT
"""Connection tracking as a witness: states, marks, exact bytes, ends; deletion; and the parser on arbitrary bytes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firewall_rules.load import load_policy
from lab.observe import conntrack
from lab.observe.conntrack import Entry, Flow, FlowReader, Table
from lab.observe.nfnetlink import Message
from lab.realise.firewall import Firewall, Target
from tests.lab.realise.routed import CLIENT, SERVER, WORLD, Routed, needs_root, routed


@given(st.binary(max_size=300), st.sampled_from([0, 2]), st.integers(0, 0xFFFF))
def test_the_parser_survives_any_bytes(body: bytes, kind: int, flags: int) -> None:
    conntrack.parse(Message(1 << 8 | kind, flags, 0, 2, 0, body))


def test_a_flow_remembers_states_once_and_keeps_the_last_counters() -> None:
    flow = Flow("tcp", "10.0.0.1", "10.0.0.2", 4000, 902)
    entry = Entry("new", 1, "tcp", "10.0.0.1", "10.0.0.2", 4000, 902, state="SYN_SENT")
    flow.learn(entry, 10)
    flow.learn(entry, 11)
    assert not flow.established
    flow.learn(Entry("update", 1, "tcp", "10.0.0.1", "10.0.0.2", 4000, 902, state="ESTABLISHED", mark=8), 12)
    flow.learn(Entry("destroy", 1, "tcp", "10.0.0.1", "10.0.0.2", 4000, 902, bytes_orig=100, bytes_reply=50), 13)
    assert (flow.states, flow.mark, flow.bytes, flow.stop) == (["SYN_SENT", "ESTABLISHED"], 8, 150, 13)
    assert flow.established
    assert flow.to_dict()["history"] == [[10, "SYN_SENT"], [12, "ESTABLISHED"]]


root = pytest.mark.skipif(needs_root, reason="namespaces need root")


async def talk(world: Routed, amount: int) -> None:
    """Opens a connection, sends `amount` bytes, reads the echo, closes."""
    client = world.socket(CLIENT)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, (world.address(SERVER), 902))
    await loop.sock_sendall(client, bytes(amount))
    left = amount
    while left:
        left -= len(await loop.sock_recv(client, 65536))
    client.close()


@pytest.mark.root
@root
def test_states_marks_and_bytes_of_flows(tmp_path: Path) -> None:
    async def scenario() -> list[Flow]:
        with routed() as world:
            firewall = Firewall(world.router)
            await firewall.apply(load_policy("default-12.3"), WORLD)
            world.answer(SERVER, 902)
            await talk(world, 10)
            reader = FlowReader(world.router)
            await reader.start(tmp_path / "conntrack.jsonl")
            await talk(world, 5000)
            assert await world.connect(CLIENT, SERVER, 22, deadline=0.3) == "timed out"
            await firewall.allow(Target(None, CLIENT, SERVER, "77"))
            assert await world.connect(CLIENT, SERVER, 77) == "refused"
            found = await reader.stop()
            assert reader.complete
            marks = firewall.marks()
            assert [marks[flow.mark or 0] for flow in found] == ["H5", "allow-1"]
            await firewall.close()
        return found

    spoken, refused = asyncio.run(scenario())
    assert (spoken.src, spoken.dst, spoken.dport, spoken.proto) == ("10.9.1.10", "10.9.2.10", 902, "tcp")
    assert spoken.states[:3] == ["SYN_SENT", "SYN_RECV", "ESTABLISHED"]
    assert spoken.established
    # Payload plus at least one 40-byte header a packet, and not much more.
    assert 5000 + 40 * spoken.packets_orig <= spoken.bytes_orig <= 5000 + 72 * spoken.packets_orig
    assert spoken.bytes_reply >= 5000
    assert spoken.start is not None and spoken.start > 1_600_000_000 * 10**9
    assert refused.states == ["SYN_SENT", "CLOSE"]
    assert not refused.established
    lines = [json.loads(line) for line in (tmp_path / "conntrack.jsonl").read_text().splitlines()]
    assert sorted(line["dport"] for line in lines) == [77, 902]
    assert {"states", "bytes_orig", "bytes_reply", "start", "stop", "mark"} <= set(lines[0])


@pytest.mark.root
@root
def test_the_table_lists_and_forgets_flows() -> None:
    async def scenario() -> None:
        with routed() as world:
            firewall = Firewall(world.router)
            await firewall.apply(load_policy("default-12.3"), WORLD)
            world.answer(SERVER, 902)
            reader = FlowReader(world.router)
            await reader.start()
            await talk(world, 100)
            table = Table(world.router)
            entries = [e for e in table.entries() if e.dport == 902]
            assert len(entries) == 1 and entries[0].mark == 7
            assert table.delete(entries) == 1
            assert table.delete(entries) == 0, "it is gone already"
            (flow,) = await reader.stop()
            assert flow.stop is not None and flow.bytes > 200, "the end brings the last counters"
            await firewall.close()

    asyncio.run(scenario())
