# SPDX-License-Identifier: MIT
"""Run folders: names, order, limits, space."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.observe.errors import NoSpace, RunUnknown
from lab.observe.runs import Limits, RunNameInvalid, check_space, every, find, new_folder, prune


def make(runs: Path, name: str, began: int, size: int = 10) -> None:
    folder = new_folder(runs, name)
    (folder / "run.json").write_text(json.dumps({"began": {"utc": began * 10**9}, "ended": {"utc": 1}}))
    (folder / "capture.pcapng").write_bytes(b"x" * size)


def test_oldest_first_and_the_latest_is_found(tmp_path: Path) -> None:
    for name, began in (("b", 2), ("a", 3), ("c", 1)):
        make(tmp_path, name, began)
    assert [r.name for r in every(tmp_path)] == ["c", "b", "a"]
    assert find(tmp_path, None).name == "a" and find(tmp_path, "c").complete
    with pytest.raises(RunUnknown):
        find(tmp_path, "d")
    with pytest.raises(RunUnknown, match="no run yet"):
        find(tmp_path / "none", None)


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden", "x" * 81, "a\nb"])
def test_names_that_can_not_be_folders(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunNameInvalid):
        new_folder(tmp_path, name)


def test_a_name_is_used_once(tmp_path: Path) -> None:
    new_folder(tmp_path, "a")
    with pytest.raises(RunNameInvalid, match="already"):
        new_folder(tmp_path, "a")


def test_limits_by_age_count_and_size(tmp_path: Path) -> None:
    for number in range(6):
        make(tmp_path, f"r{number}", 1000 + number, size=1000)
    assert prune(tmp_path, Limits(age=3), now=1006.5) == ["r0", "r1", "r2", "r3"]
    assert prune(tmp_path, Limits(count=2), now=1006.0) == ["r4"]
    make(tmp_path, "r6", 1006, size=5000)
    assert prune(tmp_path, Limits(size=5900), now=1006.0) == ["r5"]
    assert [r.name for r in every(tmp_path)] == ["r6"]


def test_space_is_checked(tmp_path: Path) -> None:
    check_space(tmp_path, Limits(spare=1))
    with pytest.raises(NoSpace):
        check_space(tmp_path, Limits(spare=1 << 62))


def test_a_folder_without_run_json_is_no_complete_run(tmp_path: Path) -> None:
    new_folder(tmp_path, "cut")
    (found,) = every(tmp_path)
    assert not found.complete and found.began == 0
