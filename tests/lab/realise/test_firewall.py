# SPDX-License-Identifier: MIT
"""The firewall in a real router namespace: symptoms, exact counters, cuts, replacement without a gap, clear errors."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from firewall_rules.load import load_policy
from firewall_rules.model import Policy
from firewall_rules.verdict import Verdict
from lab.realise.firewall import Firewall, Target
from lab.realise.nft_errors import FirewallFailed, FirewallMissing, PolicyInvalid, RequestInvalid, TargetUnknown
from lab.realise.nft_library import NftLibrary
from tests.lab.realise.routed import CLIENT, OTHER, SERVER, WORLD, Routed, needs_root, routed

pytestmark = [pytest.mark.root, pytest.mark.skipif(needs_root, reason="namespaces need root")]


@asynccontextmanager
async def firewalled(policy: Policy | None = None) -> AsyncIterator[tuple[Routed, Firewall]]:
    with routed() as world:
        firewall = Firewall(world.router)
        try:
            await firewall.apply(policy or load_policy("default-12.3"), WORLD)
            yield world, firewall
        finally:
            await firewall.close()


def policy_with(action: str) -> Policy:
    return Policy.model_validate(
        {
            "name": "variants",
            "profile": "12.3",
            "rules": [{"id": "H5", "row": "H5", "from": "proxy", "to": "esxi", "ports": 902, "action": action}],
        }
    )


SYMPTOMS = {"allow": "open", "drop": "timed out", "reset": "refused", "prohibit": "prohibited"}


@pytest.mark.parametrize("action", SYMPTOMS)
def test_each_action_shows_as_the_oracle_predicts(action: str) -> None:
    async def scenario() -> None:
        async with firewalled(policy_with(action)) as (world, firewall):
            world.answer(SERVER, 902)
            predicted = firewall.evaluate(CLIENT, SERVER, "tcp", 902)
            seen = await world.connect(CLIENT, SERVER, 902)
            assert seen == SYMPTOMS[action]
            assert seen == ("open" if predicted.verdict is Verdict.ALLOWED else predicted.verdict)
            assert (await firewall.counters())["H5"].packets >= 1

    asyncio.run(scenario())


def test_accept_counter_counts_connections_exactly_and_the_default_counts_the_rest() -> None:
    async def scenario() -> None:
        async with firewalled() as (world, firewall):
            world.answer(SERVER, 902)
            world.answer(SERVER, 903)
            for _ in range(3):
                assert await world.connect(CLIENT, SERVER, 902) == "open"
            assert await world.connect(CLIENT, SERVER, 903) == "timed out"
            counted = await firewall.counters()
            assert counted["H5"].packets == 3
            assert counted["default"].packets > 0
            assert counted["D1"].packets == counted["stray"].packets == 0
            assert (await firewall.zero())["H5"].packets == 3
            assert (await firewall.counters())["H5"].packets == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(("how", "symptom"), [("drop", "timed out"), ("reset", "refused"), ("icmp", "prohibited")])
def test_a_blocked_row_shows_its_symptom_until_reset(how: str, symptom: str) -> None:
    async def scenario() -> None:
        async with firewalled() as (world, firewall):
            world.answer(SERVER, 902)
            overlay, cut = await firewall.block(Target(row="h5"), how)
            assert (overlay.row, cut) == ("H5", 0)
            assert await world.connect(CLIENT, SERVER, 902) == symptom
            assert firewall.evaluate(CLIENT, SERVER, "tcp", 902).verdict == symptom
            assert (await firewall.counters())[overlay.id].packets > 0
            assert (await firewall.counters())["H5"].packets == 0
            assert await firewall.reset() == [overlay]
            assert await world.connect(CLIENT, SERVER, 902) == "open"
            assert overlay.id not in await firewall.counters()

    asyncio.run(scenario())


async def _talks(client: socket.socket, deadline: float = 0.5) -> bool:
    """True when the echo server's answer comes back on an open connection."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(deadline):
            await loop.sock_sendall(client, b"hello")
            return await loop.sock_recv(client, 16) == b"hello"
    except (TimeoutError, OSError):
        return False


async def _open(world: Routed) -> socket.socket:
    client = world.socket(CLIENT)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, (world.address(SERVER), 902))
    return client


def test_a_block_cuts_open_connections_unless_it_is_for_new_ones() -> None:
    async def scenario() -> None:
        async with firewalled() as (world, firewall):
            world.answer(SERVER, 902)
            client = await _open(world)
            assert await _talks(client)
            _, cut = await firewall.block(Target(row="H5"), "reset", new_only=True)
            assert cut == 0
            assert await _talks(client), "new_only leaves open connections alone"
            assert await world.connect(CLIENT, SERVER, 902) == "refused"
            _, cut = await firewall.block(Target(None, CLIENT, SERVER, "902"), "drop")
            assert cut == 1
            assert not await _talks(client)
            assert (await firewall.counters())["default"].packets == 0, "a cut is no attempt"

    asyncio.run(scenario())


