# SPDX-License-Identifier: MIT
"""tgtd as a child process: started in our network namespace, told what to do through tgtadm, ended in its own order.

tgtd takes no notice of SIGTERM while it has targets (tgt 1.0.85): they are deleted first, then the daemon itself. Its
control socket lies in our state folder and is reached through a descriptor, so that paths may be long and any number of
labs run side by side. `setpriv --pdeathsig` ends it with us, however we end.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import subprocess
import time
from pathlib import Path

from fakes.core.daemon import run

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CONTROL_PORT = 1  # part of the socket's name only
_COMMAND_SECONDS = 10.0
_START_SECONDS = 15.0
_STOP_SECONDS = 5.0
_PAUSE = 0.05


class TgtFailed(Exception):
    """tgtd did not start, or refused a command; the text holds what it said."""


class Missing(Exception):
    """A program is not installed; the text names the package."""


def program(name: str, package: str) -> str:
    """Where a program is; `Missing` says which package holds it."""
    found = shutil.which(name, path=PATH) or shutil.which(name)
    if found is None:
        raise Missing(f"{name} is missing: apt-get install {package}")
    return found


class Tgt:
    """A running tgtd that serves one portal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: asyncio.subprocess.Process | None = None
        self._tgtadm = program("tgtadm", "tgt")
        self._log = self._fd = -1

    async def start(self, portal: str, kept: list[int]) -> None:
        """Starts tgtd; returns when it takes commands. `kept` are descriptors that it inherits.

        Raises:
            TgtFailed: it ended, or took no command in time.
        """
        tgtd, setpriv = program("tgtd", "tgt"), program("setpriv", "util-linux")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._log = os.open(self.folder / "tgtd.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        await self._alone()
        os.ftruncate(self._log, 0)
        for stale in self.folder.glob("control.*"):
            stale.unlink()
        self.process = await asyncio.create_subprocess_exec(
            *(setpriv, "--pdeathsig", "KILL", "--", tgtd, "--foreground", "--control-port", str(_CONTROL_PORT)),
            *("--iscsi", f"portal={portal},nop_interval=0"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=[self._fd, *kept],
            env=self._environment(),
        )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                await self.command("--mode", "system", "--op", "show")
                return
            except TgtFailed:
                if self.process.returncode is not None or time.monotonic() > deadline:
                    raise TgtFailed(f"tgtd does not serve {portal}: {self.said()}") from None
            await asyncio.sleep(_PAUSE)

    async def _alone(self) -> None:
        """Locks the log, which tgtd keeps open: so the lock ends with it, and not with us."""
        deadline = time.monotonic() + _STOP_SECONDS
        while True:
            try:
                fcntl.flock(self._log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                if time.monotonic() > deadline:
                    self._release()
                    raise TgtFailed(f"{self.folder} is in use by another array") from None
            await asyncio.sleep(_PAUSE)

    def _environment(self) -> dict[str, str]:
        return {"PATH": PATH, "LC_ALL": "C", "TGT_IPC_SOCKET": f"/proc/self/fd/{self._fd}/control"}

    async def command(self, *arguments: str) -> str:
        """Runs tgtadm; returns what it printed.

        Raises:
            TgtFailed: it refused, or did not answer in time.
        """
        command = (self._tgtadm, "--control-port", str(_CONTROL_PORT), "--lld", "iscsi", *arguments)
        what = " ".join(arguments[:4])  # never the secret of an account
        try:
            done = await run(command, _COMMAND_SECONDS, pass_fds=[self._fd], env=self._environment())
        except subprocess.TimeoutExpired:
            raise TgtFailed(f"tgtadm {what}: no answer in {_COMMAND_SECONDS:.0f} s") from None
        if done.returncode:
            raise TgtFailed(f"tgtadm {what}: {done.stderr.decode(errors='replace').strip() or done.returncode}")
        return done.stdout.decode(errors="replace")

    def said(self) -> str:
        """The last lines of its log."""
        with contextlib.suppress(OSError):
            return " / ".join((self.folder / "tgtd.log").read_text(errors="replace").splitlines()[-3:])
        return "nothing"

    async def stop(self, targets: list[int]) -> None:
        """Deletes the targets with all their sessions, then ends tgtd; by SIGKILL when it does not."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(TgtFailed):
                for each in targets:
                    await self.command("--mode", "target", "--op", "delete", "--force", "--tid", str(each))
            with contextlib.suppress(TgtFailed):
                await self.command("--mode", "system", "--op", "delete")
            try:
                await asyncio.wait_for(self.process.wait(), _STOP_SECONDS)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self.process.kill()
                await self.process.wait()
        if self._fd >= 0:
            for stale in self.folder.glob("control.*"):
                stale.unlink(missing_ok=True)
        self._release()

    def _release(self) -> None:
        for fd in (self._log, self._fd):
            if fd >= 0:
                os.close(fd)
        self._log = self._fd = -1
