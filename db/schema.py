"""The tables. Only functions of this package read or write them."""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

UID = sa.String(64)
AE = sa.String(16)
Code = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")
"""Text that is compared by its bytes on every database, so that an index serves "begins with" as well."""
BigKey = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


class Utc(sa.TypeDecorator[dt.datetime]):
    """An aware UTC time, stored as microseconds since 1970 so that it sorts and compares the same on every database."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: sa.Dialect) -> int | None:
        """Microseconds since 1970. Raises ``ValueError`` for a naive time."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("stored times are aware")
        return (value - EPOCH) // MICROSECOND

    def process_result_value(self, value: Any | None, dialect: sa.Dialect) -> dt.datetime | None:
        """The aware UTC time."""
        return None if value is None else EPOCH + int(value) * MICROSECOND


EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
MICROSECOND = dt.timedelta(microseconds=1)


def now() -> dt.datetime:
    """The present, aware, in UTC."""
    return dt.datetime.now(dt.UTC)


associations = sa.Table(
    "associations",
    metadata,
    sa.Column("association_id", sa.String(32), primary_key=True),
    sa.Column("receiver", sa.String(64), nullable=False),
    sa.Column("calling_ae", AE, nullable=False),
    sa.Column("called_ae", AE, nullable=False),
    sa.Column("address", sa.String(64), nullable=False),
    sa.Column("started_at", Utc, nullable=False),
    sa.Column("ended_at", Utc),
    sa.Column("outcome", sa.String(16)),
    sa.Column("detail", sa.Text),
    sa.Index("ix_associations_ended_at", "ended_at"),
)