def test_a_reset_block_ends_an_open_connection_at_once() -> None:
    async def scenario() -> None:
        async with firewalled() as (world, firewall):
            world.answer(SERVER, 902)
            client = await _open(world)
            assert await _talks(client)
            await firewall.block(Target(row="H5"), "reset")
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(client, b"x")
            with pytest.raises(ConnectionResetError):
                async with asyncio.timeout(2):
                    await loop.sock_recv(client, 1)

    asyncio.run(scenario())


def test_a_block_of_one_direction_leaves_the_other_alone() -> None:
    async def scenario() -> None:
        both = Policy.model_validate(
            {
                "name": "both",
                "profile": "12.3",
                "rules": [
                    {"id": "A", "from": "proxy", "to": "esxi", "ports": "any"},
                    {"id": "B", "from": "esxi", "to": "proxy", "ports": "any"},
                ],
            }
        )
        async with firewalled(both) as (world, firewall):
            world.answer(SERVER, 902)
            world.answer(CLIENT, 4000)
            client = await _open(world)
            assert await _talks(client)
            await firewall.block(Target(None, SERVER, CLIENT, "any"), "drop")
            assert await _talks(client), "what the proxy opened goes on"
            assert await world.connect(CLIENT, SERVER, 902) == "open"
            assert await world.connect(SERVER, CLIENT, 4000) == "timed out"

    asyncio.run(scenario())


def test_the_newest_change_decides_and_allow_undoes_or_opens() -> None:
    async def scenario() -> None:
        async with firewalled() as (world, firewall):
            world.answer(SERVER, 902)
            world.answer(OTHER, 4000)
            await firewall.block(Target(row="H5"), "drop")
            gone, made = await firewall.allow(Target(row="H5"))
            assert [o.row for o in gone] == ["H5"] and made is None
            assert await world.connect(CLIENT, SERVER, 902) == "open"
            await firewall.block(Target(row="H5"), "drop")
            gone, made = await firewall.allow(Target(None, CLIENT, SERVER, "902"))
            assert not gone and made is not None
            client = await _open(world)
            assert await _talks(client), "replies of what an allowance opened pass the older block"
            assert await world.connect(CLIENT, OTHER, 4000) == "timed out"
            _, made = await firewall.allow(Target(None, "proxy", "repository", "4000"))
            assert made is not None and made.id in firewall.marks().values()
            assert await world.connect(CLIENT, OTHER, 4000) == "open"
            assert (await firewall.counters())[made.id].packets == 1

    asyncio.run(scenario())


def test_replacing_rules_lets_no_denied_datagram_through() -> None:
    async def scenario() -> None:
        async with firewalled() as (world, firewall):
            receiver = world.socket(SERVER, socket.SOCK_DGRAM)
            receiver.bind((world.address(SERVER), 9999))
            receiver.setblocking(False)
            sender = world.socket(CLIENT, socket.SOCK_DGRAM)
            stop, sent = time.monotonic() + 1.5, [0]

            def flood() -> None:
                while time.monotonic() < stop:
                    sender.sendto(b"denied", (world.address(SERVER), 9999))
                    sent[0] += 1

            flooding = asyncio.create_task(asyncio.to_thread(flood))
            swaps = 0
            while not flooding.done():
                await firewall.block(Target(row="H5"), "drop")
                await firewall.apply(load_policy("reverse-data"), WORLD)
                await firewall.reset()
                await firewall.apply(load_policy("default-12.3"), WORLD)
                swaps += 4
            await flooding
            with pytest.raises(BlockingIOError):
                receiver.recv(16)
            assert swaps > 20 and sent[0] > 1000
            assert (await firewall.counters())["default"].packets == sent[0], "and every one was counted"

    asyncio.run(scenario())


def test_counters_survive_a_change_of_policy_and_old_ones_go() -> None:
    async def scenario() -> None:
        async with firewalled() as (world, firewall):
            world.answer(SERVER, 902)
            assert await world.connect(CLIENT, SERVER, 902) == "open"
            await firewall.apply(load_policy("reverse-data"), WORLD)
            counted = await firewall.counters()
            assert counted["H5"].packets == 1
            assert "D2" in counted and "D1" not in counted
            second = Firewall(world.router)
            await second.apply(load_policy("default-12.3"), WORLD)
            assert "D2" not in await second.counters()
            await second.close()

    asyncio.run(scenario())


def test_show_lists_rules_in_deciding_order() -> None:
    async def scenario() -> None:
        async with firewalled() as (_, firewall):
            await firewall.block(Target(row="D1"), "reset")
            states = await firewall.show()
            assert [s.kind for s in states] == ["overlay"] + ["policy"] * 10 + ["built-in"] * 3
            assert states[0].row == "D1" and states[0].action == "reset"
            assert states[-1].rule == "default"
            document = await firewall.control("firewall.show", {})
            assert document["overlays"][0]["from"] == ["proxy"]
            assert document["rules"][0]["to"] == ["repository", "gateway"]

    asyncio.run(scenario())


