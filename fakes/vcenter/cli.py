# SPDX-License-Identifier: MIT
"""`vadplab fake vcenter`: the gateway with its vcsim, alone on loopback or as the lab starts it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import sys
from pathlib import Path

from pyVmomi import vmodl

from fakes.core import certificate, inventory
from fakes.core.daemon import die_with_parent, on_signal, ready
from fakes.core.fabric import FabricError
from fakes.core.scratch import scratch
from fakes.vcenter import source
from fakes.vcenter.changes import Pages
from fakes.vcenter.gateway import Gateway, Settings
from fakes.vcenter.simulator import BadFlags, SimulatorFailed
from fakes.vcenter.upstream import UpstreamGone

BAD_INPUT, MISSING = 2, 3
# how the gateway reaches vcsim is not the user's to say
_OWN_FLAGS = {"l": "--listen", "tls": "--certificate", "tlscert": "--certificate", "tlskey": "--certificate"}
_OWN_FLAGS |= dict.fromkeys(("E", "stdinexit", "tunnel"), "the gateway")


def size(value: str) -> int:
    """Bytes from `512MiB` and the like."""
    try:
        return inventory.parse_size(value)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vadplab fake vcenter",
        description="A vCenter: stock vcsim behind a gateway. Prints its URL on the first line; ends on SIGTERM.",
        epilog="What follows -- is given to vcsim (only without --inventory), for example -- -dc 1 -vm 2.",
    )
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="ADDRESS:PORT", help="port 0 picks one")
    parser.add_argument("--inventory", type=Path, metavar="FILE", help="what to show (default: vcsim's own model)")
    parser.add_argument("--fabric", type=Path, metavar="FOLDER", help="where storage and hosts answer")
    parser.add_argument("--certificate", type=Path, metavar="PEM", help="certificate and key (default: self-signed)")
    parser.add_argument("--journal", type=Path, metavar="FILE", help="one JSON object a SOAP call")
    parser.add_argument("--state", type=Path, metavar="FOLDER", help="for vcsim's stub files (default: temporary)")
    parser.add_argument("--vcsim", metavar="WHAT", help="a path, or path, docker, built (default: the first there is)")
    parser.add_argument("--attach", metavar="HOST:PORT", help="use an empty vcsim that listens there (a container's)")
    parser.add_argument(
        "--change-span", type=size, metavar="SIZE", help="of a disk, that one QueryChangedDiskAreas covers"
    )
    parser.add_argument("--change-areas", type=int, default=2000, metavar="N", help="areas that it lists at most")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="where a built vcsim is kept")
    return parser


def _login(flags: list[str]) -> tuple[list[str], dict[str, str]]:
    """vcsim's flags without `username` and `password`, and these two, which the gateway logs in with as well.

    Raises:
        ValueError: a flag that is the gateway's own.
    """
    rest, login = [], {}
    left = iter(flags)
    for flag in left:
        name, equals, value = flag.lstrip("-").partition("=")
        if flag.startswith("-") and name in _OWN_FLAGS:
            raise ValueError(f"-- {flag}: that is for {_OWN_FLAGS[name]} to say")
        if flag.startswith("-") and name in ("username", "password"):
            login[name] = value if equals else next(left, "")
        else:
            rest.append(flag)
    # vcsim's own habit: a password that names a file is read from there
    with contextlib.suppress(OSError, ValueError):
        login["password"] = Path(login.get("password", "")).read_text().strip()
    if "username" in login:
        login["username"] = login["username"].partition("@")[0]
    return rest, {name: value for name, value in login.items() if value}


def _fail(message: str, code: int) -> int:
    print(f"vadplab fake vcenter: {message}", file=sys.stderr)
    return code


def main(argv: list[str]) -> int:
    """Runs until SIGTERM. Exit codes: 0 ended, 1 failed, 2 bad input, 3 something needed is missing."""
    own, flags = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    try:
        options = _parser().parse_args(own)
    except SystemExit as exc:
        return int(exc.code or 0)
    host, colon, port = options.listen.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        return _fail(f"--listen {options.listen}: not ADDRESS:PORT", BAD_INPUT)
    attach = None
    if options.attach:
        where, colon, number = options.attach.rpartition(":")
        if not colon or not where or not number.isdigit() or int(number) > 65535:
            return _fail(f"--attach {options.attach}: not HOST:PORT", BAD_INPUT)
        attach = (where, int(number))
    if flags and options.inventory:
        return _fail("flags for vcsim and --inventory exclude each other", BAD_INPUT)
    try:
        flags, login = _login(flags)
    except ValueError as exc:
        return _fail(str(exc), BAD_INPUT)
    shown = None
    if options.inventory:
        try:
            shown = inventory.load(options.inventory)
        except (OSError, ValueError) as exc:
            return _fail(f"--inventory {options.inventory}: {exc}", BAD_INPUT)
    for name in ("certificate", "fabric"):
        path = getattr(options, name)
        if path is not None and not path.exists():
            return _fail(f"--{name} {path}: not there", BAD_INPUT)
    try:
        pages = Pages(options.change_span, options.change_areas)
    except ValueError as exc:
        return _fail(f"--change-span, --change-areas: {exc}", BAD_INPUT)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        found = (
            source.VcsimSource("docker", image=f"at {options.attach}")
            if attach
            else source.locate(options.vcsim, options.cache or source.default_cache())
        )
    except source.VcsimMissing as exc:
        return _fail(str(exc), MISSING)
    die_with_parent()
    if shown is not None:
        login = {"username": shown.username.partition("@")[0], "password": shown.password}
    with contextlib.ExitStack() as cleanup:
        pem, state = options.certificate, options.state
        if pem is None or state is None:
            folder = cleanup.enter_context(scratch("vcenter"))
            state = state or folder / "state"
        if pem is None:
            pem = folder / "vcenter.pem"
            certificate.make(pem, [host, "localhost"])
        settings = Settings(
            source=found,
            certificate=pem,
            inventory=shown,
            fabric=options.fabric,
            journal=options.journal,
            state=state,
            flags=flags,
            attach=attach,
            pages=pages,
            username=login.get("username", "administrator"),
            password=login.get("password", "VMware1!"),
        )
        return asyncio.run(_serve(Gateway(settings), host, int(port), shown is None))


async def _serve(gateway: Gateway, host: str, port: int, alone: bool) -> int:
    ended = asyncio.ensure_future(on_signal().wait())
    starting = asyncio.ensure_future(gateway.start(host, port))
    try:
        await asyncio.wait({starting, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
            return 0
        address, port = starting.result()
    except OSError as exc:
        return _fail(f"{host}:{port}: {exc.strerror or exc}", BAD_INPUT)
    except BadFlags as exc:
        return _fail(str(exc), BAD_INPUT if gateway.settings.flags else 1)
    except (SimulatorFailed, UpstreamGone, FabricError, TimeoutError, vmodl.MethodFault) as exc:
        return _fail(f"the inventory can not be built: {getattr(exc, 'msg', None) or exc or 'no answer in time'}", 1)
    settings = gateway.settings
    ready(f"https://{address}:{port}/sdk")
    if alone:
        user = f"{settings.username}@vsphere.local" if gateway.owns_tasks else settings.username
        ready(f"user {user}, password {settings.password}")
    print(settings.source.describe(), file=sys.stderr, flush=True)
    try:
        await ended
    finally:
        await gateway.stop()
    return 0
