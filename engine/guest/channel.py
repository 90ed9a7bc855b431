# SPDX-License-Identifier: MIT
"""The interface of guest processing: a channel into one guest, kept open from before the snapshot until after it.

prepare   connect and bring both scripts into the guest's memory (tmpfs), before anything is frozen
freeze    run the pre-freeze script; from here the guest counts as frozen
thaw      run the post-thaw script, at once after the snapshot and after any failure; safe to call twice
close     remove what was uploaded and end the connection
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from engine.errors import InputError


@dataclass(frozen=True, slots=True)
class Scripts:
    """Both scripts' contents; `timeout`: seconds for each; `thaw_after`: seconds until the guest thaws itself when left alone."""

    pre_freeze: bytes
    post_thaw: bytes
    timeout: float = 30.0
    thaw_after: int = 60

    @classmethod
    def load(cls, pre_freeze: Path, post_thaw: Path, *, timeout: float, thaw_after: int) -> Scripts:
        """Reads the scripts kept on the backup server. Raises InputError that names the file."""
        found = []
        for path in (pre_freeze, post_thaw):
            try:
                found.append(path.read_bytes())
            except OSError as exc:
                raise InputError(f"guest script {path} cannot be read: {exc.strerror}") from exc
        return cls(found[0], found[1], timeout, thaw_after)


@dataclass(frozen=True, slots=True)
class ScriptResult:
    """How a script ended: its exit code, what it wrote (at most 2000 characters each), seconds."""

    script: str
    exit_code: int
    output: str
    errors: str
    seconds: float

    @property
    def froze_nothing(self) -> bool:
        """Whether a pre-freeze script said `frozen: nothing`: the guest has no file system that can be frozen."""
        return any(line.strip() == "frozen: nothing" for line in self.output.splitlines())


class GuestChannel(Protocol):
    """A way into one guest. Every method raises errors of the catalogue and has a deadline."""

    @property
    def host_key(self) -> str | None:
        """The host key that the guest presented, in OpenSSH form without a comment."""

    async def prepare(self) -> None:
        """Connects and uploads both scripts."""

    async def freeze(self) -> ScriptResult:
        """Runs the pre-freeze script. Raises ScriptFailed, ScriptTimedOut."""

    async def thaw(self) -> ScriptResult:
        """Runs the post-thaw script; connects anew when the channel was lost."""

    async def close(self) -> None:
        """Removes the scripts and ends the connection; never raises."""
