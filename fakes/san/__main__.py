# SPDX-License-Identifier: MIT
"""`python -m fakes.san …`."""

import sys

from fakes.san.daemon import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
