"""C-MOVE and C-GET over the archive (PS3.4 C.4.2, C.4.3): what is selected leaves one by one, as it is stored.

pynetdicom counts the sub-operations and answers. But it would encode every data set anew, and passes on neither the
priority nor who asked: so what is yielded to it only names an instance, and `_Sending` stands before the association.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pynetdicom import _config, evt
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext, StoragePresentationContexts, build_context

from db import holdings
from db.dicom_json import first
from db.engine import Database
from db.holdings import Kind, Selection
from db.instances import Instance
from node.config import RemoteSection
from node.dimse import SYNTAXES, attributes_of, report_failure
from node.errors import QueryRefused
from node.log import log
from node.query.archive import MODELS, PATIENT_ROOT, STUDY_ROOT, UNIQUE, check_path, chosen, level_of, negotiated
from node.query.find import refused
from node.query.transcode import PLAIN, outgoing
from node.scu import MAXIMUM_PDU_SIZE, without_delay
from node.service import Service

PENDING, CANCELLED, UNABLE = 0xFF00, 0xFE00, 0xC000
STUDIES_TOLD = 10
MOST_CONTEXTS = 128
"""Presentation context IDs are the odd numbers 1 to 255 (PS3.8 9.3.2.2)."""

ANY = StoragePresentationContexts[:MOST_CONTEXTS]
_Yielded = int | tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class _Archive:
    """What the handlers work on."""

    database: Database
    root: Path
    destinations: Mapping[str, RemoteSection]
    timeout: float


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What a retrieval has to send."""

    selection: Selection
    kinds: tuple[Kind, ...]


def service(*, database: Database, archive: Path, destinations: Sequence[RemoteSection], timeout: float) -> Service:
    """Patient Root and Study Root Query/Retrieve Information Model - MOVE and - GET.

    Parameters
    ----------
    archive : pathlib.Path
        The directory under which the files lie.
    destinations : sequence of RemoteSection
        The only application entities that anything is moved to.
    timeout : float
        Seconds that the far side may take to answer one C-STORE.
    """
    # Files then leave in pieces, as they lie on the disk.
    _config.STORE_SEND_CHUNKED_DATASET = True
    node = _Archive(
        database=database, root=archive, destinations={d.ae_title: d for d in destinations}, timeout=timeout
    )
    return Service(
        contexts=tuple((uid, SYNTAXES) for model in (PATIENT_ROOT, STUDY_ROOT) for uid in (model.move, model.get)),
        handlers=((evt.EVT_C_MOVE, move, [node]), (evt.EVT_C_GET, get, [node])),
    )


def move(event: Event, node: _Archive) -> Iterator[_Yielded]:
    """Answers C-MOVE: over an association of its own to the destination, which has to be a configured one (A801)."""
    request: Any = event.request
    asking = event.assoc.requestor.ae_title
    to = node.destinations.get(str(request.MoveDestination or "").strip())
    if to is None:
        log().warning("move_refused", calling_ae=asking, reason="the destination is not configured")
        yield None, None
        return
    task = _task(event, node)
    sending = _Sending(node=node, priority=request.Priority, originator=(asking, request.MessageID))
    yield (
        to.address,
        to.port,
        {
            "ae_title": to.ae_title,
            # pynetdicom says why a C-MOVE is refused only once it has an association: any will do.
            "contexts": ANY if isinstance(task, Dataset) else _contexts(task.kinds),
            "max_pdu": MAXIMUM_PDU_SIZE,
            "evt_handlers": [(evt.EVT_ESTABLISHED, lambda opened: sending.over(opened.assoc))],
        },
    )
    yield from _done(event, node, task, sending, to=to.ae_title)


def get(event: Event, node: _Archive) -> Iterator[_Yielded]:
    """Answers C-GET: over the association in which it came, in the contexts whose SCP the asker wants to be."""
    request: Any = event.request
    sending = _Sending(node=node, priority=request.Priority, originator=(None, None))
    sending.over(event.assoc)
    try:
        yield from _done(event, node, _task(event, node), sending, to=event.assoc.requestor.ae_title)
    finally:
        sending.no_more(event.assoc)


