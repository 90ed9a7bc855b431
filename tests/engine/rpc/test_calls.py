# SPDX-License-Identifier: MIT
"""Calls over mutual TLS on loopback: parallel calls, progress, errors that travel, deadlines, cut connections."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.dialer import Dialer
from engine.errors import ConnectRefused, ConnectTimedOut, RemoteError, TlsFailed, VadplabError
from engine.events import EventLog
from engine.rpc import frames
from engine.rpc.client import CallTimedOut, Client
from engine.rpc.identity import Identity, WrongPeer
from engine.rpc.server import Call, ListenFailed, Server, UnknownMethod
from tests.engine.pki import Pki
from tests.engine.waiting import until


async def handler(call: Call) -> Any:
    match call.method:
        case "echo":
            await asyncio.sleep(call.params.get("after", 0))
            return {"params": call.params, "peer": call.peer_name}
        case "count":
            for i in range(3):
                await call.progress({"i": i})
            return "done"
        case "fail":
            raise ConnectTimedOut(
                "proxy-1 to esxi-1:902: timed out", step="19", host="proxy-1", target="esxi-1", port=902
            )
        case "crash":
            raise RuntimeError("secret")
        case "typed":
            return call.param("n", int)
        case "unsendable":
            return object()
        case "hang":
            try:
                await asyncio.sleep(60)
            finally:
                call.peer.data["cancelled"] = True
    raise UnknownMethod(call.method)


@asynccontextmanager
async def serving(pki: Pki, handle: Callable[[Call], Awaitable[Any]] = handler) -> AsyncIterator[int]:
    server = Server(pki.identity("server"), handle)
    port = await server.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        await server.close()


async def connect(pki: Pki, port: int, *, expect: str = "server", identity: Identity | None = None) -> Client:
    dialer = Dialer(EventLog(None, host="client", process="test"))
    connection = await dialer.dial("127.0.0.1", port, step="6", name="server")
    return await Client.open(connection, identity or pki.identity("client"), expect=expect, deadline=5)


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


def test_parallel_calls_answer_out_of_order(pki: Pki) -> None:
    async def main() -> None:
        async with serving(pki) as port:
            client = await connect(pki, port)
            order: list[int] = []

            async def one(n: int, after: float) -> None:
                reply = await client.call("echo", n=n, after=after, deadline=5)
                assert reply == {"params": {"n": n, "after": after}, "peer": "client"}
                order.append(n)

            await asyncio.gather(one(1, 0.3), one(2, 0.0), one(3, 0.15))
            assert order == [2, 3, 1]
            await client.close()

    asyncio.run(main())


def test_progress_then_result(pki: Pki) -> None:
    async def main() -> None:
        async with serving(pki) as port:
            client = await connect(pki, port)
            seen: list[dict[str, Any]] = []
            assert await client.call("count", on_progress=seen.append, deadline=5) == "done"
            assert seen == [{"i": 0}, {"i": 1}, {"i": 2}]
            await client.close()

    asyncio.run(main())


def test_errors_keep_their_fields(pki: Pki) -> None:
    async def main() -> None:
        async with serving(pki) as port:
            client = await connect(pki, port)
            with pytest.raises(RemoteError) as caught:
                await client.call("fail", deadline=5)
            fields = caught.value.to_dict()
            assert (fields["code"], fields["step"], fields["symptom"]) == ("connect.timed-out", "19", "timed out")
            assert (fields["host"], fields["target"], fields["port"]) == ("proxy-1", "esxi-1", 902)
            assert fields["message"] == "proxy-1 to esxi-1:902: timed out"
            for method, params, code in (
                ("nothing", {}, "wire.method"),
                ("typed", {"n": "1"}, "wire.params"),
                ("typed", {"n": True}, "wire.params"),
                ("typed", {}, "wire.params"),
                ("unsendable", {}, "wire.malformed"),
            ):
                with pytest.raises(RemoteError) as caught:
                    await client.call(method, deadline=5, **params)
                assert caught.value.to_dict()["code"] == code
            with pytest.raises(RemoteError) as caught:
                await client.call("crash", deadline=5)
            assert caught.value.to_dict()["code"] == "internal" and "secret" not in caught.value.message
            await client.close()

    asyncio.run(main())


def test_deadline_idle_and_cancel(pki: Pki) -> None:
    async def main() -> None:
        peers = []

        async def remember(call: Call) -> Any:
            peers.append(call.peer)
            return await handler(call)

        async with serving(pki, remember) as port:
            client = await connect(pki, port)
            for limits in ({"deadline": 0.1}, {"deadline": None, "idle": 0.1}):
                with pytest.raises(CallTimedOut) as caught:
                    await client.call("hang", **limits)  # type: ignore[arg-type]
                assert caught.value.step == "6" and caught.value.target == "server"
            await until(lambda: bool(peers[-1].data.get("cancelled")))
            assert await client.call("echo", deadline=5)
            await client.close()

    asyncio.run(main())


def test_a_call_is_cancelled_at_whatever_instant(pki: Pki) -> None:
    """As by Ctrl-C: none may be lost, as would be one that comes just when the request was taken."""

    async def main() -> list[int]:
        lost = []
        async with serving(pki) as port:
            client = await connect(pki, port)
            for steps in range(12):
                call = asyncio.ensure_future(client.call("echo", after=1))
                for _ in range(steps):
                    await asyncio.sleep(0)
                call.cancel()
                await asyncio.wait([call])
                if not call.cancelled():
                    lost.append(steps)
            await client.close()
        return lost

    assert asyncio.run(main()) == []


def test_cut_connection_fails_calls_and_cancels_handlers(pki: Pki) -> None:
    async def main() -> None:
        peers = []

        async def remember(call: Call) -> Any:
            peers.append(call.peer)
            return await handler(call)

        server = Server(pki.identity("server"), remember)
        port = await server.start("127.0.0.1", 0)
        client = await connect(pki, port)
        pending = asyncio.create_task(client.call("hang", deadline=20))
        await until(lambda: bool(peers))
        async with asyncio.timeout(5):
            await server.close()
            with pytest.raises(frames.WireClosed) as caught:
                await pending
            assert caught.value.symptom == "cut" and caught.value.target == "server"
            await client.closed.wait()
        assert peers[0].closed.is_set() and peers[0].data["cancelled"]
        with pytest.raises(frames.WireClosed):
            await client.call("echo")
        await client.close()

    asyncio.run(main())


def test_wrong_peer_foreign_ca_and_refused(pki: Pki, tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "other").mkdir()
        other = Pki(tmp_path / "other")
        async with serving(pki) as port:
            with pytest.raises(WrongPeer):
                await connect(pki, port, expect="somebody")
            with pytest.raises(TlsFailed):
                await connect(pki, port, identity=Identity(pki.identity("client").certificate, other.ca))
            # TLS 1.3 tells the client about its own refused certificate with the first read
            with pytest.raises(VadplabError) as caught:
                mixed = Identity(other.identity("client").certificate, pki.ca)
                client = await connect(pki, port, identity=mixed)
                await client.call("echo", deadline=5)
            assert caught.value.code in ("tls.failed", "connect.cut", "wire.closed")
            with pytest.raises(ListenFailed):
                await Server(pki.identity("server"), handler).start("127.0.0.1", port)
        with pytest.raises(ConnectRefused):
            await connect(pki, port)

    asyncio.run(main())


def test_plain_and_garbage_clients_do_not_disturb(pki: Pki) -> None:
    async def main() -> None:
        async with serving(pki) as port:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                await asyncio.sleep(0)
            for message in ({"id": "x"}, [1, 2], {"id": 1, "method": 5}, {"id": 1, "method": "m", "params": []}):
                raw = await connect(pki, port)
                raw._writer.write(frames.pack(message))
                async with asyncio.timeout(5):
                    await raw.closed.wait()
                await raw.close()
            good = await connect(pki, port)
            assert await good.call("echo", deadline=5)
            await good.close()

    asyncio.run(main())
