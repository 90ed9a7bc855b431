# SPDX-License-Identifier: MIT
"""The ledger and its check: every kind of damage must be found."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fakes.linux_guest import ledger


@pytest.fixture
def book(tmp_path: Path) -> Path:
    made = ledger.Ledger(tmp_path / "ledger.db")
    for _ in range(50):
        made.book()
    made.close()
    return tmp_path / "ledger.db"


def test_a_whole_ledger(book: Path) -> None:
    result = ledger.check(book)
    assert result["ok"] and result["bookings"] == 50 and result["balance"] == result["balance_expected"]
    again = ledger.Ledger(book)  # a reboot goes on with the chain
    assert again.book() == 51
    again.close()
    assert ledger.check(book)["ok"]


@pytest.mark.parametrize(
    "damage",
    [
        "delete from booking where seq = 20",
        "delete from booking where seq = 1",
        "update booking set amount = amount + 1 where seq = 30",
        "update booking set hash = 'x' where seq = 50",
        "update account set balance = balance + 1 where id = 3",
        "update account set balance = balance + 1 where id = 3; update account set balance = balance - 1 where id = 4",
        "delete from booking; delete from account",
    ],
)
def test_damage_is_found(book: Path, damage: str) -> None:
    db = sqlite3.connect(book)
    db.executescript(damage)
    db.close()
    assert not ledger.check(book)["ok"]


def test_damaged_pages_are_found(book: Path) -> None:
    data = bytearray(book.read_bytes())
    for at in range(4096, len(data) - 200, 4096):
        data[at : at + 200] = b"\xff" * 200
    book.write_bytes(data)
    result = ledger.check(book)
    assert not result["ok"] and result["integrity"] != "ok"


def test_the_last_bookings_may_be_in_the_wal(tmp_path: Path) -> None:
    writer = ledger.Ledger(tmp_path / "ledger.db")
    for _ in range(10):
        writer.book()
    (tmp_path / "copy").mkdir()
    for name in ("ledger.db", "ledger.db-wal"):
        shutil.copyfile(tmp_path / name, tmp_path / "copy" / name)
    before = {p.name: p.read_bytes() for p in (tmp_path / "copy").iterdir()}
    result = ledger.check(tmp_path / "copy" / "ledger.db")
    assert result["ok"] and result["bookings"] == 10
    assert {p.name: p.read_bytes() for p in (tmp_path / "copy").iterdir()} == before  # nothing was changed
    writer.close()


def test_killed_writer_and_command_line(tmp_path: Path) -> None:
    path, status = tmp_path / "ledger.db", tmp_path / "status.json"
    command = [sys.executable, "-m", "fakes.linux_guest.ledger"]
    writer = subprocess.Popen([*command, "run", str(path), str(status), "--interval", "0"])
    end = time.monotonic() + 10
    while not (status.exists() and json.loads(status.read_text())["seq"] > 20):
        assert time.monotonic() < end
        time.sleep(0.01)
    writer.send_signal(signal.SIGKILL)
    writer.wait(10)
    done = subprocess.run([*command, "check", str(path)], capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout)["bookings"] > 20
    missing = subprocess.run([*command, "check", str(tmp_path / "none")], capture_output=True, text=True)
    assert missing.returncode == 2 and "no such file" in missing.stderr
    (tmp_path / "text").write_text("not a database, but long enough to be taken for one at first sight" * 20)
    wrong = subprocess.run([*command, "check", str(tmp_path / "text")], capture_output=True, text=True)
    assert wrong.returncode == 1 and not json.loads(wrong.stdout)["ok"]
