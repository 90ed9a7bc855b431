# SPDX-License-Identifier: MIT
"""The hypervisor's end of Tools: keeps what the guest said last, and says so to whoever subscribes.

Tools count as running from the first complete report until the daemon was silent for `SILENCE` seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fakes.tools.rpci import RpciError

SILENCE = 35.0
_IGNORED = ("tools.capability.", "vmx.capability.", "log ")


@dataclass
class ToolsState:
    """What is known of a guest's Tools."""

    hostname: str = ""
    full_name: str = ""
    addresses: list[str] = field(default_factory=list)
    heard: float | None = None

    @property
    def running(self) -> bool:
        """True while the daemon reports."""
        return self.heard is not None and time.monotonic() - self.heard < SILENCE

    def report(self, vm: str, family: str) -> dict[str, Any]:
        """Parameters of `tools.report`."""
        return {
            "vm": vm,
            "running": self.running,
            "hostname": self.hostname,
            "addresses": list(self.addresses) if self.running else [],
            "family": family,
            "full_name": self.full_name,
        }


class ToolsMachine:
    """Answers a guest's RPCI. `extra` handles requests of other rooms, by their first word."""

    def __init__(self, extra: dict[str, Callable[[str], str]] | None = None) -> None:
        self.state = ToolsState()
        self.changed = asyncio.Event()
        self._extra = extra or {}

    async def handle(self, text: str) -> str:
        """Handler for `rpci.serve`."""
        command, _, rest = text.partition(" ")
        if command in self._extra:
            return self._extra[command](rest)
        if command == "info-set":
            key, _, value = rest.partition(" ")
            self._learn(key, value.strip())
            return ""
        if command == "tools.set.versiontype" or text.startswith(_IGNORED):
            return ""
        raise RpciError("Unknown command")

    def _learn(self, key: str, value: str) -> None:
        state = self.state
        before = (state.hostname, state.full_name, list(state.addresses), state.running)
        match key:
            case "guestinfo.hostname":
                state.hostname = value
            case "guestinfo.os.fullname":
                state.full_name = value
            case "guestinfo.addresses":  # the last word of a report
                state.addresses = value.split()
                state.heard = time.monotonic()
            case _:
                return
        if before != (state.hostname, state.full_name, list(state.addresses), state.running):
            self.changed.set()
