# SPDX-License-Identifier: MIT
"""Kills at random instants: ten of a fixed seed (`make soak` draws fifty of a new one)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import harness
from tests.soak.instants import Soak, draw
from tests.soak.victims import VICTIMS

SEED = 20261125
INSTANTS = 10


def test_a_seed_draws_the_same_instants_and_every_victim() -> None:
    drawn = draw(SEED, INSTANTS)
    assert drawn == draw(SEED, INSTANTS) != draw(SEED + 1, INSTANTS)
    assert {instant.victim for instant in drawn} == set(VICTIMS)
    assert {instant.full for instant in drawn} == {True, False}


@pytest.mark.slow
@pytest.mark.timeout(1200)  # twenty jobs, on a machine that may be busy
def test_kills_at_random_instants_break_no_promise(tmp_path: Path) -> None:
    said: list[str] = []
    with harness.up(tmp_path, "soak", "--topology", str(harness.drill_topology(tmp_path))) as lab:
        soak = Soak(lab, said.append)
        soak.run(draw(SEED, INSTANTS))
    assert soak.killed >= INSTANTS - 3, said  # a late instant may find nothing left to kill
    assert soak.interrupted >= 3, said
