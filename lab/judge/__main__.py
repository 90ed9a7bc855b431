# SPDX-License-Identifier: MIT
"""`python -m lab.judge RUN_FOLDER`."""

import sys

from lab.judge.judge import main

raise SystemExit(main(sys.argv[1:]))