def test_wrong_requests_name_what_is_wrong_and_change_nothing() -> None:
    async def scenario() -> None:
        async with firewalled() as (_, firewall):
            before = await firewall.document()
            for params, error, word in (
                ({"row": "Z9"}, TargetUnknown, "Z9"),
                ({"row": "H10"}, TargetUnknown, "nfs_filer"),
                ({"from": "nobody", "to": "esxi", "port": "902"}, TargetUnknown, "nobody"),
                ({"from": "proxy", "to": "esxi", "port": "70000"}, TargetUnknown, "70000"),
                ({"from": "proxy", "to": "esxi", "port": "902/xyz"}, RequestInvalid, "xyz"),
                ({"from": "proxy", "to": "esxi"}, RequestInvalid, "PORT"),
                ({"row": "H5", "from": "proxy"}, RequestInvalid, "not both"),
                ({"row": "H5", "with": "magic"}, RequestInvalid, "magic"),
                ({"row": "H5", "whit": "drop"}, RequestInvalid, "whit"),
                ({}, RequestInvalid, "row"),
            ):
                with pytest.raises(error, match=word):
                    await firewall.control("firewall.block", params)
            with pytest.raises(RequestInvalid, match="dance"):
                await firewall.control("firewall.dance", {})
            assert await firewall.document() == before

    asyncio.run(scenario())


def test_a_policy_with_unknown_roles_is_refused_and_the_old_one_stays() -> None:
    async def scenario() -> None:
        async with firewalled() as (_, firewall):
            wrong = Policy.model_validate(
                {
                    "name": "wrong",
                    "profile": "12.3",
                    "rules": [{"id": "A", "from": "proxie", "to": "esxi", "ports": 902, "row": "H99"}],
                }
            )
            with pytest.raises(PolicyInvalid, match=r"proxie.*H99"):
                await firewall.apply(wrong, WORLD)
            assert firewall.policy.name == "default-12.3"

    asyncio.run(scenario())


def test_without_a_policy_there_is_nothing_to_show() -> None:
    async def scenario() -> None:
        firewall = Firewall(None)
        with pytest.raises(FirewallMissing):
            await firewall.show()
        with pytest.raises(FirewallMissing):
            await firewall.block(Target(row="H5"))
        await firewall.close()

    asyncio.run(scenario())


def test_a_repeated_syn_is_counted_once() -> None:
    async def scenario() -> None:
        async with firewalled() as (world, firewall):
            # The responder is there but silent: the client repeats its SYN after a second.
            silent = NftLibrary(world.namespaces[SERVER])
            chain = "type filter hook input priority 0; tcp dport 902 counter name syns drop;"
            await silent.run(f"table inet quiet {{ counter syns {{ }}; chain quiet_in {{ {chain} }}; }}")
            assert await world.connect(CLIENT, SERVER, 902, deadline=1.6) == "timed out"
            (arrived,) = [x["counter"] for x in await silent.query("list counters table inet quiet") if "counter" in x]
            assert arrived["packets"] >= 2, "the SYN was repeated and forwarded"
            assert (await firewall.counters())["H5"].packets == 1
            await silent.close()

    asyncio.run(scenario())


def test_listeners_hear_of_every_change_of_the_overlays() -> None:
    async def scenario() -> None:
        async with firewalled() as (_, firewall):
            heard: list[list[str]] = []
            stop = firewall.subscribe(lambda overlays: heard.append([o.id for o in overlays]))
            await firewall.control("block", {"row": "H5", "with": "icmp"})
            await firewall.control("block", {"from": "proxy-1", "to": "repository-1", "port": "2500-3300"})
            await firewall.control("allow", {"row": "H5"})
            stop()
            await firewall.control("reset", {})
            assert heard == [["block-1"], ["block-1", "block-2"], ["block-2"]]

    asyncio.run(scenario())


def test_rules_that_the_kernel_refuses_change_nothing() -> None:
    async def scenario() -> None:
        async with firewalled() as (world, _):
            world.answer(SERVER, 902)
            library = NftLibrary(world.router)
            for wrong in ("flush chain inet vadplab vp_forward\nnonsense", "flush chain inet vadplab vp_forward\n"
                          "add rule inet vadplab vp_forward counter name vp_absent accept"):  # fmt: skip
                with pytest.raises(FirewallFailed, match="refused"):
                    await library.run(wrong)
            assert await world.connect(CLIENT, SERVER, 902) == "open"
            assert await world.connect(CLIENT, SERVER, 903, deadline=0.3) == "timed out"
            await library.close()

    asyncio.run(scenario())


def test_a_namespace_that_cannot_be_entered_is_one_clear_error() -> None:
    async def scenario() -> None:
        with socket.socket() as no_namespace:
            firewall = Firewall(no_namespace.fileno())
            with pytest.raises(FirewallMissing, match="namespace"):
                await firewall.apply(load_policy("default-12.3"), WORLD)
            await firewall.close()

    asyncio.run(scenario())
