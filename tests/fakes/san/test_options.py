# SPDX-License-Identifier: MIT
"""The command line of the array: what it takes, and what it says about the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fakes.san.options import Chap, parse
from fakes.san.tgt import Missing, program
from tests.fakes.storage.conftest import ROOT

NAA = "naa.6123456789abcdef0123456789abcdef"


@pytest.fixture
def good(tmp_path: Path) -> dict[str, str]:
    """Options that are in order."""
    (tmp_path / "lun").write_bytes(b"x")
    return {
        "--listen": "10.0.0.5",
        "--lun": str(tmp_path / "lun"),
        "--naa": NAA,
        "--name": "datastore1",
        "--state": str(tmp_path / "state"),
    }


def line(options: dict[str, str]) -> list[str]:
    return [each for pair in options.items() for each in pair]


def test_defaults(good: dict[str, str]) -> None:
    made = parse(line(good))
    assert made.portal == "10.0.0.5:3260" and made.chap is None and made.initiators == () and made.fabric is None
    assert parse(line({**good, "--listen": "[::1]:13260"})).portal == "[::1]:13260"
    assert parse(line({**good, "--listen": "::1".join("[]")})).port == 3260


def test_several_luns(good: dict[str, str], tmp_path: Path) -> None:
    more = ["--lun", str(tmp_path / "lun"), "--naa", NAA.replace("1", "2"), "--name", "datastore2"]
    assert [(lun.number, lun.name) for lun in parse(line(good) + more).luns] == [(1, "datastore1"), (2, "datastore2")]
    with pytest.raises(ValueError, match="needs its --naa"):
        parse(line(good) + more[:2])
    with pytest.raises(ValueError, match="the same"):
        parse([*line(good), *more[:5], "datastore1"])


def test_a_secret(good: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "secret"
    chap = {**good, "--chap": "proxy1", "--chap-password-file": str(file)}
    with pytest.raises(ValueError, match="No such file"):
        parse(line(chap))
    file.write_text("a-secret-of-15!\n")
    assert parse(line(chap)).chap == Chap("proxy1", "a-secret-of-15!")
    for bad in ("short", "with,comma,in,it", "with a space in it", "x" * 256, "zwölf-und-mehr"):
        file.write_text(bad)
        with pytest.raises(ValueError, match="CHAP secret") as caught:
            parse(line(chap))
        assert bad not in str(caught.value)
    with pytest.raises(ValueError, match="go together"):
        parse(line({**good, "--chap": "proxy1"}))


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--listen", "nonsense", "not a portal"),
        ("--listen", "10.0.0.5:0", "not a portal"),
        ("--listen", "10.0.0.5:65536", "not a portal"),
        ("--listen", "10.0.0.256", "not a portal"),
        ("--lun", "/nowhere", "no LUN file"),
        ("--naa", "naa.5000", "not a registered extended identifier"),
        ("--naa", NAA.upper(), "not a registered extended identifier"),
        ("--name", "../x", "not a datastore"),
        ("--iqn", "disk,1", "not an iSCSI name"),
        ("--initiator", "10.0.0.0/40", "not an initiator"),
        ("--initiator", "10.0.0.1/24", "not an initiator"),
        ("--fabric", "/nowhere", "no folder"),
        ("--chap", "a,b", "go together"),
    ],
)
def test_bad_values(good: dict[str, str], option: str, value: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(line({**good, option: value}))


def test_a_portal_that_is_not_ours(good: dict[str, str]) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "fakes.san", *line({**good, "--listen": "192.0.2.1"})],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if run.returncode == 3:
        pytest.skip(run.stderr)
    assert run.returncode == 2 and not run.stdout
    assert run.stderr == "vadplab fake san: cannot serve 192.0.2.1 port 3260: Cannot assign requested address\n"


def test_a_missing_program() -> None:
    with pytest.raises(Missing, match="no-such-program is missing: apt-get install its-package"):
        program("no-such-program", "its-package")
