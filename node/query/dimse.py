"""What every query service does at the DIMSE edge: replies as statuses, matches as answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from pydicom import Dataset
from pynetdicom.events import Event

from db.dicom_json import Attributes, dataset_of
from db.matching import Pairs, matches, projected
from db.procedure_step import Answer
from db.worklist import Reply
from node.dimse import (
    SYNTAXES,
    Answered,
    attributes_of,
    guarded,
    report_failure,
    size_of,
    status,
    uid_of_request,
)

__all__ = ["SYNTAXES", "Answered", "answer", "attributes_of", "found", "guarded", "size_of", "uid_of_request"]


def answer(reply: Reply | Answer) -> Dataset | int:
    """The status of a response, with its comment where there is one."""
    if isinstance(reply, Answer):
        return int(reply)
    return status(int(reply.answer), reply.comment or "")


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
        report_failure(error, handler="c_find")
        yield int(Answer.CANNOT_MATCH), None
        return
    for found_one in answers:
        if event.is_cancelled:
            yield int(Answer.CANCEL), None
            return
        yield int(Answer.PENDING), dataset_of(found_one)