studies = sa.Table(
    "studies",
    metadata,
    sa.Column("study_uid", UID, primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("first_received_at", Utc, nullable=False),
    sa.Column("last_received_at", Utc, nullable=False),
    sa.Column("calling_ae", AE, nullable=False),
    sa.Column("header", sa.JSON, nullable=False),
    sa.Column("completeness", sa.JSON),
    sa.Column("verdict_at", Utc),
    sa.Index("ix_studies_state", "state"),
    sa.Index("ix_studies_last_received_at", "last_received_at"),
)

instances = sa.Table(
    "instances",
    metadata,
    sa.Column("seq", BigKey, primary_key=True, autoincrement=True),
    sa.Column("sop_instance_uid", UID, nullable=False, unique=True),
    sa.Column("sop_class_uid", UID, nullable=False),
    sa.Column("series_uid", UID, nullable=False),
    sa.Column("study_uid", UID, nullable=False),
    sa.Column("transfer_syntax_uid", UID, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("association_id", sa.String(32), nullable=False),
    sa.Column("received_at", Utc, nullable=False),
    sa.Column("revision", sa.Integer),
    sa.Column("facts", sa.JSON, nullable=False),
    sa.Index("ix_instances_study_uid", "study_uid"),
    sa.Index("ix_instances_series_uid", "series_uid"),
    sa.Index(
        "ix_instances_unconsidered",
        "study_uid",
        sqlite_where=sa.text("revision IS NULL"),
        postgresql_where=sa.text("revision IS NULL"),
    ),
    sqlite_autoincrement=True,
)

set_aside = sa.Table(
    "set_aside",
    metadata,
    sa.Column("id", BigKey, primary_key=True, autoincrement=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("sop_class_uid", sa.String(64)),
    sa.Column("sop_instance_uid", sa.String(64)),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("association_id", sa.String(32), nullable=False),
    sa.Column("calling_ae", AE, nullable=False),
    sa.Column("at", Utc, nullable=False),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", BigKey, primary_key=True, autoincrement=True),
    sa.Column("study_uid", UID, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("model", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("owner", sa.String(64)),
    sa.Column("lease_until", Utc),
    sa.Column("error", sa.Text),
    sa.Column("created_at", Utc, nullable=False),
    sa.Column("started_at", Utc),
    sa.Column("ended_at", Utc),
    sa.UniqueConstraint("study_uid", "revision", "model"),
    sa.Index("ix_jobs_state", "state", "id"),
)

results = sa.Table(
    "results",
    metadata,
    sa.Column("id", BigKey, primary_key=True, autoincrement=True),
    sa.Column("study_uid", UID, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("model", sa.String(64), nullable=False),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("payload", sa.JSON, nullable=False),
    sa.Column("made_at", Utc, nullable=False),
    sa.UniqueConstraint("study_uid", "revision", "model"),
)

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", BigKey, primary_key=True, autoincrement=True),
    sa.Column("study_uid", UID, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("destination", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("due_at", Utc, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("owner", sa.String(64)),
    sa.Column("lease_until", Utc),
    sa.Column("sop_instance_uid", sa.String(64)),
    sa.Column("detail", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("created_at", Utc, nullable=False),
    sa.Column("sent_at", Utc),
    sa.Column("confirmed_at", Utc),
    sa.UniqueConstraint("study_uid", "revision", "kind", "destination"),
    sa.Index("ix_deliveries_state", "state", "kind", "destination", "due_at"),
)

workitems = sa.Table(
    "workitems",
    metadata,
    sa.Column("uid", UID, primary_key=True),
    sa.Column("study_uid", sa.String(64)),  # of the node's own reading items, as are the next two
    sa.Column("revision", sa.Integer),
    sa.Column("asked", sa.String(16)),  # the priority this node last asked for
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("priority", sa.String(16), nullable=False),
    sa.Column("transaction_uid", sa.String(64)),
    sa.Column("dataset", sa.JSON, nullable=False),
    sa.Column("created_at", Utc, nullable=False),
    sa.Column("updated_at", Utc, nullable=False),
    sa.Index("ix_workitems_study_uid", "study_uid"),
    sa.Index("ix_workitems_state", "state", "priority"),
)

subscriptions = sa.Table(
    "subscriptions",
    metadata,
    sa.Column("id", BigKey, primary_key=True, autoincrement=True),
    sa.Column("ae_title", AE, nullable=False),
    sa.Column("workitem_uid", UID, nullable=False),  # a work item, or a well-known global subscription UID
    sa.Column("deletion_lock", sa.Boolean, nullable=False),
    sa.Column("filter", sa.JSON(none_as_null=True)),
    sa.Column("created_at", Utc, nullable=False),
    sa.UniqueConstraint("ae_title", "workitem_uid"),
    sa.Index("ix_subscriptions_workitem_uid", "workitem_uid"),
)

notifications = sa.Table(
    "notifications",
    metadata,
    sa.Column("id", BigKey, primary_key=True, autoincrement=True),
    sa.Column("ae_title", AE, nullable=False),
    sa.Column("workitem_uid", UID, nullable=False),
    sa.Column("event_type", sa.Integer, nullable=False),
    sa.Column("dataset", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("due_at", Utc, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("owner", sa.String(64)),
    sa.Column("lease_until", Utc),
    sa.Column("error", sa.Text),
    sa.Column("created_at", Utc, nullable=False),
    sa.Column("sent_at", Utc),
    sa.Index("ix_notifications_state", "state", "ae_title", "id"),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", BigKey, primary_key=True, autoincrement=True),
    sa.Column("study_uid", sa.String(64)),
    sa.Column("at", Utc, nullable=False),
    sa.Column("event", sa.String(48), nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
    sa.Index("ix_events_study_uid", "study_uid", "id"),
)

parts = sa.Table(
    "parts",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("started_at", Utc, nullable=False),
    sa.Column("beat_at", Utc, nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
)

catalog_studies = sa.Table(
    "catalog_studies",
    metadata,
    sa.Column("study_uid", UID, primary_key=True),
    sa.Column("patient_id", Code, nullable=False),
    sa.Column("patient_name", sa.Text, nullable=False),  # every component group, casefolded
    sa.Column("accession_number", Code, nullable=False),
    sa.Column("study_id", Code, nullable=False),
    sa.Column("study_date", sa.String(8)),  # None where the header has none, or none that can be compared
    sa.Index("ix_catalog_studies_patient_id", "patient_id"),
    sa.Index("ix_catalog_studies_accession_number", "accession_number"),
    sa.Index("ix_catalog_studies_study_date", "study_date"),
)

catalog_series = sa.Table(
    "catalog_series",
    metadata,
    sa.Column("series_uid", UID, primary_key=True),
    sa.Column("study_uid", UID, primary_key=True),
    sa.Column("modality", sa.String(16), nullable=False),
    sa.Column("first_seq", BigKey, nullable=False),  # the instance whose header describes the series
    sa.Index("ix_catalog_series_study_uid", "study_uid"),
)

fetches = sa.Table(
    "fetches",
    metadata,
    sa.Column("series_uid", UID, primary_key=True),
    sa.Column("source", sa.String(48), primary_key=True),
    sa.Column("study_uid", UID, nullable=False),
    sa.Column("source_ae", AE, nullable=False),
    sa.Column("prior", sa.Boolean, nullable=False),  # archived, not analysed
    sa.Column("announced", sa.Integer, nullable=False),
    sa.Column("received", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("changed_at", Utc, nullable=False),
    sa.Index("ix_fetches_study_uid", "study_uid"),
)

commitment_requests = sa.Table(
    "commitment_requests",  # what others asked this node to commit to
    metadata,
    sa.Column("id", BigKey, primary_key=True, autoincrement=True),
    sa.Column("transaction_uid", UID, nullable=False),
    sa.Column("ae_title", AE, nullable=False),
    sa.Column("address", sa.String(64), nullable=False),
    sa.Column("association_id", sa.String(32)),  # over which the answer may go back
    sa.Column("digest", sa.String(64), nullable=False),  # of what is asked: a request sent again is the same request
    sa.Column("asked", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("event_type", sa.Integer),
    sa.Column("report", sa.JSON(none_as_null=True)),
    sa.Column("due_at", Utc, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("owner", sa.String(128)),
    sa.Column("lease_until", Utc),
    sa.Column("error", sa.Text),
    sa.Column("asked_at", Utc, nullable=False),
    sa.Column("reported_at", Utc),
    sa.UniqueConstraint("transaction_uid", "ae_title", "digest"),
    sa.Index("ix_commitment_requests_state", "state", "due_at"),
    sa.Index("ix_commitment_requests_association_id", "association_id"),
)

commitment_asks = sa.Table(
    "commitment_asks",  # what this node asked others to commit to
    metadata,
    sa.Column("transaction_uid", UID, primary_key=True),
    sa.Column("delivery_id", sa.BigInteger, nullable=False),
    sa.Column("asked_at", Utc, nullable=False),
    sa.Column("answered_at", Utc),
    sa.Column("failure", sa.Integer),  # Failure Reason (0008,1197), 0 where the far side commits
    sa.Index("ix_commitment_asks_delivery_id", "delivery_id"),
)

performed_steps = sa.Table(
    "performed_steps",
    metadata,
    sa.Column("uid", UID, primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("ae_title", AE, nullable=False),
    sa.Column("listed", sa.Integer, nullable=False),  # how many instances its series list
    sa.Column("dataset", sa.JSON, nullable=False),
    sa.Column("created_at", Utc, nullable=False),
    sa.Column("updated_at", Utc, nullable=False),
)

performed_step_studies = sa.Table(
    "performed_step_studies",
    metadata,
    sa.Column("study_uid", UID, primary_key=True),
    sa.Column("step_uid", UID, primary_key=True),
    sa.Index("ix_performed_step_studies_step_uid", "step_uid"),
)

journals = sa.Table(
    "journals",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("serial", sa.BigInteger, nullable=False),
    sa.Column("at", Utc, nullable=False),
)

labels = sa.Table(
    "labels",
    metadata,
    sa.Column("id", BigKey, primary_key=True, autoincrement=True),
    sa.Column("study_uid", UID, nullable=False),
    sa.Column("series_uid", UID, nullable=False),  # empty: the whole study, as are the next two
    sa.Column("sop_instance_uid", UID, nullable=False),
    sa.Column("frame", sa.Integer, nullable=False),
    sa.Column("label", sa.String(32), nullable=False),
    sa.Column("value", sa.Integer, nullable=False),
    sa.Column("reader", sa.String(64), nullable=False),
    sa.Column("source", sa.String(16), nullable=False),
    sa.Column("at", Utc, nullable=False),
    sa.UniqueConstraint(  # named here: the names of all columns are more than PostgreSQL takes
        "study_uid", "series_uid", "sop_instance_uid", "frame", "label", "reader", "source", name="uq_labels_place"
    ),
)
