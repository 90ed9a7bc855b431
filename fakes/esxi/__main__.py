# SPDX-License-Identifier: MIT
"""`python -m fakes.esxi`."""

from __future__ import annotations

import sys

from fakes.esxi import main

sys.exit(main(sys.argv[1:]))
