# SPDX-License-Identifier: MIT
"""Labs for the tests of this folder. One drill lab a worker: its address plan is everybody's, its home its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import harness
from tests.e2e.harness import Lab
from tests.lab.realise.labs import ROOT, why_no_lab


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here brings labs up with guests in them; without the power to do so there is nothing to test."""
    reason = why_no_lab() if ROOT else "needs root: guests with real ext4 disks (loop devices)"
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.lab)
            item.add_marker(pytest.mark.root)
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def drill_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home for labs, this worker's own."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def drill_lab(drill_home: Path) -> Iterator[Lab]:
    """A lab with small disks, up for the whole session; nothing of it is left afterwards."""
    with harness.up(drill_home, "drill", "--topology", str(harness.drill_topology(drill_home))) as lab:
        yield lab


@pytest.fixture
def drill(drill_lab: Lab) -> Iterator[Lab]:
    """The drill lab; what a test changed at its firewall is undone afterwards, and no snapshot may be left."""
    try:
        yield drill_lab
    finally:
        drill_lab.done("firewall", "reset")
    assert set(drill_lab.snapshots().values()) == {0}
