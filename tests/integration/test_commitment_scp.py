"""Others ask this node to commit to what they sent: real associations, files and databases."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest
from pydicom import Dataset
from pynetdicom.association import Association
from rich.console import Console

from db import audit, commitments
from db.commitments import PUSH_MODEL, PUSH_MODEL_INSTANCE
from db.engine import Database
from db.states import CommitmentState
from node import operate, tables, views
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
)
from tests.receiving import a_slice, send, stored, wait_until
from tests.worklist_node import a_free_port

ONE, TWO, THREE = (str(a_slice(number).SOPInstanceUID) for number in (1, 2, 3))
LEASE = dt.timedelta(minutes=1)

# pynetdicom leaves the socket of a refused connection to the garbage collector.
refused = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def database(either_database: Database) -> Database:
    return either_database


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


def told(database: Database, settings: Settings, scanner: Scanner) -> None:
    """The schedule process has looked once, and its report has arrived."""
    assert checked(database, settings) == 1
    with scanner.listening() as port:
        assert reported(database, port=port) == 1


def test_what_is_held_is_committed_to_over_a_new_association(
    node: Scp, database: Database, settings: Settings, scanner: Scanner
) -> None:
    assert scanner.ask(node.port, ONE, TWO) == 0x0000
    told(database, settings, scanner)
    (report,) = scanner.told
    assert (report.event_type, report.held, report.failed) == (1, {ONE: CT_IMAGE, TWO: CT_IMAGE}, {})
    (request,) = requests(database)
    assert request.state is CommitmentState.REPORTED
    assert reported(database, port=None) == 0
    with database.read() as tx:
        events = [event.event for event in audit.latest(tx, limit=3)]
    assert events == ["commitment_reported", "commitment_checked", "commitment_asked"]


def test_the_report_goes_back_over_the_association_that_asked_while_that_is_open(
    tmp_path: Path, node: Scp, database: Database, scanner: Scanner
) -> None:
    patient = settings_of(tmp_path / "data", commitment={"grace": 0, "hold": 60})
    with scanner.associated(node.port) as association:
        assert requested(association, ONE) == 0x0000
        assert checked(database, patient) == 1
        assert reported(database, port=a_free_port()) == 0  # held for its own association
        assert scanner.heard.wait(20)
        wait_until(lambda: requests(database)[0].state is CommitmentState.REPORTED)
    assert [report.event_type for report in scanner.told] == [1]


def test_a_report_held_for_an_association_that_ends_goes_out_over_another_at_once(
    tmp_path: Path, node: Scp, database: Database, scanner: Scanner
) -> None:
    patient = settings_of(tmp_path / "data", commitment={"grace": 0, "hold": 600})
    with scanner.associated(node.port) as association:
        requested(association, ONE)
        checked(database, patient)
    assert scanner.told == []
    with scanner.listening() as port:
        wait_until(lambda: reported(database, port=port))
    assert [report.event_type for report in scanner.told] == [1]


def test_an_association_that_also_stores_is_left_to_that(
    tmp_path: Path, node: Scp, database: Database, scanner: Scanner
) -> None:
    patient = settings_of(tmp_path / "data", commitment={"grace": 0, "hold": 600})
    with scanner.associated(node.port, CT_IMAGE) as association:
        requested(association, ONE)
        checked(database, patient)
        assert requests(database)[0].association_id is None
        with scanner.listening() as port:
            assert reported(database, port=port) == 1


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


def test_an_instance_that_arrives_within_the_grace_is_counted(
    tmp_path: Path, node: Scp, database: Database, scanner: Scanner
) -> None:
    patient = settings_of(tmp_path / "data", commitment={"grace": 600, "hold": 0})
    scanner.ask(node.port, ONE, THREE)
    assert checked(database, patient) == 1
    assert requests(database)[0].state is CommitmentState.ASKED
    send(node, a_slice(3))
    wait_until(lambda: checked(database, patient))
    with scanner.listening() as port:
        assert reported(database, port=port) == 1
    assert scanner.told[0].event_type == 1


def test_a_request_that_is_repeated_is_answered_again_and_one_of_other_content_is_a_duplicate(
    node: Scp, database: Database, settings: Settings, scanner: Scanner
) -> None:
    for uids in ((ONE, TWO), (TWO, ONE), (ONE,)):
        assert scanner.ask(node.port, *uids) == 0x0000
        told(database, settings, scanner)
    first, again, other = scanner.told
    assert first.held == again.held == {ONE: CT_IMAGE, TWO: CT_IMAGE}
    assert (other.held, other.failed) == ({}, {ONE: 0x0131})
    assert len(requests(database)) == 2


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


def test_an_operator_sees_who_could_not_be_told_and_has_them_told_again(
    node: Scp, database: Database, settings: Settings, scanner: Scanner
) -> None:
    scanner.ask(node.port, ONE)
    checked(database, settings)
    reported(database, port=None)
    with database.read() as tx:
        seen = views.status(tx, settings)
    (abandoned,) = seen["commitments_abandoned"]
    assert (abandoned["ae_title"], abandoned["instances"], seen["commitments"]) == ("CT1", 1, {"abandoned": 1})
    shown = Console(record=True, width=200, file=StringIO())
    shown.print(tables.status(seen))
    assert "ABANDONED answer to CT1 on 1 instance: no port under [[peers]]" in shown.export_text()
    with database.write() as tx:
        assert operate.requeue(tx, "")["commitments"] == 1
    told(database, settings, scanner)
    assert scanner.told[0].event_type == 1


def test_a_request_survives_who_was_checking_it(node: Scp, database: Database, scanner: Scanner,
                                                settings: Settings) -> None:  # fmt: skip
    scanner.ask(node.port, ONE)
    with database.write() as tx:
        held = commitments.claim_check(tx, owner="killed", lease=dt.timedelta(seconds=-1))
        assert held is not None
    told(database, settings, scanner)
    with database.read() as tx:
        assert commitments.count_by_state(tx) == {"reported": 1}


def test_two_processes_never_report_the_same(node: Scp, database: Database, settings: Settings,
                                             scanner: Scanner) -> None:  # fmt: skip
    for number in range(8):
        scanner.ask(node.port, ONE, transaction=f"1.9.7.{number}")
    both = [threading.Thread(target=checked, args=(database, settings), kwargs={"owner": f"s{n}"}) for n in range(2)]
    with scanner.listening() as port:
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        reports = [threading.Thread(target=reported, args=(database,), kwargs={"port": port}) for _ in range(2)]
        for thread in reports:
            thread.start()
        for thread in reports:
            thread.join()
    assert sorted(report.transaction_uid for report in scanner.told) == [f"1.9.7.{n}" for n in range(8)]


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


def test_what_ended_long_ago_is_forgotten_and_what_is_owed_is_not(
    node: Scp, database: Database, settings: Settings, scanner: Scanner
) -> None:
    scanner.ask(node.port, ONE)
    told(database, settings, scanner)
    scanner.ask(node.port, ONE, transaction="1.9.8")
    with database.write() as tx:
        commitments.forget(tx, before=requests(database, "1.9.8")[0].asked_at + LEASE)
        assert commitments.count_by_state(tx) == {"asked": 1}
