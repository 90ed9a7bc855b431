# SPDX-License-Identifier: MIT
"""libnftables, called from a thread that lives in the router's namespace.

In process a command takes about 1 ms, as a child process 18 (lab reference section 2), and pid 1 of a lab, which reaps
every child, cannot take its exit status away. Each command is one transaction: all of it holds, or nothing changes.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lab.observe.namespaces import enter
from lab.realise.nft_errors import FirewallFailed, FirewallMissing

_LIBRARY = "libnftables.so.1"
_OUTPUT_JSON = 1 << 4


class NftLibrary:
    """nft commands in the namespace behind `netns` (None: this one), one at a time."""

    def __init__(self, netns: int | None) -> None:
        self._netns = netns
        self._library: ctypes.CDLL | None = None
        self._context: int | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nft")

    async def run(self, commands: str) -> None:
        """Runs commands as one transaction.

        Raises:
            FirewallMissing: no libnftables, or no right to enter the namespace. FirewallFailed: refused.
        """
        await asyncio.get_running_loop().run_in_executor(self._thread, self._command, commands, False)

    async def query(self, command: str) -> list[dict[str, Any]]:
        """Runs one listing; returns the objects of nft's JSON.

        Raises:
            as `run`.
        """
        text = await asyncio.get_running_loop().run_in_executor(self._thread, self._command, command, True)
        return list(json.loads(text)["nftables"]) if text.strip() else []

    async def settings(self, values: dict[str, str]) -> None:
        """Sets kernel settings (paths below /proc/sys/net) of the namespace.

        Raises:
            FirewallMissing: the kernel lacks one or refuses the value.
        """
        await asyncio.get_running_loop().run_in_executor(self._thread, self._set, values)

    async def close(self) -> None:
        """Ends the thread; rules stay in the kernel."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._free)
        self._thread.shutdown(wait=True)

    def _command(self, commands: str, as_json: bool) -> str:
        library, context = self._open()
        library.nft_ctx_output_set_flags(context, _OUTPUT_JSON if as_json else 0)
        result = library.nft_run_cmd_from_buffer(context, commands.encode())
        output = (library.nft_ctx_get_output_buffer(context) or b"").decode(errors="replace")
        errors = (library.nft_ctx_get_error_buffer(context) or b"").decode(errors="replace")
        if result != 0:
            raise FirewallFailed(f"nftables refused the rules: {' '.join(errors.split()) or 'no reason given'}")
        return output

    def _open(self) -> tuple[ctypes.CDLL, int]:
        if self._library is not None and self._context is not None:
            return self._library, self._context
        try:
            library = ctypes.CDLL(_LIBRARY)
        except OSError as exc:
            raise FirewallMissing(f"{_LIBRARY} cannot be loaded: {exc}") from exc
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        library.nft_ctx_free.argtypes = [ctypes.c_void_p]
        library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
            getattr(library, name).restype = ctypes.c_char_p
        self._enter()
        context = library.nft_ctx_new(0)
        if not context:
            raise FirewallMissing("libnftables gives no context")
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        self._library, self._context = library, int(context)
        return library, int(context)

    def _enter(self) -> None:
        if self._netns is None:
            return
        try:
            enter(self._netns)
        except OSError as exc:
            raise FirewallMissing(f"the router's namespace cannot be entered: {exc.strerror}") from exc

    def _set(self, values: dict[str, str]) -> None:
        self._enter()
        for name, value in values.items():
            path = Path("/proc/sys/net") / name
            try:
                if path.read_text().strip() != value:
                    path.write_text(value)
            except OSError as exc:
                raise FirewallMissing(f"the kernel refuses {name} = {value}: {exc.strerror}") from exc

    def _free(self) -> None:
        if self._library is not None and self._context is not None:
            self._library.nft_ctx_free(self._context)
            self._library = self._context = None
