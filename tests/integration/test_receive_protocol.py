"""The upper layer and DIMSE over real sockets, PDU by PDU; under both reactors what both can do."""

from __future__ import annotations

import ast
import importlib
import inspect
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
from pydicom.uid import AllTransferSyntaxes, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.transport import AssociationSocket

from db import schema
from db.engine import Database
from node.receive import reactor, store
from node.receive.reactor import RELIED_ON, Spool
from node.receive.reactor.association import EventAssociation
from node.receive.reactor.messages import MOST_EMPTY_FRAGMENTS, MOST_WAITING
from node.receive.scp import Scp
from node.receive.uids import STORAGE_CLASSES
from node.service import Service
from tests.raw_peer import (
    ABORT,
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    COMMAND,
    CT,
    DATA,
    ECHO,
    LAST,
    P_DATA,
    RELEASE_RP,
    RELEASE_RQ,
    USUAL,
    VERIFICATION,
    RawPeer,
    command,
    data,
    echo_command,
    item,
    pdu,
    request,
    store_command,
    value,
)
from tests.receiving import (
    a_receiver,
    a_slice,
    associated,
    digest_on_disk,
    encoded,
    facts,
    listening,
    parts_being_written,
    send,
    settings_of,
    stored,
    wait_until,
)

WORKLIST = "1.2.840.10008.5.1.4.31"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
UID_1 = str(a_slice(1).SOPInstanceUID)
both = pytest.mark.parametrize("which", ["event", "library"])
"""What the library's own reactor can do as well, so that falling back to it is no surprise."""


@pytest.fixture
def which() -> str:
    return "event"


@pytest.fixture
def scp(which: str, tmp_path: Path, database: Database) -> Iterator[Scp]:
    with listening(settings_of(tmp_path / "data", reactor=which), database) as scp:
        yield scp


@pytest.fixture
def peer(scp: Scp) -> Iterator[RawPeer]:
    with RawPeer(scp.port) as peer:
        yield peer


def outcomes(database: Database) -> list[str | None]:
    with database.read() as tx:
        return list(tx.execute(sa.select(schema.associations.c.outcome)).scalars())


def acceptors() -> list[Association]:
    return [thread for thread in threading.enumerate() if isinstance(thread, Association) and thread.is_acceptor]


def store_pdus(number: int = 1, *, message_id: int = 1) -> tuple[bytes, bytes]:
    """A C-STORE as it usually comes: a PDU with the command, a PDU with the data set."""
    dataset = a_slice(number)
    asking = store_command(str(dataset.SOPInstanceUID), message_id)
    return data(value(CT, COMMAND | LAST, asking)), data(value(CT, DATA | LAST, encoded(dataset)))


def is_turned_away(peer: RawPeer) -> bool:
    """Whether the node aborts, or closes, and says nothing else."""
    kind = peer.kind()
    return kind in (ABORT, None)


# ------------------------------------------------------------------------------------------------------ associating


@both
def test_contexts_are_refused_one_by_one_and_a_message_in_a_refused_one_ends_the_association(peer: RawPeer) -> None:
    answer = peer.associate(
        request([*USUAL, (5, STUDY_ROOT_FIND, (ExplicitVRLittleEndian,)), (7, VERIFICATION, ("1.2",))])
    )
    results = {answer[at + 4]: answer[at + 6] for at in range(68, len(answer) - 6) if answer[at : at + 2] == b"\x21\0"}
    assert results == {1: 0, 3: 0, 5: 3, 7: 4}  # PS3.8 table 9-18
    peer.send(data(value(5, COMMAND | LAST, echo_command())))
    assert is_turned_away(peer)


@both
def test_as_many_contexts_as_there_can_be_are_negotiated(peer: RawPeer) -> None:
    syntaxes = [str(syntax) for syntax in AllTransferSyntaxes]
    asked = [(2 * number + 1, uid, syntaxes) for number, uid in enumerate(STORAGE_CLASSES[:126])]
    peer.associate(request([*asked, (253, CTImageStorage, syntaxes), (255, VERIFICATION, syntaxes)]))
    peer.send(data(value(255, COMMAND | LAST, echo_command())))
    assert peer.status() == 0x0000
    peer.release()


