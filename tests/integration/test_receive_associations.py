"""Associations over real sockets: who may have one, how it ends, how the node starts and stops."""

from __future__ import annotations

import gc
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.presentation import build_context

from db import associations, schema
from db.engine import Database
from node.config import RemoteSection, Settings
from node.errors import PeerUnreachable, StartError
from node.receive import store
from node.receive.roll import receiver_name
from node.receive.scp import Scp
from node.scu import associate
from node.service import Service
from node.steady import rejection_of
from tests.receiving import (
    a_slice,
    associated,
    facts,
    listening,
    parts_being_written,
    rejection,
    requested,
    send,
    settings_of,
    status_of,
    stored,
    wait_until,
)

VERIFICATION = "1.2.840.10008.1.1"
LIMIT_EXCEEDED = (2, 3, 2)
ECHO = Service(contexts=((VERIFICATION, (ImplicitVRLittleEndian,)),))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_of(tmp_path / "data")


@pytest.fixture
def scp(settings: Settings, database: Database) -> Iterator[Scp]:
    with listening(settings, database) as scp:
        yield scp


def rows(database: Database) -> tuple[sa.RowMapping, ...]:
    with database.read() as tx:
        return tuple(tx.execute(sa.select(schema.associations).order_by("started_at")).mappings())


def outcomes(database: Database) -> list[tuple[str | None, str | None]]:
    return [(row.outcome, row.detail) for row in rows(database)]


def threads_of_associations() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "AcceptorThread" in thread.name]


# ----------------------------------------------------------------------------------------------- who may associate


def test_strangers_are_rejected_with_the_standards_reasons(tmp_path: Path, database: Database) -> None:
    peers = [
        {"ae_title": "CT1", "addresses": ["127.0.0.0/8"]},
        {"ae_title": "CT2", "addresses": ["192.0.2.0/24"]},
    ]
    with listening(settings_of(tmp_path / "data", peers=peers, trust_loopback=False), database) as scp:
        requested(scp, calling="CT1").release()
        assert rejection(requested(scp, calling="CT2")) == (1, 1, 3)
        assert rejection(requested(scp, calling="NOBODY")) == (1, 1, 3)
        assert rejection(requested(scp, calling="CT1", called="OTHER")) == (1, 1, 7)
        assert [row.calling_ae for row in rows(database)] == ["CT1"]


def test_a_rejection_that_is_quicker_than_who_asked_is_told_as_one(scp: Scp) -> None:
    node = RemoteSection(name="node", ae_title="OTHER", address="127.0.0.1", port=scp.port)
    late = [(evt.EVT_REQUESTED, lambda _: time.sleep(0.5))]  # the answer has been read by then
    with (
        pytest.raises(PeerUnreachable, match="rejected: Called AE title not recogni"),
        associate(node, own_ae_title="CT1", contexts=[VERIFICATION], timeout=20, handlers=late),
    ):
        pass


def test_the_limit_of_one_ae_leaves_room_for_the_others_and_the_limit_of_all_holds(
    tmp_path: Path, database: Database
) -> None:
    settings = settings_of(tmp_path / "data", maximum_associations=3, maximum_associations_per_ae=2)
    with listening(settings, database) as scp:
        first, second = requested(scp, calling="CT1"), requested(scp, calling="CT1")
        assert rejection(requested(scp, calling="CT1")) == LIMIT_EXCEEDED
        third = requested(scp, calling="CT2")
        assert third.is_established
        assert rejection(requested(scp, calling="CT3")) == LIMIT_EXCEEDED
        first.release()
        wait_until(lambda: scp.detail()["associations"] == 2)
        fourth = requested(scp, calling="CT3")
        assert fourth.is_established
        for association in (second, third, fourth):
            association.release()


def test_a_storm_of_requests_never_exceeds_the_limit(tmp_path: Path, database: Database) -> None:
    with listening(settings_of(tmp_path / "data", maximum_associations=5), database) as scp:
        together = threading.Barrier(16)
        asked: list[Any] = []

        def ask() -> None:
            together.wait()
            asked.append(requested(scp))

        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(association.is_established for association in asked) == 5
        assert {rejection(a) for a in asked if rejection_of(a)} == {LIMIT_EXCEEDED}
        for association in asked:
            association.release()


# ------------------------------------------------------------------------------------------- how associations end


