# SPDX-License-Identifier: MIT
"""An SSH server in OpenSSH's place, for guests with one mapped user id. It runs beside the guest and its commands inside.

Each command is a process in the guest's namespaces (`nsenter`), with its own pipes: asyncssh's redirection and `exit` race
on short commands (guests reference section 3). As with OpenSSH, a command goes on when its client is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from fakes.linux_guest import root

_SFTP = "/usr/lib/openssh/sftp-server"
_CHUNK = 65536


class _Login(asyncssh.SSHServer):
    """Lets in the guest's one account."""

    def __init__(self, guest: root.Guest) -> None:
        self._account = guest.account
        self._keys: list[asyncssh.SSHKey] = []
        if self._account.authorized_key:
            self._keys.append(asyncssh.import_public_key(self._account.authorized_key))

    def begin_auth(self, username: str) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return username == self._account.name and hmac.compare_digest(
            password.encode(), self._account.password.encode()
        )

    def public_key_auth_supported(self) -> bool:
        return bool(self._keys)

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return username == self._account.name and key in self._keys


@dataclass
class Beside:
    """Serves a guest whose process 1 is `pid`."""

    guest: root.Guest
    pid: int
    host_key: Path

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """While the block runs."""
        server = await asyncssh.create_server(
            lambda: _Login(self.guest),
            self.guest.address,
            22,
            server_host_keys=[asyncssh.read_private_key(self.host_key)],
            process_factory=self._process,
            encoding=None,
            allow_scp=False,
        )
        try:
            yield
        finally:
            server.close()

    async def _process(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        name = self.guest.account.name
        if process.subsystem == "sftp":
            inside = [_SFTP]
        elif process.command is not None:
            inside = ["/bin/sh", "-c", 'cd && exec /bin/sh -c "$0"', process.command]
        else:
            inside = ["/bin/sh", "-c", "cd && exec /bin/sh"]
        child = await asyncio.create_subprocess_exec(
            *("nsenter", "--target", str(self.pid), "--mount", "--pid", "--uts", "--ipc", *inside),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": "/root",
                "USER": name,
                "LOGNAME": name,
                "SHELL": "/bin/sh",
            },
        )
        assert child.stdin is not None and child.stdout is not None and child.stderr is not None
        feeding = asyncio.create_task(_feed(process.stdin, child.stdin))
        await asyncio.gather(_pump(child.stdout, process.stdout), _pump(child.stderr, process.stderr))
        code = await child.wait()
        feeding.cancel()
        with contextlib.suppress(OSError, asyncssh.Error):
            if code < 0:
                process.exit_with_signal(_signal_name(-code))
            else:
                process.exit(code)


def _signal_name(number: int) -> str:
    import signal

    return signal.Signals(number).name.removeprefix("SIG")


async def _feed(source: asyncssh.SSHReader[bytes], target: asyncio.StreamWriter) -> None:
    """The client's input, to its end; also when the client goes away."""
    with contextlib.suppress(OSError, asyncssh.Error):
        while data := await source.read(_CHUNK):
            target.write(data)
            await target.drain()
    target.close()


async def _pump(source: asyncio.StreamReader, target: asyncssh.SSHWriter[bytes]) -> None:
    """The command's output; thrown away when the client is gone, so that the command goes on."""
    gone = False
    while data := await source.read(_CHUNK):
        if gone:
            continue
        try:
            target.write(data)
            await target.drain()
        except (OSError, asyncssh.Error):
            gone = True
