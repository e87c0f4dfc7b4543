"""C-FIND over the archive, Patient Root and Study Root (PS3.4 C.4.1): matches stream, a chunk of studies at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice

from pydicom import Dataset
from pynetdicom import evt
from pynetdicom.events import Event

from db import catalog, holdings
from db.dicom_json import Attributes, data_set, dataset_of, first, tag_of, values
from db.engine import Database
from db.holdings import Selection, StudyHeld
from db.matching import Pairs, matches, projected
from node.dimse import COMMENT_LENGTH, SYNTAXES, Answered, attributes_of, report_failure
from node.errors import QueryRefused
from node.query.archive import (
    DATE_WITH_TIME,
    FINDS,
    MODELS,
    agreed,
    check_path,
    image_attributes,
    known,
    level_of,
    negotiated,
    patient_attributes,
    series_attributes,
    study_attributes,
)
from node.query.characters import speak
from node.service import Service

SUCCESS, PENDING, PENDING_WITHOUT_SOME_KEYS, CANCELLED = 0x0000, 0xFF00, 0xFF01, 0xFE00
OUT_OF_RESOURCES, UNABLE = 0xA700, 0xC000

STUDIES_AT_ONCE = 50
IMAGES_AT_ONCE = 500
_ABOUT_THE_ANSWER = frozenset(map(tag_of, ("QueryRetrieveLevel", "RetrieveAETitle", "InstanceAvailability")))
_COUNTED = frozenset(
    tag_of(f"NumberOf{level}RelatedInstances") for level in ("Patient", "Study", "Series")
)  # counting takes time: only where it is asked for


@dataclass(frozen=True, kw_only=True)
class _Archive:
    """What the handler works on; `maximum` bounds the matches of one answer."""

    database: Database
    ae_title: str
    maximum: int


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A query as it was understood. `keys` are those that are supported, `left_out` whether there were others."""

    level: str
    keys: Attributes
    wanted: Attributes
    left_out: bool
    pairs: Pairs
    counted: bool
    character_sets: list[str]


def service(*, database: Database, ae_title: str, maximum_matches: int) -> Service:
    """Patient Root and Study Root Query/Retrieve Information Model - FIND.

    Parameters
    ----------
    ae_title : str
        This node's own: where every match can be retrieved from.
    maximum_matches : int
        How many matches one query may have; what is beyond is refused aloud (A700).
    """
    archive = _Archive(database=database, ae_title=ae_title, maximum=maximum_matches)
    return Service(
        contexts=tuple((uid, SYNTAXES) for uid in FINDS),
        handlers=((evt.EVT_C_FIND, find, [archive]), (evt.EVT_SOP_EXTENDED, _agree, [])),
    )


def _agree(event: Event) -> dict[str, bytes]:
    proposed = event.assoc.requestor.sop_class_extended
    return {uid: agreed(uid, wanted) for uid, wanted in proposed.items() if uid in MODELS}


def find(event: Event, archive: _Archive) -> Iterator[Answered]:
    """Answers C-FIND: each match as it is found; then success, or why the answer is not all there is."""
    try:
        asked = _understood(event)
        for number, match in enumerate(_matching(asked, archive)):
            if event.is_cancelled:
                yield CANCELLED, None
                return
            if number == archive.maximum:
                raise QueryRefused(f"more than {archive.maximum} matches", status=OUT_OF_RESOURCES)  # noqa: TRY301
            yield PENDING_WITHOUT_SOME_KEYS if asked.left_out else PENDING, _answer(match, asked, archive)
    except QueryRefused as refusal:
        yield refused(refusal), None
    except Exception as error:  # noqa: BLE001 - a DIMSE handler is a boundary
        report_failure(error, handler="c_find")
        yield UNABLE, None


def refused(refusal: QueryRefused) -> Dataset:
    """The status of a response that says what is wrong with the identifier."""
    status = Dataset()
    status.Status = refusal.status
    status.ErrorComment = str(refusal)[:COMMENT_LENGTH]
    if refusal.tag is not None:
        status.OffendingElement = refusal.tag
    return status


