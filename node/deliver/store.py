"""Stores reports: in the node's own archive, and by C-STORE at other application entities (PS3.4 annex B)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom.association import Association

from db.deliveries import Delivery
from node.config import RemoteSection
from node.deliver.outbox import Act, Receipt
from node.errors import PeerUnreachable
from node.scu import associate, checked

ReportFor = Callable[[str, int], Path]
"""Answers where the report on (study UID, revision) lies; or what else is made of it, and stored like a report."""

# PS3.4 table B.2-1 and PS3.7 C.5: statuses after which the far side holds the object.
_HELD = {
    0x0000: "stored",
    0x0111: "held already",
    0xB000: "stored, some values changed by the far side",
    0xB006: "stored, some elements discarded by the far side",
    0xB007: "stored, though the far side finds that it does not match its SOP class",
}


def file_in_archive(*, report_for: ReportFor) -> Act:
    """The delivery to the destination ``archive``: the report lies in it, and was read back."""

    def act(delivery: Delivery) -> Receipt:
        path = report_for(delivery.study_uid, delivery.revision)
        filed = dcmread(path, specific_tags=["SOPInstanceUID"])
        return Receipt(detail=f"filed as {path.name}", confirmed=True, sop_instance_uid=str(filed.SOPInstanceUID))

    return act


def store_report(*, remote: RemoteSection, own_ae_title: str, timeout: float, report_for: ReportFor) -> Act:
    """The delivery to `remote`: the report was sent, and the status of that one instance says that it is held.

    Parameters
    ----------
    timeout : float
        Seconds for connecting, for the association and for the answer.
    """

    def act(delivery: Delivery) -> Receipt:
        report = dcmread(report_for(delivery.study_uid, delivery.revision))
        with associate(
            remote, own_ae_title=own_ae_title, contexts=[report.SOPClassUID], timeout=timeout
        ) as association:
            status = checked(_store(association, report), doing=f"C-STORE to {remote.ae_title}", accept=tuple(_HELD))
        return Receipt(detail=f"{_HELD[status]} (0x{status:04X})", sop_instance_uid=str(report.SOPInstanceUID))

    return act


def _store(association: Association, report: Dataset) -> Dataset:
    try:
        answer: Dataset = association.send_c_store(report)
    except RuntimeError as error:
        raise PeerUnreachable(f"the association ended before the report was sent: {error}") from error
    return answer
