# SPDX-License-Identifier: MIT
"""Restores into a new VM: what is asked for is checked before anything begins."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from engine.errors import InputError
from engine.rpc.server import Call, Peer
from engine.service.broker import Broker
from engine.service.restores import VmRestores
from tests.engine.machines import Machines


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"mode": "san"}, "Direct SAN does not write"),
        ({"mode": "fax"}, "unknown mode fax"),
        ({"direction": "up"}, "unknown direction up"),
        ({"name": "a/b"}, "not a name for a VM"),
    ],
)
def test_wrong_parameters_begin_no_session(tmp_path: Path, params: dict[str, Any], words: str) -> None:
    begun: list[Any] = []

    class Jobs:
        async def database(self, work: Any) -> None:
            begun.append(work)

    config = Machines(tmp_path).config("backup-server")
    restores = VmRestores(config, Jobs(), Broker())  # type: ignore[arg-type]
    call = Call("restore.vm", {"point": "p", "name": "new", **params}, Peer("console", ("127.0.0.1", 1)), _silent)
    with pytest.raises(InputError, match=words):
        asyncio.run(_answer(restores, call))
    assert not begun


async def _answer(answering: VmRestores, call: Call) -> Any:
    return await answering.handle(call)


async def _silent(item: dict[str, Any]) -> None:
    return None
