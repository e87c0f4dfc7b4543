"""The worklist as a UPS SCP: Push, Watch, Pull and Query (PS3.4 CC). Event reports go out in `node.query.events`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from pydicom.uid import UID, generate_uid
from pynetdicom import evt
from pynetdicom.events import Event

from db import subscriptions, worklist
from db.dicom_json import Attributes, dataset_of, first, values
from db.engine import Database
from db.procedure_step import PRIORITY, PULL, PUSH, QUERY, SOP_CLASS_UID, SOP_INSTANCE_UID, STATE, WATCH, Answer
from db.states import WorkItemState
from db.subscriptions import FILTERED, GLOBAL, WELL_KNOWN
from db.worklist import Reply
from node.query.attributes import created, refusal_to_create, refusal_to_set, transaction_uid, without_own_columns
from node.query.dimse import (
    SYNTAXES,
    Answered,
    answer,
    attributes_of,
    found,
    guarded,
    size_of,
    uid_of_request,
)
from node.service import Service

LARGEST = 4 * 1024 * 1024
"""Bytes of one attribute list; a series of a thousand instances takes a tenth of it."""

RECEIVING_AE = "00741234"
DELETION_LOCK = "00741230"


@dataclass(frozen=True, kw_only=True)
class _Worklist:
    """What the handlers work on. `subscribers` are the AE titles whose addresses are known."""

    database: Database
    subscribers: frozenset[str]


def service(*, database: Database, subscribers: Collection[str] = ()) -> Service:
    """UPS Push, Watch, Pull and Query over the node's worklist.

    Parameters
    ----------
    subscribers : collection of str
        The AE titles that may receive event reports: those this node has an address for.
    """
    node = _Worklist(database=database, subscribers=frozenset(subscribers))
    return Service(
        contexts=tuple((syntax, SYNTAXES) for syntax in (PUSH, WATCH, PULL, QUERY)),
        handlers=(
            (evt.EVT_N_CREATE, create, [node]),
            (evt.EVT_N_SET, update, [node]),
            (evt.EVT_N_GET, get, [node]),
            (evt.EVT_N_ACTION, act, [node]),
            (evt.EVT_C_FIND, find, [node]),
        ),
    )


@guarded
def create(event: Event, node: _Worklist) -> Answered:
    """Answers N-CREATE (PS3.4 CC.2.5)."""
    uid = uid_of_request(event)
    if not UID(uid).is_valid or uid in WELL_KNOWN:  # the SCU names the instance (CC.2.5.2)
        return answer(Answer.INVALID_INSTANCE), None
    if size_of(event, "AttributeList") > LARGEST:
        return answer(Answer.RESOURCE_LIMIT), None
    given = attributes_of(event.attribute_list) if size_of(event, "AttributeList") else {}
    refusal = refusal_to_create(given)
    if refusal is not None:
        return answer(refusal), None
    with node.database.write() as tx:
        return answer(worklist.create(tx, uid=uid, dataset=created(given))), None


@guarded
def update(event: Event, node: _Worklist) -> Answered:
    """Answers N-SET (PS3.4 CC.2.6)."""
    uid = uid_of_request(event)
    if size_of(event, "ModificationList") > LARGEST:
        return answer(Answer.RESOURCE_LIMIT), None
    given = attributes_of(event.modification_list)
    with node.database.write() as tx:
        item = worklist.find(tx, uid)
        refusal = item and refusal_to_set(given, held=item.attributes)
        if refusal:
            return answer(refusal), None
        return answer(
            worklist.update(tx, uid=uid, transaction_uid=transaction_uid(given), changes=without_own_columns(given))
        ), None


@guarded
def get(event: Event, node: _Worklist) -> Answered:
    """Answers N-GET (PS3.4 CC.2.7)."""
    with node.database.read() as tx:
        item = worklist.find(tx, uid_of_request(event))
    if item is None:
        return answer(Answer.UNKNOWN), None
    # Neither UID is an attribute of the N-GET; the Transaction UID is nobody's to see (CC.2.7.3).
    held = {tag: e for tag, e in item.attributes.items() if tag not in (SOP_CLASS_UID, SOP_INSTANCE_UID)}
    wanted = [f"{int(tag):08X}" for tag in event.attribute_identifiers]
    if not wanted:
        return answer(Answer.DONE), dataset_of(held)
    missing = [tag for tag in wanted if tag not in held and tag != "00080005"]
    chosen = dataset_of({tag: held[tag] for tag in wanted if tag in held})
    return answer(Answer.NOT_SUPPORTED if missing else Answer.DONE), chosen


@guarded
def act(event: Event, node: _Worklist) -> Answered:
    """Answers N-ACTION: change state, request cancel, subscribe, unsubscribe, suspend (PS3.4 CC.2.1 to CC.2.3)."""
    action = ACTIONS.get(event.action_type or 0)
    if action is None:
        return answer(Answer.NO_SUCH_ACTION), None
    information = attributes_of(event.action_information) if size_of(event, "ActionInformation") else {}
    return answer(action(event, node, information)), None


def find(event: Event, node: _Worklist) -> Iterator[Answered]:
    """Answers C-FIND: the matching items in reading order (PS3.4 CC.2.8)."""

    return found(event, functools.partial(listed, node.database))


def listed(database: Database, keys: Attributes) -> list[Attributes]:
    """The items that `keys` may match, in reading order."""
    with database.read() as tx:
        items = worklist.in_reading_order(
            tx, states=_only(keys, STATE), priorities=_only(keys, PRIORITY), uids=_only(keys, SOP_INSTANCE_UID)
        )
    return [item.attributes for item in items]


def _only(keys: Attributes, tag: str) -> list[str] | None:
    """The values to which a key restricts a column; None where there is no key or it has a wild card."""
    wanted = [str(value) for value in values(keys, tag)]
    return wanted if wanted and not any(set(value) & {"*", "?"} for value in wanted) else None


def _change_state(event: Event, node: _Worklist, information: Attributes) -> Reply:
    to = first(information, STATE)
    if to not in tuple(WorkItemState):
        return Reply(answer=Answer.INVALID_ARGUMENT, comment="ProcedureStepState")
    with node.database.write() as tx:
        return worklist.change_state(
            tx, uid=uid_of_request(event), to=WorkItemState(to), transaction_uid=transaction_uid(information)
        )


def _request_cancel(event: Event, node: _Worklist, information: Attributes) -> Reply:
    with node.database.write() as tx:
        return worklist.request_cancel(
            tx,
            uid=uid_of_request(event),
            requesting_ae=event.assoc.requestor.ae_title,
            information=information,
            transaction_uid=generate_uid(prefix=None),
        )


def _subscribe(event: Event, node: _Worklist, information: Attributes) -> Reply:
    receiver, lock = first(information, RECEIVING_AE), first(information, DELETION_LOCK)
    if receiver is None:
        return Reply(answer=Answer.INVALID_ARGUMENT, comment="ReceivingAE")
    if lock not in ("TRUE", "FALSE"):
        return Reply(answer=Answer.INVALID_ARGUMENT, comment="DeletionLock is TRUE or FALSE")
    if receiver not in node.subscribers:
        return Reply(answer=Answer.UNKNOWN_RECEIVER, comment="no address is configured for it")
    uid, locked = uid_of_request(event), lock == "TRUE"
    with node.database.write() as tx:
        if uid not in (GLOBAL, FILTERED):
            return Reply(answer=subscriptions.subscribe(tx, ae_title=receiver, workitem_uid=uid, deletion_lock=locked))
        own = (RECEIVING_AE, DELETION_LOCK)
        keys = {tag: e for tag, e in information.items() if tag not in own} if uid == FILTERED else None
        return Reply(answer=subscriptions.subscribe_globally(tx, ae_title=receiver, deletion_lock=locked, keys=keys))


def _unsubscribe(event: Event, node: _Worklist, information: Attributes) -> Reply:
    receiver = first(information, RECEIVING_AE)
    if receiver is None:
        return Reply(answer=Answer.INVALID_ARGUMENT, comment="ReceivingAE")
    with node.database.write() as tx:
        return Reply(answer=subscriptions.unsubscribe(tx, ae_title=receiver, workitem_uid=uid_of_request(event)))


def _suspend(event: Event, node: _Worklist, information: Attributes) -> Reply:
    receiver = first(information, RECEIVING_AE)
    if receiver is None:
        return Reply(answer=Answer.INVALID_ARGUMENT, comment="ReceivingAE")
    with node.database.write() as tx:
        return Reply(answer=subscriptions.suspend(tx, ae_title=receiver, workitem_uid=uid_of_request(event)))


ACTIONS: dict[int, Callable[[Event, _Worklist, Attributes], Reply]] = {
    1: _change_state,
    2: _request_cancel,
    3: _subscribe,
    4: _unsubscribe,
    5: _suspend,
}
"""By Action Type ID (PS3.4 tables CC.2.1-1, CC.2.2-1, CC.2.3-1)."""
