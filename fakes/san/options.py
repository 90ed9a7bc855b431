# SPDX-License-Identifier: MIT
"""The command line of the array, checked."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

PORT = 3260
IQN = "iqn.2026-01.lab.vadplab:san"
_IQN = re.compile(r"iqn\.\d{4}-\d{2}\.[a-z0-9.-]+(:[A-Za-z0-9._:-]+)?")
_NAA = re.compile(r"naa\.6[0-9a-f]{31}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SECRET = re.compile(r"[!-+\--~]{12,255}")


@dataclass(frozen=True)
class Lun:
    """A datastore's LUN: its number in the target, the datastore, the file behind it, its NAA identifier."""

    number: int
    name: str
    path: Path
    naa: str


@dataclass(frozen=True)
class Chap:
    """What initiators must prove."""

    user: str
    secret: str


@dataclass(frozen=True)
class Options:
    """The array. `initiators` are addresses and networks as text; none: every initiator may log in."""

    host: str
    port: int
    iqn: str
    luns: tuple[Lun, ...]
    initiators: tuple[str, ...]
    chap: Chap | None
    state: Path
    fabric: Path | None

    @property
    def portal(self) -> str:
        """`ADDRESS:PORT`, with brackets around an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(argv: list[str]) -> Options:
    """Reads the command line; ValueError with a line for the user when it is wrong."""
    made = argparse.ArgumentParser(
        prog="vadplab fake san", description="LUNs of datastores, served over iSCSI by tgtd."
    )
    made.add_argument("--listen", required=True, metavar="ADDRESS[:PORT]", help=f"portal (default port {PORT})")
    made.add_argument("--lun", action="append", required=True, type=Path, metavar="FILE", help="a datastore's LUN file")
    made.add_argument("--naa", action="append", required=True, help="its identifier (naa.6…), once per --lun")
    made.add_argument("--name", action="append", required=True, help="its datastore, once per --lun")
    made.add_argument("--iqn", default=IQN, help=f"name of the target (default {IQN})")
    made.add_argument("--initiator", action="append", default=[], metavar="CIDR", help="who may log in (default: all)")
    made.add_argument("--chap", metavar="USER", help="initiators must prove this user's secret")
    made.add_argument("--chap-password-file", type=Path, metavar="FILE", help="the secret of --chap")
    made.add_argument("--state", required=True, type=Path, help="folder for tgtd's control socket and log")
    made.add_argument("--fabric", type=Path, help="folder of the sockets san-NAME.sock")
    options = made.parse_args(argv)
    host, port = _portal(options.listen)
    if not _IQN.fullmatch(options.iqn):
        raise ValueError(f"not an iSCSI name: {options.iqn!r} (for example {IQN})")
    if options.fabric and not options.fabric.is_dir():
        raise ValueError(f"no folder {options.fabric}")
    initiators = tuple(_network(each) for each in options.initiator)
    chap = _chap(options.chap, options.chap_password_file)
    luns = _luns(options.lun, options.naa, options.name)
    return Options(host, port, options.iqn, luns, initiators, chap, options.state.absolute(), options.fabric)


def _portal(value: str) -> tuple[str, int]:
    match = re.fullmatch(r"\[([0-9a-fA-F:.]+)\](?::(\d+))?|([0-9.]+)(?::(\d+))?", value)
    try:
        if not match:
            raise ValueError(value)
        host = str(ip_address(match[1] or match[3]))
        port = int(match[2] or match[4] or PORT)
        if not 0 < port < 65536:
            raise ValueError(port)
    except ValueError:
        raise ValueError(f"not a portal: {value!r} (for example 10.0.0.5:{PORT})") from None
    return host, port


def _network(value: str) -> str:
    try:
        allowed = ip_network(value) if "/" in value else ip_network(ip_address(value))
        # tgt shifts by the prefix: with all bits of it nobody may log in, so one address stands without
        return str(allowed.network_address if allowed.prefixlen == allowed.max_prefixlen else allowed)
    except ValueError as exc:
        raise ValueError(f"not an initiator's address or network: {exc}") from None


def _chap(user: str | None, file: Path | None) -> Chap | None:
    if (user is None) != (file is None):
        raise ValueError("--chap and --chap-password-file go together")
    if user is None or file is None:
        return None
    if not _NAME.fullmatch(user):
        raise ValueError(f"not a CHAP user: {user!r}")
    try:
        secret = file.read_text().rstrip("\n")
    except OSError as exc:
        raise ValueError(f"--chap-password-file {file}: {exc.strerror}") from None
    if not _SECRET.fullmatch(secret):
        raise ValueError(f"{file}: a CHAP secret has 12 to 255 printable characters and no comma or space")
    return Chap(user, secret)


def _luns(files: list[Path], naas: list[str], names: list[str]) -> tuple[Lun, ...]:
    if not len(files) == len(naas) == len(names):
        raise ValueError("every --lun needs its --naa and its --name")
    for naa in naas:
        if not _NAA.fullmatch(naa):
            raise ValueError(f"not a registered extended identifier: {naa!r} (naa.6 and 31 hex digits)")
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"not a datastore: {name!r}")
    if len(set(naas)) != len(naas) or len(set(names)) != len(names):
        raise ValueError("two LUNs have the same --naa or --name")
    for file in files:
        if not file.is_file():
            raise ValueError(f"no LUN file {file}")
    return tuple(
        Lun(number, name, file.absolute(), naa)
        for number, (file, naa, name) in enumerate(zip(files, naas, names, strict=True), 1)
    )
