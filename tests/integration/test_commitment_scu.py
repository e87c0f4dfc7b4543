"""This node asks who stored its report to commit to it: real associations to a PACS that answers as PACS do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import Comprehensive3DSRStorage
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.presentation import build_role

from db import audit, deliveries
from db.commitments import PUSH_MODEL, PUSH_MODEL_INSTANCE
from db.deliveries import Delivery, NewDelivery
from db.engine import Database
from db.states import DeliveryKind, DeliveryState
from node.config import CommitmentSection, DeliverSection, RemoteSection, Settings
from node.deliver.commitment import ask, settle
from node.deliver.outbox import deliver_due
from node.deliver.store import store_report
from node.report.filing import file_report
from node.steady import steady
from tests.committing import AT_ONCE, NEVER, offering, settings_of
from tests.tools.reporting import Node, concluded, of_study, received
from tests.tools.reports import POSITIVE, STUDY_UID, slices
from tests.worklist_node import HOST, serving

QUICK = CommitmentSection(hold=0.001, answer_within=600)
BY_RETURN = CommitmentSection(hold=20, answer_within=600)
IMPATIENT = CommitmentSection(hold=0.001, answer_within=1e-6)
DUE, SENT, CONFIRMED, ABANDONED = (
    DeliveryState.DUE,
    DeliveryState.SENT,
    DeliveryState.CONFIRMED,
    DeliveryState.ABANDONED,
)


@dataclass(kw_only=True)
class Pacs:
    """A PACS that stores what it is sent and is asked to commit to it. `action` is how it answers an N-ACTION.

    With `by_return` it reports over the association of the request, as soon as that is answered.
    """

    port: int = 0
    action: int = 0x0000
    by_return: bool = False
    failure: int | None = None
    stored: list[str] = field(default_factory=list)
    asked: list[Dataset] = field(default_factory=list)

    def remote(self) -> RemoteSection:
        return RemoteSection(name="pacs", ae_title="PACS", address=HOST, port=self.port)

    def store(self, event: Event) -> int:
        request: Any = event.request
        self.stored.append(str(request.AffectedSOPInstanceUID))
        return 0x0000

    def act(self, event: Event) -> tuple[int, None]:
        asked = event.action_information
        if self.action == 0x0000:
            self.asked.append(asked)
            if self.by_return:
                threading.Thread(target=self.tell, args=(steady(event.assoc), asked)).start()
        return self.action, None

    def tell(self, association: Association, asked: Dataset) -> int:
        """The status with which its report on a request was answered."""
        said = Dataset()
        said.TransactionUID = asked.TransactionUID
        if self.failure is None:
            said.ReferencedSOPSequence = asked.ReferencedSOPSequence
        else:
            (item,) = asked.ReferencedSOPSequence
            item.FailureReason = self.failure
            said.FailedSOPSequence = [item]
        kind = 1 if self.failure is None else 2
        status, _ = association.send_n_event_report(said, kind, PUSH_MODEL, PUSH_MODEL_INSTANCE)
        return int(status.Status)

    def report(self, port: int, number: int = -1) -> int:
        """It reports over an association of its own, as the SCP that it is."""
        entity = ApplicationEntity("PACS")
        entity.add_requested_context(PUSH_MODEL)
        role = [build_role(PUSH_MODEL, scp_role=True)]
        association = steady(entity.associate(HOST, port, ae_title="HEMONODE", ext_neg=role))  # type: ignore[arg-type]
        assert association.is_established
        try:
            return self.tell(association, self.asked[number])
        finally:
            association.release()


@contextmanager
def listening(pacs: Pacs, *, commits: bool = True) -> Iterator[Pacs]:
    entity = ApplicationEntity("PACS")
    entity.add_supported_context(Comprehensive3DSRStorage)
    if commits:
        entity.add_supported_context(PUSH_MODEL)
    handlers: list[Any] = [(evt.EVT_C_STORE, pacs.store), (evt.EVT_N_ACTION, pacs.act)]
    with serving(entity, port=pacs.port, handlers=handlers) as bound:
        pacs.port = bound
        yield pacs


@pytest.fixture
def node(either_database: Database, tmp_path: Path) -> Node:
    """A node with a report that is due at a PACS, which is to commit to it."""
    archive = tmp_path / "archive"
    filing = file_report(either_database, archive=archive, settings=Settings(), version="0.1.0")
    node = Node(database=either_database, archive=archive, report_for=filing)
    received(node, *slices())
    concluded(node, POSITIVE, "pacs")
    with node.database.write() as tx:
        promise = NewDelivery(kind=DeliveryKind.COMMITMENT, destination="pacs")
        deliveries.enqueue(tx, study_uid=STUDY_UID, revision=1, new=[promise])
    return node


def deliver(node: Node, pacs: Pacs, commitment: CommitmentSection = QUICK, policy: DeliverSection = AT_ONCE) -> None:
    """One look of the schedule process: store, ask, settle."""
    remote = pacs.remote()
    storing = store_report(remote=remote, own_ae_title="HEMONODE", timeout=5, report_for=node.report_for)
    asking = ask(node.database, remote=remote, own_ae_title="HEMONODE", timeout=5, commitment=commitment)
    for kind, act in ((DeliveryKind.COMMITMENT, asking), (DeliveryKind.SR, storing), (DeliveryKind.COMMITMENT, asking)):
        deliver_due(
            node.database, kind=kind, destination="pacs", act=act, policy=policy, owner="d", stop=NEVER
        )  # fmt: skip
    settle(node.database, remote=remote, policy=policy, commitment=commitment)


def states(node: Node) -> dict[str, DeliveryState]:
    return {delivery.kind.value: delivery.state for delivery in of_study(node)}


def promise_of(node: Node) -> Delivery:
    return next(d for d in of_study(node) if d.kind is DeliveryKind.COMMITMENT)


def events(node: Node) -> list[str]:
    with node.database.read() as tx:
        return [event.event for event in audit.timeline(tx, STUDY_UID)]


def test_a_report_that_is_committed_to_by_return_is_confirmed(node: Node) -> None:
    with listening(Pacs(by_return=True)) as pacs:
        deliver(node, pacs, BY_RETURN)
    assert states(node) == {"sr": CONFIRMED, "commitment": CONFIRMED}
    (asked,) = pacs.asked
    (item,) = asked.ReferencedSOPSequence
    assert [item.ReferencedSOPInstanceUID] == pacs.stored
    assert item.ReferencedSOPClassUID == Comprehensive3DSRStorage
    assert asked.TransactionUID in str(promise_of(node).detail)


def test_a_report_is_confirmed_when_the_answer_comes_later_over_an_association_of_the_pacs(
    node: Node, tmp_path: Path
) -> None:
    with listening(Pacs()) as pacs:
        deliver(node, pacs)
        assert states(node) == {"sr": SENT, "commitment": SENT}
        with offering(settings_of(tmp_path / "data"), node.database) as scp:
            assert pacs.report(scp.port) == 0x0000
        deliver(node, pacs)
    assert states(node) == {"sr": CONFIRMED, "commitment": CONFIRMED}
    assert (len(pacs.stored), len(pacs.asked)) == (1, 1)


def test_nothing_is_asked_before_the_report_is_stored(node: Node) -> None:
    with listening(Pacs()) as pacs:
        asking = ask(node.database, remote=pacs.remote(), own_ae_title="HEMONODE", timeout=5, commitment=QUICK)
        tried = deliver_due(
            node.database, kind=DeliveryKind.COMMITMENT, destination="pacs", act=asking, policy=AT_ONCE, owner="d",
            stop=NEVER,
        )  # fmt: skip
    assert (tried, pacs.asked) == (0, [])
    assert states(node) == {"sr": DUE, "commitment": DUE}


def test_a_report_that_is_not_committed_to_is_stored_and_asked_for_again(node: Node) -> None:
    with listening(Pacs(by_return=True, failure=0x0112)) as pacs:
        deliver(node, pacs, BY_RETURN)
        assert states(node) == {"sr": DUE, "commitment": DUE}
        pacs.failure = None
        deliver(node, pacs, BY_RETURN)
    assert states(node) == {"sr": CONFIRMED, "commitment": CONFIRMED}
    assert (len(pacs.stored), len(set(pacs.stored)), len(pacs.asked)) == (2, 1, 2)
    assert len({asked.TransactionUID for asked in pacs.asked}) == 2


def test_a_report_that_is_never_committed_to_is_given_up_loudly(node: Node) -> None:
    with listening(Pacs(by_return=True, failure=0x0112)) as pacs:
        while states(node)["commitment"] is not ABANDONED:
            deliver(node, pacs, BY_RETURN)
    assert (len(pacs.stored), promise_of(node).attempts) == (AT_ONCE.attempts, AT_ONCE.attempts)
    assert promise_of(node).error == "not committed to: failure reason 0x0112"
    assert events(node)[-1] == "commitment_abandoned"


def test_a_pacs_that_stays_silent_is_asked_again_and_its_first_answer_still_counts(node: Node, tmp_path: Path) -> None:
    with listening(Pacs()) as pacs:
        deliver(node, pacs, IMPATIENT)
        assert states(node) == {"sr": SENT, "commitment": DUE}
        deliver(node, pacs)
        assert (len(pacs.stored), len(pacs.asked)) == (1, 2)
        with offering(settings_of(tmp_path / "data"), node.database) as scp:
            assert pacs.report(scp.port, number=0) == 0x0000
        deliver(node, pacs)
    assert states(node) == {"sr": CONFIRMED, "commitment": CONFIRMED}


@pytest.mark.parametrize(("action", "commits"), [(0x0110, True), (0, False)], ids=["N-ACTION", "the context"])
def test_a_pacs_that_refuses_to_be_asked_is_given_up_loudly(node: Node, action: int, commits: bool) -> None:
    with listening(Pacs(action=action), commits=commits) as pacs:
        for _ in range(AT_ONCE.attempts):
            deliver(node, pacs)
    assert states(node) == {"sr": SENT, "commitment": ABANDONED}
    assert promise_of(node).attempts == AT_ONCE.attempts


def test_an_answer_to_what_nobody_asked_is_refused(node: Node, tmp_path: Path) -> None:
    with listening(Pacs()) as pacs, offering(settings_of(tmp_path / "data"), node.database) as scp:
        deliver(node, pacs)
        pacs.asked[0].TransactionUID = "1.9.9"
        assert pacs.report(scp.port) == 0x0115
        deliver(node, pacs)
    assert states(node) == {"sr": SENT, "commitment": SENT}


def test_a_question_that_was_not_recorded_as_asked_is_settled_by_its_answer(node: Node, tmp_path: Path) -> None:
    """Killed between the N-ACTION and the next line."""
    with listening(Pacs()) as pacs:
        asking = ask(node.database, remote=pacs.remote(), own_ae_title="HEMONODE", timeout=5, commitment=QUICK)

        def killed(delivery: Delivery) -> Any:
            asking(delivery)
            raise KeyboardInterrupt

        storing = store_report(remote=pacs.remote(), own_ae_title="HEMONODE", timeout=5, report_for=node.report_for)
        common: dict[str, Any] = {"destination": "pacs", "owner": "d", "stop": NEVER}
        deliver_due(node.database, kind=DeliveryKind.SR, act=storing, policy=AT_ONCE, **common)
        at_once = AT_ONCE.model_copy(update={"lease": 1e-6})
        with pytest.raises(KeyboardInterrupt):
            deliver_due(node.database, kind=DeliveryKind.COMMITMENT, act=killed, policy=at_once, **common)
        with offering(settings_of(tmp_path / "data"), node.database) as scp:
            assert pacs.report(scp.port) == 0x0000
        settle(node.database, remote=pacs.remote(), policy=AT_ONCE, commitment=QUICK)
    assert states(node) == {"sr": CONFIRMED, "commitment": CONFIRMED}
    assert len(pacs.asked) == 1
