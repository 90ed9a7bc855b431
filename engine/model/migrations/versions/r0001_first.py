# SPDX-License-Identifier: MIT
"""The tables as they were before there were migrations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes every table."""
    name = sa.String(255)
    op.create_table(
        "vcenters",
        sa.Column("name", name, primary_key=True),
        sa.Column("address", sa.String, nullable=False),
        sa.Column("port", sa.Integer, nullable=False),
        sa.Column("thumbprint", sa.String),
        sa.Column("username", sa.String, nullable=False),
        sa.Column("sealed_password", sa.String, nullable=False),
    )
    op.create_table(
        "servers",
        sa.Column("name", name, primary_key=True),
        sa.Column("address", sa.String, nullable=False),
        sa.Column("port", sa.Integer, nullable=False),
        sa.Column("roles", sa.JSON, nullable=False),
        sa.Column("max_tasks", sa.Integer, nullable=False),
        sa.Column("modes", sa.JSON, nullable=False),
        sa.Column("facts", sa.JSON, nullable=False),
        sa.Column("problem", sa.String),
    )
    op.create_table(
        "credentials",
        sa.Column("name", name, primary_key=True),
        sa.Column("username", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("sealed_secret", sa.String, nullable=False),
    )
    op.create_table(
        "guests",
        sa.Column("vm", name, primary_key=True),
        sa.Column("credentials", name, sa.ForeignKey("credentials.name"), nullable=False),
        sa.Column("host_key", sa.String),
        sa.Column("port", sa.Integer, nullable=False),
    )
    op.create_table(
        "vms",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("vcenter", name, sa.ForeignKey("vcenters.name"), nullable=False),
        sa.Column("moref", sa.String, nullable=False),
        sa.Column("name", name, nullable=False, index=True),
        sa.Column("uuid", sa.String, nullable=False),
        sa.Column("host", sa.String, nullable=False),
        sa.Column("power", sa.String, nullable=False),
    )
    op.create_table(
        "disks",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("vm_id", sa.Integer, sa.ForeignKey("vms.id"), nullable=False),
        sa.Column("key", sa.Integer, nullable=False),
        sa.Column("label", sa.String, nullable=False),
        sa.Column("path", sa.String, nullable=False),
        sa.Column("capacity", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "jobs",
        sa.Column("name", name, primary_key=True),
        sa.Column("settings", sa.JSON, nullable=False),
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("subject", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("result", sa.String),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("ended", sa.BigInteger),
        sa.Column("pending", sa.JSON, nullable=False),
        sa.Column("document", sa.JSON, nullable=False),
    )
    op.create_table(
        "placements",
        sa.Column("job", name, primary_key=True),
        sa.Column("vm", name, primary_key=True),
        sa.Column("repository", sa.String, nullable=False),
    )


def downgrade() -> None:
    """Drops every table."""
    for table in ("placements", "sessions", "jobs", "disks", "vms", "guests", "credentials", "servers", "vcenters"):
        op.drop_table(table)
