# SPDX-License-Identifier: MIT
"""The array: one target with the LUNs of its datastores, who may log in, and what can break.

LUNs are read-only for initiators and carry their NAA identifier in the device identification page (VPD 83h); tgtd makes
it from `scsi_id=naa.…`. A LUN that is *offline* is unmapped: reads fail with "logical unit not supported", as after an
administrator's mistake on a real array. Logins *refused*: nobody is on the ACL; sessions that stand go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import socket
import time
from typing import Any

from fakes.san import login
from fakes.san.options import Lun, Options
from fakes.san.tgt import Tgt, TgtFailed

VENDOR, PRODUCT = "VADPLAB", "SAN LUN"
_TARGET = 1
_EVERYBODY = "ALL"
_UNMAP_SECONDS = 10.0
_PORTAL_SECONDS = 3.0
_PAUSE = 0.02
_CONNECTION = re.compile(r"Connection: (\d+)\n\s+Initiator: (\S+).*\n\s+IP Address: (\S+)")


async def await_portal(host: str, port: int) -> None:
    """Returns when the portal is free: one who had it may just be ending.

    tgtd runs on without a portal that it cannot have, and a login would then reach whoever has it.

    Raises:
        TgtFailed: the address is not ours, or stays taken.
    """
    deadline = time.monotonic() + _PORTAL_SECONDS
    while True:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((host, port))
                return
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                    raise TgtFailed(f"cannot serve {host} port {port}: {exc.strerror}") from exc
        await asyncio.sleep(_PAUSE)


class Array:
    """A running target. Changes are made one at a time."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.tgt = Tgt(options.state)
        self._files: dict[int, int] = {}  # LUN number: descriptor that tgtd inherits
        self._offline: set[int] = set()
        self._refusing = False
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        """Starts tgtd, makes the target, and returns when a login from here has seen every LUN.

        Raises:
            TgtFailed, Missing, LoginFailed: with the reason. OSError: a LUN's file cannot be read.
        """
        options = self.options
        for lun in options.luns:
            # tgtd gets a descriptor: in a path, a comma would end the parameter. It opens the file anew through /proc.
            self._files[lun.number] = os.open(lun.path, os.O_RDONLY | os.O_CLOEXEC)
        await await_portal(options.host, options.port)
        await self.tgt.start(options.portal, list(self._files.values()))
        await self._target("target", "new", "--targetname", options.iqn)
        for lun in options.luns:
            await self._map(lun)
        if options.chap:
            secret = ("--user", options.chap.user, "--password", options.chap.secret)
            await self.tgt.command("--mode", "account", "--op", "new", *secret)
            await self._target("account", "bind", "--user", options.chap.user)
        # Our own login must pass the ACL for a moment; loopback addresses all speak as 127.0.0.1.
        own = "127.0.0.1" if options.host == "0.0.0.0" else "::1" if options.host == "::" else options.host
        sources = sorted({own, "127.0.0.1"}) if own.startswith("127.") else [own]
        await self._acl("bind", sources)
        await login.prove(own, options.port, options.iqn, list(options.luns), options.chap)
        await self._acl("unbind", sources)
        await self._acl("bind", self._allowed())

    def _allowed(self) -> list[str]:
        return list(self.options.initiators) or [_EVERYBODY]

    async def _target(self, mode: str, operation: str, *more: str) -> str:
        return await self.tgt.command("--mode", mode, "--op", operation, "--tid", str(_TARGET), *more)

    async def _acl(self, operation: str, addresses: list[str]) -> None:
        for each in addresses:
            await self._target("target", operation, "--initiator-address", each)

    async def _map(self, lun: Lun) -> None:
        number = ("--lun", str(lun.number))
        backing = ("--backing-store", f"/proc/self/fd/{self._files[lun.number]}", "--bstype", "rdwr")
        identity = f"vendor_id={VENDOR},product_id={PRODUCT},scsi_sn={lun.naa.removeprefix('naa.')},scsi_id={lun.naa}"
        await self._target("logicalunit", "new", *number, *backing)
        await self._target("logicalunit", "update", *number, "--params", f"readonly=1,{identity}")

    async def stop(self) -> None:
        """Ends sessions, target and daemon."""
        await self.tgt.stop([_TARGET])
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()

    # -- what can be asked and broken --------------------------------------------------------------------------------

    def info(self, lun: Lun) -> dict[str, Any]:
        """What hosts see of a LUN."""
        options = self.options
        return {
            "name": lun.name,
            "lun": lun.number,
            "naa": lun.naa,
            "size": os.fstat(self._files[lun.number]).st_size,
            "vendor": VENDOR,
            "model": PRODUCT,
            "target": options.iqn,
            "portal": options.portal,
            "chap": options.chap is not None,
            "initiators": self._allowed(),
            "online": lun.number not in self._offline,
            "refusing": self._refusing,
        }

    async def sessions(self) -> list[dict[str, Any]]:
        """Who is logged in, a row per connection: `[{session, connection, initiator, address}]`."""
        found = []
        for part in (await self._target("conn", "show")).split("Session: ")[1:]:
            for each in _CONNECTION.finditer(part):
                session = int(part.partition("\n")[0])
                found.append({"session": session, "connection": int(each[1]), "initiator": each[2], "address": each[3]})
        return found

    async def drop_sessions(self) -> int:
        """Cuts all connections; returns how many there were."""
        standing = await self.sessions()
        for each in standing:
            with contextlib.suppress(TgtFailed):  # gone meanwhile
                await self._target("conn", "delete", "--sid", str(each["session"]), "--cid", str(each["connection"]))
        return len(standing)

    async def set_offline(self, lun: Lun, on: bool) -> None:
        """Unmaps a LUN, under whatever I/O there is, or maps it again.

        Raises:
            TgtFailed: it was in use all the time.
        """
        async with self._lock:
            if on == (lun.number in self._offline):
                return
            if not on:
                await self._map(lun)
                self._offline.discard(lun.number)
                return
            deadline = time.monotonic() + _UNMAP_SECONDS
            while True:
                try:
                    await self._target("logicalunit", "delete", "--lun", str(lun.number))
                    break
                except TgtFailed:  # a command is under way on it
                    if time.monotonic() > deadline:
                        raise
                await self.drop_sessions()
                await asyncio.sleep(_PAUSE)
            self._offline.add(lun.number)

    async def set_refusing(self, on: bool) -> None:
        """Refuses new logins, or lets the initiators of the ACL in again."""
        async with self._lock:
            if on != self._refusing:
                await self._acl("unbind" if on else "bind", self._allowed())
                self._refusing = on
