"""The catalogue: one row for each study and series of the archive, and which of them a query can mean.

The rows are written in the transaction that records the instance which brings them, so whatever was acknowledged is
found. SQL only narrows: what it leaves is a superset of what matches, and `db.matching` decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from db import matching
from db.dicom_json import Attributes, first, tag_of, values
from db.engine import INSERT, insert_into
from db.schema import catalog_series, catalog_studies, instances

WILD = frozenset("*?")
MODALITY_LENGTH = 16
CODE_LENGTH = 64

_STUDY_UID, _SERIES_UID, _SOP_UID = (tag_of(f"{level}InstanceUID") for level in ("Study", "Series", "SOP"))
_CODES = {
    tag_of("PatientID"): catalog_studies.c.patient_id,
    tag_of("AccessionNumber"): catalog_studies.c.accession_number,
    tag_of("StudyID"): catalog_studies.c.study_id,
}
_DATE, _NAME = tag_of("StudyDate"), tag_of("PatientName")
_MODALITIES = (tag_of("ModalitiesInStudy"), tag_of("Modality"))


def enter_study(tx: sa.Connection, *, study_uid: str, header: dict[str, Any]) -> None:
    """The study, which is new, can be found by its header."""
    day = matching.bounds("DA", str(first(header, _DATE) or "").strip())
    tx.execute(
        insert_into(tx, catalog_studies)
        .values(
            study_uid=study_uid,
            patient_name=_folded(first(header, _NAME)),
            study_date=day[0] if day and day[0] == day[1] else None,
            **{column.name: str(first(header, tag) or "").strip()[:CODE_LENGTH] for tag, column in _CODES.items()},
        )
        .on_conflict_do_nothing(index_elements=["study_uid"])
    )


@dataclass(frozen=True, kw_only=True)
class NewSeries:
    """A series as the instance number `first_seq` describes it."""

    series_uid: str
    study_uid: str
    modality: str | None
    first_seq: int


def enter_series(tx: sa.Connection, described: Sequence[NewSeries]) -> None:
    """Each of these series stands, described by the first instance that came of it."""
    firsts = {(new.series_uid, new.study_uid): new for new in reversed(described)}
    rows = [
        {
            "series_uid": series_uid,
            "study_uid": study_uid,
            "modality": (firsts[series_uid, study_uid].modality or "")[:MODALITY_LENGTH],
            "first_seq": firsts[series_uid, study_uid].first_seq,
        }
        for series_uid, study_uid in sorted(firsts)  # one order, in which receivers wait for each other
    ]
    tx.execute(_ENTER_SERIES[tx.dialect.name], rows)


_ENTER_SERIES = {
    name: insert(catalog_series).on_conflict_do_nothing(index_elements=["series_uid", "study_uid"])
    for name, insert in INSERT.items()
}
"""Made once: making a statement takes longer than running it."""


def candidates(tx: sa.Connection, keys: Attributes, *, by_patient: bool = False) -> list[str]:
    """The UIDs of every study that `keys` can mean, newest first; with `by_patient` those of a patient together."""
    query = sa.select(catalog_studies.c.study_uid).where(*_narrowed(keys))
    newest = (catalog_studies.c.study_date.desc(), catalog_studies.c.study_uid)
    return list(
        tx.execute(query.order_by(*((catalog_studies.c.patient_id, *newest) if by_patient else newest))).scalars()
    )


def _narrowed(keys: Attributes) -> list[sa.ColumnElement[bool]]:
    found = [c for tag, column in _CODES.items() if (c := _code(column, values(keys, tag))) is not None]
    if uids := _literal(keys, _STUDY_UID):
        found.append(catalog_studies.c.study_uid.in_(uids))
    if name := max(_fragments(keys), key=len, default=""):
        found.append(catalog_studies.c.patient_name.contains(name, autoescape=True))
    found += _dates(keys)
    if not uids:
        found += _below(keys)
    return found


def _code(column: sa.Column[str], wanted: list[Any]) -> sa.ColumnElement[bool] | None:
    if len(wanted) != 1:
        return None
    text = str(wanted[0]).strip()
    literal = text[: min((text.index(mark) for mark in WILD if mark in text), default=len(text))]
    if literal == text:
        return column == text if len(text) <= CODE_LENGTH else None
    # "Begins with", as a range that an index can serve: no character sorts behind the last of Unicode.
    return sa.and_(column >= literal, column < literal + "\U0010ffff") if literal else None


def _dates(keys: Attributes) -> list[sa.ColumnElement[bool]]:
    wanted = values(keys, _DATE)
    span = matching.span("DA", str(wanted[0]).strip()) if len(wanted) == 1 else None
    low, high = span or (None, None)
    column = catalog_studies.c.study_date
    return ([column >= low] if low else []) + ([column <= high] if high else [])


def _below(keys: Attributes) -> list[sa.ColumnElement[bool]]:
    """What keys of the levels below say of the study."""
    found: list[sa.ColumnElement[bool]] = []
    series, own = catalog_series.c, catalog_studies.c.study_uid
    for wanted in filter(None, (_literal(keys, tag) for tag in _MODALITIES)):
        of = sa.select(series.study_uid).where(series.study_uid == own, series.modality.in_(wanted))
        found.append(of.correlate(catalog_studies).exists())
    if wanted := _literal(keys, _SERIES_UID):
        found.append(own.in_(sa.select(series.study_uid).where(series.series_uid.in_(wanted))))
    if wanted := _literal(keys, _SOP_UID):
        found.append(own.in_(sa.select(instances.c.study_uid).where(instances.c.sop_instance_uid.in_(wanted))))
    return found


def _literal(keys: Attributes, tag: str) -> list[str]:
    """The values of a key that has no wild card."""
    wanted = [str(value).strip() for value in values(keys, tag)]
    return [] if any(WILD & set(value) for value in wanted) else wanted


def _fragments(keys: Attributes) -> list[str]:
    """The pieces between the wild cards of a person's name, as they are kept."""
    wanted = values(keys, _NAME)
    text = _folded(wanted[0]) if len(wanted) == 1 else ""
    for mark in ("?", "=", "^"):
        text = text.replace(mark, "*")
    return [piece.strip() for piece in text.split("*")]


def _folded(name: Any) -> str:
    groups = [name.get(group, "") for group in ("Alphabetic", "Ideographic", "Phonetic")] if name else []
    return "=".join(groups).casefold()
