"""From a stored result to a filed and delivered report: real files, a real database, real associations."""

from __future__ import annotations

import datetime as dt
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from highdicom.sr import srread
from pydicom.uid import Comprehensive3DSRStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt

from db import audit, deliveries, results
from db.deliveries import Delivery
from db.engine import Database
from db.errors import UnknownStudy
from db.states import DeliveryKind, DeliveryState
from node.config import ARCHIVE, DeliverSection, RemoteSection, Settings
from node.deliver.outbox import LASTING_ATTEMPTS, Act, Receipt, deliver_due, retry_after
from node.deliver.store import file_in_archive, store_report
from node.errors import PeerRefused, PeerUnreachable
from node.report.filing import file_report
from node.report.identifiers import report_path, report_uid
from tests.tools.reporting import LEASE, Node, concluded, of_study, received, reopened, states
from tests.tools.reports import KINDS, NEGATIVE, NOT_ANALYSED, POSITIVE, SERIES_UID, STUDY_UID, a_slice, slices

AT_ONCE = DeliverSection(attempts=5, first_retry=1e-6, longest_retry=1e-6, timeout=5, lease=60)
SETTINGS = Settings()


@pytest.fixture
def node(database: Database, tmp_path: Path) -> Node:
    archive = tmp_path / "archive"
    filing = file_report(database, archive=archive, settings=SETTINGS, version="0.1.0")
    return Node(database=database, archive=archive, report_for=filing)


def delivered(
    node: Node, act: Act, *, destination: str = "pacs", policy: DeliverSection = AT_ONCE, owner: str = "d1"
) -> int:
    return deliver_due(
        node.database, kind=DeliveryKind.SR, destination=destination, act=act, policy=policy, owner=owner,
        stop=threading.Event(),
    )  # fmt: skip


@dataclass
class Pacs:
    """A far peer that answers C-STORE with the statuses it is told to, the last one for ever."""

    statuses: list[int]
    port: int = 0
    held: list[tuple[str, bytes]] = field(default_factory=list)

    def remote(self) -> RemoteSection:
        return RemoteSection(name="pacs", ae_title="PACS", address="127.0.0.1", port=self.port)

    def store(self, event: Any) -> int:
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        self.held.append((str(event.request.AffectedSOPInstanceUID), event.request.DataSet.getvalue()))
        return status


@contextmanager
def pacs(*statuses: int, syntaxes: tuple[str, ...] = (ExplicitVRLittleEndian,)) -> Iterator[Pacs]:
    peer = Pacs(statuses=list(statuses))
    entity = AE("PACS")
    entity.add_supported_context(Comprehensive3DSRStorage, list(syntaxes))
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, peer.store)])
    assert server is not None
    peer.port = int(server.server_address[1])
    try:
        yield peer
    finally:
        server.shutdown()


def storing(node: Node, peer: Pacs) -> Act:
    return store_report(remote=peer.remote(), own_ae_title="HEMONODE", timeout=5, report_for=node.report_for)


# Filing


def test_a_report_is_filed_under_its_study_and_revision_and_read_back(node: Node) -> None:
    received(node, *slices(PatientName="山田^太郎"))
    concluded(node, POSITIVE, ARCHIVE)
    assert delivered(node, file_in_archive(report_for=node.report_for), destination=ARCHIVE) == 1
    assert states(node) == [(ARCHIVE, 1, DeliveryState.CONFIRMED)]
    report = srread(node.archive / "reports" / STUDY_UID / "1.dcm")
    assert str(report.PatientName) == "山田^太郎"
    assert of_study(node)[0].sop_instance_uid == report.SOPInstanceUID


def test_a_report_that_was_lost_is_built_again_byte_for_byte(node: Node) -> None:
    received(node, *slices())
    concluded(node, POSITIVE)
    path = node.report_for(STUDY_UID, 1)
    first = path.read_bytes()
    path.unlink()
    assert node.report_for(STUDY_UID, 1) == path
    assert path.read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == ["1.dcm"]


def test_a_report_without_key_slices_stays_the_same_when_more_is_received(node: Node) -> None:
    received(node, *slices())
    concluded(node, NEGATIVE)
    path = node.report_for(STUDY_UID, 1)
    first = path.read_bytes()
    path.unlink()
    received(node, a_slice(13))
    assert node.report_for(STUDY_UID, 1).read_bytes() == first


def test_a_filed_report_is_not_touched_again(node: Node) -> None:
    received(node, *slices())
    concluded(node, POSITIVE)
    node.report_for(STUDY_UID, 1).write_bytes(b"as it is")
    assert node.report_for(STUDY_UID, 1).read_bytes() == b"as it is"


