# SPDX-License-Identifier: MIT
"""Console verbs about restore points: into a new VM, single files, instant recovery, verify, prune, import.

restore vm POINT --name NEW [--vm VM] [--vcenter V] [--host ESXI] [--datastore DS] [--mode M] [--no-failover]
    [--data-direction D]
restore files POINT PATH… --disk N (--to FOLDER | --list) [--vm VM] [--partition N]
recover POINT [--disk N]… [--vm VM] [--port P]      until Ctrl-C; prints the NBD URIs first
points list | verify [POINT] [--vm VM] [--deep] | prune [--count N] [--days N] [--vm VM] [--job JOB]
points import FOLDER [--repository HOST]            a folder on the repository
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import ssl
import struct
import urllib.parse
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.console.commands import Connection, TargetExists, cancel, interruptible, serving_mover
from engine.console.files import fetch
from engine.console.output import Output
from engine.dialer import Connection as Dialed
from engine.errors import ConnectError, VadplabError, from_oserror
from engine.events import new_id
from engine.recovery import certificates
from engine.report import Reporter
from engine.rpc.client import Client

LONG = 6 * 3600.0 + 60.0
ALIVE = 60.0
STOP_DEADLINE = 330.0
START_DEADLINE = 660.0
GREETING_DEADLINE = 10.0
QUEUE_IDLE = 24 * 3600.0
RECOVERY_SCHEMA = "vadplab.recovery/1"
_GREETING = b"NBDMAGIC"
_ABORT = struct.pack(">I8sII", 3, b"IHAVEOPT", 2, 0)


class NoDiskServer(ConnectError):
    """What answers at the port of an instant recovery does not greet as an NBD server does."""

    code = "recovery.no-nbd"
    symptom = "not an NBD server"
    advice = "Look at the repository's log."


def add_verbs(families: Any) -> None:
    """Adds `restore`, `recover` and `points` to the console's families."""
    restore = families.add_parser("restore", help="restore a disk to a file, single files, or into a new VM")
    verbs = restore.add_subparsers(dest="action", required=True)
    disk = verbs.add_parser("disk", help="a disk to a new file (also without this word)")
    disk.add_argument("point")
    disk.add_argument("--disk", type=int, required=True, help="number (1 for `Hard disk 1`) or key (2000)")
    disk.add_argument("--to", type=Path, required=True)
    vm = verbs.add_parser("vm", help="all disks into a new VM in vCenter, powered off")
    vm.add_argument("point")
    vm.add_argument("--name", required=True, help="the new VM's name")
    for option in ("vcenter", "host", "datastore", "mode"):
        vm.add_argument(f"--{option}")
    vm.add_argument("--data-direction", dest="direction")
    vm.add_argument("--failover", action=argparse.BooleanOptionalAction, help="whether another mode may take over")
    files = verbs.add_parser("files", help="single files of an ext4 disk")
    files.add_argument("point")
    files.add_argument("paths", nargs="+", metavar="path")
    files.add_argument("--disk", type=int, required=True)
    way = files.add_mutually_exclusive_group(required=True)
    way.add_argument("--to", type=Path, metavar="FOLDER", help="a folder that exists; nothing is overwritten")
    way.add_argument("--list", dest="to", action="store_const", const=None, help="only list what is there")
    files.add_argument("--partition", type=int)
    recover = families.add_parser("recover", help="instant recovery: serve a point's disks over NBD, until Ctrl-C")
    recover.add_argument("point")
    recover.add_argument(
        "--disk", dest="disks", type=int, action="append", default=[], help="number or key; repeatable"
    )
    recover.add_argument("--port", type=int, help="on the repository (default: a free mover port)")
    points = families.add_parser("points", help="restore points").add_subparsers(dest="action", required=True)
    points.add_parser("list", help="every restore point")
    verify = points.add_parser("verify", help="read every byte; name what is damaged and what is intact")
    verify.add_argument("point", nargs="?")
    verify.add_argument("--deep", action="store_true", help="check the structure of the files as well")
    prune = points.add_parser("prune", help="remove old points; what others stand on is merged before")
    prune.add_argument("--count", type=int)
    prune.add_argument("--days", type=int)
    prune.add_argument("--job")
    adopt = points.add_parser("import", help="copy the points of a folder on the repository into it")
    adopt.add_argument("folder")
    adopt.add_argument("--repository")
    for parser in (disk, vm, recover, verify, prune, files):
        parser.add_argument("--vm", help="when several VMs have a point of that name; this VM only")
    for parser in (disk, vm, recover, verify, prune, adopt, files):
        parser.add_argument("--session", help=argparse.SUPPRESS)


