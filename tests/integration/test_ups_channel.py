"""Flags carried to a far UPS SCP: our own over a real association, and peers that know less or misbehave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pydicom import Dataset
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.events import Event

from db import worklist
from db.dicom_json import first
from db.engine import Database
from db.procedure_step import WorkItem
from db.states import WorkItemState
from inference.result import Outcome
from node.errors import DeliveryError, PeerRefused, PeerUnreachable
from node.flag.flag import Flag, Receipt
from node.flag.ups import UpsChannel
from node.flag.workitem import uid_of
from tests.worklist_node import (
    CLAIM,
    PULL,
    PUSH,
    WATCH,
    a_flag,
    a_free_port,
    a_header,
    completed,
    listening,
    remote,
    serving,
)

POSITIVE, NEGATIVE = Outcome.POSITIVE, Outcome.NEGATIVE
FIRST = uid_of(ae_title="HEMO2", study_uid="1.2.3", destination="ris")


def channel(port: int) -> UpsChannel:
    return UpsChannel(remote=remote(port), own_ae_title="HEMO2", retrieve_ae_title="PACS", timeout=10)


@pytest.fixture
def port(database: Database) -> Iterator[int]:
    with listening(database) as port:
        yield port


def far(database: Database) -> list[WorkItem]:
    with database.read() as tx:
        return list(worklist.in_reading_order(tx))


def states(database: Database) -> list[tuple[str, str, str]]:
    return [(i.state, i.priority, i.label) for i in far(database)]


def claim(database: Database) -> None:
    with database.write() as tx:
        worklist.change_state(tx, uid=FIRST, to=WorkItemState.IN_PROGRESS, transaction_uid=CLAIM)


def somebody_sets(database: Database, priority: str) -> None:
    with database.write() as tx:
        change = {"00741200": {"vr": "CS", "Value": [priority]}}
        worklist.update(tx, uid=FIRST, transaction_uid="", changes=change)


def test_a_flag_makes_an_item_and_is_confirmed_by_reading_it_back(database: Database, port: int) -> None:
    receipt = channel(port).send(a_flag(header=a_header(name="Müller^Jörg")))
    assert receipt == Receipt(confirmed=True, detail=f"{FIRST} created; SCHEDULED, priority HIGH")
    (item,) = far(database)
    assert (item.uid, item.label) == (FIRST, "ICH suspected")
    assert first(item.dataset, "00100010") == {"Alphabetic": "Müller^Jörg"}


def test_sending_it_again_after_a_crash_makes_no_second_item(database: Database, port: int) -> None:
    receipts = [channel(port).send(a_flag()) for _ in range(3)]
    assert states(database) == [("SCHEDULED", "HIGH", "ICH suspected")]
    assert all(receipt.confirmed for receipt in receipts)


@pytest.mark.parametrize(
    ("before", "after", "priority", "label"),
    [(NEGATIVE, POSITIVE, "HIGH", "ICH suspected"), (POSITIVE, NEGATIVE, "MEDIUM", "No ICH found")],
)
def test_a_later_revision_raises_or_withdraws(
    database: Database, port: int, before: Outcome, after: Outcome, priority: str, label: str
) -> None:
    channel(port).send(a_flag(before))
    receipt = channel(port).send(a_flag(after, revision=2))
    assert receipt == Receipt(confirmed=True, detail=f"{FIRST} revised; SCHEDULED, priority {priority}")
    assert states(database) == [("SCHEDULED", priority, label)]


def test_a_high_that_somebody_else_has_set_is_kept(database: Database, port: int) -> None:
    channel(port).send(a_flag(NEGATIVE))
    somebody_sets(database, "HIGH")
    receipt = channel(port).send(a_flag(NEGATIVE, revision=2))
    assert receipt.confirmed
    assert "HIGH kept as somebody else has set it" in receipt.detail
    assert states(database) == [("SCHEDULED", "HIGH", "No ICH found")]


def test_an_item_being_read_is_left_alone_and_the_receipt_says_so(database: Database, port: int) -> None:
    channel(port).send(a_flag(NEGATIVE))
    claim(database)
    receipt = channel(port).send(a_flag(POSITIVE, revision=2))
    assert not receipt.confirmed
    assert "0xC301" in receipt.detail
    assert "IN PROGRESS, priority MEDIUM" in receipt.detail
    assert states(database) == [("IN PROGRESS", "MEDIUM", "No ICH found")]


def test_a_study_that_has_been_read_comes_back_once_when_it_is_positive(database: Database, port: int) -> None:
    channel(port).send(a_flag(NEGATIVE))
    completed(database, far(database)[0])
    quiet = channel(port).send(a_flag(NEGATIVE, revision=2))
    assert (quiet.confirmed, len(far(database))) == (False, 1)
    assert "the study has been read" in quiet.detail
    loud = [channel(port).send(a_flag(POSITIVE, revision=3)) for _ in range(2)]
    assert [receipt.confirmed for receipt in loud] == [True, True]
    withdrawn = channel(port).send(a_flag(NEGATIVE, revision=4))
    assert withdrawn.confirmed
    assert states(database) == [("SCHEDULED", "MEDIUM", "No ICH found"), ("COMPLETED", "MEDIUM", "No ICH found")]


# pynetdicom leaves the socket of a refused connection to the garbage collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
def test_nobody_there_is_unreachable_not_lost() -> None:
    with pytest.raises(PeerUnreachable, match=r"HEMONODE at 127\.0\.0\.1"):
        channel(a_free_port()).send(a_flag())


@contextmanager
def peer(*syntaxes: str, **answers: Callable[[Event], tuple[int, Dataset | None]]) -> Iterator[int]:
    """A far peer that answers as it is told to; what it is not told, it refuses."""
    entity = ApplicationEntity("HEMONODE")
    for syntax in syntaxes:
        entity.add_supported_context(syntax)
    handlers = [(getattr(evt, f"EVT_{name.upper()}"), answer) for name, answer in answers.items()]
    with serving(entity, port=0, handlers=handlers) as port:
        yield port


def shown(priority: str, *, state: str = "SCHEDULED", label: str = "ICH suspected") -> Dataset:
    item = Dataset()
    item.ProcedureStepState, item.ScheduledProcedureStepPriority, item.ProcedureStepLabel = state, priority, label
    return item


def test_a_peer_that_accepts_but_cannot_be_asked_leaves_the_flag_unconfirmed() -> None:
    with peer(PUSH, n_create=lambda _e: (0x0000, None), n_get=lambda _e: (0x0211, None)) as port:
        receipt = channel(port).send(a_flag())
    assert receipt == Receipt(confirmed=False, detail=f"{FIRST} created; it could not be read back")


def test_a_peer_that_accepts_and_then_shows_another_priority_is_not_believed() -> None:
    create, get = (lambda _e: (0xB300, None)), (lambda _e: (0x0000, shown("MEDIUM")))
    with peer(PUSH, PULL, n_create=create, n_get=get) as port:
        receipt = channel(port).send(a_flag())
    assert receipt == Receipt(confirmed=False, detail=f"{FIRST} created; SCHEDULED, priority MEDIUM")


def test_a_peer_that_refuses_is_an_error_with_its_status() -> None:
    with peer(PUSH, n_create=lambda _e: (0x0124, None)) as port, pytest.raises(PeerRefused) as refusal:
        channel(port).send(a_flag())
    assert refusal.value.status == 0x0124


def test_a_peer_without_ups_push_is_refused_and_not_used_otherwise() -> None:
    with peer(WATCH) as port, pytest.raises(PeerRefused, match="UPS Push"):
        channel(port).send(a_flag())


def test_a_peer_that_aborts_in_the_middle_is_an_error() -> None:
    def abort(event: Event) -> tuple[int, None]:
        event.assoc.abort()
        return 0x0000, None

    with peer(PUSH, n_create=abort) as port, pytest.raises(DeliveryError):
        channel(port).send(a_flag())


def test_each_request_uses_the_context_in_which_the_standard_has_it() -> None:
    used: dict[str, str] = {}

    def noting(name: str, status: int, dataset: Dataset | None = None) -> Callable[[Event], Any]:
        def answer(event: Event) -> tuple[int, Dataset | None]:
            used[name] = event.context.abstract_syntax
            return status, dataset

        return answer

    far_side = {
        "n_create": noting("N-CREATE", 0x0111),
        "n_get": noting("N-GET", 0x0000, shown("HIGH")),
        "n_set": noting("N-SET", 0x0000),
    }
    with peer(PUSH, PULL, WATCH, **far_side) as port:
        assert channel(port).send(a_flag()).confirmed
    assert used == {"N-CREATE": PUSH, "N-GET": PULL, "N-SET": PULL}


def test_flags_for_two_destinations_do_not_share_an_item(database: Database, port: int) -> None:
    both: list[Flag] = [a_flag(), a_flag()]
    for name, flag in zip(("ris", "pacs"), both, strict=True):
        UpsChannel(remote=remote(port, name=name), own_ae_title="HEMO2", retrieve_ae_title="PACS", timeout=10).send(
            flag
        )
    assert len(far(database)) == 2
