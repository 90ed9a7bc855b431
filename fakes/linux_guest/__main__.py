# SPDX-License-Identifier: MIT
"""`python -m fakes.linux_guest`."""

from __future__ import annotations

import sys

from fakes.linux_guest import main

sys.exit(main(sys.argv[1:]))
