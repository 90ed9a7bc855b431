# SPDX-License-Identifier: MIT
"""What all fakes share: the inventory they present (`inventory`), the fabric between them (`fabric`), daemon habits (`daemon`)."""