def _understood(event: Event) -> _Asked:
    model, identifier = MODELS[str(event.context.abstract_syntax)], event.identifier
    given = attributes_of(identifier)
    level = level_of(given, model)
    terms = negotiated(event.assoc, model.find)
    check_path(given, model, level=level, relational=terms.relational)
    supported = known(model, level=level)
    wanted = {tag: element for tag, element in given.items() if tag not in _ABOUT_THE_ANSWER}
    return _Asked(
        level=level,
        keys={tag: element for tag, element in wanted.items() if tag in supported},
        wanted=wanted,
        left_out=not wanted.keys() <= supported | {tag_of("TimezoneOffsetFromUTC")},
        pairs=DATE_WITH_TIME if terms.combined_date_time else (),
        counted=bool(_COUNTED & wanted.keys()),
        character_sets=_character_sets(identifier),
    )


def _character_sets(identifier: Dataset) -> list[str]:
    named = identifier.get("SpecificCharacterSet") or []
    return [named] if isinstance(named, str) else [str(name) for name in named]


def _matching(asked: _Asked, archive: _Archive) -> Iterator[Attributes]:
    entities = {"PATIENT": _patients, "STUDY": _studies, "SERIES": _series, "IMAGE": _images}[asked.level]
    return (e for e in entities(asked, archive) if matches(asked.keys, e, pairs=asked.pairs))


def _held(asked: _Asked, archive: _Archive, *, by_patient: bool = False) -> Iterator[StudyHeld]:
    """The studies that may match. No transaction is open while an answer is on its way."""
    with archive.database.read() as tx:
        uids = iter(catalog.candidates(tx, asked.keys, by_patient=by_patient))
    while some := list(islice(uids, STUDIES_AT_ONCE)):
        with archive.database.read() as tx:
            held = holdings.studies_of(tx, some, counted=asked.counted)
        yield from held


def _patients(asked: _Asked, archive: _Archive) -> Iterator[Attributes]:
    for _, studies in groupby(_held(asked, archive, by_patient=True), key=_patient_of):
        yield patient_attributes(studies)


def _patient_of(held: StudyHeld) -> tuple[str, str]:
    """Who is one patient; without an identifier nobody says that two studies are of the same."""
    patient_id = str(first(held.header, tag_of("PatientID")) or "").strip()
    return (patient_id, "" if patient_id else held.study_uid)


def _studies(asked: _Asked, archive: _Archive) -> Iterator[Attributes]:
    return map(study_attributes, _held(asked, archive))


def _series(asked: _Asked, archive: _Archive) -> Iterator[Attributes]:
    for study in _held(asked, archive):
        with archive.database.read() as tx:
            held = holdings.series_of(tx, [study.study_uid], counted=asked.counted)
        yield from (study_attributes(study) | series_attributes(series) for series in held)


def _images(asked: _Asked, archive: _Archive) -> Iterator[Attributes]:
    wanted = tuple(str(uid).strip() for uid in values(asked.keys, tag_of("SOPInstanceUID")))
    for study in _held(asked, archive):
        with archive.database.read() as tx:
            series = {
                s.series_uid: series_attributes(s) for s in holdings.series_of(tx, [study.study_uid], counted=False)
            }
        above = study_attributes(study)
        of = [uid for uid, held in series.items() if matches(_only(asked.keys, "SeriesInstanceUID"), held)]
        selection = Selection(study_uids=(study.study_uid,), series_uids=tuple(of), sop_instance_uids=wanted)
        last = 0
        while of:
            with archive.database.read() as tx:
                page = holdings.page(tx, selection, after_seq=last, limit=IMAGES_AT_ONCE)
            if not page:
                break
            last = page[-1].seq
            yield from (above | series[held.series_uid] | image_attributes(held) for held in page)


def _only(keys: Attributes, keyword: str) -> Attributes:
    tag = tag_of(keyword)
    return {tag: keys[tag]} if tag in keys else {}


def _answer(match: Attributes, asked: _Asked, archive: _Archive) -> Dataset:
    told = projected(asked.wanted, match, pairs=asked.pairs) | data_set(
        QueryRetrieveLevel=asked.level, RetrieveAETitle=archive.ae_title, InstanceAvailability="ONLINE"
    )
    return speak(dataset_of(told), asked_in=asked.character_sets)
