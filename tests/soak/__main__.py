# SPDX-License-Identifier: MIT
"""`python -m tests.soak [--instants 50] [--seed N]`: exit code 0 when every promise held, 1 with the seed when one did not."""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import time
from pathlib import Path

from tests.e2e import harness
from tests.soak.instants import Broken, Soak, draw


def main(argv: list[str]) -> int:
    """Runs the drill in a lab of its own."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--instants", type=int, default=50, help="how many kills (default: 50)")
    parser.add_argument("--seed", type=int, default=None, help="draws the same instants again (default: a new one)")
    options = parser.parse_args(argv)
    seed = options.seed if options.seed is not None else secrets.randbelow(1 << 32)
    print(f"soak: {options.instants} instants, seed {seed}", flush=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vadplab-soak-") as folder:
        home = Path(folder)
        topology = harness.drill_topology(home)
        with harness.up(home, "soak", "--topology", str(topology)) as lab:
            soak = Soak(lab, lambda text: print(f"soak {text}", flush=True))
            try:
                soak.run(draw(seed, options.instants))
            except Broken as exc:
                print(f"soak: FAILED with --seed {seed} --instants {options.instants}: {exc}", file=sys.stderr)
                return 1
    took = time.monotonic() - begun
    print(
        f"soak: {soak.killed} instants killed something, {soak.interrupted} runs were ended by it; 0 partial points, "
        f"0 snapshots, 0 disks left, all points verify; {took:.0f} s (seed {seed})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
