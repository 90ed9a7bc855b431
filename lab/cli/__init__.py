# SPDX-License-Identifier: MIT
"""The command line `vadplab`. `main` is the console script; everything else is imported when it is needed."""

from __future__ import annotations

import os
import sys


def main(argv: list[str] | None = None) -> int:
    """Runs one command line (default: that of this process) and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        from lab.cli.app import run

        code = run(words)
    except KeyboardInterrupt:  # while modules were being loaded
        from lab.cli.app import interrupted

        code = interrupted(words)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone; without this the interpreter would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


if __name__ == "__main__":
    sys.exit(main())
