# SPDX-License-Identifier: MIT
"""The console: starts jobs, rescans and restores over 9392 from a machine of its own, and receives restored disks."""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """Entry of the process (`engine.console.__main__`)."""
    from engine.console.__main__ import main as entry

    return entry(argv)
