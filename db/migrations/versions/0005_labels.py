"""What readers, tables and reports say about studies

Revision: 0005, after 0004.
"""

import sqlalchemy as sa
from alembic import op

import db.schema

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A label is one statement of one reader about a study, a series, an image or a frame."""
    op.create_table(
        "labels",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("study_uid", sa.String(length=64), nullable=False),
        sa.Column("series_uid", sa.String(length=64), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("frame", sa.Integer(), nullable=False),
        sa.Column("label", sa.String(length=32), nullable=False),
        sa.Column("value", sa.Integer(), nullable=False),
        sa.Column("reader", sa.String(length=64), nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("at", db.schema.Utc(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_labels")),
        sa.UniqueConstraint(
            "study_uid",
            "series_uid",
            "sop_instance_uid",
            "frame",
            "label",
            "reader",
            "source",
            name=op.f("uq_labels_place"),
        ),
    )


def downgrade() -> None:
    """Labels are lost."""
    op.drop_table("labels")
