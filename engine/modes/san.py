# SPDX-License-Identifier: MIT
"""Direct SAN mode: the disk's areas are read from the datastore's LUN over iSCSI (step 20a).

*Layout*: where the areas lie, read over the connection of step 19. The LUN is known by its NAA identity: vCenter's host
storage data and the layout must name the same one, and only a LUN with that identity is read. Reads only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.dialer import Dialer
from engine.errors import ConnectError, VadplabError
from engine.modes.errors import SanNotVisible, SanReadFailed, SanUnsupported
from engine.modes.iscsi import scsi
from engine.modes.iscsi.session import PATIENCE, Command, Login, Session
from engine.modes.layout import Layout
from engine.modes.source import Extent, Read, Source

STEP = "20a"
PORT = 3260
REQUEST = 256 << 10
"""Bytes of one READ: the fastest size that was measured (disks reference section 2)."""


@dataclass(frozen=True, slots=True)
class Portals:
    """How the proxy reaches the SAN: portals (host, port) and who logs in."""

    portals: tuple[tuple[str, int], ...]
    login: Login


def parse_portal(text: str) -> tuple[str, int]:
    """`10.77.9.10:3260` or `10.77.9.10`."""
    host, _, port = text.partition(":")
    return host, int(port or PORT)


@dataclass(slots=True)
class Lun:
    """A LUN on an open session; `block`: bytes of its blocks, `size`: bytes."""

    session: Session
    number: int
    block: int
    size: int


class SanSource(Source):
    """A disk read from its LUN. The session belongs to the source."""

    step = STEP

    def __init__(self, lun: Lun, layout: Layout) -> None:
        self.capacity = layout.size
        self._lun = lun
        self._layout = layout

    def extents(self) -> Iterable[Extent]:
        """Allocated areas, as the layout names them."""
        return self._layout.extents()

    def start(self, offset: int, view: memoryview) -> Read:
        """Zeros where the disk has none, and a READ for each piece on the LUN."""
        self.check_range(offset, len(view))
        commands: list[Command] = []
        session, block = self._lun.session, self._lun.block
        covered = offset
        pieces = list(self._layout.pieces(offset, len(view)))
        for at, length, where in pieces:
            _zero(view[covered - offset : at - offset])
            covered = at + length
            if where % block or length % block:
                raise SanReadFailed(f"{session.route}: an area that is not of whole blocks", **session.where)
            for begin in range(0, length, REQUEST):
                count = min(REQUEST, length - begin)
                cdb = scsi.read((where + begin) // block, count // block)
                target = view[at - offset + begin : at - offset + begin + count]
                commands.append(session.start(self._lun.number, cdb, target))
        _zero(view[covered - offset :])
        if not pieces:
            session.check()
        return _Reads(commands)

    def close(self) -> None:
        """Logs out of the SAN."""
        self._lun.session.close()


class _Reads:
    def __init__(self, commands: Sequence[Command]) -> None:
        self._commands = commands

    def wait(self) -> None:
        """Returns when all are done; raises the first failure, after all have ended (none writes into the buffer later)."""
        failure: VadplabError | None = None
        for command in self._commands:
            try:
                command.wait()
            except VadplabError as exc:
                failure = failure or exc
        if failure is not None:
            raise failure


def open_source(
    dialer: Dialer, portals: Portals, layout: Layout, luns: Sequence[str], *, patience: float = PATIENCE
) -> SanSource:
    """Finds the LUN at the portals and opens the disk on it.

    Args:
        luns: identities of the datastore's LUNs as vCenter's host storage data name them; empty when it does not tell.

    Raises:
        SanUnsupported: vCenter and the layout name different LUNs, or the datastore spans several.
        SanNotVisible: no portal shows the LUN. SanCredentials, SanLoginRefused, ConnectError: why the last portal failed.
    """
    known = {scsi.canonical(name) for name in luns}
    if known and known != {layout.naa}:
        raise SanUnsupported(f"the datastore is on {sorted(known)}, the disk's map names {layout.naa}", step=STEP)
    failure: VadplabError | None = None
    seen: list[str] = []
    for portal in portals.portals:
        try:
            lun = _find(dialer, portal, portals.login, layout.naa, seen, patience)
        except VadplabError as exc:
            failure = failure or exc
            continue
        if lun is not None:
            areas_end = max((where + length for _, length, where in layout.areas), default=0)
            if areas_end > lun.size:
                lun.session.close()
                raise SanUnsupported(f"the LUN has {lun.size} bytes, the map goes to {areas_end}", step=STEP)
            return SanSource(lun, layout)
    if failure is not None:
        raise failure
    shown = f"it shows {', '.join(sorted(set(seen)))}" if seen else "it shows no LUN"
    host, port = portals.portals[-1]
    raise SanNotVisible(
        f"{dialer.events.host} does not see the LUN naa.{layout.naa}: {shown}",
        step=STEP,
        host=dialer.events.host,
        target=dialer.name_of(host),
        port=port,
    )


def _find(
    dialer: Dialer, portal: tuple[str, int], login: Login, naa: str, seen: list[str], patience: float
) -> Lun | None:
    """The LUN at this portal, or None; identities of the LUNs that it shows are added to `seen`."""
    name = dialer.name_of(portal[0])
    discovery = Session.open(dialer, portal, login, None, step=STEP, name=name, patience=patience)
    try:
        targets = [target for target, _ in discovery.discover()]
    finally:
        discovery.close()
    failure: VadplabError | None = None
    for target in targets:
        try:
            session = Session.open(dialer, portal, login, target, step=STEP, name=name, patience=patience)
        except ConnectError as exc:
            failure = failure or exc
            continue
        try:
            found = _match(session, naa, seen)
        except BaseException:
            session.close()
            raise
        if found is not None:
            return found
        session.close()
    if failure is not None:
        raise failure
    return None


def _match(session: Session, naa: str, seen: list[str]) -> Lun | None:
    for number in scsi.luns(session.ask(0, scsi.report_luns(), scsi.ALLOCATION)):
        identities: set[str] = set()
        with contextlib.suppress(SanReadFailed):  # a LUN without that page
            identities |= scsi.identities(session.ask(number, scsi.inquiry(scsi.IDENTIFICATION_PAGE), scsi.ALLOCATION))
        if naa in identities:
            blocks, block = scsi.capacity(session.ask(number, scsi.read_capacity(), 32))
            return Lun(session, number, block, blocks * block)
        seen += [f"naa.{identity}" for identity in identities]
    return None


def _zero(view: memoryview) -> None:
    if len(view):
        view[:] = bytes(len(view))
