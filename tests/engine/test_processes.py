# SPDX-License-Identifier: MIT
"""How a process of the engine ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
import atexit, time
from engine.errors import InputError
from engine.processes import run
atexit.register(time.sleep, 300)
def main(argv):
    print("said", *argv, end="")
    {end}
run(main)
"""


@pytest.mark.parametrize(
    ("end", "code", "error"),
    [("return 4", 4, ""), ("raise InputError('no')", 2, "no"), ("raise KeyboardInterrupt", 1, "")],
)
def test_a_process_ends_at_once_when_its_work_is_done(end: str, code: int, error: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(end=end), "one", "two"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, "said one two")
    assert error in done.stderr and "Traceback" not in done.stderr