@both
def test_a_list_of_300_contexts_whose_numbers_repeat_is_answered(peer: RawPeer, scp: Scp) -> None:
    peer.send(request([(2 * number + 1, CTImageStorage, (ExplicitVRLittleEndian,)) for number in range(300)]))
    assert peer.kind() in (ASSOCIATE_AC, ASSOCIATE_RJ, ABORT)
    assert send(scp, a_slice()) == [0x0000]


@both
@pytest.mark.parametrize(
    "asking",
    [
        request(items=struct.pack(">BxH", 0x20, 60000) + b"\x01\0\0\0"),
        request(user=struct.pack(">BxH", 0x55, 60000) + b"\x01"),
        request([(1, "1" * 300, (ExplicitVRLittleEndian,))]),
    ],
    ids=["a context that is longer than the PDU", "a sub-item longer than its item", "a UID of 300 characters"],
)
def test_over_long_items_are_survived(asking: bytes, peer: RawPeer, scp: Scp) -> None:
    peer.send(asking)
    peer.socket.shutdown(socket.SHUT_WR)
    while peer.receive() is not None:
        pass
    assert send(scp, a_slice()) == [0x0000]


@both
def test_user_identity_and_a_window_of_operations_are_proposed_in_vain(peer: RawPeer) -> None:
    identity = item(0x58, b"\x01\x01" + struct.pack(">H5sH", 5, b"alice", 0))  # PS3.7 D.3.3.7, an answer is asked for
    window = item(0x53, struct.pack(">HH", 7, 7))  # PS3.7 D.3.3.3
    answer = peer.associate(request(user=window + identity))
    assert b"\x59\0" not in answer
    assert b"\x53\0\0\4" not in answer or item(0x53, struct.pack(">HH", 1, 1)) in answer
    peer.send(*store_pdus())
    assert peer.status() == 0x0000


@both
def test_a_request_that_stops_in_the_middle_is_closed_when_its_time_is_up(
    which: str, tmp_path: Path, database: Database
) -> None:
    settings = settings_of(tmp_path / "data", reactor=which, acse_timeout=0.3, network_timeout=0.3)
    with listening(settings, database) as scp, RawPeer(scp.port) as peer:
        peer.send(request()[:100])
        assert is_turned_away(peer)
        wait_until(lambda: acceptors() == [])


# --------------------------------------------------------------------------------------------------------- messages


@both
def test_everything_may_come_in_pieces_of_one_byte(peer: RawPeer, database: Database) -> None:
    peer.send(*(bytes([byte]) for byte in request()))
    assert peer.kind() == ASSOCIATE_AC
    peer.send(*(bytes([byte]) for byte in b"".join(store_pdus())))
    assert peer.status() == 0x0000
    assert [row.sop_instance_uid for row in stored(database)] == [UID_1]


def layouts() -> dict[str, bytes]:
    asking, content = store_command(UID_1), encoded(a_slice(1))
    whole = [value(CT, COMMAND | LAST, asking), value(CT, DATA | LAST, content)]
    thirds = [content[:100], content[100:200], content[200:]]
    return {
        "command and data in one PDU": data(*whole),
        "the command in pieces": data(value(CT, COMMAND, asking[:9]), value(CT, COMMAND | LAST, asking[9:]), whole[1]),
        "several values in one PDU": data(
            whole[0], value(CT, DATA, thirds[0]), value(CT, DATA, thirds[1]), value(CT, DATA | LAST, thirds[2])
        ),
        "empty fragments": data(whole[0], value(CT, DATA, b""))
        + data(value(CT, DATA, content))
        + data(value(CT, DATA, b""), value(CT, DATA | LAST, b"")),
        "reserved bits of the control header": data(
            value(CT, 0xF0 | COMMAND | LAST, asking), value(CT, 0xF0 | DATA | LAST, content)
        ),
        "a PDU in two segments and the next behind it": data(whole[0]) + data(whole[1]),
    }


