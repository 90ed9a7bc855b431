# SPDX-License-Identifier: MIT
"""`vadplab fake esxi`: the host of a lab (`--fabric`), or a lone one (`--image`, `--size`).

Lone: `vadplab fake esxi --listen 127.0.0.1:9902 --size 1GiB` prints one JSON line: `{"url", "address", "port",
"thumbprint_sha1", "thumbprint_sha256", "path", "vmx", "size", "tickets": [...], "write_tickets": [...], "ticket_socket"}`.
Every ticket works once; more of them come from the ticket socket: `{"method": "ticket.new", "params": {"read_only": true}}`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fakes.core import inventory
from fakes.core.certificate import make
from fakes.core.daemon import die_with_parent, on_signal, ready
from fakes.core.scratch import scratch
from fakes.esxi.connection import Limits
from fakes.esxi.journal import Journal
from fakes.esxi.lone import DATASTORE, DISK, VM, LoneFailed, LoneStorage, TicketWindow
from fakes.esxi.server import EsxiHost

if TYPE_CHECKING:
    from fakes.esxi.hostview import HostView

PORT = 902


class Unavailable(Exception):
    """Something that was asked for cannot be served; exit code 3."""


class BadUsage(Exception):
    """The command line cannot be used; exit code 2."""


def main(argv: list[str]) -> int:
    """Runs until SIGTERM; 0 then, 2 for a bad command line, 3 when something needed is missing, 1 otherwise."""
    parser = _parser()
    args = parser.parse_args(argv)
    die_with_parent()
    try:
        return asyncio.run(_run(args))
    except BadUsage as exc:
        print(f"vadplab fake esxi: {exc}", file=sys.stderr)
        return 2
    except (LoneFailed, Unavailable) as exc:
        print(f"vadplab fake esxi: {exc}", file=sys.stderr)
        return 3
    except OSError as exc:
        print(f"vadplab fake esxi: {exc}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vadplab fake esxi", description="a fake ESXi host: authd and NFC on TCP 902")
    parser.add_argument("--name", default="esxi-1", help="name in the inventory (default: esxi-1)")
    parser.add_argument("--listen", default="127.0.0.1", help="ADDRESS or ADDRESS:PORT (default port 902)")
    parser.add_argument("--certificate", type=Path, help="PEM file with certificate and key")
    parser.add_argument("--fabric", type=Path, help="fabric folder of a lab")
    parser.add_argument("--inventory", type=Path, help="inventory file: which datastores this host mounts")
    parser.add_argument("--journal", type=Path, help="journal file (JSON lines)")
    parser.add_argument("--keylog", type=Path, help="TLS key log for captures")
    parser.add_argument("--accounts", type=Path, help="the host's own accounts, one NAME:PASSWORD a line")
    view = parser.add_argument_group("host view (443), in a lab with --inventory")
    view.add_argument("--https-port", type=int, default=443, help="port of the host view (default: 443)")
    view.add_argument("--no-host-view", action="store_true", help="902 only")
    view.add_argument("--vcsim", metavar="WHAT", help="as for `vadplab fake vcenter`")
    lone = parser.add_argument_group("without a lab")
    lone.add_argument("--image", type=Path, help="raw disk image to serve")
    lone.add_argument("--size", help="serve an empty disk in memory, for example 64MiB")
    lone.add_argument("--tickets", type=int, default=8, help="how many tickets of each kind to print (default: 8)")
    lone.add_argument("--ticket-socket", type=Path, help="Unix socket that hands out more tickets")
    limits = parser.add_argument_group("limits")
    default = Limits()
    limits.add_argument("--max-connections", type=int, default=default.connections, help="NFC connections at once")
    limits.add_argument("--many-disks", action="store_true", help="allow several open disks on one connection")
    limits.add_argument("--authd-timeout", type=float, default=default.authd, help="seconds until PROXY")
    limits.add_argument("--idle-timeout", type=float, default=default.idle, help="seconds an NFC client may be silent")
    limits.add_argument("--storage-timeout", type=float, default=30.0, help="seconds until storage must answer")
    limits.add_argument("--nfc-version", type=int, default=default.nfc_version, help="11 on ESXi 8, 9 on 7.0.3")
    return parser


async def _run(args: argparse.Namespace) -> int:
    lone = args.image is not None or args.size is not None
    if lone == (args.fabric is not None):
        raise BadUsage("give either --fabric (in a lab), or --image FILE or --size N (alone)")
    if args.image is not None and args.size is not None:
        raise BadUsage("--image and --size exclude each other")
    if not lone and args.certificate is None:
        raise BadUsage("--certificate is needed with --fabric")
    with contextlib.ExitStack() as cleanup:
        listener = _listen(args.listen)
        cleanup.callback(listener.close)
        if lone:
            return await _lone(args, listener, cleanup.enter_context(scratch("esxi")))
        return await _in_lab(args, listener)


async def _in_lab(args: argparse.Namespace, listener: socket.socket) -> int:
    if not args.fabric.is_dir():
        raise BadUsage(f"{args.fabric}: no such folder")
    ended = on_signal()
    host = _host(args, listener, args.certificate, args.fabric)
    await host.start(listener)
    view: HostView | None = None
    try:
        if args.inventory is not None and not args.no_host_view:
            view = await _host_view(args, listener)
            host.permit = view.gateway.access.admit if view is not None else None
        ready(f"ready {args.name} on {_where(listener)}")
        if view is not None:
            ready(f"host view {view.url}")
        await ended.wait()
    finally:
        if view is not None:
            await view.stop()
        await host.stop()
    return 0


async def _host_view(args: argparse.Namespace, listener: socket.socket) -> HostView | None:
    """The host's 443; None (said on standard error) where vcsim cannot be had."""
    from fakes.esxi import hostview  # pyVmomi takes its time: only who serves 443 pays for it

    try:
        return await hostview.start(
            name=args.name,
            address=str(listener.getsockname()[0]),
            port=args.https_port,
            certificate=args.certificate,
            inventory=inventory.load(args.inventory),
            fabric=args.fabric,
            journal=args.journal,
            vcsim=args.vcsim,
        )
    except hostview.HostViewFailed as exc:
        if exc.optional:
            print(f"vadplab fake esxi: no host view on 443: {exc}", file=sys.stderr, flush=True)
            return None
        raise Unavailable(str(exc)) from exc


