# SPDX-License-Identifier: MIT
"""The guest's workload: a ledger in SQLite (WAL, synchronous=full), and the check of a copy of it.

Every booking moves an amount between two of `ACCOUNTS` accounts and carries the hash of the booking before it, in one
transaction. So a copy of the database proves by itself whether it is whole: SQLite's own integrity check, the sum of
all balances, balances that follow from the bookings, and an unbroken chain.

`python -m fakes.linux_guest.ledger check FILE` prints the check as JSON; exit code 0 whole, 1 damaged, 2 no such file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ACCOUNTS = 100
OPENING = 1000
_SCHEMA = """
create table if not exists account(id integer primary key, balance integer not null);
create table if not exists booking(
    seq integer primary key, utc integer not null, debit integer not null, credit integer not null,
    amount integer not null, hash text not null);
"""


def chain(previous: str, seq: int, utc: int, debit: int, credit: int, amount: int) -> str:
    """The hash of a booking: SHA-256 over the previous hash and its own fields."""
    return hashlib.sha256(f"{previous}|{seq}|{utc}|{debit}|{credit}|{amount}".encode()).hexdigest()


class Ledger:
    """The ledger as its writer sees it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None, timeout=60)
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma synchronous=full")
        self._db.executescript(_SCHEMA)
        if not self._db.execute("select count(*) from account").fetchone()[0]:
            self._db.executemany("insert into account values(?, ?)", [(i, OPENING) for i in range(ACCOUNTS)])
        last = self._db.execute("select seq, hash from booking order by seq desc limit 1").fetchone()
        self.seq: int = last[0] if last else 0
        self.hash: str = last[1] if last else ""
        self._random = random.Random()

    def book(self) -> int:
        """One booking; returns its number when it is on the disk."""
        debit, credit = self._random.sample(range(ACCOUNTS), 2)
        seq, utc, amount = self.seq + 1, time.time_ns(), self._random.randrange(1, 50)
        digest = chain(self.hash, seq, utc, debit, credit, amount)
        db = self._db
        db.execute("begin immediate")
        db.execute("update account set balance = balance - ? where id = ?", (amount, debit))
        db.execute("update account set balance = balance + ? where id = ?", (amount, credit))
        db.execute("insert into booking values(?, ?, ?, ?, ?, ?)", (seq, utc, debit, credit, amount, digest))
        db.execute("commit")
        self.seq, self.hash = seq, digest
        return seq

    def close(self) -> None:
        """Closes the database."""
        self._db.close()


def run(path: Path, status: Path, interval: float) -> int:
    """Books until SIGTERM, one booking every `interval` seconds.

    `status` (outside the disk) holds `{seq, mono, slowest}` of the last booking: `slowest` in seconds shows a freeze.
    """
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    ledger = Ledger(path)
    slowest = 0.0
    while not stop.is_set():
        began = time.monotonic()
        seq = ledger.book()
        slowest = max(slowest, time.monotonic() - began)
        _publish(status, {"seq": seq, "mono": time.monotonic_ns(), "slowest": round(slowest, 3)})
        stop.wait(interval)
    ledger.close()
    return 0


def _publish(status: Path, document: dict[str, Any]) -> None:
    fresh = status.with_suffix(".new")
    fresh.write_text(json.dumps(document))
    fresh.replace(status)


def check(path: Path) -> dict[str, Any]:
    """Checks a copy of the ledger (with its `-wal` beside it, if there is one) without changing it.

    Returns:
        `{ok, integrity, bookings, first_broken, balance, balance_expected, accounts_wrong, last_hash, last_utc}`.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    with tempfile.TemporaryDirectory(prefix="ledger-") as folder:
        copy = Path(folder) / "ledger.db"
        shutil.copyfile(path, copy)
        wal = path.with_name(path.name + "-wal")
        if wal.is_file():
            shutil.copyfile(wal, copy.with_name("ledger.db-wal"))
        db = sqlite3.connect(copy)
        try:
            return _checked(db)
        except sqlite3.DatabaseError as exc:
            return {"ok": False, "integrity": str(exc), "bookings": 0, "first_broken": None}
        finally:
            db.close()


def _checked(db: sqlite3.Connection) -> dict[str, Any]:
    integrity = "; ".join(str(row[0]) for row in db.execute("pragma integrity_check"))
    balances = [OPENING] * ACCOUNTS
    previous, count, broken, utc = "", 0, None, 0
    for seq, utc, debit, credit, amount, digest in db.execute("select * from booking order by seq"):
        count += 1
        previous = chain(previous, seq, utc, debit, credit, amount)
        if broken is None and (seq != count or digest != previous):
            broken = count
        balances[debit] -= amount
        balances[credit] += amount
    stored = dict(db.execute("select id, balance from account"))
    wrong = [i for i in range(ACCOUNTS) if stored.get(i) != balances[i]]
    total = sum(stored.values())
    expected = ACCOUNTS * OPENING
    return {
        "ok": integrity == "ok" and broken is None and not wrong and total == expected and count > 0,
        "integrity": integrity,
        "bookings": count,
        "first_broken": broken,
        "balance": total,
        "balance_expected": expected,
        "accounts_wrong": wrong,
        "last_hash": previous,
        "last_utc": utc,
    }


def main(argv: list[str]) -> int:
    """`check FILE`, or `run FILE STATUS`."""
    parser = argparse.ArgumentParser(prog="ledger", description="the guest's ledger: write it, or check a copy")
    commands = parser.add_subparsers(dest="command", required=True)
    checker = commands.add_parser("check", help="check a copy; prints JSON")
    checker.add_argument("file", type=Path)
    writer = commands.add_parser("run", help="write until SIGTERM")
    writer.add_argument("file", type=Path)
    writer.add_argument("status", type=Path)
    writer.add_argument("--interval", type=float, default=0.02)
    args = parser.parse_args(argv)
    if args.command == "run":
        return run(args.file, args.status, args.interval)
    try:
        result = check(args.file)
    except OSError as exc:
        print(f"ledger: {args.file}: {exc.strerror or 'no such file'}", file=sys.stderr)
        return 2
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
