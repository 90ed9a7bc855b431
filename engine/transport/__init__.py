# SPDX-License-Identifier: MIT
"""Transport Service (6162): on proxies it starts, watches and reaps Data Movers; on repositories it also keeps restore points."""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """Entry of the process (`engine.transport.__main__`)."""
    from engine.transport.__main__ import main as entry

    return entry(argv)
