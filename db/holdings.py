"""What the archive holds of a study, a series or a selection of instances, read in pages so that no answer is large."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from db.engine import Database
from db.instances import Instance
from db.schema import catalog_series, catalog_studies, instances, studies

AT_ONCE = 200
"""Rows read at a time."""


@dataclass(frozen=True, kw_only=True)
class StudyHeld:
    """A study. `modalities` has one entry for each series; `instances` is 0 where nobody asked for the count."""

    study_uid: str
    header: dict[str, Any]
    modalities: tuple[str, ...]
    instances: int


@dataclass(frozen=True, kw_only=True)
class SeriesHeld:
    """A series, described by the facts of the first instance that came of it."""

    study_uid: str
    series_uid: str
    facts: dict[str, Any]
    instances: int


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which instances are meant: those for which every condition holds that is given (an empty one is not)."""

    patient_id: str = ""
    study_uids: tuple[str, ...] = ()
    series_uids: tuple[str, ...] = ()
    sop_instance_uids: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How many of the selected instances are of one SOP class, stored in one transfer syntax."""

    sop_class_uid: str
    transfer_syntax_uid: str
    count: int


def studies_of(tx: sa.Connection, uids: Sequence[str], *, counted: bool) -> tuple[StudyHeld, ...]:
    """The studies of these UIDs in their order; `counted` has their instances counted."""
    query = sa.select(studies.c.study_uid, studies.c.header).where(studies.c.study_uid.in_(uids))
    headers = {row.study_uid: row.header for row in tx.execute(query)}
    of = catalog_series.c.study_uid
    modalities: dict[str, list[str]] = defaultdict(list)
    for row in tx.execute(sa.select(of, catalog_series.c.modality).where(of.in_(uids))):
        modalities[row.study_uid].append(row.modality)
    counts = _counts(tx, instances.c.study_uid, uids) if counted else {}
    return tuple(
        StudyHeld(
            study_uid=uid, header=headers[uid], modalities=tuple(sorted(modalities[uid])), instances=counts.get(uid, 0)
        )
        for uid in uids
        if uid in headers
    )


def series_of(tx: sa.Connection, study_uids: Sequence[str], *, counted: bool) -> tuple[SeriesHeld, ...]:
    """The series of these studies in the order in which they came; `counted` has their instances counted."""
    first = catalog_series.c
    query = (
        sa.select(first.study_uid, first.series_uid, instances.c.facts)
        .join(instances, instances.c.seq == first.first_seq)
        .where(first.study_uid.in_(study_uids))
        .order_by(first.first_seq)
    )
    rows = tx.execute(query).all()
    counts = _counts(tx, instances.c.series_uid, [row.series_uid for row in rows]) if counted else {}
    return tuple(
        SeriesHeld(
            study_uid=row.study_uid,
            series_uid=row.series_uid,
            facts=row.facts,
            instances=counts.get(row.series_uid, 0),
        )
        for row in rows
    )


def _counts(tx: sa.Connection, column: sa.Column[str], uids: Sequence[str]) -> dict[str, int]:
    query = sa.select(column, sa.func.count()).where(column.in_(uids)).group_by(column)
    return {str(uid): int(count) for uid, count in tx.execute(query)}


def count_of_series(tx: sa.Connection, series_uid: str) -> int:
    """How many instances of a series the archive holds."""
    return _counts(tx, instances.c.series_uid, [series_uid]).get(series_uid, 0)


def kinds(tx: sa.Connection, selection: Selection) -> tuple[Kind, ...]:
    """What is selected, the most frequent kind first."""
    of = (instances.c.sop_class_uid, instances.c.transfer_syntax_uid)
    # Counted here and not by GROUP BY: with it SQLite prefers an index that does not select.
    counted = Counter((row[0], row[1]) for row in tx.execute(sa.select(*of).where(*_where(selection))))
    return tuple(
        Kind(sop_class_uid=sop_class, transfer_syntax_uid=syntax, count=count)
        for (sop_class, syntax), count in counted.most_common()
    )


def page(tx: sa.Connection, selection: Selection, *, after_seq: int, limit: int) -> tuple[Instance, ...]:
    """The next `limit` selected instances behind the number `after_seq`, in the order received."""
    query = sa.select(instances).where(*_where(selection), instances.c.seq > after_seq)
    rows = tx.execute(query.order_by(instances.c.seq).limit(limit)).mappings()
    return tuple(Instance(**dict(row)) for row in rows)


def each(database: Database, selection: Selection) -> Iterator[Instance]:
    """Every selected instance in the order received, read page by page: no transaction stays open meanwhile."""
    last = 0
    while True:
        with database.read() as tx:
            found = page(tx, selection, after_seq=last, limit=AT_ONCE)
        if not found:
            return
        last = found[-1].seq
        yield from found


def _where(selection: Selection) -> list[sa.ColumnElement[bool]]:
    own = instances.c
    given = (
        (own.study_uid, selection.study_uids),
        (own.series_uid, selection.series_uids),
        (own.sop_instance_uid, selection.sop_instance_uids),
    )
    found: list[sa.ColumnElement[bool]] = [column.in_(uids) for column, uids in given if uids]
    if selection.patient_id:
        of = sa.select(catalog_studies.c.study_uid).where(catalog_studies.c.patient_id == selection.patient_id)
        found.append(own.study_uid.in_(of))
    return found
