# SPDX-License-Identifier: MIT
"""The drill's own eyes: what it must call broken, on a repository made by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.e2e.harness import Lab
from tests.soak import instants
from tests.soak.instants import Soak

POINT = "20261125T071500Z-3f2a"


@pytest.fixture
def soak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Soak:
    monkeypatch.setattr(instants, "Hosts", lambda lab: None)
    left: dict[str, Any] = {"snapshots": {}, "attached": []}
    storage = SimpleNamespace(call=lambda method: left["attached"], close=lambda: None)
    lab = SimpleNamespace(
        folder=SimpleNamespace(path=tmp_path), snapshots=lambda: left["snapshots"], storage=lambda: storage, left=left
    )
    return Soak(cast(Lab, lab), lambda text: None)


def folder(soak: Soak, name: str) -> Path:
    made = soak._repository / "demo" / "vm" / name
    made.mkdir(parents=True)
    return made


def test_a_visible_point_without_its_files_is_partial(soak: Soak) -> None:
    folder(soak, f".partial-{POINT}")
    soak._check_points(set())
    folder(soak, POINT)
    with pytest.raises(AssertionError, match="partial restore points are visible"):
        soak._check_points(set())


def test_a_point_that_is_gone_is_missed(soak: Soak) -> None:
    with pytest.raises(AssertionError, match="vanished"):
        soak._check_points({soak._repository / "demo" / "vm" / POINT})


def test_a_damaged_point_does_not_verify(soak: Soak) -> None:
    (folder(soak, POINT) / "manifest.json").write_text("{}")
    with pytest.raises(AssertionError, match="do not verify"):
        soak._check_points(set())


def test_what_is_left_is_named(soak: Soak) -> None:
    left = cast(Any, soak._lab).left
    soak._check_nothing_left()
    left["snapshots"] = {"storage web": 1}
    with pytest.raises(AssertionError, match="orphan snapshots"):
        soak._check_nothing_left()
    left["snapshots"], left["attached"] = {"storage web": 0}, [{"path": "web/web.vmdk"}]
    with pytest.raises(AssertionError, match="left attached"):
        soak._check_nothing_left()
    left["attached"] = []
    folder(soak, f".partial-{POINT}")
    with pytest.raises(AssertionError, match="unfinished"):
        soak._check_nothing_left()
