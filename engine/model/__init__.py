# SPDX-License-Identifier: MIT
"""What the Backup Service knows: the infrastructure file, the configuration database, and its encrypted secrets."""
