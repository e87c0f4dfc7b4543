"""A node that takes images, commits to them and hears of performed procedure steps; and a scanner that asks it to."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.events import Event

from db import commitments
from db.commitments import PUSH_MODEL, PUSH_MODEL_INSTANCE, Request
from db.engine import Database
from node.config import DeliverSection, PeerSection, Settings
from node.deliver.commitment import Reports, report_due, report_to_strangers
from node.query.together import together
from node.receive import commitment, mpps
from node.receive.held import check_due
from node.receive.scp import Scp
from node.steady import steady
from tests.receiving import listening
from tests.worklist_node import HOST, serving

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
TRANSACTION = "1.9.7"
NEVER = threading.Event()
AT_ONCE = DeliverSection(attempts=3, first_retry=1e-6, longest_retry=1e-6, timeout=5)


def settings_of(data: Path, **sections: Any) -> Settings:
    """A node under `data` that listens on any free port and waits for nothing."""
    quick = {"commitment": {"grace": 0, "hold": 0}, "receive": {"disk_watermark_mb": 0, "disk_reserve_mb": 0}}
    settings = Settings.model_validate({"node": {"data": data}, **quick, **sections})
    return settings.model_copy(update={"node": settings.node.model_copy(update={"port": 0})})


def offering(settings: Settings, database: Database) -> AbstractContextManager[Scp]:
    """The listening side of a node with all that scanners expect, until the block ends."""
    return listening(
        settings, database, together(commitment.service(database=database), mpps.service(database=database))
    )


@dataclass(frozen=True, kw_only=True)
class Told:
    """An event report as it came. `held` and `failed` map SOP Instance UIDs to SOP Class UID and failure reason."""

    transaction_uid: str
    event_type: int
    held: dict[str, str]
    failed: dict[str, int]


@dataclass(kw_only=True)
class Scanner:
    """An application entity that asks for commitment, over an association that it opens, and takes reports."""

    ae_title: str = "CT1"
    statuses: list[int] = field(default_factory=lambda: [0x0000])
    told: list[Told] = field(default_factory=list)
    heard: threading.Event = field(default_factory=threading.Event)

    def hear(self, event: Event) -> tuple[int, None]:
        said = event.event_information
        self.told.append(
            Told(
                transaction_uid=str(said.TransactionUID),
                event_type=int(event.event_type or 0),
                held={str(i.ReferencedSOPInstanceUID): str(i.ReferencedSOPClassUID)
                      for i in said.get("ReferencedSOPSequence", [])},
                failed={str(i.ReferencedSOPInstanceUID): int(i.FailureReason)
                        for i in said.get("FailedSOPSequence", [])},
            )
        )  # fmt: skip
        self.heard.set()
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0], None

    @contextmanager
    def associated(self, port: int, *more: str) -> Iterator[Association]:
        entity = ApplicationEntity(self.ae_title)
        for syntax in (PUSH_MODEL, *more):
            entity.add_requested_context(syntax)
        handlers: list[Any] = [(evt.EVT_N_EVENT_REPORT, self.hear)]
        association = steady(entity.associate(HOST, port, ae_title="HEMONODE", evt_handlers=handlers))
        assert association.is_established
        try:
            yield association
        finally:
            association.release()

    @contextmanager
    def listening(self, port: int = 0) -> Iterator[int]:
        """The port on which it takes reports: only from those who propose to be SCP (PS3.4 J.3.1)."""
        entity = ApplicationEntity(self.ae_title)
        entity.add_supported_context(PUSH_MODEL, scu_role=True, scp_role=True)
        with serving(entity, port=port, handlers=[(evt.EVT_N_EVENT_REPORT, self.hear)]) as bound:
            yield bound

    def ask(self, port: int, *uids: str, **how: Any) -> int:
        """The status with which a request was answered, over an association of its own."""
        with self.associated(port) as association:
            return requested(association, *uids, **how)


def requested(
    association: Association,
    *uids: str,
    transaction: str | None = TRANSACTION,
    sop_class: str = CT_IMAGE,
    action: int = 1,
    instance: str = PUSH_MODEL_INSTANCE,
) -> int:
    """The status of an N-ACTION that asks for these instances."""
    asked = Dataset()
    if transaction is not None:
        asked.TransactionUID = transaction
    asked.ReferencedSOPSequence = [_reference(sop_class, uid) for uid in uids]
    status, _ = association.send_n_action(asked, action, PUSH_MODEL, instance)
    return int(status.Status)


def _reference(sop_class: str, uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
    return item


def checked(database: Database, settings: Settings, *, owner: str = "s") -> int:
    """How many requests one look of the schedule process has dealt with."""
    return check_due(database, settings, owner=owner, stop=NEVER)


def reported(database: Database, *, port: int | None, policy: DeliverSection = AT_ONCE, ae_title: str = "CT1") -> int:
    """How many reports one look has tried to bring to the scanner, which listens on `port` or has none."""
    peers: Sequence[PeerSection] = (PeerSection(ae_title=ae_title, addresses=(HOST,), port=port),)
    reports = Reports(database=database, peers=peers, own_ae_title="HEMONODE", policy=policy, stop=NEVER)
    if port is None:
        return report_to_strangers(reports, known=frozenset(), owner="r")
    return report_due(reports, ae_title=ae_title, owner="r")


def told(database: Database, settings: Settings, scanner: Scanner) -> None:
    """The schedule process has looked once, and its report has arrived."""
    assert checked(database, settings) == 1
    with scanner.listening() as port:
        assert reported(database, port=port) == 1


def requests(database: Database, transaction: str = TRANSACTION) -> tuple[Request, ...]:
    """What stands of a transaction."""
    with database.read() as tx:
        return commitments.find(tx, transaction_uid=transaction)
