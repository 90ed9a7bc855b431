# SPDX-License-Identifier: MIT
"""`python -m engine.mover`."""

from engine.mover import main
from engine.processes import run

run(main)
