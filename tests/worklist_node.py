"""A listening worklist node for tests, and results to flag on it."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from socketserver import BaseServer
from typing import Any

from pydicom import Dataset
from pydicom.config import disable_value_validation
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.events import Event

from db import worklist
from db.dicom_json import data_set
from db.engine import Database
from db.procedure_step import Answer, WorkItem
from db.schema import now
from db.states import WorkItemState
from inference.result import Completeness, ModelReading, Outcome, SeriesChoice, StudyResult
from node.config import RemoteSection, Settings
from node.flag.flag import Flag, flag_of
from node.flag.workitem import reading
from node.query import ups
from node.query import worklist as modality_worklist
from node.query.together import together
from node.receive.scp import Scp
from node.steady import steady

OWN = "HEMONODE"
PUSH, WATCH, PULL, EVENT, QUERY = (f"1.2.840.10008.5.1.4.34.6.{number}" for number in range(1, 6))
MODALITY_WORKLIST = "1.2.840.10008.5.1.4.31"
HOST = "127.0.0.1"
CLAIM = "1.9.1"


CODE = data_set(CodeValue="1", CodingSchemeDesignator="99", CodeMeaning="x")
DONE = data_set(
    UnifiedProcedureStepPerformedProcedureSequence=data_set(
        PerformedStationNameCodeSequence=CODE,
        PerformedProcedureStepStartDateTime="20260714",
        PerformedWorkitemCodeSequence=CODE,
        PerformedProcedureStepEndDateTime="20260714",
        OutputInformationSequence=None,
    )
)


def claimed(database: Database, item: WorkItem) -> None:
    with database.write() as tx:
        reply = worklist.change_state(tx, uid=item.uid, to=WorkItemState.IN_PROGRESS, transaction_uid=CLAIM)
    assert reply.answer is Answer.DONE


def completed(database: Database, item: WorkItem) -> None:
    claimed(database, item)
    with database.write() as tx:
        worklist.update(tx, uid=item.uid, transaction_uid=CLAIM, changes=DONE)
        reply = worklist.change_state(tx, uid=item.uid, to=WorkItemState.COMPLETED, transaction_uid=CLAIM)
    assert reply.answer is Answer.DONE


def a_header(*, name: str = "Doe^Jane", patient_id: str = "P1", accession: str = "A1") -> dict[str, Any]:
    return data_set(
        PatientName={"vr": "PN", "Value": [{"Alphabetic": name}]},
        PatientID=patient_id,
        PatientBirthDate="19500101",
        PatientSex="F",
        AccessionNumber=accession,
        StudyID="RP1",
        StudyDescription="CT head",
        ReferringPhysicianName={"vr": "PN", "Value": [{"Alphabetic": "House^Gregory"}]},
    )


def a_result(
    outcome: Outcome = Outcome.POSITIVE,
    *,
    study_uid: str = "1.2.3",
    revision: int = 1,
    complete: bool = True,
    reason: str = "RADnet: 5 consecutive slices at or above 0.50",
) -> StudyResult:
    model = ModelReading(
        name="radnet", family="radnet", version="1", digest="ab" * 32, demonstration=True, rule="3 slices", findings=()
    )
    return StudyResult(
        study_uid=study_uid,
        revision=revision,
        outcome=outcome,
        reason=reason,
        completeness=Completeness(
            complete=complete, reason="whole" if complete else "the limit passed", missing=("1 slice at 42.5 mm",) * 1
        ),
        series=(SeriesChoice(series_uid=f"{study_uid}.1", chosen=True, rank=1, code="read", reason="axial head"),),
        readings=(model,),
    )


def a_flag(outcome: Outcome = Outcome.POSITIVE, *, header: dict[str, Any] | None = None, **result: Any) -> Flag:
    return flag_of(a_result(outcome, **result), header=a_header() if header is None else header)


def put(database: Database, flag: Flag) -> WorkItem:
    with database.write() as tx:
        return worklist.put_reading(tx, reading(flag, ae_title=OWN, at=now(), retrieve_ae_title=OWN))


@contextmanager
def listening(database: Database, *, subscribers: Sequence[str] = ()) -> Iterator[int]:
    """The port on which the node listens with its UPS and modality worklist services."""
    offered = together(
        ups.service(database=database, subscribers=subscribers),
        modality_worklist.service(database=database, ae_title=OWN),
    )
    with tempfile.TemporaryDirectory() as data:
        settings = Settings.model_validate(
            {"node": {"data": data, "ae_title": OWN}, "receive": {"disk_watermark_mb": 0, "disk_reserve_mb": 0}}
        )
        any_port = settings.node.model_copy(update={"port": 0})
        scp = Scp(settings=settings.model_copy(update={"node": any_port}), database=database, services=[offered])
        scp.start()
        try:
            with disable_value_validation():  # as in every process of the node
                yield scp.port
        finally:
            scp.stop(grace_seconds=10)


@contextmanager
def serving(entity: ApplicationEntity, *, port: int, handlers: list[Any]) -> Iterator[int]:
    """The port on which `entity` listens; like `start_server`, but it stops at once."""
    server = entity.make_server((HOST, port), evt_handlers=handlers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        BaseServer.shutdown(server)  # pynetdicom's own knows only servers it started itself
        server.server_close()
        thread.join(timeout=10)


@contextmanager
def associated(port: int, *syntaxes: str, calling: str = "PACS") -> Iterator[Association]:
    """An association as any other program would open it."""
    entity = ApplicationEntity(calling)
    for syntax in syntaxes:
        entity.add_requested_context(syntax)
    association = steady(entity.associate(HOST, port, ae_title=OWN))
    assert association.is_established
    try:
        yield association
    finally:
        association.release()


def a_free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


def remote(port: int, *, name: str = "ris", ae_title: str = OWN) -> RemoteSection:
    return RemoteSection(name=name, ae_title=ae_title, address=HOST, port=port)


@dataclass(frozen=True, kw_only=True)
class Told:
    """An event report as a subscriber received it."""

    sop_class_uid: str
    workitem_uid: str
    event_type: int
    information: Dataset


@contextmanager
def subscriber(
    *, ae_title: str = "WATCHER", port: int = 0, status: Callable[[int], int] = lambda _n: 0x0000
) -> Iterator[tuple[int, list[Told]]]:
    """A subscriber's port, and what it has been told so far; `status` answers the n-th report."""
    told: list[Told] = []

    def hear(event: Event) -> tuple[int, None]:
        request: Any = event.request
        told.append(
            Told(
                sop_class_uid=str(request.AffectedSOPClassUID),
                workitem_uid=str(request.AffectedSOPInstanceUID),
                event_type=int(request.EventTypeID),
                information=event.event_information,
            )
        )
        return status(len(told)), None

    entity = ApplicationEntity(ae_title)
    entity.add_supported_context(EVENT, scu_role=True, scp_role=True)
    with serving(entity, port=port, handlers=[(evt.EVT_N_EVENT_REPORT, hear)]) as bound:
        yield bound, told
