# SPDX-License-Identifier: MIT
"""`python -m fakes.storage …`, which is also `vadplab fake disk …`."""

import sys

from fakes.storage.launch import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