async def _lone(args: argparse.Namespace, listener: socket.socket, folder: Path) -> int:
    ended = on_signal()
    address, port = listener.getsockname()[:2]
    certificate = args.certificate
    if certificate is None:
        certificate = folder / "host.pem"
        make(certificate, [args.name, address])
    try:
        size = inventory.parse_size(args.size) if args.size is not None else None
    except ValueError as exc:
        raise BadUsage(f"--size: {exc}") from exc
    try:
        storage = LoneStorage(folder, image=args.image, size=size)
    except ValueError as exc:
        raise BadUsage(str(exc)) from exc
    try:
        await storage.start()
        host = _host(args, listener, certificate, folder)
        window = TicketWindow(host.tickets)
        if args.ticket_socket is not None:
            await window.open(args.ticket_socket)
        await host.start(listener)
        announcement = {
            "url": f"nfc://{_where(listener)}",
            "address": address,
            "port": port,
            "thumbprint_sha1": host.sha1,
            "thumbprint_sha256": host.sha256,
            "path": f"[{DATASTORE}] {DISK}",
            "vmx": f"[{DATASTORE}] {VM}/{VM}.vmx",
            "size": storage.size,
            "tickets": [window.new(read_only=True) for _ in range(args.tickets)],
            "write_tickets": [window.new(read_only=False) for _ in range(args.tickets)],
            "ticket_socket": str(args.ticket_socket) if args.ticket_socket is not None else None,
        }
        ready(json.dumps(announcement))
        await ended.wait()
        await host.stop()
    finally:
        await storage.stop()
        if args.ticket_socket is not None:
            args.ticket_socket.unlink(missing_ok=True)
    return 0


def _host(args: argparse.Namespace, listener: socket.socket, certificate: Path, fabric_folder: Path) -> EsxiHost:
    limits = Limits(
        authd=args.authd_timeout,
        idle=args.idle_timeout,
        connections=args.max_connections,
        one_disk=not args.many_disks,
        nfc_version=args.nfc_version,
    )
    address, mounted = str(listener.getsockname()[0]), None
    if args.inventory is not None:
        address, mounted = _from_inventory(args.inventory, args.name)
    try:
        return EsxiHost(
            name=args.name,
            address=address,
            certificate=certificate,
            fabric_folder=fabric_folder,
            mounted=mounted,
            limits=limits,
            journal=Journal(args.journal),
            accounts=_accounts(args.accounts),
            keylog=args.keylog,
            storage_deadline=args.storage_timeout,
        )
    except (OSError, ValueError) as exc:
        raise BadUsage(f"{certificate}: not a certificate with its key: {exc}") from exc


def _from_inventory(path: Path, name: str) -> tuple[str, frozenset[str]]:
    """The host's address in tickets, and the datastores that it mounts."""
    try:
        found = inventory.load(path)
    except (OSError, ValueError) as exc:
        raise BadUsage(f"{path}: {exc}") from exc
    for host in found.hosts:
        if host.name == name:
            return str(host.address), frozenset(d.name for d in found.datastores if name in d.hosts)
    raise BadUsage(f"{path}: no host {name}")


def _accounts(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    accounts: dict[str, str] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        name, colon, password = line.partition(":")
        if line.strip() and not (name and colon and password):
            raise BadUsage(f"{path}:{number}: not NAME:PASSWORD")
        if line.strip():
            accounts[name] = password
    return accounts


def _listen(text: str) -> socket.socket:
    address, _, port = text.rpartition(":") if text.count(":") == 1 else (text, "", str(PORT))
    try:
        return socket.create_server((address, int(port)), backlog=256)
    except (ValueError, OverflowError, OSError) as exc:
        raise BadUsage(f"--listen {text}: {exc}") from exc


def _where(listener: socket.socket) -> str:
    address, port = listener.getsockname()[:2]
    return f"{address}:{port}"
