"""What every DIMSE-N service does at its edge: data sets in, statuses out, its own failures as statuses."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.events import Event

from db.dicom_json import Attributes
from node.log import log

SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
COMMENT_LENGTH = 64
"""Error Comment (0000,0902) is of VR LO."""
PROCESSING_FAILURE = 0x0110
"""PS3.7 C.5.21."""

_CHARACTER_SET = "00080005"

T = TypeVar("T")
Answered = tuple[Dataset | int, Dataset | None]


def attributes_of(dataset: Dataset) -> Attributes:
    """A received data set in the DICOM JSON Model, its text decoded."""
    found: Attributes = dataset.to_json_dict()
    return {tag: e for tag, e in found.items() if tag != _CHARACTER_SET and not tag.endswith("0000")}


def status(code: int, comment: str = "", *, error_id: int | None = None) -> Dataset:
    """The status of a response, with its Error Comment and Error ID where there are any."""
    made = Dataset()
    made.Status = code
    if comment:
        made.ErrorComment = comment[:COMMENT_LENGTH]
    if error_id is not None:
        made.ErrorID = error_id
    return made


def guarded(handler: Callable[[Event, T], Answered]) -> Callable[[Event, T], Answered]:
    """A handler whose own failure is logged and answered as a processing failure."""

    @functools.wraps(handler)
    def guard(event: Event, node: T, /) -> Answered:
        try:
            return handler(event, node)
        except Exception as error:  # noqa: BLE001 - a DIMSE handler is a boundary
            report_failure(error, handler=handler.__name__)
            return PROCESSING_FAILURE, None

    return guard


def report_failure(error: Exception, *, handler: str) -> None:
    """The log says what kind of failure it was, and where: pydicom's messages quote values, which are patient data."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    log().error("request_failed", handler=handler, error=type(error).__name__, at=f"{last.filename}:{last.lineno}")


def uid_of_request(event: Event) -> str:
    """The SOP Instance UID that a DIMSE-N request names, empty where it names none."""
    request: Any = event.request
    named = getattr(request, "AffectedSOPInstanceUID", None) or getattr(request, "RequestedSOPInstanceUID", None)
    return str(named or "")


def size_of(event: Event, parameter: str) -> int:
    """Bytes of the data set in this parameter of a request; 0 where there is none."""
    stream = getattr(event.request, parameter, None)
    return 0 if stream is None else int(stream.getbuffer().nbytes)
