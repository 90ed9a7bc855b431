# SPDX-License-Identifier: MIT
"""SSH into a Linux guest (step 13): asyncssh over a socket that the dialer opened.

Scripts are uploaded to a folder of the session in /run (tmpfs), so that nothing has to be written to a frozen file system.
Before the freeze a watchdog is started in the guest: it thaws after `thaw_after` seconds if the engine does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
import time
from dataclasses import dataclass, field
from typing import Any

import asyncssh

from engine.dialer import Dialer
from engine.errors import ConnectTimedOut, VadplabError, from_oserror
from engine.guest.channel import ScriptResult, Scripts
from engine.guest.errors import (
    GuestError,
    GuestLoginRefused,
    HostKeyMismatch,
    ScriptFailed,
    ScriptTimedOut,
    SshFailed,
    UploadFailed,
)
from engine.rpc.tuning import tune

LOGIN_DEADLINE = 10.0
COMMAND_DEADLINE = 15.0
SHOWN = 2000


@dataclass(frozen=True, slots=True)
class Account:
    """A guest's account: a password or a private key (OpenSSH or PEM text), and the pinned host key when known."""

    username: str
    password: str | None = field(default=None, repr=False)
    private_key: str | None = field(default=None, repr=False)
    host_key: str | None = None
    port: int = 22