def test_the_report_on_a_revision_names_its_predecessor_which_is_filed_as_well(node: Node) -> None:
    received(node, *slices())
    concluded(node, NEGATIVE)
    reopened(node)
    received(node, a_slice(13))
    concluded(node, replace(POSITIVE, revision=2))
    second = pydicom.dcmread(node.report_for(STUDY_UID, 2))
    first = pydicom.dcmread(report_path(node.archive, study_uid=STUDY_UID, revision=1))
    series = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert series.SeriesInstanceUID == first.SeriesInstanceUID
    assert "PredecessorDocumentsSequence" not in first


def test_only_key_slices_are_evidence_and_without_any_one_slice_of_the_series_read(node: Node) -> None:
    scout = a_slice(99, SeriesInstanceUID=f"{STUDY_UID}.1", SOPInstanceUID=f"{STUDY_UID}.1.1")
    received(node, scout, *slices())
    concluded(node, POSITIVE)
    assert evidence(node, revision=1) == [f"{SERIES_UID}.{n}" for n in (4, 5, 6)]
    reopened(node)
    received(node, a_slice(13))
    concluded(node, replace(NEGATIVE, revision=2))
    assert evidence(node, revision=2) == [f"{SERIES_UID}.1"]


def evidence(node: Node, *, revision: int) -> list[str]:
    report = srread(node.report_for(STUDY_UID, revision))
    return [str(uid) for _study, _series, uid, _class in report.get_evidence()]


def test_a_study_of_one_object_that_is_no_image_gets_its_report(node: Node) -> None:
    document = a_slice(1, SOPClassUID="1.2.840.10008.5.1.4.1.1.104.1", Modality="DOC")
    for keyword in ("Rows", "Columns", "PixelSpacing", "ImagePositionPatient"):
        delattr(document, keyword)
    received(node, document)
    concluded(node, NOT_ANALYSED)
    assert evidence(node, revision=1) == [document.SOPInstanceUID]


def test_when_the_images_cannot_be_read_the_database_still_knows_whose_study_it_is(node: Node) -> None:
    received(node, *slices())
    concluded(node, POSITIVE)
    for path in (node.archive / "files").iterdir():
        path.write_bytes(b"not DICOM any more")
    report = pydicom.dcmread(node.report_for(STUDY_UID, 1))
    assert (report.PatientName, report.StudyInstanceUID) == ("Doe^Jane", STUDY_UID)
    assert evidence(node, revision=1) == [f"{SERIES_UID}.{n}" for n in (4, 5, 6)]


def test_times_are_told_in_the_zone_the_images_state(node: Node) -> None:
    received(node, *slices(TimezoneOffsetFromUTC="+0930"))
    concluded(node, POSITIVE)
    report = pydicom.dcmread(node.report_for(STUDY_UID, 1))
    with node.database.read() as tx:
        made_at = results.of_study(tx, STUDY_UID)[0].made_at
    there = made_at.astimezone(dt.timezone(dt.timedelta(hours=9, minutes=30)))
    assert (report.TimezoneOffsetFromUTC, report.ContentTime) == ("+0930", there.strftime("%H%M%S.%f"))


def test_a_revision_without_a_result_has_no_report(node: Node) -> None:
    received(node, *slices())
    concluded(node, POSITIVE)
    with pytest.raises(UnknownStudy, match="revision 2"):
        node.report_for(STUDY_UID, 2)


def test_many_threads_asking_at_once_get_the_same_file(node: Node) -> None:
    received(node, *slices())
    concluded(node, POSITIVE)
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(node.report_for(STUDY_UID, 1).read_bytes())) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


# Storing


def test_a_stored_report_is_sent_and_the_answer_recorded(node: Node) -> None:
    received(node, *slices())
    concluded(node, POSITIVE, "pacs")
    with pacs(0x0000) as peer:
        assert delivered(node, storing(node, peer)) == 1
        assert delivered(node, storing(node, peer)) == 0
    (delivery,) = of_study(node)
    assert (delivery.state, delivery.detail) == (DeliveryState.SENT, "stored (0x0000)")
    assert delivery.sop_instance_uid == report_uid(study_uid=STUDY_UID, revision=1)
    assert [uid for uid, _ in peer.held] == [delivery.sop_instance_uid]


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007, 0x0111])
def test_a_warning_counts_as_stored_and_is_told(node: Node, status: int) -> None:
    received(node, *slices())
    concluded(node, POSITIVE, "pacs")
    with pacs(status) as peer:
        delivered(node, storing(node, peer))
    (delivery,) = of_study(node)
    assert delivery.state is DeliveryState.SENT
    assert f"0x{status:04X}" in str(delivery.detail)


