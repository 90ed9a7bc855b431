# SPDX-License-Identifier: MIT
"""Starting nbdkit for an instant recovery, and ending it.

The listening socket is made here and handed over as in systemd's socket activation (nbdkit manual, "SOCKET ACTIVATION"): so
the port may be chosen by the kernel, and a socket's path may be longer than nbdkit could take.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
import socket
import struct
import sysconfig
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.errors import InputError, MissingError, RemoteError
from engine.processes import DiesWithParent, ProcessFailed, stop
from engine.recovery.certificates import folder
from engine.rpc.identity import Identity

READY_DEADLINE = 30.0
GRACE = 2.0
_LISTEN_FD = 3
_GREETING = b"NBDMAGIC"
_GREETING_LENGTH = 18
_ABORT = struct.pack(">I8sII", 3, b"IHAVEOPT", 2, 0)
"""Client flags, then the option NBD_OPT_ABORT (NBD protocol, "fixed newstyle negotiation")."""
_SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class NbdkitMissing(MissingError):
    """Instant recovery needs nbdkit with its Python plugin."""

    code = "recovery.nbdkit"
    advice = "apt-get install nbdkit nbdkit-plugin-python"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to serve and where: point folder, disk key, `unix` path or `listen` (host, port; 0: any), overlay file or None.

    ports: with `listen`, the first free one of these is taken. identity: clients need a certificate of its CA (TLS).
    """

    point: Path
    disk: int
    unix: Path | None = None
    listen: tuple[str, int] | None = None
    overlay: Path | None = None
    ports: tuple[int, int] | None = None
    identity: Identity | None = None


