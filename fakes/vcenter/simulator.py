# SPDX-License-Identifier: MIT
"""One vcsim as a child process: started on a port of loopback that it picks itself, ended with us, watched by us.

It gets `-stdinexit` and a pipe for its standard input: when the gateway ends, however it ends, the pipe closes and vcsim
ends too; `setpriv --pdeathsig` does the same for one that does not read (not `preexec_fn`: Python code between fork and
exec may block for ever in a process that has threads, and this one has). Its password travels in a file, so that no process
list shows it. TMPDIR is a folder of ours, so that a killed vcsim leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

START_DEADLINE = 60.0
STOP_DEADLINE = 3.0
_log = logging.getLogger(__name__)


class SimulatorFailed(Exception):
    """vcsim did not start; the text holds what it said."""


class BadFlags(SimulatorFailed):
    """vcsim refused its flags, or ended at its start because of them."""


class Simulator:
    """A running vcsim; `host` and `port` are where it listens (clear HTTP)."""

    def __init__(self, process: asyncio.subprocess.Process, host: str, port: int, folder: Path) -> None:
        self.process = process
        self.host = host
        self.port = port
        self.folder = folder
        self._drain = asyncio.gather(_drain(process.stdout), _drain(process.stderr))

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self.process.returncode is None

    async def ended(self) -> int:
        """Waits for its end; returns the exit code."""
        return await self.process.wait()

    async def stop(self) -> None:
        """Ends it: by closing its standard input, then by SIGKILL."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), STOP_DEADLINE)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._drain, STOP_DEADLINE)
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)


class Attached:
    """A vcsim that somebody else started and ends (a container); its end is noticed by the calls that fail."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port

    @property
    def running(self) -> bool:
        """As far as can be told."""
        return True

    async def ended(self) -> int:
        """Never returns: only its owner knows."""
        await asyncio.Event().wait()
        return 0

    async def stop(self) -> None:
        """Leaves it as it is."""


async def start(executable: Path, flags: Sequence[str], username: str, password: str, parent: Path) -> Simulator:
    """Starts vcsim with those flags on a free port of 127.0.0.1.

    Args:
        username: the bare name (`-username name@domain` would lock everybody out, vcsim reference section 4).
        parent: folder in which its temporary folder is made.

    Raises:
        SimulatorFailed: it ended, or did not say where it listens within the deadline.
    """
    folder = Path(tempfile.mkdtemp(prefix="vcsim-", dir=parent))
    secret = folder / "password"
    secret.touch(mode=0o600)
    secret.write_text(password)
    setpriv = shutil.which("setpriv")
    command = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
    command += [str(executable), "-tls=false", "-l", "127.0.0.1:0", "-stdinexit"]
    command += ["-username", username, "-password", str(secret), *flags]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(folder)},
        )
    except OSError as exc:
        shutil.rmtree(folder, ignore_errors=True)
        raise SimulatorFailed(f"{executable}: {exc.strerror or exc}") from exc
    try:
        host, port = await asyncio.wait_for(_address(process), START_DEADLINE)
    except BaseException as exc:
        if not isinstance(exc, BadFlags):  # which has ended by itself
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(exc, TimeoutError):
            raise SimulatorFailed(f"vcsim was silent for {START_DEADLINE:.0f} s") from exc
        raise
    finally:
        secret.unlink(missing_ok=True)
    return Simulator(process, host, port, folder)


async def _address(process: asyncio.subprocess.Process) -> tuple[str, int]:
    assert process.stdout is not None and process.stderr is not None
    while line := await process.stdout.readline():
        if match := re.search(rb"GOVC_URL=(\S+)", line):
            url = urlsplit(match[1].decode())
            return url.hostname or "127.0.0.1", url.port or 0
    said = (await process.stderr.read()).decode(errors="replace").strip().splitlines()
    # a Go program says what is wrong first; then follows its usage, or where it was
    reason = next(
        (line for line in said if line.startswith(("flag ", "invalid ", "panic: "))), said[-1] if said else ""
    )
    raise BadFlags("vcsim ended at its start: " + (reason or "it said nothing"))


async def _drain(stream: asyncio.StreamReader | None) -> None:
    while stream is not None and (line := await stream.read(1 << 16)):
        _log.debug("vcsim: %s", line.decode(errors="replace").rstrip())
