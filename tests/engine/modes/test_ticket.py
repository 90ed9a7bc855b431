# SPDX-License-Identifier: MIT
"""Tickets of vCenter's and of a host's NFC service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.dialer import Dialer
from engine.events import EventLog
from engine.modes.ticket import NoTicket, Ticket, request_ticket
from engine.vsphere import VSphere
from tests.engine.mover.small_vcenter import SmallVcenter, serve
from tests.engine.pki import Pki

GOOD = {
    "host": "10.77.8.10",
    "port": 902,
    "sslThumbprint": "AA:BB",
    "service": "vpxa-nfc",
    "serviceVersion": "1.1",
    "sessionId": "52f0-secret",
}


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., tuple[Ticket, SmallVcenter]]:
    certificate = Pki(tmp_path).identity("vcenter").certificate

    def one(answer: dict[str, Any], **options: Any) -> tuple[Ticket, SmallVcenter]:
        with serve(SmallVcenter(lambda: answer, **options), certificate) as vcenter:
            vsphere = VSphere.login(
                Dialer(EventLog(None, host="proxy-1", process="test")),
                name="vcenter",
                address="127.0.0.1",
                port=vcenter.port,
                thumbprint=None,
                username="u",
                password="p",
                step="18",
            )
            try:
                return request_ticket(vsphere, "vm-1", step="18"), vcenter
            finally:
                vsphere.logout()

    return one


def test_through_vcenter(ask: Callable[..., Any]) -> None:
    ticket, vcenter = ask(GOOD)
    assert ticket == Ticket("10.77.8.10", 902, "AA:BB", "vpxa-nfc", "52f0-secret")
    assert "secret" not in repr(ticket)
    assert "nfcService.NfcGetVmFiles" in vcenter.calls


def test_from_a_host_directly(ask: Callable[..., Any]) -> None:
    answer = {name: value for name, value in GOOD.items() if name not in ("host", "port")} | {"service": "nfc"}
    ticket, vcenter = ask(answer, api="HostAgent", unknown=frozenset({"ha-nfc"}))
    assert (ticket.host, ticket.port, ticket.service) == ("127.0.0.1", 902, "nfc")
    assert [call for call in vcenter.calls if "Nfc" in call] == [
        "ha-nfc.NfcGetVmFiles",
        "ha-nfc-service.NfcGetVmFiles",
    ]


@pytest.mark.parametrize("options", [{"refuse": "NoPermission"}, {"unknown": frozenset({"nfcService"})}])
def test_refused(ask: Callable[..., Any], options: dict[str, Any]) -> None:
    with pytest.raises(NoTicket) as caught:
        ask(GOOD, **options)
    fields = caught.value.to_dict()
    assert (fields["code"], fields["step"], fields["host"], fields["target"]) == (
        "nfc.no-ticket",
        "18",
        "proxy-1",
        "vcenter",
    )


@pytest.mark.parametrize("change", [{"service": "other"}, {"sessionId": ""}])
def test_a_ticket_that_cannot_be_used(ask: Callable[..., Any], change: dict[str, Any]) -> None:
    with pytest.raises(NoTicket, match="cannot be used"):
        ask({**GOOD, **change})
