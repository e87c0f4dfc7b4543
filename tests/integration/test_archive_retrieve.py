"""C-MOVE and C-GET over the archive (PS3.4 C.4.2, C.4.3)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import ImplicitVRLittleEndian, JPEGLSLossless, RLELossless

from db.engine import Database
from node.query.archive import PATIENT_ROOT, STUDY_ROOT
from tests.archive_node import CT, EXPLICIT, IMPLICIT, Asker, Workstation, archive_node, extended, keys
from tests.receiving import a_slice, part_10, requested, send, stored, wait_until
from tests.worklist_node import a_free_port, remote

STUDY = "1.2.826.0.1.99.1"
SERIES = f"{STUDY}.1"


@pytest.fixture
def workstation() -> Workstation:
    return Workstation()


@pytest.fixture
def asker(tmp_path: Path, database: Database, workstation: Workstation) -> Iterator[Asker]:
    """Five slices, the last in implicit VR; VIEWER is a configured destination, DOWN one that does not answer."""
    with workstation.listening() as viewer:
        down = remote(a_free_port(), name="down", ae_title="DOWN")
        with archive_node(tmp_path / "data", database, destinations=[viewer, down]) as node:
            assert set(send(node, *(a_slice(number) for number in range(1, 5)))) == {0}
            assert send(node, a_slice(5), syntax=ImplicitVRLittleEndian) == [0]
            yield Asker(node.port)


def counts(status: Dataset) -> tuple[int, int, int]:
    """Completed, failed and warning sub-operations."""
    return tuple(status[f"NumberOf{w}Suboperations"].value for w in ("Completed", "Failed", "Warning"))  # type: ignore[return-value]


def digests(database: Database) -> set[str]:
    return {row.digest for row in stored(database)}


def test_a_moved_study_arrives_byte_for_byte_in_the_syntax_it_is_stored_in(
    asker: Asker, workstation: Workstation, database: Database
) -> None:
    responses = asker.move(keys("STUDY", StudyInstanceUID=STUDY), "VIEWER", priority=1)
    assert [status.Status for status, _ in responses] == [0xFF00] * 5 + [0x0000]
    assert counts(responses[-1][0]) == (5, 0, 0)
    assert {hashlib.sha256(data).hexdigest() for data in workstation.encoded} == digests(database)
    request = workstation.requests[0]
    assert (request.Priority, request.MoveOriginatorApplicationEntityTitle) == (1, "VIEWER")
    assert request.MoveOriginatorMessageID == 1
    assert "NumberOfRemainingSuboperations" in responses[0][0]


@pytest.mark.parametrize(
    ("identifier", "model", "count"),
    [
        (keys("SERIES", StudyInstanceUID=STUDY, SeriesInstanceUID=SERIES), STUDY_ROOT, 5),
        (
            keys("IMAGE", StudyInstanceUID=STUDY, SeriesInstanceUID=SERIES, SOPInstanceUID=f"{SERIES}.2"),
            STUDY_ROOT,
            1,
        ),
        (keys("PATIENT", PatientID="P1"), PATIENT_ROOT, 5),
        (keys("STUDY", PatientID="P1", StudyInstanceUID=[STUDY, "1.2.99"]), PATIENT_ROOT, 5),
        (keys("STUDY", PatientID="P2", StudyInstanceUID=STUDY), PATIENT_ROOT, 0),
        (keys("STUDY", StudyInstanceUID="1.2.99"), STUDY_ROOT, 0),
    ],
)  # fmt: skip
def test_what_is_named_is_moved_and_nothing_else(
    asker: Asker, workstation: Workstation, identifier: Dataset, model: object, count: int
) -> None:
    responses = asker.move(identifier, "VIEWER", model=model.move)  # type: ignore[attr-defined]
    assert (responses[-1][0].Status, counts(responses[-1][0]), len(workstation.files)) == (0, (count, 0, 0), count)


def test_nothing_is_moved_to_an_application_entity_that_is_not_configured(asker: Asker) -> None:
    ((status, _),) = asker.move(keys("STUDY", StudyInstanceUID=STUDY), "ELSEWHERE")
    assert status.Status == 0xA801


def test_a_destination_that_does_not_answer_is_said_to_be_unreachable(asker: Asker) -> None:
    ((status, _),) = asker.move(keys("STUDY", StudyInstanceUID=STUDY), "DOWN")
    assert status.Status == 0xA801


@pytest.mark.parametrize(
    "identifier",
    [
        keys("STUDY", StudyInstanceUID=""),
        keys("STUDY", StudyInstanceUID="1.2.*"),
        keys("SERIES", SeriesInstanceUID=SERIES),
        keys("PATIENT", PatientID="P1"),
    ],
)
def test_an_identifier_that_names_nothing_is_refused(
    asker: Asker, workstation: Workstation, identifier: Dataset
) -> None:
    status, _ = asker.move(identifier, "VIEWER")[-1]
    assert (status.Status, bool(status.ErrorComment), workstation.files) == (0xA900, True, [])
    status, _ = asker.get(identifier, CT)[-1]
    assert (status.Status, bool(status.ErrorComment)) == (0xA900, True)


def test_relational_retrieval_needs_no_path_where_it_was_negotiated(asker: Asker, workstation: Workstation) -> None:
    with asker.associated(STUDY_ROOT.move, ext_neg=[extended(STUDY_ROOT.move, 1)]) as association:
        responses = list(
            association.send_c_move(keys("IMAGE", SOPInstanceUID=f"{SERIES}.3"), "VIEWER", STUDY_ROOT.move)
        )
    assert (responses[-1][0].Status, len(workstation.files)) == (0, 1)


def test_a_study_is_got_over_the_association_that_asked_for_it(asker: Asker, database: Database) -> None:
    responses = asker.get(keys("STUDY", StudyInstanceUID=STUDY), CT)
    assert (responses[-1][0].Status, counts(responses[-1][0])) == (0, (5, 0, 0))
    assert {d.SOPInstanceUID for d in asker.received} == {f"{SERIES}.{n}" for n in range(1, 6)}
    # The one that is stored in implicit VR came in explicit VR, the only one accepted, with the same pixels.
    last = next(d for d in asker.received if d.SOPInstanceUID == f"{SERIES}.5")
    assert last.file_meta.TransferSyntaxUID == EXPLICIT
    assert last.PixelData == a_slice(5).PixelData
    assert last.PatientName == "Doe^Jane"
    # Afterwards the association stores as before.
    assert asker.values(keys("STUDY", StudyInstanceUID=""), "StudyInstanceUID") == [STUDY]


def test_without_the_role_nothing_is_got_and_all_is_listed_as_failed(asker: Asker) -> None:
    with asker.associated(STUDY_ROOT.get, CT) as association:
        responses = list(association.send_c_get(keys("STUDY", StudyInstanceUID=STUDY), STUDY_ROOT.get))
    status, identifier = responses[-1]
    assert (status.Status, counts(status)) == (0xA702, (0, 5, 0))
    assert len(identifier.FailedSOPInstanceUIDList) == 5


def test_what_cannot_leave_is_listed_and_the_rest_arrives(
    asker: Asker, workstation: Workstation, database: Database, tmp_path: Path
) -> None:
    gone = stored(database)[1]
    (tmp_path / "data" / "archive" / gone.path).unlink()
    status, identifier = asker.move(keys("STUDY", StudyInstanceUID=STUDY), "VIEWER")[-1]
    assert (status.Status, counts(status)) == (0xB000, (4, 1, 0))
    assert identifier.FailedSOPInstanceUIDList == gone.sop_instance_uid
    assert len(workstation.files) == 4


def test_a_warning_of_the_destination_is_passed_on(asker: Asker, workstation: Workstation) -> None:
    workstation.answer = 0xB007
    status, _ = asker.move(keys("STUDY", StudyInstanceUID=STUDY), "VIEWER")[-1]
    assert (status.Status, counts(status)) == (0xB000, (0, 0, 5))


def test_a_move_stops_when_it_is_cancelled(asker: Asker, workstation: Workstation) -> None:
    with asker.associated(STUDY_ROOT.move) as association:
        responses = association.send_c_move(keys("STUDY", StudyInstanceUID=STUDY), "VIEWER", STUDY_ROOT.move, msg_id=9)
        association.send_c_cancel(9, query_model=STUDY_ROOT.move)
        status, _ = list(responses)[-1]
    # It may have been done before the cancellation arrived; else it counts what was left.
    left = status.get("NumberOfRemainingSuboperations", 0)
    assert (status.Status == 0xFE00) == (left > 0)
    assert len(workstation.files) == 5 - left


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_a_compressed_slice_leaves_as_it_is_or_decompressed(tmp_path: Path, database: Database, syntax: str) -> None:
    plain = a_slice(1)
    plain.PixelData = bytes(i if i % 2 == 0 else i % 16 for i in range(256)) * 2
    compressed = dcmread(BytesIO(part_10(plain)))
    compressed.compress(syntax, generate_instance_uid=False)
    both, old = Workstation(syntaxes=(syntax, EXPLICIT)), Workstation(syntaxes=(IMPLICIT,))
    old.entity.ae_title = "OLD"
    with both.listening() as viewer, old.listening() as second:
        third = second.model_copy(update={"name": "old", "ae_title": "OLD"})
        with archive_node(tmp_path / "data", database, destinations=[viewer, third]) as node:
            assert send(node, compressed, syntax=syntax) == [0]
            asker = Asker(node.port)
            for to in ("VIEWER", "OLD"):
                status, _ = asker.move(keys("STUDY", StudyInstanceUID=STUDY), to)[-1]
                assert (status.Status, counts(status)) == (0, (1, 0, 0))
    assert {hashlib.sha256(data).hexdigest() for data in both.encoded} == digests(database)
    (file,) = old.files
    assert (file.file_meta.TransferSyntaxUID, file.PixelData) == (ImplicitVRLittleEndian, plain.PixelData)
    assert file.SOPInstanceUID == plain.SOPInstanceUID


def test_what_was_compressed_with_loss_is_never_converted(tmp_path: Path, database: Database) -> None:
    lossy = a_slice(1)
    lossy.PixelData = encapsulate([b"ab"])
    lossy["PixelData"].VR = "OB"
    lossy["PixelData"].is_undefined_length = True
    with Workstation().listening() as viewer, archive_node(tmp_path / "data", database, destinations=[viewer]) as node:
        assert send(node, lossy, syntax="1.2.840.10008.1.2.4.50") == [0]
        status, _ = Asker(node.port).move(keys("STUDY", StudyInstanceUID=STUDY), "VIEWER")[-1]
    assert (status.Status, counts(status)) == (0xA702, (0, 1, 0))


def test_a_destination_that_falls_silent_costs_one_timeout_and_no_more(tmp_path: Path, database: Database) -> None:
    workstation = Workstation()
    aborting = workstation._store

    def abort(event: object) -> int:
        event.assoc.abort()  # type: ignore[attr-defined]
        return aborting(event)  # type: ignore[arg-type]

    workstation._store = abort  # type: ignore[assignment, method-assign]
    with workstation.listening() as viewer, archive_node(tmp_path / "data", database, destinations=[viewer]) as node:
        assert set(send(node, *(a_slice(number) for number in range(1, 4)))) == {0}
        status, identifier = Asker(node.port).move(keys("STUDY", StudyInstanceUID=STUDY), "VIEWER")[-1]
        assert (status.Status, counts(status), len(identifier.FailedSOPInstanceUIDList)) == (0xA702, (0, 3, 0), 3)
        requested(node).release()
        wait_until(lambda: not node.detail()["associations"])
