# SPDX-License-Identifier: MIT
"""Opening a disk: the order of modes, and a host that has no room for another connection at first."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.errors import InputError
from engine.modes import opening
from engine.modes.errors import ModeNotConfigured, UnsupportedMode
from engine.modes.network import NetworkSession
from engine.modes.nfc.errors import HostBusy
from engine.modes.opening import Opening, Request, expand
from tests.engine.modes.esxi import host, sample, ticket
from tests.engine.mover.small_vcenter import SmallVcenter, serve
from tests.engine.pki import Pki

SIZE = 1 << 20
SAN = {"portals": ["127.0.0.1:3260"], "initiator": "iqn.2026-01.lab:x"}
PROXY = {"vm_uuid": "42110000-1111-2222-3333-444455556666"}


def config(tmp_path: Path, **more: Any) -> EngineConfig:
    fields = {
        "name": "proxy-1",
        "identity": {"certificate": "a", "ca": "b"},
        "events": str(tmp_path / "events.jsonl"),
        "resolver": {"esxi-1": "127.0.0.1"},
    }
    return EngineConfig.model_validate({**fields, **more})


@pytest.mark.parametrize(
    ("modes", "able", "expected"),
    [
        (["auto"], {"san": SAN, "proxy": PROXY}, ["san", "hotadd", "nbdssl"]),
        (["auto"], {"proxy": PROXY}, ["hotadd", "nbdssl"]),
        (["auto"], {}, ["nbdssl"]),
        (["san", "auto"], {}, ["san", "nbdssl"]),
        (["nbd"], {"san": SAN}, ["nbd"]),
        (["hotadd", "nbd", "hotadd"], {}, ["hotadd", "nbd"]),
    ],
)
def test_order(tmp_path: Path, modes: list[str], able: dict[str, Any], expected: list[str]) -> None:
    assert expand(modes, config(tmp_path, **able)) == expected


def test_modes_that_are_not_modes(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedMode):
        expand(["tape"], config(tmp_path))
    with pytest.raises(InputError):
        expand([], config(tmp_path))


@pytest.mark.parametrize(
    "bad",
    [
        {"san": {**SAN, "portals": []}},
        {"san": {**SAN, "portals": ["a b"]}},
        {"san": {**SAN, "initiator": "proxy"}},
        {"proxy": {"vm_uuid": "x"}},
    ],
)
def test_configuration_that_cannot_be_used(tmp_path: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        config(tmp_path, **bad)


@pytest.fixture
def busy_host(tmp_path: Path) -> Iterator[dict[str, Any]]:
    image = tmp_path / "disk.raw"
    image.write_bytes(sample(SIZE))
    with host(image, "--max-connections", "1") as announcement:
        yield announcement


@pytest.fixture
def request_of(tmp_path: Path, busy_host: dict[str, Any]) -> Iterator[Callable[..., Request]]:
    def answer() -> dict[str, object]:
        made = ticket(busy_host)
        return {
            "host": made.host, "port": made.port, "sslThumbprint": made.thumbprint, "service": made.service,
            "serviceVersion": "1.1", "sessionId": made.session,
        }  # fmt: skip

    (tmp_path / "pki").mkdir()
    with serve(SmallVcenter(answer), Pki(tmp_path / "pki").identity("vcenter").certificate) as vcenter:
        login = {
            "name": "vcenter", "address": "127.0.0.1", "port": vcenter.port, "thumbprint": None, "username": "u", "password": "p",
        }  # fmt: skip

        def make(*modes: str, failover: bool = True) -> Request:
            return Request(
                modes, failover, login, "vm-1", None, 2000, busy_host["path"], SIZE, busy_host["vmx"]
            )  # fmt: skip

        yield make


def test_a_host_without_room_is_asked_again(
    tmp_path: Path, busy_host: dict[str, Any], request_of: Callable[..., Request]
) -> None:
    settings = config(tmp_path)
    dialer = settings.dialer(settings.event_log("test"))
    holder = NetworkSession.connect(dialer, ticket(busy_host), "nbd")
    opener = Opening(settings, dialer, threading.Event())
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(opener.source(request_of("nbd"))))
    thread.start()
    end = time.monotonic() + 20
    while "asking again" not in (tmp_path / "events.jsonl").read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
    assert not found
    holder.close()
    thread.join(30)
    assert found and found[0].mode == "nbd"
    found[0].disk.close()
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    failed = [event for event in events if event["kind"] == "step" and event["phase"] == "failed"]
    assert {(event["step"], event["data"]["code"]) for event in failed} == {("19", "nfc.limit")}


def test_a_host_that_stays_full(
    tmp_path: Path, busy_host: dict[str, Any], request_of: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "BUSY_DEADLINE", 0.6)
    settings = config(tmp_path)
    dialer = settings.dialer(settings.event_log("test"))
    holder = NetworkSession.connect(dialer, ticket(busy_host), "nbd")
    try:
        with pytest.raises(HostBusy) as caught:
            Opening(settings, dialer, threading.Event()).source(request_of("nbd"))
        assert (caught.value.step, caught.value.target) == ("19", "esxi-1")
        stopped = threading.Event()
        stopped.set()
        with pytest.raises(HostBusy):
            Opening(settings, dialer, stopped).source(request_of("nbd"))
    finally:
        holder.close()


def test_unconfigured_modes_fail_over_or_fail(tmp_path: Path, request_of: Callable[..., Request]) -> None:
    settings = config(tmp_path)
    dialer = settings.dialer(settings.event_log("test"))
    found = Opening(settings, dialer, threading.Event()).source(request_of("hotadd", "nbd"))
    found.disk.close()
    assert found.mode == "nbd" and [f["code"] for f in found.failed_over] == ["mode.not-configured"]
    with pytest.raises(ModeNotConfigured):
        Opening(settings, dialer, threading.Event()).source(request_of("hotadd", "nbd", failover=False))