def test_every_association_is_recorded_with_its_end(scp: Scp, database: Database) -> None:
    send(scp, a_slice())
    wait_until(lambda: outcomes(database) == [("released", None)])
    (row,) = rows(database)
    assert (row.calling_ae, row.called_ae, row.address) == ("CT1", "HEMONODE", "127.0.0.1")
    assert stored(database)[0].association_id == row.association_id
    requested(scp).abort()
    wait_until(lambda: outcomes(database)[1:] == [("aborted", "aborted by the peer")])


def associate_request() -> bytes:
    """An A-ASSOCIATE-RQ as a scanner would send it, overheard from one."""
    sent: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        scanner = ApplicationEntity("CT1")
        scanner.acse_timeout = 20

        def overhear() -> None:
            connection, _ = listener.accept()
            with connection:
                sent.append(connection.recv(65536))

        thread = threading.Thread(target=overhear)
        thread.start()
        contexts = [build_context(CTImageStorage, ExplicitVRLittleEndian), build_context(VERIFICATION)]
        scanner.associate("127.0.0.1", listener.getsockname()[1], contexts=contexts, ae_title="HEMONODE")
        thread.join()
    return sent[0]


def half_a_store() -> bytes:
    """The beginning of a P-DATA-TF that announces 1000 bytes and breaks off."""
    return struct.pack(">BBLLB", 4, 0, 1000, 996, 1) + b"\0" * 20


@pytest.fixture
def connected(scp: Scp) -> Iterator[socket.socket]:
    """A bare socket on which an association was accepted."""
    with accepted(scp) as connection:
        yield connection


def accepted(scp: Scp) -> socket.socket:
    request = associate_request()
    connection = socket.create_connection(("127.0.0.1", scp.port), timeout=20)
    connection.sendall(request)
    assert connection.recv(1) == b"\x02"
    return connection


def test_a_cable_pulled_in_the_middle_of_an_instance_leaves_an_aborted_association_and_nothing_else(
    scp: Scp, connected: socket.socket, database: Database, settings: Settings
) -> None:
    connected.sendall(half_a_store())
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connected.close()
    wait_until(lambda: outcomes(database) == [("aborted", "the connection broke off")])
    wait_until(lambda: threads_of_associations() == [])
    assert parts_being_written(settings.archive) == []
    assert send(scp, a_slice()) == [0x0000]


def test_an_abort_in_the_middle_of_an_instance_is_recorded_as_the_peers(
    connected: socket.socket, database: Database
) -> None:
    pdv = struct.pack(">LBB", 22, 1, 0x01) + b"\0" * 20  # a command's fragment, not the last
    connected.sendall(struct.pack(">BBL", 4, 0, len(pdv)) + pdv)
    connected.sendall(struct.pack(">BBLBBBB", 7, 0, 4, 0, 0, 0, 0))
    wait_until(lambda: outcomes(database) == [("aborted", "aborted by the peer")])


@pytest.mark.parametrize(
    "said",
    [b"", half_a_store(), half_a_store()[:3]],
    ids=["nothing", "half an instance", "half a PDU header"],
)
def test_a_peer_that_falls_silent_loses_its_association_and_holds_no_thread(
    said: bytes, tmp_path: Path, database: Database
) -> None:
    with listening(settings_of(tmp_path / "data", network_timeout=0.5), database) as scp, accepted(scp) as connection:
        connection.sendall(said)
        wait_until(lambda: [outcome for outcome, _ in outcomes(database)] == ["aborted"])
        wait_until(lambda: threads_of_associations() == [])


def test_connections_that_never_ask_are_closed_when_their_time_is_up(tmp_path: Path, database: Database) -> None:
    with listening(settings_of(tmp_path / "data", acse_timeout=0.5), database) as scp:
        with socket.create_connection(("127.0.0.1", scp.port), timeout=20) as connection:
            assert connection.recv(1) == b""
        wait_until(lambda: threads_of_associations() == [])
        assert rows(database) == ()


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_health_checks_that_only_connect_leave_no_thread_no_socket_and_no_row(
    reset: bool, scp: Scp, database: Database
) -> None:
    gc.collect()
    gc.disable()  # what is left to the garbage collector has leaked
    try:
        before = len(os.listdir("/dev/fd"))
        for _ in range(50):
            connection = socket.create_connection(("127.0.0.1", scp.port), timeout=20)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", reset, 0))
            connection.close()
        wait_until(lambda: threads_of_associations() == [])
        wait_until(lambda: len(os.listdir("/dev/fd")) <= before)
    finally:
        gc.enable()
    assert rows(database) == ()
    requested(scp).release()


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x01\0\0\0\0\x04\0\0\0\0",
        b"\x04\0\0\0\0\0",
        b"\xff" * 64,
        b"\x05\0\0\0\0\4\0\0\0\0",
    ],
)
def test_noise_instead_of_a_request_is_turned_away(noise: bytes, scp: Scp, database: Database) -> None:
    with socket.create_connection(("127.0.0.1", scp.port), timeout=20) as connection:
        connection.sendall(noise)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1024):
            pass
    wait_until(lambda: threads_of_associations() == [])
    assert rows(database) == ()
    requested(scp).release()


