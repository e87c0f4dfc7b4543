"""Others ask this node to commit to what they sent: real associations, files and databases."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from db import audit, commitments
from db.engine import Database
from db.states import CommitmentState
from node import operate, tables, views
from node.config import Settings
from node.receive.scp import Scp
from tests.committing import (
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
from tests.receiving import a_slice, send, wait_until
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


def test_a_report_that_is_refused_over_its_own_association_goes_out_over_another(
    tmp_path: Path, node: Scp, database: Database, scanner: Scanner
) -> None:
    patient = settings_of(tmp_path / "data", commitment={"grace": 0, "hold": 600})
    scanner.statuses = [0x0110, 0x0000]
    with scanner.associated(node.port) as association:
        requested(association, ONE)
        checked(database, patient)
        wait_until(lambda: requests(database)[0].error)
        with scanner.listening() as port:
            assert reported(database, port=port) == 1
    assert (len(scanner.told), requests(database)[0].state) == (2, CommitmentState.REPORTED)


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


def test_what_ended_long_ago_is_forgotten_and_what_is_owed_is_not(
    node: Scp, database: Database, settings: Settings, scanner: Scanner
) -> None:
    scanner.ask(node.port, ONE)
    told(database, settings, scanner)
    scanner.ask(node.port, ONE, transaction="1.9.8")
    with database.write() as tx:
        commitments.forget(tx, before=requests(database, "1.9.8")[0].asked_at + LEASE)
        assert commitments.count_by_state(tx) == {"asked": 1}