class RecoveryServer:
    """A running nbdkit that answers at `uri`."""

    def __init__(self, process: asyncio.subprocess.Process, uri: str, unix: Path | None, port: int | None) -> None:
        self.process = process
        self.uri = uri
        self.port = port
        self._unix = unix

    @classmethod
    async def start(cls, wanted: Wanted, *, deadline: float = READY_DEADLINE) -> RecoveryServer:
        """Starts it and waits until NBD answers.

        Raises:
            RemoteError: why the disk cannot be served (`store.damaged`, `store.not-found`, `store.locked`, `recovery.overlay`…).
            InputError: the address cannot be used. NbdkitMissing. ProcessFailed.
        """
        nbdkit = shutil.which("nbdkit", path=_SYSTEM_PATH) or shutil.which("nbdkit")
        if nbdkit is None:
            raise NbdkitMissing("nbdkit is not installed")
        sock, uri = _listening(wanted)
        port = None if wanted.unix is not None else int(sock.getsockname()[1])
        with contextlib.ExitStack() as held:
            held.enter_context(sock)
            # nbdkit has read the certificates when it answers: after that they are not needed.
            certificates = held.enter_context(folder(wanted.identity)) if wanted.identity is not None else None
            read, write = os.pipe()
            try:
                process = await _spawn(nbdkit, wanted, sock, write, certificates)
            except OSError as exc:
                os.close(read)
                raise ProcessFailed(f"nbdkit could not be started: {exc.strerror}") from exc
            finally:
                os.close(write)
            server = cls(process, uri, wanted.unix, port)
            try:
                await asyncio.wait_for(server._until_answers(read, sock), deadline)
            except BaseException as exc:
                await server.stop()
                if isinstance(exc, TimeoutError):
                    raise ProcessFailed(f"instant recovery: no answer within {deadline:.0f} s") from exc
                raise
            return server

    async def wait(self) -> int:
        """Waits for its end and gives its exit code."""
        return await self.process.wait()

    async def stop(self) -> None:
        """Ends it: connected clients have two seconds, then they are cut."""
        await stop(self.process, GRACE)
        if self._unix is not None:
            self._unix.unlink(missing_ok=True)

    async def _until_answers(self, notes: int, sock: socket.socket) -> None:
        """The disk is open when the pipe ends without a note; NBD answers when the greeting comes."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(notes, "rb")
        )
        try:
            note = await reader.read()
        finally:
            transport.close()
        if note:
            raise RemoteError(json.loads(note))
        greeting = asyncio.ensure_future(_greeting(sock, self._unix))
        ended = asyncio.ensure_future(self.process.wait())
        done, _ = await asyncio.wait([greeting, ended], return_when=asyncio.FIRST_COMPLETED)
        for task in (greeting, ended):
            if task not in done:
                task.cancel()
        if greeting not in done:
            raise ProcessFailed(f"nbdkit ended with {self.process.returncode} before it answered")
        try:
            greeting.result()
        except OSError as exc:
            raise ProcessFailed(f"nbdkit does not answer: {exc}") from exc


async def _spawn(
    nbdkit: str, wanted: Wanted, sock: socket.socket, notes: int, certificates: Path | None
) -> asyncio.subprocess.Process:
    keys = {"point": str(wanted.point.absolute()), "disk": str(wanted.disk), "notes": str(notes)}
    if wanted.overlay is not None:
        keys["overlay"] = str(wanted.overlay.absolute())
    plugin = Path(__file__).absolute().with_name("plugin.py")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {
        "PATH": _SYSTEM_PATH,  # the interpreter inside nbdkit finds its library through the first python3 on PATH
        "PYTHONPATH": os.pathsep.join([str(plugin.parents[2]), sysconfig.get_paths()["purelib"]]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LISTEN_FDS": "1",
    }
    dies, fd = DiesWithParent(), sock.fileno()

    def prepare() -> None:
        dies()
        os.dup2(fd, _LISTEN_FD, inheritable=True)

    # Only the process itself knows its number, which socket activation wants in the environment.
    shell = ["/bin/sh", "-c", 'export LISTEN_PID=$$; exec "$@"', "sh"]
    arguments = [nbdkit, "--foreground", "--exit-with-parent"]
    if certificates is not None:
        arguments += ["--tls=require", f"--tls-certificates={certificates}", "--tls-verify-peer"]
        if wanted.identity is not None and wanted.identity.keylog is not None:
            environment["SSLKEYLOGFILE"] = str(wanted.identity.keylog)
    arguments += ["python", str(plugin)]
    return await asyncio.create_subprocess_exec(
        *shell,
        *arguments,
        *(f"{key}={value}" for key, value in keys.items()),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        env=environment,
        pass_fds=(notes, _LISTEN_FD),
        preexec_fn=prepare,
    )


def _listening(wanted: Wanted) -> tuple[socket.socket, str]:
    if (wanted.unix is None) == (wanted.listen is None):
        raise InputError("instant recovery listens on a Unix socket or on an address, one of the two")
    try:
        if wanted.unix is not None:
            path = wanted.unix.absolute()
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with _short(path) as name:
                sock.bind(name)
            sock.listen(64)
            return sock, f"nbd+unix:///?socket={urllib.parse.quote(str(path))}"
        assert wanted.listen is not None
        host, port = wanted.listen
        first, last = wanted.ports or (port, port)
        for number in range(first, last + 1):
            try:
                sock = _bound(host, number)
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE or number == last:
                    raise
            else:
                break
        shown = f"[{host}]" if ":" in host else host
        scheme = "nbd" if wanted.identity is None else "nbds"
        return sock, f"{scheme}://{shown}:{sock.getsockname()[1]}/"
    except OSError as exc:
        raise InputError(
            f"instant recovery cannot listen on {wanted.unix or wanted.listen}: {exc.strerror or exc}"
        ) from exc


def _bound(host: str, port: int) -> socket.socket:
    family, kind, proto, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(64)
    except OSError:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name for a Unix socket that is short enough however long its path is, while the context lasts."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


async def _greeting(sock: socket.socket, unix: Path | None) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(sock.family, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        if unix is None:
            await loop.sock_connect(client, sock.getsockname())
        else:
            with _short(unix.absolute()) as name:
                await loop.sock_connect(client, name)
        got = b""
        while len(got) < _GREETING_LENGTH:
            piece = await loop.sock_recv(client, _GREETING_LENGTH - len(got))
            if not piece:
                raise ConnectionResetError("it closed the connection before its greeting")
            got += piece
        if not got.startswith(_GREETING):
            raise ConnectionResetError("it did not greet as an NBD server does")
        await loop.sock_sendall(client, _ABORT)  # a client that just goes away would be logged as an error
        while await loop.sock_recv(client, 64):
            pass