def test_a_peer_that_knows_only_implicit_vr_gets_the_report(node: Node) -> None:
    received(node, *slices())
    concluded(node, POSITIVE, "pacs")
    with pacs(0x0000, syntaxes=(ImplicitVRLittleEndian,)) as peer:
        delivered(node, storing(node, peer))
    assert of_study(node)[0].state is DeliveryState.SENT


def test_an_attempt_that_was_not_recorded_is_repeated_with_the_same_uid_and_bytes(node: Node) -> None:
    received(node, *slices())
    concluded(node, POSITIVE, "pacs")
    with pacs(0x0000) as peer:

        def killed(delivery: Delivery) -> Receipt:
            storing(node, peer)(delivery)
            raise KeyboardInterrupt  # stored over there, and then the process is gone

        with pytest.raises(KeyboardInterrupt):
            delivered(node, killed, policy=replace_lease(AT_ONCE, 1e-6))
        assert delivered(node, storing(node, peer), owner="d2") == 1
    assert states(node) == [("pacs", 1, DeliveryState.SENT)]
    assert len(peer.held) == 2
    assert len(set(peer.held)) == 1


def replace_lease(policy: DeliverSection, seconds: float) -> DeliverSection:
    return policy.model_copy(update={"lease": seconds})


# The outbox


def test_a_busy_peer_is_tried_again_until_it_stores(node: Node) -> None:
    received(node, *slices())
    concluded(node, POSITIVE, "pacs")
    with pacs(0xA700, 0xA700, 0x0000) as peer:
        assert until_settled(node, storing(node, peer)) == 3
    assert of_study(node)[0].state is DeliveryState.SENT
    with node.database.read() as tx:
        told = [event.event for event in audit.timeline(tx, STUDY_UID)]
    assert told[-3:] == ["sr_failed", "sr_failed", "sr_sent"]


def until_settled(node: Node, act: Act) -> int:
    """Look again and again, as the schedule does, until nothing of the study is due any more."""
    tried = 0
    while DeliveryState.DUE in {d.state for d in of_study(node)}:
        tried += delivered(node, act)
    return tried


def test_a_peer_that_stays_busy_is_given_up_after_the_limit_and_requeue_tries_again(node: Node) -> None:
    received(node, *slices())
    concluded(node, POSITIVE, "pacs")
    with pacs(0xA700) as peer:
        assert until_settled(node, storing(node, peer)) == AT_ONCE.attempts
    (delivery,) = of_study(node)
    assert delivery.state is DeliveryState.ABANDONED
    assert "0xA700" in str(delivery.error)
    with node.database.read() as tx:
        assert audit.timeline(tx, STUDY_UID)[-1].event == "sr_abandoned"
    with node.database.write() as tx:
        assert deliveries.requeue(tx, study_uid=STUDY_UID) == 1
    with pacs(0x0000) as peer:
        assert until_settled(node, storing(node, peer)) == 1
    assert of_study(node)[0].state is DeliveryState.SENT


@pytest.mark.parametrize("status", [0x0122, 0xA900, 0xC123])
def test_a_refusal_that_time_does_not_cure_is_given_up_sooner(node: Node, status: int) -> None:
    received(node, *slices())
    concluded(node, POSITIVE, "pacs")
    with pacs(status) as peer:
        assert until_settled(node, storing(node, peer)) == LASTING_ATTEMPTS < AT_ONCE.attempts
    assert of_study(node)[0].state is DeliveryState.ABANDONED


# pynetdicom leaves the socket of a refused connection to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_nobody_listening_is_a_failure_that_is_tried_again(node: Node) -> None:
    received(node, *slices())
    concluded(node, POSITIVE, "pacs")
    with pacs(0x0000) as gone:
        pass
    patient = AT_ONCE.model_copy(update={"first_retry": 300, "longest_retry": 300})
    assert delivered(node, storing(node, gone), policy=patient) == 1
    (delivery,) = of_study(node)
    assert (delivery.state, delivery.attempts) == (DeliveryState.DUE, 1)
    assert delivery.due_at > delivery.created_at + dt.timedelta(seconds=100)
    assert "PACS at 127.0.0.1" in str(delivery.error)
    gc.collect()


def test_a_peer_that_accepts_no_such_object_is_a_failure(node: Node) -> None:
    received(node, *slices())
    concluded(node, POSITIVE, "pacs")
    entity = AE("PACS")
    entity.add_supported_context("1.2.840.10008.1.1")
    server = entity.start_server(("127.0.0.1", 0), block=False)
    assert server is not None
    peer = Pacs(statuses=[0], port=int(server.server_address[1]))
    try:
        until_settled(node, storing(node, peer))
    finally:
        server.shutdown()
    assert of_study(node)[0].state is DeliveryState.ABANDONED


