# SPDX-License-Identifier: MIT
"""`python -m fakes.vcenter`."""

import sys

from fakes.vcenter import main

sys.exit(main(sys.argv[1:]))
