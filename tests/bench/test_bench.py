# SPDX-License-Identifier: MIT
"""The benchmark runs, compares what it says it compares, and refuses bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import size
from bench.backup import NBDCOPY, QEMU, QEMU_WIDE
from bench.disk import make
from bench.rows import Row, compare


def test_ratios_are_speed_against_the_reference() -> None:
    rows = [Row("a", [2.0, 4.0, 3.0], mib=30), Row("b", [1.5])]
    compare(rows, ["a", "b"])
    assert rows[0].ratios == {"b": 0.5} and rows[1].ratios == {"a": 2.0}
    assert rows[0].rate == 10


def test_the_disk_is_the_same_each_time_and_has_holes(tmp_path: Path) -> None:
    written = make(tmp_path / "a", 24 << 20)
    assert 0 < written < 24 << 20
    make(tmp_path / "b", 24 << 20)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_sizes() -> None:
    assert size("3MiB") == 3 << 20
    with pytest.raises(Exception, match="not a size"):
        size("3MB")


def test_unknown_measurement() -> None:
    assert subprocess.run([sys.executable, "-m", "bench", "nonsense"], capture_output=True).returncode == 2


@pytest.mark.slow
def test_a_small_run(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "bench", "backup", "--size", "16MiB", "--rounds", "1", "--json", str(out)]
    table = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    document = json.loads(out.read_text())
    (found,) = document["measurements"]
    names = [row["name"] for row in found["rows"]]
    assert document["schema"] == "vadplab.bench/1" and {NBDCOPY, QEMU, QEMU_WIDE} < set(names)
    for row in found["rows"]:
        assert row["median"] > 0 and row["out_mib"] > 0 and row["ratios"]
    assert "full backup" in table
