# SPDX-License-Identifier: MIT
"""Run by alembic: migrates over the connection that `engine.model.migrate` hands in. One transaction for each revision."""

from __future__ import annotations

from alembic import context

from engine.model.tables import Base


def migrate() -> None:
    """Runs the migrations that alembic has chosen."""
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=Base.metadata,
        render_as_batch=True,
        transaction_per_migration=True,
        transactional_ddl=True,
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


if hasattr(context, "config"):  # alembic runs this module; a mere import does nothing
    migrate()
