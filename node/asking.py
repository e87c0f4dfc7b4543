"""Asks another archive what it holds: C-FIND as SCU in the Study Root model (PS3.4 C.4.1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydicom import Dataset
from pynetdicom.association import Association

from node.errors import PeerRefused
from node.scu import checked

FIND, MOVE, GET = (f"1.2.840.10008.5.1.4.1.2.2.{number}" for number in (1, 2, 3))
"""Study Root Query/Retrieve Information Model (PS3.4 C.6.2.3)."""

PENDING = (0xFF00, 0xFF01)


@dataclass(frozen=True, kw_only=True)
class RemoteSeries:
    """A series in another archive; `instances` is None where it does not say how many."""

    series_uid: str
    modality: str
    instances: int | None


def find(association: Association, level: str, keys: Mapping[str, str]) -> Iterator[Dataset]:
    """The matches for `keys`, keywords with their values; an empty value asks for the attribute.

    Raises
    ------
    PeerUnreachable, PeerRefused
        There was no answer, or the query was refused or cut short.
    """
    identifier = Dataset()
    identifier.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in {"QueryRetrieveLevel": level, **keys}.items():
        setattr(identifier, keyword, value)
    for answer, match in association.send_c_find(identifier, FIND):
        status = checked(answer, doing="C-FIND", accept=(0x0000, *PENDING))
        if status in PENDING and match is not None:
            yield match


def series_of(association: Association, study_uid: str) -> tuple[RemoteSeries, ...]:
    """The series of a study, with their numbers of instances. Raises as `find` does."""
    asked = ("SeriesInstanceUID", "Modality", "NumberOfSeriesRelatedInstances")
    keys = {"StudyInstanceUID": study_uid, **dict.fromkeys(asked, "")}
    found = []
    for match in find(association, "SERIES", keys):
        count = match.get("NumberOfSeriesRelatedInstances")
        found.append(
            RemoteSeries(
                series_uid=str(match.get("SeriesInstanceUID", "")),
                modality=str(match.get("Modality", "") or ""),
                instances=None if count in (None, "") else int(count),
            )
        )
    return tuple(series for series in found if series.series_uid)


def count_images(association: Association, *, study_uid: str, series_uid: str) -> int:
    """How many instances of a series there are, counted one by one. Raises as `find` does."""
    keys = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": series_uid, "SOPInstanceUID": ""}
    return sum(1 for _ in find(association, "IMAGE", keys))


def retrieve(association: Association, *, study_uid: str, series_uid: str, move_to: str | None) -> None:
    """Another archive has sent a series: to the AE title `move_to`, or over this association where that is None.

    Raises
    ------
    PeerUnreachable, PeerRefused
        It broke off, or some of the series was not sent.
    """
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "SERIES"
    identifier.StudyInstanceUID, identifier.SeriesInstanceUID = study_uid, series_uid
    doing = "C-GET" if move_to is None else "C-MOVE"
    answers = (
        association.send_c_get(identifier, GET)
        if move_to is None
        else association.send_c_move(identifier, move_to, MOVE)
    )
    status = None
    for answer, _ in answers:
        status = checked(answer, doing=doing, accept=(0x0000, 0xB000, *PENDING))
        failed = int(answer.get("NumberOfFailedSuboperations", 0) or 0)
        if status not in PENDING and failed:
            raise PeerRefused(f"{doing}: {failed} instances were not sent", status=status)
    checked(None if status is None else answer, doing=doing, accept=(0x0000, 0xB000))
