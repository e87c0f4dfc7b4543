"""The catalogue that queries ask, filled from what is stored, and what was fetched from other archives

Revision: 0004, after 0003.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

import db.schema

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

BATCH = 1000
Code = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")
BigKey = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """The catalogue and the fetches."""
    catalog = op.create_table(
        "catalog_studies",
        sa.Column("study_uid", sa.String(length=64), nullable=False),
        sa.Column("patient_id", Code, nullable=False),
        sa.Column("patient_name", sa.Text(), nullable=False),
        sa.Column("accession_number", Code, nullable=False),
        sa.Column("study_id", Code, nullable=False),
        sa.Column("study_date", sa.String(length=8), nullable=True),
        sa.PrimaryKeyConstraint("study_uid", name=op.f("pk_catalog_studies")),
    )
    op.create_table(
        "catalog_series",
        sa.Column("series_uid", sa.String(length=64), nullable=False),
        sa.Column("study_uid", sa.String(length=64), nullable=False),
        sa.Column("modality", sa.String(length=16), nullable=False),
        sa.Column("first_seq", BigKey, nullable=False),
        sa.PrimaryKeyConstraint("series_uid", "study_uid", name=op.f("pk_catalog_series")),
    )
    op.create_table(
        "fetches",
        sa.Column("series_uid", sa.String(length=64), nullable=False),
        sa.Column("source", sa.String(length=48), nullable=False),
        sa.Column("study_uid", sa.String(length=64), nullable=False),
        sa.Column("source_ae", sa.String(length=16), nullable=False),
        sa.Column("prior", sa.Boolean(), nullable=False),
        sa.Column("announced", sa.Integer(), nullable=False),
        sa.Column("received", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("changed_at", db.schema.Utc(), nullable=False),
        sa.PrimaryKeyConstraint("series_uid", "source", name=op.f("pk_fetches")),
    )
    _fill(op.get_bind(), catalog)
    for name in ("patient_id", "accession_number", "study_date"):
        op.create_index(f"ix_catalog_studies_{name}", "catalog_studies", [name])
    op.create_index("ix_catalog_series_study_uid", "catalog_series", ["study_uid"])
    op.create_index("ix_fetches_study_uid", "fetches", ["study_uid"])


def _fill(bind: sa.Connection, catalog: sa.Table) -> None:
    after = ""
    page = sa.text("SELECT study_uid, header FROM studies WHERE study_uid > :after ORDER BY study_uid LIMIT :batch")
    while rows := bind.execute(page, {"after": after, "batch": BATCH}).all():
        bind.execute(catalog.insert(), [_row(uid, header) for uid, header in rows])
        after = rows[-1][0]
    modality = "facts->>'modality'" if bind.dialect.name == "postgresql" else "json_extract(facts, '$.modality')"
    described = (
        f"SELECT i.series_uid, i.study_uid, substr(coalesce({modality}, ''), 1, 16), i.seq FROM instances i"  # noqa: S608
        " JOIN (SELECT min(seq) AS seq FROM instances GROUP BY series_uid, study_uid) f ON f.seq = i.seq"
    )
    bind.execute(sa.text(f"INSERT INTO catalog_series (series_uid, study_uid, modality, first_seq) {described}"))


def _row(study_uid: str, header: Any) -> dict[str, Any]:
    held = json.loads(header) if isinstance(header, str) else header

    def value(tag: str) -> Any:
        return next(iter(held.get(tag, {}).get("Value", [])), None) or ""

    name = value("00100010") or {}
    groups = [name.get(group, "") for group in ("Alphabetic", "Ideographic", "Phonetic")]
    date = str(value("00080020")).replace(".", "").strip()
    return {
        "study_uid": study_uid,
        "patient_id": str(value("00100020")).strip()[:64],
        "patient_name": "=".join(groups).casefold(),
        "accession_number": str(value("00080050")).strip()[:64],
        "study_id": str(value("00200010")).strip()[:64],
        "study_date": date if len(date) == 8 and date.isdecimal() else None,
    }
