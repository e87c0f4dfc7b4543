"""How far each receiver's journal is dispensable

Revision: 0002, after 0001.
"""

import sqlalchemy as sa
from alembic import op

import db.schema

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Receivers acknowledge once their journal is flushed; files and rows become durable after that."""
    op.create_table(
        "journals",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("serial", sa.BigInteger(), nullable=False),
        sa.Column("at", db.schema.Utc(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_journals")),
    )