def _done(event: Event, node: _Archive, task: _Task | Dataset, sending: _Sending, *, to: str) -> Iterator[_Yielded]:
    """The number of sub-operations, then each of them; or why there are none."""
    if isinstance(task, Dataset):
        yield 1
        yield task, None
        return
    count = sum(kind.count for kind in task.kinds)
    log().info("retrieval", to=to, instances=count, studies=list(task.selection.study_uids)[:STUDIES_TOLD])
    yield count
    for instance in holdings.each(node.database, task.selection):
        if event.is_cancelled:
            yield CANCELLED, None
            return
        sending.current = instance
        named = Dataset()
        named.SOPInstanceUID = instance.sop_instance_uid
        yield PENDING, named


class _Sending:
    """Stands between pynetdicom's counting of sub-operations and the association over which the instances leave.

    Parameters
    ----------
    node : _Archive
        Where the files lie, and how long an answer may take.
    priority : int
        What the asker gave its request, and each C-STORE bears.
    originator : tuple
        AE title and Message ID of the C-MOVE (PS3.7 9.1.1.1.6); nothing for a C-GET.
    """

    def __init__(self, *, node: _Archive, priority: int, originator: tuple[str | None, int | None]) -> None:
        self._node = node
        self._priority = priority
        self._originator = originator
        self._plain: Callable[..., Dataset] | None = None
        self._accepted: dict[str, set[str]] = defaultdict(set)
        self.current: Instance | None = None

    def over(self, association: Any) -> None:
        """Instances leave over this association."""
        for context in association.accepted_contexts:
            if context.as_scu:
                self._accepted[str(context.abstract_syntax)].add(str(context.transfer_syntax[0]))
        association.dimse_timeout = self._node.timeout
        without_delay(association)
        self._plain = association.send_c_store
        association.send_c_store = self._send

    def no_more(self, association: Any) -> None:
        """The association is as it was."""
        del association.send_c_store

    def _send(self, _named: Dataset, *, msg_id: int, **_others: Any) -> Dataset:
        instance = self.current
        if instance is None or self._plain is None:
            raise RuntimeError("nobody to send to")
        try:
            answer = self._plain(
                outgoing(
                    self._node.root / instance.path,
                    stored_in=instance.transfer_syntax_uid,
                    accepted=self._accepted[instance.sop_class_uid],
                ),
                msg_id=msg_id,
                priority=self._priority,
                originator_aet=self._originator[0],
                originator_id=self._originator[1],
            )
        except Exception as error:
            log().warning("not_retrieved", sop_instance_uid=instance.sop_instance_uid, error=type(error).__name__)
            raise
        if "Status" not in answer:
            self._plain = None  # the far side has gone: nobody waits for it once more
        return answer


def _contexts(kinds: Sequence[Kind]) -> list[PresentationContext]:
    """For each kind one context with the transfer syntax in which it is stored; for each class one to convert to."""
    wanted: dict[tuple[str, tuple[str, ...]], None] = {}
    for kind in kinds:
        wanted[kind.sop_class_uid, (kind.transfer_syntax_uid,)] = wanted[kind.sop_class_uid, PLAIN] = None
    return [build_context(sop_class, list(syntaxes)) for sop_class, syntaxes in wanted][:MOST_CONTEXTS]


def _task(event: Event, node: _Archive) -> _Task | Dataset:
    """What is asked for, or the status that says why there is no answer."""
    try:
        return _selected(event, node)
    except QueryRefused as refusal:
        return refused(refusal)
    except Exception as error:  # noqa: BLE001 - a DIMSE handler is a boundary
        report_failure(error, handler="retrieve")
        return refused(QueryRefused("the request cannot be processed", status=UNABLE))


def _selected(event: Event, node: _Archive) -> _Task:
    model = MODELS[str(event.context.abstract_syntax)]
    keys = attributes_of(event.identifier)
    level = level_of(keys, model)
    uid = str(event.context.abstract_syntax)
    check_path(keys, model, level=level, relational=negotiated(event.assoc, uid).relational)
    path = model.levels[: model.levels.index(level)]
    given: dict[str, tuple[str, ...]] = {
        above: (str(found).strip(),) for above in path if (found := first(keys, UNIQUE[above]))
    }
    given[level] = chosen(keys, level=level)
    selection = Selection(
        patient_id=next(iter(given.get("PATIENT", ())), ""),
        study_uids=given.get("STUDY", ()),
        series_uids=given.get("SERIES", ()),
        sop_instance_uids=given.get("IMAGE", ()),
    )
    with node.database.read() as tx:
        return _Task(selection=selection, kinds=holdings.kinds(tx, selection))
