"""Which patients, studies, series or images of the archive match the keys of a query, whoever asks in what protocol."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice

from db import catalog, holdings
from db.dicom_json import Attributes, first, tag_of, values
from db.engine import Database
from db.holdings import Selection, StudyHeld
from db.matching import Pairs, matches
from node.query.archive import image_attributes, patient_attributes, series_attributes, study_attributes

STUDIES_AT_ONCE = 50
IMAGES_AT_ONCE = 500


@dataclass(frozen=True, kw_only=True)
class Query:
    """What is asked. `keys` are of supported attributes only; `counted` has related instances counted."""

    level: str
    keys: Attributes
    counted: bool
    pairs: Pairs = ()


def matching(query: Query, database: Database) -> Iterator[Attributes]:
    """Every entity of the query's level that matches, with the attributes of the levels above, newest study first.

    No transaction is open while an answer is on its way.
    """
    entities = {"PATIENT": _patients, "STUDY": _studies, "SERIES": _series, "IMAGE": _images}[query.level]
    return (e for e in entities(query, database) if matches(query.keys, e, pairs=query.pairs))


def _held(query: Query, database: Database, *, by_patient: bool = False) -> Iterator[StudyHeld]:
    """The studies that may match."""
    with database.read() as tx:
        uids = iter(catalog.candidates(tx, query.keys, by_patient=by_patient))
    while some := list(islice(uids, STUDIES_AT_ONCE)):
        with database.read() as tx:
            held = holdings.studies_of(tx, some, counted=query.counted)
        yield from held


def _patients(query: Query, database: Database) -> Iterator[Attributes]:
    for _, studies in groupby(_held(query, database, by_patient=True), key=_patient_of):
        yield patient_attributes(studies)


def _patient_of(held: StudyHeld) -> tuple[str, str]:
    """Who is one patient; without an identifier nobody says that two studies are of the same."""
    patient_id = str(first(held.header, tag_of("PatientID")) or "").strip()
    return (patient_id, "" if patient_id else held.study_uid)


def _studies(query: Query, database: Database) -> Iterator[Attributes]:
    return map(study_attributes, _held(query, database))


def _series(query: Query, database: Database) -> Iterator[Attributes]:
    for study in _held(query, database):
        with database.read() as tx:
            held = holdings.series_of(tx, [study.study_uid], counted=query.counted)
        yield from (study_attributes(study) | series_attributes(series) for series in held)


def _images(query: Query, database: Database) -> Iterator[Attributes]:
    wanted = tuple(str(uid).strip() for uid in values(query.keys, tag_of("SOPInstanceUID")))
    for study in _held(query, database):
        with database.read() as tx:
            series = {
                s.series_uid: series_attributes(s) for s in holdings.series_of(tx, [study.study_uid], counted=False)
            }
        above = study_attributes(study)
        of = [uid for uid, held in series.items() if matches(_only(query.keys, "SeriesInstanceUID"), held)]
        selection = Selection(study_uids=(study.study_uid,), series_uids=tuple(of), sop_instance_uids=wanted)
        last = 0
        while of:
            with database.read() as tx:
                page = holdings.page(tx, selection, after_seq=last, limit=IMAGES_AT_ONCE)
            if not page:
                break
            last = page[-1].seq
            yield from (above | series[held.series_uid] | image_attributes(held) for held in page)


def _only(keys: Attributes, keyword: str) -> Attributes:
    tag = tag_of(keyword)
    return {tag: keys[tag]} if tag in keys else {}
