"""C-FIND over the archive, Patient Root and Study Root (PS3.4 C.4.1): matches stream, a chunk of studies at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydicom import Dataset
from pynetdicom import evt
from pynetdicom.events import Event

from db.dicom_json import Attributes, data_set, dataset_of, tag_of
from db.engine import Database
from db.matching import projected
from node.dimse import COMMENT_LENGTH, SYNTAXES, Answered, attributes_of, report_failure
from node.errors import QueryRefused
from node.query.archive import DATE_WITH_TIME, FINDS, MODELS, agreed, check_path, known, level_of, negotiated
from node.query.characters import speak
from node.query.entities import Query, matching
from node.service import Service

SUCCESS, PENDING, PENDING_WITHOUT_SOME_KEYS, CANCELLED = 0x0000, 0xFF00, 0xFF01, 0xFE00
OUT_OF_RESOURCES, UNABLE = 0xA700, 0xC000

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
    """A query as it was understood; `left_out` says that it had keys which are not supported."""

    query: Query
    wanted: Attributes
    left_out: bool
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
        for number, match in enumerate(matching(asked.query, archive.database)):
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
        query=Query(
            level=level,
            keys={tag: element for tag, element in wanted.items() if tag in supported},
            counted=bool(_COUNTED & wanted.keys()),
            pairs=DATE_WITH_TIME if terms.combined_date_time else (),
        ),
        wanted=wanted,
        left_out=not wanted.keys() <= supported | {tag_of("TimezoneOffsetFromUTC")},
        character_sets=_character_sets(identifier),
    )


def _character_sets(identifier: Dataset) -> list[str]:
    named = identifier.get("SpecificCharacterSet") or []
    return [named] if isinstance(named, str) else [str(name) for name in named]


def _answer(match: Attributes, asked: _Asked, archive: _Archive) -> Dataset:
    told = projected(asked.wanted, match, pairs=asked.query.pairs) | data_set(
        QueryRetrieveLevel=asked.query.level, RetrieveAETitle=archive.ae_title, InstanceAvailability="ONLINE"
    )
    return speak(dataset_of(told), asked_in=asked.character_sets)
