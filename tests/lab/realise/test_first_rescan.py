# SPDX-License-Identifier: MIT
"""What `vadplab up` says when its rescan could not read everything: each server that did not answer, by name."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from lab.realise.daemons import failed_at
from lab.realise.process import Process

BLOCKED = {"message": "backup-server to proxy-1:6162: timed out", "code": "connect.timed-out"}
REFUSED = {"message": "backup-server to repository-1:6162: refused", "code": "connect.refused"}


def said(log: Path | None) -> str:
    async def process() -> Process:
        loop = asyncio.get_running_loop()
        return Process("console", "console", 1, log, loop.create_future(), loop.create_future())

    return failed_at(asyncio.run(process()), 1)


def test_every_server_is_named(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_text("an older line\n" + json.dumps({"error": BLOCKED, "errors": [BLOCKED, REFUSED]}) + "\n")
    text = said(log)
    assert "proxy-1:6162: timed out (connect.timed-out)" in text and "repository-1:6162: refused" in text


def test_an_error_of_the_console_itself(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_text(json.dumps({"error": BLOCKED}) + "\n")
    assert said(log) == f"{BLOCKED['message']} ({BLOCKED['code']})"


@pytest.mark.parametrize("text", ["", "Traceback (most recent call last):\nKilled\n", '{"error": null}\n', "[1]\n"])
def test_a_console_without_a_document_points_to_its_log(tmp_path: Path, text: str) -> None:
    log = tmp_path / "console.log"
    log.write_text(text)
    assert "ended with 1" in said(log) and "vadplab logs" in said(log)


def test_a_console_without_a_log() -> None:
    assert "ended with 1" in said(None)