@both
@pytest.mark.parametrize("layout", layouts())
def test_fragments_may_be_laid_out_in_every_allowed_way(
    layout: str, peer: RawPeer, database: Database, scp: Scp, tmp_path: Path
) -> None:
    peer.associate()
    peer.send(layouts()[layout])
    assert peer.status() == 0x0000
    (row,) = stored(database)
    assert digest_on_disk(tmp_path / "data" / "archive", row) == row.digest
    peer.release()
    wait_until(lambda: outcomes(database) == ["released"])


@both
def test_echoes_between_stores_are_answered_in_order(peer: RawPeer, database: Database) -> None:
    peer.associate()
    for number in range(1, 4):
        peer.send(*store_pdus(number, message_id=2 * number))
        assert peer.status() == 0x0000
        peer.send(data(value(ECHO, COMMAND | LAST, echo_command(2 * number + 1))))
        assert peer.status() == 0x0000
    assert len(stored(database)) == 3


@both
def test_stores_that_do_not_wait_for_their_answers_get_them_all(peer: RawPeer, database: Database) -> None:
    peer.associate()
    peer.send(b"".join(piece for number in range(1, 5) for piece in store_pdus(number, message_id=number)))
    assert [peer.status() for _ in range(4)] == [0x0000] * 4
    assert len(stored(database)) == 4


