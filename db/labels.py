"""What readers, tables and reports say about studies: one row for each label that somebody gave."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import sqlalchemy as sa

from db import audit
from db.engine import insert_into
from db.schema import labels, now, studies
from db.states import LabelSource


@dataclass(frozen=True, kw_only=True)
class NewLabel:
    """One statement: the study (series, image, frame) bears `label`, or does not.

    Empty UIDs and frame 0 mean the whole study. `value` is 1 or 0. `reader` names who said it; it is no patient's name.
    """

    study_uid: str
    series_uid: str = ""
    sop_instance_uid: str = ""
    frame: int = 0
    label: str
    value: int
    reader: str
    source: LabelSource


@dataclass(frozen=True, kw_only=True)
class Label(NewLabel):
    """A stored statement, and when it was last given otherwise than before."""

    at: dt.datetime


@dataclass(frozen=True, kw_only=True)
class Given:
    """What `give` did: how many labels are new, how many say something else than before, how many the same."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0


_WHICH = ("study_uid", "series_uid", "sop_instance_uid", "frame", "label", "reader", "source")


def give(tx: sa.Connection, new: Sequence[NewLabel]) -> Given:
    """Every label of `new` stands, also where its reader said something else before. Twice has the effect of once."""
    added = changed = 0
    touched: dict[str, int] = {}
    for label in new:
        values = asdict(label)
        same = sa.and_(*(labels.c[name] == values[name] for name in _WHICH))
        otherwise = labels.update().where(same, labels.c.value != label.value).values(value=label.value, at=now())
        insert = insert_into(tx, labels).values(at=now(), **values).on_conflict_do_nothing(index_elements=_WHICH)
        if tx.execute(insert.returning(labels.c.id)).first() is not None:
            added += 1
        elif tx.execute(otherwise).rowcount:
            changed += 1
        else:
            continue
        touched[label.study_uid] = touched.get(label.study_uid, 0) + 1
    for study_uid, count in touched.items():
        audit.record(tx, "labelled", study_uid=study_uid, labels=count)
    return Given(added=added, changed=changed, unchanged=len(new) - added - changed)


def of_study(tx: sa.Connection, study_uid: str) -> tuple[Label, ...]:
    """Every label of the study, in the order in which they were given first."""
    query = sa.select(labels).where(labels.c.study_uid == study_uid).order_by(labels.c.id)
    return tuple(_label(row) for row in tx.execute(query).mappings())


def labelled_studies(
    tx: sa.Connection, *, since: dt.datetime | None = None, until: dt.datetime | None = None
) -> tuple[str, ...]:
    """The studies with any label that were first received since (and before) a time, in that order."""
    query = sa.select(studies.c.study_uid).where(studies.c.study_uid.in_(sa.select(labels.c.study_uid)))
    if since is not None:
        query = query.where(studies.c.first_received_at >= since)
    if until is not None:
        query = query.where(studies.c.first_received_at < until)
    return tuple(tx.execute(query.order_by(studies.c.first_received_at, studies.c.study_uid)).scalars())


def _label(row: sa.RowMapping) -> Label:
    values = {name: value for name, value in row.items() if name != "id"}
    return Label(**{**values, "source": LabelSource(row["source"])})