# ---------------------------------------------------------------------------------------------- starting, stopping


def test_a_port_in_use_is_a_clear_error_and_leaves_the_other_receivers_associations_alone(
    scp: Scp, settings: Settings, database: Database
) -> None:
    association = requested(scp)
    node = settings.node.model_copy(update={"port": scp.port})
    taken = settings.model_copy(update={"node": node})
    second = Scp(settings=taken, database=database, services=[ECHO])
    with pytest.raises(StartError, match=f"127.0.0.1:{scp.port} is in use"):
        second.start()
    assert outcomes(database) == [(None, None)]
    association.release()


def test_an_address_that_is_not_this_machines_is_a_clear_error(settings: Settings, database: Database) -> None:
    node = settings.node.model_copy(update={"address": "192.0.2.1"})
    with pytest.raises(StartError, match=r"cannot listen on 192\.0\.2\.1"):
        Scp(settings=settings.model_copy(update={"node": node}), database=database, services=[ECHO]).start()


def test_what_a_dead_receiver_left_open_stands_as_lost(settings: Settings, database: Database) -> None:
    with database.write() as tx:
        for key, receiver in (("a", receiver_name(settings)), ("b", "elsewhere:104")):
            associations.opened(
                tx, association_id=key, receiver=receiver, calling_ae="CT1", called_ae="HEMONODE", address="192.0.2.7"
            )
    with listening(settings, database):
        assert {row.association_id: row.outcome for row in rows(database)} == {"a": "lost", "b": None}


def test_stopping_lets_a_running_transfer_finish(settings: Settings, database: Database) -> None:
    with listening(settings, database) as scp:
        port = scp.port
        with associated(scp, build_context(CTImageStorage, ExplicitVRLittleEndian)) as association:
            assert status_of(association, a_slice(1)) == 0x0000
            stopping = threading.Thread(target=scp.stop, kwargs={"grace_seconds": 30})
            stopping.start()
            wait_until(lambda: not _answers(port))
            assert status_of(association, a_slice(2)) == 0x0000
        stopping.join()
    assert len(stored(database)) == 2
    assert outcomes(database) == [("released", None)]


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_stopping_aborts_who_does_not_finish_within_the_grace(settings: Settings, database: Database) -> None:
    with listening(settings, database) as scp:
        established = requested(scp)
        mute = socket.create_connection(("127.0.0.1", scp.port), timeout=20)
        wait_until(lambda: len(threads_of_associations()) == 2)
        scp.stop(grace_seconds=0.1)
        assert outcomes(database) == [("aborted", "the node stopped")]
        assert threads_of_associations() == []
        wait_until(lambda: established.is_aborted)
        assert mute.recv(1) == b""
        mute.close()


def test_another_service_listens_beside_storage(settings: Settings, database: Database) -> None:
    asked: list[str] = []

    def find(event: evt.Event) -> Iterator[tuple[int, None]]:
        asked.append(event.assoc.requestor.ae_title)
        yield 0x0000, None

    worklist = "1.2.840.10008.5.1.4.31"
    services = [
        store.service(settings=settings, database=database, facts=facts),
        Service(contexts=((worklist, (ExplicitVRLittleEndian,)),), handlers=((evt.EVT_C_FIND, find, []),)),
    ]
    scp = Scp(settings=settings, database=database, services=services)
    scp.start()
    with associated(scp, worklist) as association:
        query = Dataset()
        query.PatientName = "*"
        assert [status.Status for status, _ in association.send_c_find(query, worklist)] == [0x0000]
    scp.stop(grace_seconds=1)
    assert asked == ["CT1"]


def test_two_services_for_one_operation_are_an_error_and_not_a_surprise(settings: Settings, database: Database) -> None:
    twice = [Service(contexts=ECHO.contexts, handlers=((evt.EVT_C_ECHO, lambda _: 0x0000, []),))] * 2
    with pytest.raises(ValueError, match="two services"):
        Scp(settings=settings, database=database, services=twice)
