"""Instance Availability Notification (PS3.4 annex R): tells who wants to know which instances can be retrieved here."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Sequence

from pydicom.dataset import Dataset
from pynetdicom.association import Association

from db import instances, performed_steps
from db.deliveries import Delivery
from db.dicom_json import Attributes, data_set, dataset_of
from db.engine import Database
from db.instances import Instance
from db.performed_steps import MPPS, PerformedStep
from node.config import RemoteSection
from node.deliver.outbox import Act, Receipt
from node.errors import DeliveryError, PeerUnreachable
from node.scu import associate, checked

AVAILABILITY = "1.2.840.10008.5.1.4.33"
"""Instance Availability Notification SOP Class."""
ONLINE = "ONLINE"
"""Instance Availability (0008,0056), PS3.3 C.4.23.1.1: can be retrieved at once."""
TOLD = {0x0000: "told", 0x0111: "told already"}


def announce(
    database: Database, *, remote: RemoteSection, own_ae_title: str, retrieve_ae_title: str, timeout: float
) -> Act:
    """The delivery to `remote`: it knows which instances of the study can be retrieved from `retrieve_ae_title`."""

    def act(delivery: Delivery) -> Receipt:
        with database.read() as tx:
            stored = instances.of_study(tx, delivery.study_uid, up_to_revision=delivery.revision)
            steps = performed_steps.of_study(tx, delivery.study_uid)
        if not stored:
            raise DeliveryError("no instance of the study is left to speak of")
        uid = _uid(delivery)
        said = dataset_of(notification(stored, steps, retrieve_ae_title=retrieve_ae_title))
        with associate(remote, own_ae_title=own_ae_title, contexts=[AVAILABILITY], timeout=timeout) as association:
            status = checked(
                _create(association, said, uid), doing=f"N-CREATE to {remote.ae_title}", accept=tuple(TOLD)
            )
        return Receipt(detail=f"{TOLD[status]} of {len(stored)} instances", sop_instance_uid=uid)

    return act


def notification(stored: Sequence[Instance], steps: Sequence[PerformedStep], *, retrieve_ae_title: str) -> Attributes:
    """The attributes of PS3.4 table R.3.2-1, of at least one instance of one study."""
    by_series = sorted(stored, key=lambda instance: (instance.series_uid, instance.seq))
    series = [
        data_set(
            SeriesInstanceUID=series_uid,
            ReferencedSOPSequence=[_reference(one, retrieve_ae_title=retrieve_ae_title) for one in members],
        )
        for series_uid, members in itertools.groupby(by_series, key=lambda instance: instance.series_uid)
    ]
    return data_set(
        ReferencedPerformedProcedureStepSequence=[
            data_set(
                ReferencedSOPClassUID=MPPS, ReferencedSOPInstanceUID=step.uid, PerformedWorkitemCodeSequence=None
            )
            for step in steps
        ],
        StudyInstanceUID=stored[0].study_uid,
        ReferencedSeriesSequence=series,
    )  # fmt: skip


def _reference(instance: Instance, *, retrieve_ae_title: str) -> Attributes:
    return data_set(
        ReferencedSOPClassUID=instance.sop_class_uid,
        ReferencedSOPInstanceUID=instance.sop_instance_uid,
        InstanceAvailability=ONLINE,
        RetrieveAETitle=retrieve_ae_title,
    )


def _uid(delivery: Delivery) -> str:
    # The same notification is the same instance, however often it is sent.
    named = f"availability {delivery.study_uid} {delivery.revision} {delivery.destination}"
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, named).int}"


def _create(association: Association, said: Dataset, uid: str) -> Dataset:
    try:
        answer, _ = association.send_n_create(said, AVAILABILITY, uid)
    except (RuntimeError, ValueError) as error:
        raise PeerUnreachable(f"N-CREATE: {error}") from error
    return answer
