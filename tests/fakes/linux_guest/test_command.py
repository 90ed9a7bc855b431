# SPDX-License-Identifier: MIT
"""Bad input to the guest: one clear line, nothing half made."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes.linux_guest import command, freezer
from fakes.linux_guest.disk import parse_uri
from fakes.linux_guest.guardian import GuardianFailed, Ward

GOOD = "nbd+unix:///live/lin/2000?socket=/run/x.sock"


def test_disk_uri() -> None:
    assert parse_uri(GOOD) == ("live/lin/2000", Path("/run/x.sock"))
    for wrong in ("", "nbd://host/x", "nbd+unix:///x", "nbd+unix://host/x?socket=/a", "/dev/sda"):
        with pytest.raises(ValueError, match="not a disk"):
            parse_uri(wrong)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"--disk": "/dev/sda"}, "not a disk"),
        ({"--address": "guest"}, "guest"),
        ({"--user": "root"}, "--user root"),
        ({"--user": "a:b"}, "--user a:b"),
        ({"--password": ""}, "empty"),
        ({"--authorized-key": "/nonexistent"}, "/nonexistent"),
        ({"--host-key": "/nonexistent"}, "/nonexistent"),
        ({"--fabric": "/nonexistent"}, "no such folder"),
    ],
)
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], text: str) -> None:
    options = {
        "--vm": "lin", "--disk": GOOD, "--address": "10.0.0.1", "--state": str(tmp_path / "state"),
        "--fabric": str(tmp_path), "--user": "backup", "--password": "secret-word", **change,
    }  # fmt: skip
    assert command.main([word for pair in options.items() for word in pair]) == 2
    error = capsys.readouterr().err
    assert text in error and "secret-word" not in error and error.count("\n") == 1
    assert not (tmp_path / "state").exists()


def test_no_guardian(tmp_path: Path) -> None:
    with pytest.raises(GuardianFailed, match="does not answer"):
        Ward(tmp_path / "none.sock", vm="lin", mount="/", fd=0, init=0, log=0)


def test_the_freeze_tool_is_a_program() -> None:
    compile(freezer.tool("/usr/bin/python3", "/run/guest/rpci.sock"), "fsfreeze", "exec")