class SshChannel:
    """A `GuestChannel` over SSH. `session` names the folder in the guest; `target` is the VM's name in events and errors."""

    def __init__(
        self, dialer: Dialer, *, target: str, address: str, account: Account, session: str, scripts: Scripts
    ) -> None:
        self._dialer = dialer
        self._target = target
        self._address = address
        self._account = account
        self._scripts = scripts
        self._folder = f"/run/vadplab-{re.sub('[^A-Za-z0-9-]', '-', session)}"
        self._connection: asyncssh.SSHClientConnection | None = None
        self._attempt: str | None = None
        self.host_key: str | None = None

    async def prepare(self) -> None:
        await self._connect("13")
        await self._upload()

    async def freeze(self) -> ScriptResult:
        watch = (
            f"cd {self._folder} && (setsid sh -c 'echo $$ > watchdog; sleep {self._scripts.thaw_after};"
            f" rm -f watchdog; exec {self._runs('post-thaw')}' </dev/null >/dev/null 2>&1 &)"
        )
        await self._command(watch, "13")
        return await self._script("pre-freeze", "13")

    async def thaw(self) -> ScriptResult:
        if self._connection is None or self._connection.is_closed():
            await self._connect("16")
        elif self._attempt is not None:
            self._dialer.events.use(self._attempt, step="16")
        try:
            result = await self._post_thaw()
        except SshFailed:
            await self._drop()
            await self._connect("16")
            result = await self._post_thaw()
        await self._end_watchdog()
        return result

    async def close(self) -> None:
        if self._connection is not None and not self._connection.is_closed():
            with contextlib.suppress(Exception):
                await self._command(f"rm -rf {self._folder}", "16")
        await self._drop()

    async def thaw_leftover(self) -> bool:
        """After a dead Backup Manager: runs the post-thaw script that its session left in the guest; False when there is none."""
        await self._connect("16")
        try:
            if (await self._run(f"test -x {self._folder}/post-thaw", "16")).exit_status != 0:
                return False
            await self._post_thaw()
            await self._end_watchdog()
            return True
        finally:
            await self.close()

    async def _post_thaw(self) -> ScriptResult:
        """A pre-freeze script that still runs could freeze after the thaw: it ends first."""
        await self._end_script("pre-freeze", "16")
        return await self._script("post-thaw", "16")

    async def _connect(self, step: str) -> None:
        where = self._where(step)
        account = self._account
        try:
            keys = [asyncssh.import_private_key(account.private_key)] if account.private_key else None
            pinned = [asyncssh.import_public_key(account.host_key)] if account.host_key else None
        except (asyncssh.KeyImportError, ValueError) as exc:
            raise GuestError(f"the stored key for {self._target} cannot be used", **where) from exc
        connection = await self._dialer.dial(self._address, account.port, step=step, name=self._target)
        tune(connection.sock)
        try:
            self._connection = await asyncio.wait_for(
                asyncssh.connect(
                    sock=connection.sock,
                    username=account.username,
                    password=account.password,
                    client_keys=keys,
                    known_hosts=(pinned, [], []) if pinned else None,
                    agent_path=None,
                    config=None,
                    preferred_auth="publickey" if keys else "password,keyboard-interactive",
                    login_timeout=LOGIN_DEADLINE,
                ),
                LOGIN_DEADLINE + 1,
            )
        except asyncssh.PermissionDenied as exc:
            raise GuestLoginRefused(self._text("credentials refused"), **where) from exc
        except (asyncssh.HostKeyNotVerifiable, asyncssh.KeyExchangeFailed) as exc:
            if pinned is None:
                raise SshFailed(self._text("SSH failed"), **where) from exc
            raise HostKeyMismatch(self._text("host key mismatch"), **where) from exc
        except TimeoutError as exc:
            raise ConnectTimedOut(self._text("connected, then no SSH answer"), **where) from exc
        except asyncssh.Error as exc:
            raise SshFailed(self._text(f"SSH failed ({type(exc).__name__})"), **where) from exc
        except OSError as exc:
            raise from_oserror(exc, **where) from exc
        except BaseException:
            connection.sock.close()
            raise
        finally:
            if self._connection is None:
                connection.sock.close()
        self._attempt = connection.attempt
        key = self._connection.get_server_host_key()
        self.host_key = " ".join(key.export_public_key().decode().split()[:2]) if key is not None else None

    async def _upload(self) -> None:
        folder = self._folder
        made = await self._run(f"umask 077; rm -rf {folder}; mkdir {folder}", "13")
        if made.exit_status != 0:
            raise UploadFailed(f"{self._target}: {folder} cannot be made in the guest", **self._where("13"))
        for name, body in (("pre-freeze", self._scripts.pre_freeze), ("post-thaw", self._scripts.post_thaw)):
            done = await self._run(f"umask 077; cat > {folder}/{name} && chmod 700 {folder}/{name}", "13", body)
            if done.exit_status != 0:
                raise UploadFailed(f"{self._target}: {folder}/{name} cannot be written", **self._where("13"))

    async def _script(self, name: str, step: str) -> ScriptResult:
        start = time.monotonic()
        pid = f"{self._folder}/{name}.pid"
        command = f"cd / && echo $$ > {pid} && {self._runs(name)}; r=$?; rm -f {pid}; exit $r"
        try:
            done = await self._run(command, step, timeout=self._scripts.timeout, script=name)
        except (ScriptTimedOut, asyncio.CancelledError):
            with contextlib.suppress(VadplabError):
                await self._end_script(name, step)
            raise
        result = ScriptResult(
            name,
            done.exit_status if done.exit_status is not None else -1,
            _text(done.stdout),
            _text(done.stderr),
            round(time.monotonic() - start, 3),
        )
        if result.exit_code != 0 or result.errors:
            why = f"exit code {result.exit_code}" if result.exit_code else "it wrote to standard error"
            raise ScriptFailed(f"{self._target}: {name} script failed: {why}", **self._where(step))
        return result

    async def _end_script(self, name: str, step: str) -> None:
        """Ends a script that still runs and waits for its end: an SSH server leaves it running when its client gives up."""
        await self._run(
            f"p=$(cat {self._folder}/{name}.pid 2>/dev/null) || exit 0; kill -TERM -- -$p;"
            " for i in 1 2 3 4 5 6 7 8 9 10; do kill -0 -- -$p 2>/dev/null || exit 0; sleep 0.2; done; kill -KILL -- -$p",
            step,
        )

    def _runs(self, name: str) -> str:
        """The command that runs an uploaded script: by its interpreter, since /run is often mounted noexec."""
        body = self._scripts.pre_freeze if name == "pre-freeze" else self._scripts.post_thaw
        return f"{interpreter(body)} {self._folder}/{name}"

    async def _command(self, command: str, step: str) -> None:
        done = await self._run(command, step)
        if done.exit_status != 0:
            raise SshFailed(f"{self._target}: a command failed with {done.exit_status}", **self._where(step))

    async def _end_watchdog(self) -> None:
        with contextlib.suppress(VadplabError):
            await self._run(f'test -e {self._folder}/watchdog && kill -- -"$(cat {self._folder}/watchdog)"', "16")

    async def _run(
        self,
        command: str,
        step: str,
        stdin: bytes = b"",
        *,
        timeout: float = COMMAND_DEADLINE,
        script: str | None = None,
    ) -> asyncssh.SSHCompletedProcess:
        assert self._connection is not None
        try:
            async with asyncio.timeout(timeout):
                return await self._connection.run(command, input=stdin, encoding=None, check=False)
        except TimeoutError as exc:
            if script is not None:
                raise ScriptTimedOut(f"{self._target}: {script} script timed out", **self._where(step)) from exc
            raise SshFailed(self._text("no answer in the session"), **self._where(step)) from exc
        except (asyncssh.Error, OSError) as exc:
            raise SshFailed(self._text(f"SSH failed ({type(exc).__name__})"), **self._where(step)) from exc

    async def _drop(self) -> None:
        if self._connection is not None:
            self._connection.abort()
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._connection.wait_closed(), 2.0)
            self._connection = None

    def _text(self, symptom: str) -> str:
        return f"{self._dialer.events.host} to {self._target}:{self._account.port}: {symptom}"

    def _where(self, step: str) -> dict[str, Any]:
        return {
            "step": step,
            "host": self._dialer.events.host,
            "target": self._target,
            "port": self._account.port,
        }


def interpreter(script: bytes) -> str:
    """The interpreter that a script's first line names, else /bin/sh."""
    first = script.split(b"\n", 1)[0].decode(errors="replace").strip()
    return shlex.join(shlex.split(first[2:], posix=True)) if first.startswith("#!") and first[2:].strip() else "/bin/sh"


def _text(value: object) -> str:
    return (value.decode(errors="replace") if isinstance(value, bytes | bytearray) else str(value or "")).strip()[
        :SHOWN
    ]