def test_a_destination_that_is_down_delays_no_other(node: Node) -> None:
    received(node, *slices())
    concluded(node, POSITIVE, "down", "pacs")
    entered, release = threading.Event(), threading.Event()

    def hanging(delivery: Delivery) -> Receipt:
        entered.set()
        release.wait(60)
        raise PeerUnreachable("no answer")

    stuck = threading.Thread(target=lambda: delivered(node, hanging, destination="down", owner="d2"))
    stuck.start()
    assert entered.wait(30)
    with pacs(0x0000) as peer:
        assert delivered(node, storing(node, peer)) == 1
    assert ("pacs", 1, DeliveryState.SENT) in states(node)
    assert ("down", 1, DeliveryState.DUE) in states(node)
    release.set()
    stuck.join()


def test_an_older_revision_is_not_sent_after_a_newer_one(node: Node) -> None:
    received(node, *slices())
    concluded(node, NEGATIVE, "pacs")
    with node.database.write() as tx:
        held = deliveries.claim(tx, kind=DeliveryKind.SR, destination="pacs", owner="slow", lease=LEASE)
    assert held is not None
    reopened(node)
    received(node, a_slice(13))
    concluded(node, replace(POSITIVE, revision=2), "pacs")
    with pacs(0x0000) as peer:
        assert delivered(node, storing(node, peer)) == 1
        with node.database.write() as tx:
            deliveries.failed(tx, held, error="gave up", retry_after=dt.timedelta(0))
        assert delivered(node, storing(node, peer)) == 0
    assert states(node) == [("pacs", 1, DeliveryState.SUPERSEDED), ("pacs", 2, DeliveryState.SENT)]
    assert len(peer.held) == 1


def test_what_nobody_foresaw_is_recorded_without_quoting_it(node: Node) -> None:
    received(node, *slices())
    concluded(node, POSITIVE, "pacs")

    def broken(delivery: Delivery) -> Receipt:
        raise ValueError("invalid value Doe^Jane")

    until_settled(node, broken)
    (delivery,) = of_study(node)
    assert delivery.state is DeliveryState.ABANDONED
    assert str(delivery.error).startswith("unexpected ValueError at test_deliver.py:")
    assert "Doe" not in str(delivery.error)


def test_a_sender_that_lost_its_lease_records_nothing(node: Node) -> None:
    received(node, *slices())
    concluded(node, POSITIVE, "pacs")

    def slow(delivery: Delivery) -> Receipt:
        assert delivered(node, lambda _: Receipt(detail="by the second"), owner="d2") == 1
        return Receipt(detail="by the first")

    assert delivered(node, slow, policy=replace_lease(AT_ONCE, 1e-6)) == 1
    (delivery,) = of_study(node)
    assert delivery.detail == "by the second"


def test_nothing_is_claimed_once_the_node_stops(node: Node) -> None:
    received(node, *slices())
    concluded(node, POSITIVE, "pacs")
    stop = threading.Event()
    stop.set()
    tried = deliver_due(
        node.database, kind=DeliveryKind.SR, destination="pacs", act=lambda _: Receipt(detail="never"),
        policy=AT_ONCE, owner="d1", stop=stop,
    )  # fmt: skip
    assert tried == 0
    assert of_study(node)[0].attempts == 0


def test_pauses_double_up_to_the_longest_and_are_spread() -> None:
    policy = DeliverSection(attempts=10, first_retry=5, longest_retry=60)
    failure = PeerUnreachable("down")
    pauses = [retry_after(attempts, error=failure, policy=policy) for attempts in range(1, 11)]
    assert pauses[-1] is None
    for pause, full in zip(pauses, (5, 10, 20, 40, 60, 60, 60, 60, 60), strict=False):
        assert pause is not None
        assert full / 2 <= pause.total_seconds() <= full


def test_busy_is_not_lasting_and_not_supported_is() -> None:
    policy = DeliverSection()
    assert retry_after(LASTING_ATTEMPTS, error=PeerRefused("busy", status=0xA700), policy=policy) is not None
    assert retry_after(LASTING_ATTEMPTS, error=PeerRefused("never", status=0x0122), policy=policy) is None


def test_every_kind_of_result_in_the_database_becomes_a_report(node: Node) -> None:
    received(node, *slices())
    for revision, kind in enumerate(KINDS.values(), start=1):
        if revision > 1:
            reopened(node)
            received(node, a_slice(20 + revision))
        concluded(node, replace(kind.result, revision=revision))
    last = len(KINDS)
    node.report_for(STUDY_UID, last)
    filed = sorted(int(path.stem) for path in (node.archive / "reports" / STUDY_UID).iterdir())
    assert filed == list(range(1, last + 1))
