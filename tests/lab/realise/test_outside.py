# SPDX-License-Identifier: MIT
"""The caretaker: answers from outside, and cleans up when the last holder of the pair is gone."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.errors import ControlFailed
from lab.realise import outside
from lab.realise.outside import Outside
from tests.lab.realise.labs import eventually


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, Outside]]:
    monkeypatch.setitem(outside.METHODS, "note", "tests.lab.realise.sample:leave_note")
    monkeypatch.setitem(outside.METHODS, "fail", "tests.lab.realise.sample:fail")
    pid, sock = outside.start()
    end = Outside(sock)
    yield pid, end
    end.close()
    eventually(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid, "the caretaker does not end")


def test_answers_with_descriptors(pair: tuple[int, Outside], tmp_path: Path) -> None:
    pid, end = pair

    async def talk() -> None:
        assert await end.call("ping") == ({"pid": pid, "cleanups": 0}, [])
        result, (fd,) = await end.call("note", path=str(tmp_path / "note"), text="bye")
        assert result == {"left": True}
        assert os.read(fd, 100) == b"from outside"
        os.close(fd)
        with pytest.raises(ControlFailed, match="RuntimeError: no container today"):
            await end.call("fail")
        with pytest.raises(ControlFailed, match="KeyError"):
            await end.call("nothing")
        assert (await end.call("ping"))[0]["cleanups"] == 1

    asyncio.run(talk())
    assert not (tmp_path / "note").exists()
    os.kill(pid, signal.SIGTERM)  # only the lab's end is its end
    end.close()
    eventually((tmp_path / "note").exists, "the clean-up did not run")


def test_nobody_there(pair: tuple[int, Outside]) -> None:
    pid, end = pair
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ControlFailed, match="outside the lab, ping"):
        asyncio.run(end.call("ping"))
