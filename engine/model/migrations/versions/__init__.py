# SPDX-License-Identifier: MIT
"""One module per revision, oldest first by number."""
