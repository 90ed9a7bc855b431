# SPDX-License-Identifier: MIT
"""`python -m fakes.scsi_bus …`, which is also `vadplab fake bus …`."""

import sys

from fakes.scsi_bus.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
