# SPDX-License-Identifier: MIT
"""`python -m engine.recovery`: see the package's text."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import signal
import sys
from pathlib import Path

from engine import config as configuration
from engine.errors import InputError, VadplabError
from engine.processes import ProcessFailed, ready, run, until_signal
from engine.recovery.server import RecoveryServer, Wanted

_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> int:
    """Entry of the process; 0 after SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="engine.recovery", description="Serve a disk of a restore point over NBD.")
    parser.add_argument("--point", type=Path, required=True, help="folder of a visible restore point")
    parser.add_argument("--disk", type=int, required=True, help="vSphere key of the disk, for example 2000")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--unix", type=Path, help="path of a new Unix socket")
    where.add_argument("--listen", help="HOST:PORT; port 0: any free one")
    where.add_argument("--config", type=Path, help="this machine's configuration: TLS, its address, a mover port")
    parser.add_argument("--port", type=int, help="with --config: this port")
    parser.add_argument("--overlay", type=Path, help="file for what is written; kept at the end")
    options = parser.parse_args(argv)
    _end_with_parent()
    if options.config is not None:
        return _for_machine(options)
    wanted = Wanted(options.point, options.disk, options.unix, _address(options.listen), options.overlay)
    return asyncio.run(_serve(wanted))


def _for_machine(options: argparse.Namespace) -> int:
    """Serves as a process of this machine's Transport Service, whose one ready line is JSON: `{port}`, or `{error}`."""
    try:
        config = configuration.load(options.config)
        ports = config.mover_ports if options.port is None else (options.port, options.port)
        wanted = Wanted(
            options.point,
            options.disk,
            listen=(config.listen, ports[0]),
            overlay=options.overlay,
            ports=ports,
            identity=config.make_identity(),
        )
        return asyncio.run(_serve(wanted, as_json=True))
    except VadplabError as exc:
        ready({"error": {**exc.to_dict(), "exit_code": exc.exit_code}})
        raise


def _end_with_parent() -> None:
    """SIGTERM for this process when its parent ends, so that it still removes its socket; nbdkit dies with this one."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


async def _serve(wanted: Wanted, *, as_json: bool = False) -> int:
    signalled = asyncio.ensure_future(until_signal())
    server = await RecoveryServer.start(wanted)
    try:
        if as_json:
            ready({"port": server.port})
        else:
            sys.stdout.write(server.uri + "\n")
            sys.stdout.flush()
        ended = asyncio.ensure_future(server.wait())
        done, _ = await asyncio.wait([signalled, ended], return_when=asyncio.FIRST_COMPLETED)
        if signalled not in done:
            raise ProcessFailed(f"nbdkit ended with {ended.result()}")
        return 0
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):  # a second one must not cut the clean end short
            signal.signal(number, signal.SIG_IGN)
        await server.stop()


def _address(text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise InputError(f"not an address: {text!r} (for example 127.0.0.1:10809)")
    return host.strip("[]"), int(port)


if __name__ == "__main__":
    run(main)
