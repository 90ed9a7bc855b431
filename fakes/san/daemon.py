# SPDX-License-Identifier: MIT
"""The process: options, array, fabric sockets, one line of JSON when an initiator can log in, and a clean end."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from fakes.core.daemon import die_with_parent, ready, until_signal
from fakes.san import service
from fakes.san.array import Array
from fakes.san.login import LoginFailed
from fakes.san.options import Options, parse
from fakes.san.tgt import Missing, TgtFailed


def main(argv: list[str]) -> int:
    """Entry of the process. Returns 0 (ended by a signal), 1 (tgtd died), 2 (bad input), 3 (a program is missing)."""
    die_with_parent()
    try:
        return asyncio.run(_run(parse(argv)))
    except (ValueError, OSError, TgtFailed, LoginFailed) as exc:
        print(f"vadplab fake san: {exc}", file=sys.stderr)
        return 2
    except Missing as exc:
        print(f"vadplab fake san: {exc}", file=sys.stderr)
        return 3


async def _run(options: Options) -> int:
    array = Array(options)
    sockets: list[Path] = []  # ours: an array that could not start leaves those of another alone
    ended = asyncio.create_task(until_signal())
    try:
        starting = asyncio.create_task(_start(array, sockets))
        await asyncio.wait({ended, starting}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
            return 0
        starting.result()
        process = array.tgt.process
        assert process is not None
        died = asyncio.create_task(process.wait())
        await asyncio.wait({ended, died}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            print(f"vadplab fake san: tgtd ended with {process.returncode}: {array.tgt.said()}", file=sys.stderr)
            return 1
        return 0
    finally:
        ended.cancel()
        await array.stop()
        for path in sockets:
            path.unlink(missing_ok=True)


async def _start(array: Array, sockets: list[Path]) -> None:
    options = array.options
    await array.start()
    if options.fabric:
        sockets += await service.serve(array, options.fabric)
    document = {
        "ready": "san",
        "portal": options.portal,
        "target": options.iqn,
        "luns": [{"name": lun.name, "lun": lun.number, "naa": lun.naa} for lun in options.luns],
        "pid": os.getpid(),
    }
    ready(json.dumps(document))
