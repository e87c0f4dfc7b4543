"""What a scanner says of its performed procedure step, and a far side that is told what is available."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydicom import Dataset
from pydicom.config import disable_value_validation
from pydicom.sequence import Sequence
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.events import Event

from db.performed_steps import MPPS
from node.deliver.availability import AVAILABILITY
from tests.worklist_node import serving

STEP, STUDY = "1.9.1", "1.2.826.0.1.99.1"
ENDED = {"PerformedProcedureStepEndDate": "20260714", "PerformedProcedureStepEndTime": "1015"}


def data(**values: Any) -> Dataset:
    dataset = Dataset()
    with disable_value_validation():
        for keyword, value in values.items():
            setattr(dataset, keyword, Sequence(value) if isinstance(value, list) else value)
    return dataset


def begun(**changes: Any) -> Dataset:
    """The attributes with which a scanner begins a step; None leaves one out."""
    values: dict[str, Any] = {
        "ScheduledStepAttributesSequence": [data(StudyInstanceUID=STUDY, AccessionNumber="A1")],
        "PatientName": "Doe^Jane",
        "PatientID": "P1",
        "PerformedProcedureStepID": "PPS1",
        "PerformedStationAETitle": "CT1",
        "PerformedProcedureStepStartDate": "20260714",
        "PerformedProcedureStepStartTime": "1010",
        "PerformedProcedureStepStatus": "IN PROGRESS",
        "Modality": "CT",
    }
    return data(**{k: v for k, v in (values | changes).items() if v is not None})


def made(*uids: str, series: str = "1.5") -> list[Dataset]:
    images = [data(ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.2", ReferencedSOPInstanceUID=uid) for uid in uids]
    return [data(SeriesInstanceUID=series, ProtocolName="Head", ReferencedImageSequence=images)]


def completed(*uids: str, **changes: Any) -> Dataset:
    values = {"PerformedProcedureStepStatus": "COMPLETED", "PerformedSeriesSequence": made(*(uids or ("1.5.1",)))}
    return data(**{k: v for k, v in (values | ENDED | changes).items() if v is not None})


def create(scanner: Association, dataset: Dataset | None, uid: str | None = STEP) -> Dataset:
    status, answered = scanner.send_n_create(dataset, MPPS, uid)
    if answered:
        status.update(answered)
    return status


def update(scanner: Association, dataset: Dataset, uid: str = STEP) -> Dataset:
    status, _ = scanner.send_n_set(dataset, MPPS, uid)
    return status


@contextmanager
def ris(*statuses: int) -> Iterator[tuple[int, list[tuple[str, Dataset]]]]:
    """The port of a far side that answers with these statuses, and what it was told under which UIDs."""
    told: list[tuple[str, Dataset]] = []
    answers = list(statuses)

    def create(event: Event) -> tuple[int, None]:
        request: Any = event.request
        told.append((str(request.AffectedSOPInstanceUID), event.attribute_list))
        return answers.pop(0) if len(answers) > 1 else answers[0], None

    entity = ApplicationEntity("RIS")
    entity.add_supported_context(AVAILABILITY)
    with serving(entity, port=0, handlers=[(evt.EVT_N_CREATE, create)]) as port:
        yield port, told
