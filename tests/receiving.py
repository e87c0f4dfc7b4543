"""What the tests of reception share: small data sets, a node that listens on a free port, a scanner that sends."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context

from db import instances
from db.engine import Database
from db.instances import Instance, SetAside
from node.config import Settings
from node.receive import store
from node.receive.intake import StoreRequest
from node.receive.scp import Scp
from node.receive.spool import Spooled
from node.service import Service
from node.steady import rejection_of, steady

DEADLINE_SECONDS = 20.0
HEADER_BYTES = 128 + 4


def facts(dataset: Dataset) -> dict[str, Any]:
    """Stands for the index's own reading of a header."""
    return {"rows": dataset.get("Rows"), "pixels_seen": "PixelData" in dataset}


def a_slice(number: int = 1, **values: Any) -> Dataset:
    """A CT slice of 16 × 16 pixels; `values` are attributes to set, None removes one."""
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = f"1.2.826.0.1.99.1.1.{number}"
    dataset.StudyInstanceUID = "1.2.826.0.1.99.1"
    dataset.SeriesInstanceUID = "1.2.826.0.1.99.1.1"
    dataset.PatientName = "Doe^Jane"
    dataset.PatientID = "P1"
    dataset.StudyID = "S1"
    dataset.StudyDate = "20260101"
    dataset.Modality = "CT"
    dataset.InstanceNumber = number
    dataset.ImagePositionPatient = [0, 0, 5 * number]
    dataset.Rows = dataset.Columns = 16
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = number.to_bytes(2, "little") * 256
    dataset["PixelData"].VR = "OW"
    for keyword, value in values.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def encoded(dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """The data set's bytes as they travel in a C-STORE."""
    return data_set_of(part_10(dataset, syntax))


def part_10(dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """The data set as a DICOM file."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", CTImageStorage)
    meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", generate_uid())
    meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta = meta
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def data_set_of(file: bytes) -> bytes:
    """The bytes of a DICOM file behind its File Meta Information."""
    length = int.from_bytes(file[HEADER_BYTES + 8 : HEADER_BYTES + 12], "little")
    return file[HEADER_BYTES + 12 + length :]


def a_request(dataset: Dataset, *, data: bytes | Spooled | None = None, **values: Any) -> StoreRequest:
    """A C-STORE of the data set, or of `data`; `values` are fields of the request."""
    fields: dict[str, Any] = {
        "association_id": "a1",
        "calling_ae": "CT1",
        "abstract_syntax_uid": str(dataset.SOPClassUID),
        "transfer_syntax_uid": ExplicitVRLittleEndian,
        "sop_class_uid": str(dataset.SOPClassUID),
        "sop_instance_uid": str(dataset.SOPInstanceUID),
        "data": data if isinstance(data, Spooled) else BytesIO(data or encoded(dataset)),
    }
    return StoreRequest(**fields | values)


def wait_until(condition: Callable[[], Any]) -> Any:
    """What `condition` returns as soon as that is true; fails at the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (result := condition()):
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)
    return result


def settings_of(data: Path, *, peers: Sequence[dict[str, Any]] = (), **receive: Any) -> Settings:
    """Settings with the archive under `data` and any free port."""
    settings = Settings.model_validate(
        {"node": {"data": data}, "receive": {"disk_watermark_mb": 0, "disk_reserve_mb": 0, **receive}, "peers": peers}
    )
    return settings.model_copy(update={"node": settings.node.model_copy(update={"port": 0})})


@contextmanager
def listening(settings: Settings, database: Database, *more: Service) -> Iterator[Scp]:
    """A node that receives, and offers `more`, until the block ends."""
    services = [store.service(settings=settings, database=database, facts=facts), *more]
    scp = Scp(settings=settings, database=database, services=services)
    scp.start()
    try:
        yield scp
    finally:
        scp.stop(grace_seconds=0)


class Receiver:
    """A receiving process, seen from outside. Its log goes to the file ``log`` beside its data."""

    def __init__(self, data: Path, **receive: Any) -> None:
        with open(data.parent / "log", "a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.receiving_process", str(data), json.dumps(receive)],
                cwd=Path(__file__).parents[1],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())


@contextmanager
def a_receiver(data: Path, **receive: Any) -> Iterator[Receiver]:
    """A receiving process with these settings, killed when the block ends."""
    receiver = Receiver(data, **receive)
    try:
        yield receiver
    finally:
        receiver.process.kill()
        receiver.process.communicate()


def requested(
    scp: Scp | Receiver,
    *contexts: PresentationContext | str,
    calling: str = "CT1",
    called: str = "HEMONODE",
    timeout: float = 20,
) -> Association:
    """What came of an association request; verification alone unless contexts are named."""
    scanner = ApplicationEntity(calling)
    scanner.acse_timeout = scanner.dimse_timeout = scanner.network_timeout = timeout
    offered = [build_context(c) if isinstance(c, str) else c for c in contexts or ("1.2.840.10008.1.1",)]
    sockets: list[socket.socket] = []
    # pynetdicom leaves a socket open that the far side has reset; an open socket would fail some later test.
    handlers: list[Any] = [
        (evt.EVT_CONN_OPEN, lambda event: sockets.append(event.assoc.dul.socket.socket)),
        (evt.EVT_CONN_CLOSE, lambda _: sockets.pop().close()),
    ]
    asked = scanner.associate("127.0.0.1", scp.port, contexts=offered, ae_title=called, evt_handlers=handlers)
    return steady(asked)


def rejection(association: Association) -> tuple[int, int, int]:
    """Result, source and reason of an A-ASSOCIATE-RJ."""
    primitive: Any = rejection_of(association)
    assert primitive is not None
    return (primitive.result, primitive.result_source, primitive.diagnostic)


@contextmanager
def associated(
    scp: Scp | Receiver, *contexts: PresentationContext | str, calling: str = "CT1"
) -> Iterator[Association]:
    """An association that was accepted, released at the end."""
    association = requested(scp, *contexts, calling=calling)
    assert association.is_established
    try:
        yield association
    finally:
        association.release()


def send(
    scp: Scp | Receiver, *datasets: Dataset, syntax: str = ExplicitVRLittleEndian, calling: str = "CT1"
) -> list[int]:
    """Each data set's C-STORE status, all sent in one association."""
    classes = dict.fromkeys(str(dataset.SOPClassUID) for dataset in datasets)
    with associated(scp, *(build_context(uid, syntax) for uid in classes), calling=calling) as association:
        return [status_of(association, dataset, syntax) for dataset in datasets]


def status_of(association: Association, dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> int:
    """The status of one C-STORE."""
    file = dcmread(BytesIO(part_10(dataset, syntax)))
    return int(association.send_c_store(file).Status)


def stored(database: Database, study_uid: str = "1.2.826.0.1.99.1") -> tuple[Instance, ...]:
    """The rows of a study."""
    with database.read() as tx:
        return instances.of_study(tx, study_uid)


def aside(database: Database) -> tuple[SetAside, ...]:
    """The rows of everything set aside."""
    with database.read() as tx:
        return instances.all_set_aside(tx)


def digest_on_disk(archive: Path, row: Instance | SetAside) -> str:
    """SHA-256 of the data set in the file that a row names."""
    return hashlib.sha256(data_set_of((archive / row.path).read_bytes())).hexdigest()


def parts_being_written(archive: Path) -> list[Path]:
    """Files that are not finished."""
    return list((archive / "incoming").rglob("*.part"))
