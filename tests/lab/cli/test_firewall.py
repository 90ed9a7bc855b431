# SPDX-License-Identifier: MIT
"""`vadplab firewall` against a control socket that answers with a real `Firewall` in a router namespace."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from firewall_rules.load import load_policy
from lab.cli import app as cli
from lab.cli import firewall as command
from lab.cli.firewall import target
from lab.realise.control import ControlServer, Request
from lab.realise.firewall import Firewall
from lab.realise.nft_errors import RequestInvalid
from tests.lab.realise.routed import WORLD, needs_root, routed


@pytest.mark.parametrize("words", [[], ["a", "b"], ["a", "b", "c", "d"]])
def test_a_target_is_one_word_or_three(words: list[str]) -> None:
    with pytest.raises(RequestInvalid):
        target(words)
    assert target(["H5"]) == {"row": "H5"}
    assert target(["proxy-1", "esxi-1", "902"]) == {"from": "proxy-1", "to": "esxi-1", "port": "902"}


@dataclass
class Lab:
    """Serves the control socket from a thread of its own, as the supervisor does from its process."""

    socket: Path
    router: int

    def serve(self, ready: threading.Event, ask_to_stop: list[Callable[[], object]]) -> None:
        async def main() -> None:
            firewall = Firewall(self.router)
            await firewall.apply(load_policy("default-12.3"), WORLD)

            async def handle(request: Request) -> Any:
                family, _, method = request.method.partition(".")
                assert family == "firewall"
                return await firewall.control(method, request.params)

            server = ControlServer(self.socket, handle)
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            ask_to_stop.append(lambda: loop.call_soon_threadsafe(stop.set))
            ready.set()
            await stop.wait()
            await server.close()
            await firewall.close()

        asyncio.run(main())


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with routed() as world:
        lab = Lab(tmp_path / "c.sock", world.router)
        ready, stoppers = threading.Event(), list[Callable[[], object]]()
        thread = threading.Thread(target=lab.serve, args=(ready, stoppers))
        thread.start()
        assert ready.wait(10)
        monkeypatch.setattr(command, "running_lab", lambda context: SimpleNamespace(control_socket=lab.socket))
        try:
            yield
        finally:
            stoppers[0]()
            thread.join(10)


pytestmark = pytest.mark.root
root = pytest.mark.skipif(needs_root, reason="namespaces need root")


@root
@pytest.mark.usefixtures("lab")
def test_block_show_allow_reset_as_documents(capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> dict[str, Any]:
        assert cli.run(["firewall", *words, "--json"]) == 0
        return dict(json.loads(capsys.readouterr().out))

    blocked = run("block", "h5", "--with", "reset", "--new-only")
    assert blocked["schema"] == "vadplab.firewall.block/1"
    assert (
        blocked["overlay"] | {"from": ["proxy"], "row": "H5", "action": "reset", "new_only": True} == blocked["overlay"]
    )
    run("block", "proxy-1", "repository-1", "2500-3300")
    shown = run("show")
    assert [r["rule"] for r in shown["rules"]][:3] == ["block-2", "block-1", "C1"]
    assert shown["policy"] == "default-12.3" and len(shown["overlays"]) == 2
    assert [o["id"] for o in run("allow", "H5")["removed"]] == ["block-1"]
    assert [o["id"] for o in run("reset")["removed"]] == ["block-2"]
    assert run("show")["overlays"] == []


@root
@pytest.mark.usefixtures("lab")
def test_text_for_people_and_one_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["firewall", "block", "H5"]) == 0
    assert "row H5: proxy to esxi tcp/902, drop" in capsys.readouterr().out
    assert cli.run(["firewall", "show"]) == 0
    assert "block-1" in capsys.readouterr().out
    assert cli.run(["firewall", "block", "Z9", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)
    assert error["code"] == "firewall.target" and "Z9" in error["message"]
    assert cli.run(["firewall", "block", "a", "b"]) == 2
    assert "firewall.request" in capsys.readouterr().err
    assert cli.run(["firewall", "block", "H5", "--with", "magic"]) == 2
