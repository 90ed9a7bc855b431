# SPDX-License-Identifier: MIT
"""Tells vCenter, over the fabric, what a guest's Tools say: `tools.report` on `vcenter.sock`.

It tries until vCenter is there, reports again on every change, and keeps the connection: when that ends, vCenter started
anew and must be told again. A report is repeated every `REFRESH` seconds, since vCenter may rebuild its inventory alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from fakes.core import fabric
from fakes.tools.machine import ToolsMachine

REFRESH = 5.0
AGAIN = 0.5  # after a refusal: the VM may not be registered yet
_ANSWER = 30.0
_FIRST, _LONGEST = 0.1, 2.0


class Reporter:
    """Reports one VM's Tools until it is cancelled."""

    def __init__(self, folder: Path, machine: ToolsMachine, *, vm: str, family: str) -> None:
        self._path = folder / "vcenter.sock"
        self._machine = machine
        self._vm = vm
        self._family = family
        self._complaint = ""
        self.accepted = 0

    async def run(self) -> None:
        """Never returns; to be cancelled."""
        delay = _FIRST
        while True:
            with contextlib.suppress(OSError, EOFError, TimeoutError, fabric.FabricUnavailable):
                before = self.accepted
                try:
                    await self._connected()
                finally:
                    if self.accepted > before:
                        delay = _FIRST
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST)

    async def _connected(self) -> None:
        """One connection's life: reports until it ends."""
        sock = await asyncio.to_thread(fabric.connect, self._path, 5.0)
        sock.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        try:
            while True:
                self._machine.changed.clear()
                if self._machine.state.heard is not None:
                    await self._report(reader, writer)
                await self._until_due(reader)
        finally:
            writer.close()

    async def _report(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        params = self._machine.state.report(self._vm, self._family)
        writer.write(json.dumps({"method": "tools.report", "params": params}).encode() + b"\n")
        await writer.drain()
        line = await asyncio.wait_for(reader.readline(), _ANSWER)
        if not line:
            raise EOFError("vCenter closed the connection")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            self._complain(str(answer["error"]))  # for instance: the VM is not there yet; the next report may do
        else:
            self.accepted += 1
            self._complaint = ""

    def _complain(self, text: str) -> None:
        if text != self._complaint:
            self._complaint = text
            print(f"tools: vCenter refuses the report of {self._vm}: {text}", file=sys.stderr, flush=True)

    async def _until_due(self, reader: asyncio.StreamReader) -> None:
        """Returns when there is something to report; raises EOFError when the connection ended."""
        changed = asyncio.create_task(self._machine.changed.wait())
        ended = asyncio.create_task(reader.read(1))
        try:
            due = AGAIN if self._complaint else REFRESH
            await asyncio.wait({changed, ended}, timeout=due, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise EOFError("vCenter closed the connection")
        finally:
            for task in (changed, ended):
                task.cancel()
            await asyncio.gather(changed, ended, return_exceptions=True)
