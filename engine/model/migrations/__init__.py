# SPDX-License-Identifier: MIT
"""Migrations of the configuration database (alembic); `engine.model.migrate` runs them."""
