# SPDX-License-Identifier: MIT
"""The array's management: one fabric socket per LUN, `san-<datastore>.sock`, for vCenter's hosts and for faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fakes.core import fabric
from fakes.core.fabric import FabricError
from fakes.san.array import Array
from fakes.san.options import Lun
from fakes.san.tgt import TgtFailed


class Management:
    """Answers for one LUN: `lun.info`, `lun.offline`, `login.refuse`, `sessions.list`, `sessions.drop`."""

    def __init__(self, array: Array, lun: Lun) -> None:
        self._array = array
        self._lun = lun

    async def handle(self, method: str, params: dict[str, Any]) -> Any:
        """Answers one request; FabricError `unknown-method`, `malformed`, `failed`."""
        try:
            match method:
                case "lun.info":
                    return self._array.info(self._lun)
                case "lun.offline":
                    await self._array.set_offline(self._lun, _on(method, params))
                    return self._array.info(self._lun)
                case "login.refuse":
                    await self._array.set_refusing(_on(method, params))
                    return self._array.info(self._lun)
                case "sessions.list":
                    return await self._array.sessions()
                case "sessions.drop":
                    return {"dropped": await self._array.drop_sessions()}
        except TgtFailed as exc:
            raise FabricError("failed", f"{method}: {exc}") from exc
        raise FabricError("unknown-method", f"san has no method {method!r}")


def _on(method: str, params: dict[str, Any]) -> bool:
    value = params.get("on")
    if not isinstance(value, bool):
        raise FabricError("malformed", f"{method}: `on` is true or false, not {value!r}")
    return value


async def serve(array: Array, folder: Path) -> list[Path]:
    """Opens the sockets of all LUNs; gives their paths."""
    paths = []
    for lun in array.options.luns:
        path = folder / f"san-{lun.name}.sock"
        await fabric.serve(path, Management(array, lun).handle)
        paths.append(path)
    return paths
