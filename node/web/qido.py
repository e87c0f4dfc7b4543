"""QIDO-RS (PS3.18 10.6): studies, series and instances that match, with the matching code of C-FIND."""

from __future__ import annotations

from itertools import islice

from starlette.requests import Request
from starlette.responses import Response

from db.dicom_json import Attributes, data_set, element, first, tag_of
from node.query.archive import STUDY_ROOT, UNIQUE, known
from node.query.entities import Query, matching
from node.web.answers import base_url, check_json, dicom_json, warning
from node.web.keys import ALL, Asked, asked
from node.web.served import served, uid_in

RETURNED = {
    "STUDY": (
        "StudyDate", "StudyTime", "AccessionNumber", "ModalitiesInStudy", "ReferringPhysicianName", "PatientName",
        "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID", "NumberOfStudyRelatedSeries",
        "NumberOfStudyRelatedInstances",
    ),
    "SERIES": ("Modality", "SeriesDescription", "SeriesInstanceUID", "SeriesNumber", "NumberOfSeriesRelatedInstances"),
    "IMAGE": ("SOPClassUID", "SOPInstanceUID", "InstanceNumber", "Rows", "Columns", "BitsAllocated", "NumberOfFrames"),
}  # fmt: skip
"""What every answer has on each level (PS3.18 tables 10.6.3-3 to 10.6.3-5), as far as it is known."""

_LEVELS = STUDY_ROOT.levels
_UTF_8 = {"00080005": element("CS", "ISO_IR 192")}


def studies(request: Request) -> Response:
    """Answers GET on /studies."""
    return _search(request, "STUDY")


def series(request: Request) -> Response:
    """Answers GET on /series and /studies/{study}/series."""
    return _search(request, "SERIES")


def instances(request: Request) -> Response:
    """Answers GET on /instances, /studies/{study}/instances and /studies/{study}/series/{series}/instances."""
    return _search(request, "IMAGE")


def _search(request: Request, level: str) -> Response:
    check_json(request)
    node = served(request)
    search = asked(request, largest=node.settings.web.maximum_results, known=known(STUDY_ROOT, level=level))
    above = {
        UNIQUE[of]: uid for of, name in (("STUDY", "study"), ("SERIES", "series")) if (uid := uid_in(request, name))
    }
    keys = search.keys | {tag: element("UI", uid) for tag, uid in above.items()}
    found = matching(Query(level=level, keys=keys, counted=True), node.database)
    page = list(islice(found, search.offset, search.offset + search.limit + 1))
    said = list(search.unsupported)
    if len(page) > search.limit:
        said.append("There are additional results that can be requested.")
    wanted = _wanted(search, level=level, named=len(above))
    answer = [_result(request, level, wanted, match) for match in page[: search.limit]]
    headers = warning(request, *said)
    return dicom_json(answer, headers=headers) if answer else Response(status_code=204, headers=headers)


def _wanted(search: Asked, *, level: str, named: int) -> frozenset[str]:
    """The tags of an answer: with those of the levels above only as far as the address does not name them."""
    if ALL in search.include:
        return known(STUDY_ROOT, level=level)
    levels = _LEVELS[named : _LEVELS.index(level) + 1]
    returned = {tag_of(keyword) for of in levels for keyword in RETURNED[of]}
    unique = {UNIQUE[of] for of in _LEVELS[: _LEVELS.index(level) + 1]}
    return frozenset(returned | unique | search.keys.keys() | search.include)


def _result(request: Request, level: str, wanted: frozenset[str], match: Attributes) -> Attributes:
    address = base_url(request)
    for of, name in zip(_LEVELS[: _LEVELS.index(level) + 1], ("studies", "series", "instances"), strict=False):
        address += f"/{name}/{first(match, UNIQUE[of])}"
    own = data_set(RetrieveURL=address, InstanceAvailability="ONLINE")
    told = {tag: held for tag, held in match.items() if tag in wanted}
    return dict(sorted((told | own | _UTF_8).items()))
