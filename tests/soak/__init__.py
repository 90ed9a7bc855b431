# SPDX-License-Identifier: MIT
"""Kills at random instants of real backups in a real lab; `make soak` runs fifty, the suite ten (`tests/e2e/test_soak.py`).

`python -m tests.soak [--instants 50] [--seed N]` prints its seed, and for every instant what was killed when; the same seed draws
the same instants again.
"""
