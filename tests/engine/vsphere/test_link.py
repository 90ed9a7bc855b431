# SPDX-License-Identifier: MIT
"""The one login with a record of the configuration database."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from engine.dialer import Dialer
from engine.events import EventLog
from engine.vsphere import VSphere
from engine.vsphere.link import VSphereLink, account

RECORD = {
    "name": "vcenter", "address": "10.0.0.1", "port": 8443, "thumbprint": "ab:cd", "username": "u", "password": "p",
    "state": "ok", "version": "8.0.3",
}  # fmt: skip


def test_a_login_takes_what_it_needs_of_the_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    class Session:
        def logout(self) -> None:
            seen.append({"logout": True})

    monkeypatch.setattr(VSphere, "login", lambda dialer, **given: seen.append(given) or Session())
    dialer = Dialer(EventLog(None, host="backup-server", process="test"))

    async def main() -> None:
        await (await VSphereLink.open(dialer, RECORD, step="22", keylog=tmp_path)).logout()

    asyncio.run(main())
    assert account(RECORD).keys() == RECORD.keys() - {"state", "version"}
    assert seen == [{**account(RECORD), "step": "22", "keylog": tmp_path}, {"logout": True}]