def find_until_cancelled(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
    match = Dataset()
    match.PatientName = "Doe^Jane"
    for _ in range(5):
        yield 0xFF00, match
    # An asker that still reads answers would say nothing: pynetdicom's own writes only when nothing is to be read.
    wait_until(lambda: event.is_cancelled)
    yield 0xFE00, None


@pytest.fixture
def finding(which: str, tmp_path: Path, database: Database) -> Iterator[Scp]:
    """A node whose search goes on until it is cancelled."""
    settings = settings_of(tmp_path / "data", reactor=which)
    find = Service(
        contexts=((WORKLIST, (ExplicitVRLittleEndian,)),), handlers=((evt.EVT_C_FIND, find_until_cancelled, []),)
    )
    services = [store.service(settings=settings, database=database, facts=facts), find]
    scp = Scp(settings=settings, database=database, services=services)
    scp.start()
    yield scp
    scp.stop(grace_seconds=0)


@both
def test_a_query_is_cancelled_while_it_answers(finding: Scp) -> None:
    with associated(finding, WORKLIST, VERIFICATION) as association:
        query = Dataset()
        query.PatientName = "*"
        statuses = []
        for status, _ in association.send_c_find(query, WORKLIST, msg_id=7):
            statuses.append(status.Status)
            if len(statuses) == 3:
                association.send_c_cancel(7, query_model=WORKLIST)
        assert statuses[-1] == 0xFE00
        assert association.send_c_echo().Status == 0x0000


@both
def test_a_cancel_with_nothing_to_cancel_is_ignored(peer: RawPeer) -> None:
    peer.associate()
    peer.send(data(value(CT, COMMAND | LAST, command(e0100=0x0FFF, e0120=9, e0800=0x0101))))
    peer.send(*store_pdus())
    assert peer.status() == 0x0000


# ------------------------------------------------------------------------------------------------------ broken rules


@both
@pytest.mark.parametrize(
    "said",
    [
        pdu(9, b"what is this"),
        pdu(P_DATA, struct.pack(">LBB", 1000, CT, 3) + b"\0" * 20),
        pdu(P_DATA, struct.pack(">LB", 0, CT) + b"\0" * 20),
        pdu(1, b"\0" * 40),
        data(value(CT, COMMAND | LAST, b"\0\0\0\1\xff\xff\xff\x7f")),
        data(value(CT, COMMAND | LAST, command(e0100=0x7777, e0800=0x0101))),
    ],
    ids=["unknown type", "value too long", "value too short", "another request", "no command", "unknown command"],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of the library's own reactor
def test_what_is_no_pdu_or_no_message_ends_the_association_and_nothing_else(
    said: bytes, peer: RawPeer, scp: Scp, database: Database
) -> None:
    peer.associate()
    peer.send(said)
    assert is_turned_away(peer)
    peer.socket.close()
    wait_until(lambda: outcomes(database) == ["aborted"])
    assert send(scp, a_slice()) == [0x0000]


@pytest.mark.parametrize(
    "said",
    [
        struct.pack(">BxL", P_DATA, 0xFFFFFFF0),
        struct.pack(">BxL", P_DATA, 131073),
        data(value(CT, DATA, b"\0" * 10)),
        data(value(CT, COMMAND | LAST, store_command(UID_1)), value(ECHO, DATA | LAST, b"\0")),
        data(value(CT, COMMAND | LAST, store_command(UID_1)), value(CT, COMMAND | LAST, echo_command())),
        data(value(CT, COMMAND, b"\0" * 60000)) * 2,
        data(value(CT, COMMAND | LAST, command(e0100=1, e0110=1, e0700=0, e0800=1))) + store_pdus()[1],
        pdu(P_DATA, b""),
    ],
    ids=[
        "a PDU of 4 GiB",
        "a PDU larger than agreed",
        "data before their command",
        "a message in two contexts",
        "a command within a message",
        "a command without end",
        "a store without UIDs",
        "a PDU without a value",
    ],
)
def test_what_the_library_lets_pass_is_refused_at_once(said: bytes, peer: RawPeer, database: Database) -> None:
    peer.associate()
    peer.send(said)
    assert peer.kind() == ABORT
    peer.socket.close()
    wait_until(lambda: outcomes(database) == ["aborted"])


def test_a_flood_of_empty_fragments_ends_the_association(peer: RawPeer) -> None:
    peer.associate()
    peer.send(store_pdus()[0], data(*[value(CT, DATA, b"")] * (MOST_EMPTY_FRAGMENTS + 1)))
    assert peer.kind() == ABORT


def test_more_operations_at_a_time_than_a_few_end_the_association(finding: Scp) -> None:
    with RawPeer(finding.port) as peer:
        peer.associate(request([*USUAL, (5, WORKLIST, (ExplicitVRLittleEndian,))]))
        query = command(e0002=WORKLIST, e0100=0x0020, e0110=1, e0700=0, e0800=1)
        peer.send(data(value(5, COMMAND | LAST, query), value(5, DATA | LAST, b"")))
        peer.send(data(*[value(ECHO, COMMAND | LAST, echo_command(2))] * (MOST_WAITING + 2)))
        while (kind := peer.kind()) == P_DATA:
            pass
        assert kind in (ABORT, None)


# ----------------------------------------------------------------------------------------------------------- endings


@both
def test_a_release_that_crosses_ours_ends_the_association_on_both_sides(
    which: str, peer: RawPeer, database: Database
) -> None:
    peer.associate()
    (association,) = wait_until(lambda: [found for found in acceptors() if found.is_established])
    releasing = threading.Thread(target=association.release)
    releasing.start()
    assert peer.kind() == RELEASE_RQ
    peer.send(pdu(RELEASE_RQ, bytes(4)), pdu(RELEASE_RP, bytes(4)))  # PS3.8 9.2, Sta9 to Sta11 on our side
    assert peer.kind() == RELEASE_RP or which == "library"  # which closes at once; that may overtake its answer
    peer.socket.close()
    releasing.join()
    wait_until(lambda: acceptors() == [])
    wait_until(lambda: None not in outcomes(database))


def test_both_reactors_give_the_same_answers_to_usual_and_unusual_stores(tmp_path: Path) -> None:
    def asking(instance: int = 1, **elements: int | str) -> bytes:
        usual = {"e0002": str(CTImageStorage), "e0100": 1, "e0110": 7, "e0700": 0, "e0800": 1}
        return command(**usual | {"e1000": f"1.2.826.0.1.99.1.1.{instance}"} | elements)

    said = [
        (asking(), a_slice(1)),
        (asking(e0700=2), a_slice(1)),
        (asking(2, e1030="OTHER1", e1031=3), a_slice(2)),
        (asking(), a_slice(1, PatientName="Other^Name")),
        (asking(3), a_slice(4)),
        (asking(5), a_slice(5, StudyInstanceUID=None)),
        (asking(6, e0002="1.2.3.4"), a_slice(6)),  # of a class that nobody knows: the association ends
    ]
    answers: dict[str, list[tuple[int, bytes] | None]] = {}
    for which in ("event", "library"):
        settings = settings_of(tmp_path / which, reactor=which)
        database = Database(f"sqlite:///{tmp_path / which}.db")
        database.upgrade()
        with listening(settings, database) as scp, RawPeer(scp.port) as peer:
            peer.associate()
            answers[which] = []
            for encoded_command, dataset in said:
                peer.send(data(value(CT, COMMAND | LAST, encoded_command)))
                peer.send(data(value(CT, DATA | LAST, encoded(dataset))))
                answers[which].append(peer.receive())
        database.close()
    assert answers["event"] == answers["library"]
    assert len(set(answers["event"])) == len(said) - 1  # the priority makes no difference


@both
def test_a_silent_association_is_aborted(which: str, tmp_path: Path, database: Database) -> None:
    settings = settings_of(tmp_path / "data", reactor=which, network_timeout=0.3)
    with listening(settings, database) as scp, RawPeer(scp.port) as peer:
        peer.associate()
        assert peer.kind() == ABORT
        wait_until(lambda: outcomes(database) == ["aborted"])


@pytest.mark.parametrize("served_by", ["the loop", "the association"])
def test_the_time_that_an_answer_takes_is_not_the_peers_silence(
    served_by: str, tmp_path: Path, database: Database
) -> None:
    served = threading.Event()

    def answer(_: evt.Event) -> int:
        served.wait(20)
        return 0x0000

    storage = (CTImageStorage, (ExplicitVRLittleEndian,))
    slow = Service(
        contexts=(storage, (VERIFICATION, (ImplicitVRLittleEndian,))),
        handlers=((evt.EVT_C_STORE, answer, []), (evt.EVT_C_ECHO, answer, [])),
    )
    scp = Scp(settings=settings_of(tmp_path / "data", network_timeout=0.2), database=database, services=[slow])
    scp.start()
    with RawPeer(scp.port) as peer:
        peer.associate()
        said = store_pdus() if served_by == "the loop" else (data(value(ECHO, COMMAND | LAST, echo_command())),)
        asked = time.monotonic()
        peer.send(*said)
        wait_until(lambda: time.monotonic() > asked + 0.5)
        served.set()
        assert [peer.status(), peer.send(*said), peer.status()] == [0x0000, None, 0x0000]
    scp.stop(grace_seconds=0)


@both
def test_a_reset_connection_ends_its_association(peer: RawPeer, database: Database) -> None:
    peer.associate()
    peer.send(store_pdus()[0], store_pdus()[1][:50])
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.socket.close()
    wait_until(lambda: outcomes(database) == ["aborted"])
    wait_until(lambda: acceptors() == [])


def test_a_node_that_stops_says_so_to_a_peer_in_the_middle_of_a_pdu(peer: RawPeer, scp: Scp) -> None:
    peer.associate()
    peer.send(store_pdus()[0], store_pdus()[1][:50])
    scp.stop(grace_seconds=0)
    assert peer.kind() == ABORT


def test_a_peer_that_keeps_talking_after_an_abort_still_hears_of_it(peer: RawPeer) -> None:
    peer.associate()
    peer.send(pdu(9, b""), *[store_pdus()[1]] * 20)
    assert peer.kind() == ABORT
    assert peer.kind() is None


# ------------------------------------------------------------------------------------------------------------ memory


def large(number: int, megabytes: int) -> Dataset:
    return a_slice(number, Rows=1024, Columns=512 * megabytes, PixelData=b"\1\2" * (1 << 19) * megabytes)


def test_a_large_object_is_spooled_and_stored_byte_for_byte(tmp_path: Path, database: Database) -> None:
    settings = settings_of(tmp_path / "data", spool_above_mb=1)
    with listening(settings, database) as scp:
        assert send(scp, large(1, 3), a_slice(2)) == [0x0000, 0x0000]
    first, second = stored(database)
    assert digest_on_disk(settings.archive, first) == first.digest
    assert (first.size > 3 << 20, second.size < 1 << 20) == (True, True)
    assert parts_being_written(settings.archive) == []


def test_of_a_large_object_that_breaks_off_nothing_is_left(tmp_path: Path, database: Database) -> None:
    settings = settings_of(tmp_path / "data", spool_above_mb=1)
    with listening(settings, database) as scp, RawPeer(scp.port) as peer:
        peer.associate()
        peer.send(store_pdus()[0], data(value(CT, DATA, b"\0" * 131066)) * 12)
        wait_until(lambda: parts_being_written(settings.archive))
        peer.socket.close()
        wait_until(lambda: parts_being_written(settings.archive) == [])


def test_an_object_for_which_there_is_no_room_is_received_to_its_end_and_refused(
    tmp_path: Path, database: Database
) -> None:
    with listening(settings_of(tmp_path / "data", spool_above_mb=1, disk_reserve_mb=1 << 40), database) as scp:
        assert send(scp, large(1, 3), a_slice(2)) == [0xA700, 0xA700]


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def spooled(archive: Path) -> int:
    """The bytes of all files that are being written."""
    return sum(path.stat().st_size for path in parts_being_written(archive))


def test_senders_that_never_end_their_messages_do_not_fill_the_memory(tmp_path: Path) -> None:
    associations, sent = 24, 8 << 20
    piece = data(value(CT, DATA, b"\0" * 131066))
    with a_receiver(tmp_path / "data", spool_above_mb=1) as receiver:
        assert send(receiver, a_slice()) == [0x0000]
        before = resident(receiver.process.pid)
        peers = [RawPeer(receiver.port) for _ in range(associations)]
        for peer in peers:
            peer.associate()
            peer.send(store_pdus(2)[0], piece * (sent // len(piece)))
        wait_until(lambda: spooled(tmp_path / "data" / "archive") >= associations * (sent - (1 << 20) - len(piece)))
        # The bound that docs/operations.md states: two PDUs and one spooled object each, and the threads' stacks.
        grown = resident(receiver.process.pid) - before
        for peer in peers:
            peer.socket.close()
    assert grown < associations * (2 * 131078 + (1 << 20) * 9 // 8 + (1 << 19))


# ----------------------------------------------------------------------------------------- what pynetdicom has to be


def private_names(tree: ast.Module) -> set[str]:
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
    }


def own_names(tree: ast.Module) -> set[str]:
    """Private attributes and methods that a module gives its own classes."""
    assigned = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr.startswith("_")
    }
    return assigned | {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_nothing_private_of_pynetdicom_is_touched_but_what_is_listed() -> None:
    listed = {name for names in RELIED_ON.values() for name in names}
    trees = [ast.parse(path.read_text()) for path in Path(inspect.getfile(reactor)).parent.glob("*.py")]
    own = {name for tree in trees for name in own_names(tree)}
    assert set().union(*map(private_names, trees)) - own <= listed
    assert listed <= set().union(*map(private_names, trees)) | own


def test_pynetdicom_still_has_everything_that_the_reactor_relies_on() -> None:
    entity = ApplicationEntity("TEST")
    spool = Spool(memory=1, open=lambda **_: pytest.fail("nothing arrives"))
    live: dict[str, Any] = {}
    ours = EventAssociation(entity, spool=spool)
    plain = Association(entity, "acceptor")
    live["pynetdicom.association.Association"] = plain
    live["pynetdicom.dul.DULServiceProvider"] = plain.dul
    server = entity.make_server(("127.0.0.1", 0), contexts=[build_context(VERIFICATION)])
    live["pynetdicom.transport.AssociationServer"] = server
    try:
        for path, names in RELIED_ON.items():
            module, _, name = path.rpartition(".")
            known = live.get(path, getattr(importlib.import_module(module), name))
            assert [name for name in names if not hasattr(known, name)] == [], path
    finally:
        server.server_close()
    assert list(inspect.signature(Association.__init__).parameters) == ["self", "ae", "mode"]
    assert list(inspect.signature(AssociationSocket.__init__).parameters) == [
        "self",
        "assoc",
        "client_socket",
        "address",
    ]
    assert set(vars(plain)) - {"_target"} <= set(vars(ours)) | {"_target"}
    assert ours.dul.artim_timer.timeout == entity.acse_timeout
    assert ours.dul.network_timeout == entity.network_timeout
