# SPDX-License-Identifier: MIT
"""Jobs get an origin, a switch and a schedule; servers an origin and a limit; REST tokens come."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What exists already came from the infrastructure file."""
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("origin", sa.String(16), nullable=False, server_default="file"))
        jobs.add_column(sa.Column("enabled", sa.Boolean, nullable=False, server_default=sa.true()))
        jobs.add_column(sa.Column("schedule", sa.JSON(none_as_null=True)))
        jobs.add_column(sa.Column("considered", sa.BigInteger))
    with op.batch_alter_table("servers") as servers:
        servers.add_column(sa.Column("origin", sa.String(16), nullable=False, server_default="file"))
        servers.add_column(sa.Column("limit", sa.Integer))
    op.create_table(
        "tokens",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False, unique=True),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("expires", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Jobs and servers made in the console go: the older service would take them for the file's."""
    op.drop_table("tokens")
    op.execute("DELETE FROM jobs WHERE origin <> 'file'")
    op.execute("DELETE FROM servers WHERE origin <> 'file'")
    with op.batch_alter_table("servers") as servers:
        servers.drop_column("limit")
        servers.drop_column("origin")
    with op.batch_alter_table("jobs") as jobs:
        for column in ("considered", "schedule", "enabled", "origin"):
            jobs.drop_column(column)
