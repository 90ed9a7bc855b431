# SPDX-License-Identifier: MIT
"""A process in place of a Data Mover: ready at once, then waits. The task's name chooses another behaviour."""

from __future__ import annotations

import json
import os
import sys
import time


def main(argv: list[str]) -> int:
    """`--task` holds `silent` (ends before it is ready), `mute` (no token), or anything else."""
    task = argv[argv.index("--task") + 1]
    if "silent" in task:
        return 3
    ready = {"port": 2500} if "mute" in task else {"port": 2500, "token": "t", "pid": os.getpid()}
    print(json.dumps(ready | ({} if "mute" in task else {"token": f"{os.getpid()}"})), flush=True)
    time.sleep(60)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
