"""What every query service does at the DIMSE edge: data sets in and out, matches as answers, failures as statuses."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.events import Event

from db.dicom_json import Attributes, dataset_of
from db.matching import Pairs, matches, projected
from db.procedure_step import Answer
from db.worklist import Reply
from node.log import log

SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
COMMENT_LENGTH = 64
"""Error Comment (0000,0902) is of VR LO."""

_CHARACTER_SET = "00080005"

T = TypeVar("T")
Answered = tuple[Dataset | int, Dataset | None]


def attributes_of(dataset: Dataset) -> Attributes:
    """A received data set in the DICOM JSON Model, its text decoded."""
    found: Attributes = dataset.to_json_dict()
    return {tag: e for tag, e in found.items() if tag != _CHARACTER_SET and not tag.endswith("0000")}


def answer(reply: Reply | Answer) -> Dataset | int:
    """The status of a response, with its comment where there is one."""
    if isinstance(reply, Answer):
        return int(reply)
    if not reply.comment:
        return int(reply.answer)
    status = Dataset()
    status.Status = int(reply.answer)
    status.ErrorComment = reply.comment[:COMMENT_LENGTH]
    return status


def guarded(handler: Callable[[Event, T], Answered]) -> Callable[[Event, T], Answered]:
    """A handler whose own failure is logged and answered as a processing failure."""

    @functools.wraps(handler)
    def guard(event: Event, node: T, /) -> Answered:
        try:
            return handler(event, node)
        except Exception as error:  # noqa: BLE001 - a DIMSE handler is a boundary
            failed(error, handler=handler.__name__)
            return int(Answer.PROCESSING_FAILURE), None

    return guard


def found(
    event: Event, listed: Callable[[Attributes], Iterable[Attributes]], *, pairs: Pairs = ()
) -> Iterator[Answered]:
    """The answers to a C-FIND: each match with what was asked for, in the order of the list.

    Parameters
    ----------
    listed : callable
        From the keys to the entities that may match them.
    pairs : tuple
        Dates and times that are matched together.
    """
    try:
        keys = attributes_of(event.identifier)
        # Without any key there are no matches (PS3.4 CC.2.8.3.1, K.4.1.3.1).
        answers = (
            [projected(keys, e, pairs=pairs) for e in listed(keys) if matches(keys, e, pairs=pairs)] if keys else []
        )
    except Exception as error:  # noqa: BLE001 - a DIMSE handler is a boundary
        failed(error, handler="c_find")
        yield int(Answer.CANNOT_MATCH), None
        return
    for found_one in answers:
        if event.is_cancelled:
            yield int(Answer.CANCEL), None
            return
        yield int(Answer.PENDING), dataset_of(found_one)


def failed(error: Exception, *, handler: str) -> None:
    """A request failed for a reason of this node's own, and the log says where."""
    # Where and what kind, but not the message: pydicom quotes values, which are patient data.
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
