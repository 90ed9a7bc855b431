# SPDX-License-Identifier: MIT
"""Jobs lose `rules.cluster_bits`: it had one value, and a job's settings may hold no field that is unknown."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

JOBS = sa.table("jobs", sa.column("name", sa.String), sa.column("settings", sa.JSON))


def upgrade() -> None:
    """The field goes from every job that has it."""
    connection = op.get_bind()
    for name, settings in connection.execute(sa.select(JOBS.c.name, JOBS.c.settings)).all():
        rules = settings.get("rules") or {}
        if rules.pop("cluster_bits", None) is not None:
            connection.execute(sa.update(JOBS).where(JOBS.c.name == name).values(settings=settings))


def downgrade() -> None:
    """An older service takes its default."""
