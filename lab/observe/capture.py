# SPDX-License-Identifier: MIT
"""The capture of a run: dumpcap on all interfaces of the router.

`-i any` in cooked mode v2 shows a forwarded packet twice (in, out) with interface index and direction, a denied one
once. TCP control packets and ICMP are shorter than the snap length and so are kept whole; of the rest the first 256
bytes are kept unless the mode is `full`.

dumpcap is ready when it says which file it writes. It is stopped only after a *marker*, a datagram on the router's own
loopback, has reached the file: the kernel hands packets over in order, so everything before it is there as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lab.observe.errors import CaptureFailed, ToolMissing
from lab.observe.namespaces import child_setup, socket_in

Mode = Literal["headers", "full"]
HEADER_BYTES = 256
COOKED_V2 = 20
"""Length of the cooked v2 link header, which counts towards the snap length."""
BUFFER_MIB: dict[Mode, int] = {"headers": 32, "full": 256}
"""The kernel's ring for packets that dumpcap has not written yet; a full capture of disk data outruns a small one."""
LARGEST_FILE = 4 << 30
_STATISTICS = re.compile(r"Packets received/dropped on interface '[^']*': (\d+)/(\d+)")


@dataclass(frozen=True, slots=True)
class Captured:
    """What dumpcap reported: packets received and dropped; `flushed` False = the marker never reached the file."""

    received: int
    dropped: int
    flushed: bool

    @property
    def complete(self) -> bool:
        """True when the absence of a packet in the file means that it was not there."""
        return self.dropped == 0 and self.flushed


class Capture:
    """One dumpcap process.

    Args:
        netns: descriptor of the router's network namespace (None: the current one). limit: bytes after which the file
            is closed rather than fill the disk; the capture has then failed, and `stop` says so.
    """

    def __init__(
        self, path: Path, *, netns: int | None = None, mode: Mode = "headers", limit: int = LARGEST_FILE
    ) -> None:
        self.path = path
        self.limit = limit
        self.mode: Mode = mode
        self._netns = netns
        self._process: asyncio.subprocess.Process | None = None
        self._lines: list[str] = []
        self._reader: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    @property
    def running(self) -> bool:
        """Whether packets are being captured."""
        return self._process is not None and self._process.returncode is None

    async def start(self, deadline: float = 10.0) -> None:
        """Returns when packets are being captured.

        Raises:
            ToolMissing: no dumpcap. CaptureFailed: it ended, or said nothing in `deadline` seconds.
        """
        program = shutil.which("dumpcap")
        if program is None:
            raise ToolMissing("dumpcap is not installed")
        snap = 0 if self.mode == "full" else HEADER_BYTES + COOKED_V2
        command = [program, "-q", "-i", "any", "-y", "LINUX_SLL2", "-s", str(snap), "-B", str(BUFFER_MIB[self.mode])]
        command += ["-a", f"filesize:{max(1, self.limit // 1000)}"]
        self._process = await asyncio.create_subprocess_exec(
            *command,
            "-w",
            str(self.path),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            preexec_fn=child_setup(self._netns),
            start_new_session=True,
        )
        self._reader = asyncio.create_task(self._read())
        waiter = asyncio.create_task(self._ready.wait())
        await asyncio.wait({waiter, self._reader}, timeout=deadline, return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()
        if not self._ready.is_set():
            await self.kill()
            raise CaptureFailed(f"dumpcap did not start: {' '.join(self._lines[-3:]) or 'it said nothing'}")

    async def stop(self, deadline: float = 10.0) -> Captured:
        """Ends the capture; all packets up to now are in the file.

        Raises:
            CaptureFailed: dumpcap had ended before, or did not end in `deadline` seconds.
        """
        process = self._process
        if process is None:
            raise CaptureFailed("the capture was never started")
        if process.returncode is not None:
            full = self.path.is_file() and self.path.stat().st_size >= self.limit // 1000 * 1000
            why = f"the file reached its limit of {self.limit} bytes" if full else " ".join(self._lines[-3:])
            raise CaptureFailed(f"dumpcap ended too early: {why}")
        flushed = await self._marker_arrives(deadline / 2)
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(deadline):
                await process.wait()
                if self._reader is not None:
                    await self._reader
        except TimeoutError:
            await self.kill()
            raise CaptureFailed(f"dumpcap did not end within {deadline:.0f} s") from None
        found = _STATISTICS.search("\n".join(self._lines))
        if found is None:
            raise CaptureFailed(f"dumpcap reported no statistics: {' '.join(self._lines[-3:])}")
        return Captured(int(found[1]), int(found[2]), flushed)

    async def kill(self) -> None:
        """Ends the capture at once; the file may lack its last packets."""
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if self._reader is not None:
            await self._reader

    async def _read(self) -> None:
        assert self._process is not None and self._process.stderr is not None
        async for raw in self._process.stderr:
            line = raw.decode(errors="replace").strip()
            self._lines.append(line)
            if line.startswith("File: "):
                self._ready.set()

    async def _marker_arrives(self, deadline: float) -> bool:
        token = b"vadplab-end-of-capture-" + secrets.token_hex(8).encode()
        position = max(0, self.path.stat().st_size - len(token))
        try:
            with await asyncio.to_thread(socket_in, self._netns, socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(token, ("127.0.0.1", 9))
        except OSError:
            return False  # the namespace has no loopback: nothing can prove that the file is complete
        seen = b""
        try:
            async with asyncio.timeout(deadline):
                while token not in seen:
                    await asyncio.sleep(0.01)
                    fresh = _read_from(self.path, position)
                    position += len(fresh)
                    seen = seen[-len(token) :] + fresh
        except TimeoutError:
            return False
        return True


def _read_from(path: Path, position: int) -> bytes:
    with path.open("rb") as file:
        file.seek(position)
        return file.read()


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write in `folder`."""
    state = os.statvfs(folder)
    return state.f_bavail * state.f_frsize
