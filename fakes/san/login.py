# SPDX-License-Identifier: MIT
"""A login to the array from its own namespace, by a foreign initiator (libiscsi's `iscsi-inq`): proof that it answers."""

from __future__ import annotations

import asyncio
import subprocess
import time

from fakes.core.daemon import run
from fakes.san.options import Chap, Lun
from fakes.san.tgt import PATH, program

_SECONDS = 10.0
_ONE = 5.0
_PAUSE = 0.05
_INITIATOR = "iqn.2026-01.lab.vadplab:self-test"


class LoginFailed(Exception):
    """No initiator can log in, or it sees another LUN; the text holds what the initiator said."""


async def prove(host: str, port: int, iqn: str, luns: list[Lun], chap: Chap | None) -> None:
    """Returns when an initiator has read the identification of every LUN.

    Raises:
        LoginFailed: not in time. Missing: libiscsi-bin is not installed.
    """
    inq = program("iscsi-inq", "libiscsi-bin")
    portal = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    environment = {"PATH": PATH}
    if chap:
        environment |= {"LIBISCSI_CHAP_USERNAME": chap.user, "LIBISCSI_CHAP_PASSWORD": chap.secret}
    deadline = time.monotonic() + _SECONDS
    for lun in luns:
        url = f"iscsi://{portal}/{iqn}/{lun.number}"
        while (said := await _identification(inq, url, environment)) is None or lun.naa.encode() not in said:
            if time.monotonic() > deadline:
                raise LoginFailed(f"no login to {url}: {(said or b'no answer').decode(errors='replace').strip()}")
            await asyncio.sleep(_PAUSE)


async def _identification(inq: str, url: str, environment: dict[str, str]) -> bytes | None:
    """What the initiator says about VPD page 83h; None without an answer in time."""
    try:
        done = await run((inq, "-i", _INITIATOR, "-e", "1", "-c", str(0x83), url), _ONE, env=environment)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout + done.stderr
