"""What this node commits to and what not, what it refuses to be asked, and whom it cannot tell."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom import Dataset
from pynetdicom.association import Association

from db import audit, commitments
from db.commitments import PUSH_MODEL, PUSH_MODEL_INSTANCE
from db.engine import Database
from db.states import CommitmentState
from node.config import Settings
from node.receive.commitment import LARGEST
from node.receive.scp import Scp
from tests.committing import (
    AT_ONCE,
    CT_IMAGE,
    Scanner,
    checked,
    offering,
    reported,
    requested,
    requests,
    settings_of,
    told,
)
from tests.receiving import a_slice, send, stored, wait_until
from tests.worklist_node import a_free_port

ONE, TWO, THREE = (str(a_slice(number).SOPInstanceUID) for number in (1, 2, 3))
LEASE = dt.timedelta(minutes=1)

# pynetdicom leaves the socket of a refused connection to the garbage collector.
refused = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_of(tmp_path / "data")


@pytest.fixture
def node(settings: Settings, database: Database) -> Iterator[Scp]:
    """A node that holds two slices."""
    with offering(settings, database) as scp:
        assert send(scp, a_slice(1), a_slice(2)) == [0, 0]
        yield scp


@pytest.fixture
def scanner() -> Scanner:
    return Scanner()


def altered(archive: Path, database: Database) -> None:
    path = archive / stored(database)[0].path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def shortened(archive: Path, database: Database) -> None:
    (archive / stored(database)[0].path).write_bytes(b"DICM")


def removed(archive: Path, database: Database) -> None:
    (archive / stored(database)[0].path).unlink()


@pytest.mark.parametrize(
    ("happened", "reason"), [(altered, 0x0110), (shortened, 0x0110), (removed, 0x0112)], ids=lambda v: str(v)[:20]
)
def test_a_file_that_is_not_as_it_was_acknowledged_is_not_committed_to(
    node: Scp, database: Database, settings: Settings, scanner: Scanner,
    happened: Callable[[Path, Database], None], reason: int,
) -> None:  # fmt: skip
    happened(settings.archive, database)
    scanner.ask(node.port, ONE, TWO)
    told(database, settings, scanner)
    (report,) = scanner.told
    assert (report.event_type, report.held, report.failed) == (2, {TWO: CT_IMAGE}, {ONE: reason})


def test_whoever_sent_another_object_under_the_same_uid_is_not_told_that_it_is_kept(
    node: Scp, database: Database, settings: Settings, scanner: Scanner
) -> None:
    assert send(node, a_slice(1, PatientID="P2"), calling="EDITOR") == [0xB000]
    other = Scanner(ae_title="EDITOR")
    scanner.ask(node.port, ONE)
    other.ask(node.port, ONE)
    checked(database, settings)
    with scanner.listening() as port:
        reported(database, port=port)
    with other.listening() as port:
        reported(database, port=port, ae_title="EDITOR")
    assert [report.failed for report in (*scanner.told, *other.told)] == [{}, {ONE: 0x0110}]


def test_what_never_came_and_what_came_as_another_class_are_failures(
    node: Scp, database: Database, settings: Settings, scanner: Scanner
) -> None:
    scanner.ask(node.port, ONE, sop_class="1.2.840.10008.5.1.4.1.1.4")
    scanner.ask(node.port, THREE, transaction="1.9.8")
    assert checked(database, settings) == 2
    with scanner.listening() as port:
        assert reported(database, port=port) == 2
    assert [(report.held, report.failed) for report in scanner.told] == [({}, {ONE: 0x0119}), ({}, {THREE: 0x0112})]


def test_what_is_missing_on_a_full_disk_is_a_want_of_resources(
    tmp_path: Path, node: Scp, database: Database, scanner: Scanner
) -> None:
    full = settings_of(tmp_path / "data", receive={"disk_watermark_mb": 2**40, "disk_reserve_mb": 0})
    scanner.ask(node.port, ONE, THREE)
    told(database, full, scanner)
    assert (scanner.told[0].held, scanner.told[0].failed) == ({ONE: CT_IMAGE}, {THREE: 0x0213})


@refused
def test_a_scanner_that_is_away_is_told_when_it_is_back(
    node: Scp, database: Database, settings: Settings, scanner: Scanner
) -> None:
    scanner.ask(node.port, ONE)
    checked(database, settings)
    away = a_free_port()
    assert reported(database, port=away, policy=AT_ONCE.model_copy(update={"attempts": 99, "first_retry": 600,
                                                                             "longest_retry": 600})) == 1  # fmt: skip
    (request,) = requests(database)
    assert (request.state, request.attempts) == (CommitmentState.CHECKED, 1)
    assert "CT1 at" in str(request.error)
    assert request.due_at > request.asked_at + dt.timedelta(seconds=200)


def test_a_scanner_that_answers_with_a_failure_is_told_again(
    node: Scp, database: Database, settings: Settings, scanner: Scanner
) -> None:
    scanner.statuses = [0x0110, 0x0000]
    scanner.ask(node.port, ONE)
    checked(database, settings)
    with scanner.listening() as port:
        wait_until(lambda: reported(database, port=port) and requests(database)[0].state is CommitmentState.REPORTED)
    assert len(scanner.told) == 2


@pytest.mark.parametrize(("port", "tries"), [(True, 3), (False, 1)], ids=["away for good", "no port is configured"])
@refused
def test_a_scanner_that_cannot_be_told_is_given_up_loudly(
    node: Scp, database: Database, settings: Settings, scanner: Scanner, port: bool, tries: int
) -> None:
    scanner.ask(node.port, ONE)
    checked(database, settings)
    nobody = a_free_port() if port else None
    count = 0
    while requests(database)[0].state is CommitmentState.CHECKED:
        count += reported(database, port=nobody)
    assert (requests(database)[0].state, count) == (CommitmentState.ABANDONED, tries)
    with database.read() as tx:
        (event,) = audit.latest(tx, limit=1)
    assert event.event == "commitment_abandoned"
    assert "port" in event.detail["error"] if not port else "CT1 at" in event.detail["error"]


def nothing(association: Association) -> int:
    status, _ = association.send_n_action(None, 1, PUSH_MODEL, PUSH_MODEL_INSTANCE)
    return int(status.Status)


def too_much(association: Association) -> int:
    asked = Dataset()
    asked.TransactionUID = "1.9.7"
    asked.add_new(0x00091010, "OB", b"\0" * (LARGEST + 2))
    status, _ = association.send_n_action(asked, 1, PUSH_MODEL, PUSH_MODEL_INSTANCE)
    return int(status.Status)


@pytest.mark.parametrize(
    ("ask", "status"),
    [
        (lambda a: requested(a, ONE, action=2), 0x0123),
        (lambda a: requested(a, ONE, instance="1.2.3"), 0x0112),
        (lambda a: requested(a, ONE, transaction=None), 0x0115),
        (lambda a: requested(a), 0x0115),
        (nothing, 0x0115),
        (too_much, 0x0213),
    ],
    ids=["another action", "another instance", "no transaction", "no references", "no information", "too much"],
)
def test_a_request_that_makes_no_sense_is_refused_and_leaves_nothing(
    node: Scp, database: Database, scanner: Scanner, ask: Callable[[Association], int], status: int
) -> None:
    with scanner.associated(node.port) as association:
        assert ask(association) == status
    with database.read() as tx:
        assert commitments.count_by_state(tx) == {}
