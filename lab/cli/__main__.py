# SPDX-License-Identifier: MIT
"""`python -m lab.cli` is `vadplab`."""

import sys

from lab.cli import main

sys.exit(main())