def with_verb(argv: list[str]) -> list[str]:
    """`restore POINT …` means `restore disk POINT …`."""
    for at, word in enumerate(argv[:-1]):
        if word == "restore" and argv[at - 1] != "--config":
            verb = argv[at + 1]
            return (
                argv if verb in ("disk", "vm", "files", "-h", "--help") else [*argv[: at + 1], "disk", *argv[at + 1 :]]
            )
    return argv


class PointVerbs:
    """Those verbs, each over one connection to the Backup Service."""

    def __init__(self, config: EngineConfig, output: Output) -> None:
        self._config = config
        self._output = output

    def perform(self, arguments: argparse.Namespace) -> Coroutine[Any, Any, dict[str, Any]] | None:
        """The verb of these arguments, when it is one of them."""
        match (arguments.family, getattr(arguments, "action", None)):
            case ("restore", "vm"):
                return self.restore_vm(arguments)
            case ("restore", "files"):
                return self.restore_files(arguments)
            case ("recover", _):
                return self.recover(arguments)
            case ("points", "verify"):
                given = _given(arguments, "point", "vm", "deep")
                return self._long("points-verify/1", "points.verify", arguments.session, **given)
            case ("points", "prune"):
                given = _given(arguments, "count", "days", "vm", "job")
                return self._long("points-prune/1", "points.prune", arguments.session, **given)
            case ("points", "import"):
                given = _given(arguments, "repository")
                return self._long(
                    "points-import/1", "points.import", arguments.session, folder=arguments.folder, **given
                )
        return None

    async def restore_vm(self, arguments: argparse.Namespace) -> dict[str, Any]:
        """Restores into a new VM; SIGINT and SIGTERM stop it, and wait until the half-made VM is gone."""
        session = arguments.session or new_id()
        given = _given(
            arguments, "point", "name", "vm", "vcenter", "host", "datastore", "mode", "direction", "failover"
        )
        async with Connection(self._config, session, "r1") as client:
            running = asyncio.create_task(
                client.call(
                    "restore.vm",
                    deadline=None,
                    idle=QUEUE_IDLE,
                    on_progress=self._output.progress,
                    session=session,
                    **given,
                )
            )
            return await interruptible(running, client.call("restore.stop", deadline=STOP_DEADLINE, session=session))

    async def restore_files(self, arguments: argparse.Namespace) -> dict[str, Any]:
        """Lists files, or writes them into a folder; failed when any path has an error, and then that is the result's error."""
        to: Path | None = arguments.to
        if to is not None and not to.is_dir():
            raise TargetExists(f"{to} is no folder", next="Name a folder that exists; nothing was written.")
        session = arguments.session or new_id()
        async with Connection(self._config, session, "r1") as client:
            fetching = asyncio.create_task(self._fetch(client, session, arguments, to))
            return await interruptible(fetching, cancel(fetching))

    async def _fetch(
        self, client: Client, session: str, arguments: argparse.Namespace, to: Path | None
    ) -> dict[str, Any]:
        asked = _given(arguments, "point", "disk", "vm")
        async with serving_mover(self._config, self._output, client, "restore.files", session, asked) as mover:
            answer = mover.answer
            found = await fetch(
                mover.connection,
                self._config.make_identity(),
                answer["token"],
                answer["size"],
                arguments.paths,
                to,
                arguments.partition,
                expect=answer["name"],
                events=mover.events,
            )
        error = next((one["error"] for one in found if one["error"]), None)
        return {
            "schema": "vadplab.restore-result/1",
            "run": session,
            "kind": "restore",
            "what": "files",
            "result": "failed" if error else "success",
            "error": error,
            **{key: answer[key] for key in ("point", "vm", "disk", "label", "consistency")},
            "repository": answer["name"],
            "to": None if to is None else str(to),
            "paths": found,
        }

    async def recover(self, arguments: argparse.Namespace) -> dict[str, Any]:
        """Instant recovery: prints where the disks are, and returns when it was told to end (SIGINT, SIGTERM)."""
        session = arguments.session or new_id()
        ending = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ending.set)
        with certificates.folder(self._config.make_identity()) as credentials:
            async with Connection(self._config, session, "r1") as client:
                found = await client.call(
                    "recovery.start",
                    deadline=START_DEADLINE,
                    on_progress=self._output.progress,
                    session=session,
                    **_given(arguments, "point", "vm", "disks", "port"),
                )
                result = "failed"
                try:
                    # Names that only this machine's resolver knows would mean nothing to NBD clients.
                    host = self._config.resolver.get(found["host"], found["host"])
                    disks = [{**disk, "uri": _uri(host, disk["port"], credentials)} for disk in found["disks"]]
                    for disk in disks:
                        await self._greet(found, disk, session)
                    shown = {
                        "run": session,
                        "point": found["point"],
                        "vm": found["vm"],
                        "consistency": found["consistency"],
                        "repository": found["name"],
                        "host": found["host"],
                        "disks": disks,
                        "certificates": str(credentials),
                    }
                    self._output.announce({"schema": RECOVERY_SCHEMA, "kind": "recovery", **shown})
                    self._output.progress({"kind": "note", "step": "r12", "text": "served until interrupted"})
                    result = await self._until(ending, client)
                finally:
                    with contextlib.suppress(VadplabError):
                        await client.call("recovery.stop", session=session, result=result)
        return {
            "schema": "vadplab.restore-result/1",
            "kind": "restore",
            "what": "recovery",
            "result": "success",
            "error": None,
            **shown,
        }

    async def _until(self, ending: asyncio.Event, client: Client) -> str:
        """Waits for a signal; raises what ended the connection to the Backup Service before it."""
        told, gone = asyncio.create_task(ending.wait()), asyncio.create_task(client.closed.wait())
        try:
            await asyncio.wait([told, gone], return_when=asyncio.FIRST_COMPLETED)
        finally:
            told.cancel()
            gone.cancel()
        if client.closed.is_set():
            await client.call("job.list")  # raises, with the reason
        return "success"

    async def _greet(self, found: dict[str, Any], disk: dict[str, Any], session: str) -> None:
        """Step r12: the disk server answers at its port. Its clients then bring certificates of their own."""
        events = self._config.event_log("console", session=session)
        try:
            reporter = Reporter(events, self._output.progress)
            with reporter.step("r12", task=f"{found['vm']}:{disk['key']}", text=f"NBD at {disk['port']}"):
                connection = await self._config.dialer(events).dial(
                    found["host"], disk["port"], step="r12", name=found["name"]
                )
                count = await _greeting(connection, self._config.name)
                events.emit("bytes", step="r12", attempt=connection.attempt, sent=len(_ABORT), received=count)
        finally:
            events.close()

    async def _long(self, schema: str, method: str, session: str | None, **params: Any) -> dict[str, Any]:
        """A call that may take long; the service says meanwhile that it goes on."""
        async with Connection(self._config, session, "r1") as client:
            running = asyncio.create_task(
                client.call(
                    method, deadline=LONG, idle=ALIVE, on_progress=self._output.progress, session=session, **params
                )
            )

            async def stop() -> None:
                running.cancel()

            found = await interruptible(running, stop())
        return {"schema": f"vadplab.{schema}", **found}


async def _greeting(connection: Dialed, host: str) -> int:
    """Reads an NBD server's greeting and takes leave; gives the bytes received. Raises NoDiskServer, ConnectError."""
    where: dict[str, Any] = {"step": "r12", "host": host, "target": connection.target, "port": connection.port}
    try:
        reader, writer = await asyncio.open_connection(sock=connection.sock)
        try:
            got = await asyncio.wait_for(reader.readexactly(18), GREETING_DEADLINE)
            writer.write(_ABORT)
            await writer.drain()
            rest = await asyncio.wait_for(reader.read(), GREETING_DEADLINE)
        finally:
            writer.close()
    except asyncio.IncompleteReadError as exc:
        raise NoDiskServer(f"{connection.target}:{connection.port} ends before its greeting", **where) from exc
    except (OSError, ssl.SSLError, TimeoutError) as exc:
        raise from_oserror(exc, **where) from exc
    if not got.startswith(_GREETING):
        raise NoDiskServer(f"{connection.target}:{connection.port} does not greet as an NBD server", **where)
    return len(got) + len(rest)


def _uri(host: str, port: int, credentials: Path) -> str:
    return f"nbds://{host}:{port}/?tls-certificates={urllib.parse.quote(str(credentials))}"


def _given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    values = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}
