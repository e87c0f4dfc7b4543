"""A listening archive for tests, a client that asks it, and a far side that is moved to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation
from pynetdicom.presentation import build_context, build_role

from db.engine import Database
from inference.facts import facts
from node.config import RemoteSection
from node.query import find, retrieve
from node.query.archive import STUDY_ROOT
from node.query.together import together
from node.receive import store
from node.receive.scp import Scp
from node.steady import steady
from tests.receiving import settings_of
from tests.worklist_node import serving

HOST = "127.0.0.1"
OWN = "HEMONODE"
CT, SR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.88.34"
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
SECONDS = 20


@contextmanager
def archive_node(
    data: Path,
    database: Database,
    *,
    destinations: Sequence[RemoteSection] = (),
    maximum_matches: int = 1000,
    port: int = 0,
) -> Iterator[Scp]:
    """A node that receives, answers queries and sends what is asked for, until the block ends."""
    settings = settings_of(data)
    settings = settings.model_copy(update={"node": settings.node.model_copy(update={"port": port})})
    services = [
        store.service(settings=settings, database=database, facts=lambda dataset: facts(dataset).to_json()),
        together(
            find.service(database=database, ae_title=OWN, maximum_matches=maximum_matches),
            retrieve.service(database=database, archive=settings.archive, destinations=destinations, timeout=SECONDS),
        ),
    ]
    scp = Scp(settings=settings, database=database, services=services)
    scp.start()
    try:
        with disable_value_validation():  # as in every process of the node
            yield scp
    finally:
        scp.stop(grace_seconds=0)


def keys(level: str, **attributes: Any) -> Dataset:
    """An identifier. An empty string asks for an attribute."""
    identifier = Dataset()
    with disable_value_validation():  # wild cards are not values
        for keyword, value in {"QueryRetrieveLevel": level, **attributes}.items():
            setattr(identifier, keyword, value)
    return identifier


def extended(sop_class: str, *bytes_: int) -> SOPClassExtendedNegotiation:
    """A proposal of extended negotiation, byte by byte."""
    item = SOPClassExtendedNegotiation()
    item.sop_class_uid, item.service_class_application_information = sop_class, bytes(bytes_)
    return item


class Asker:
    """An application entity that queries and retrieves."""

    def __init__(self, port: int, *, ae_title: str = "VIEWER") -> None:
        self.port = port
        self.entity = ApplicationEntity(ae_title)
        self.entity.acse_timeout = self.entity.dimse_timeout = self.entity.network_timeout = SECONDS
        self.received: list[Dataset] = []
        self.requests: list[Any] = []

    @contextmanager
    def associated(self, *syntaxes: Any, ext_neg: Sequence[Any] = ()) -> Iterator[Any]:
        """An association with the node in these contexts."""
        contexts = [build_context(s) if isinstance(s, str) else s for s in syntaxes]
        association = self.entity.associate(
            HOST, self.port, contexts=contexts, ae_title=OWN, ext_neg=list(ext_neg),
            evt_handlers=[(evt.EVT_C_STORE, self._store)],
        )  # fmt: skip
        assert steady(association).is_established
        try:
            yield association
        finally:
            association.release()

    def _store(self, event: Event) -> int:
        self.requests.append(event.request)
        self.received.append(dcmread(BytesIO(event.encoded_dataset())))
        return 0x0000

    def find(
        self, identifier: Dataset, *, model: str = STUDY_ROOT.find, ext_neg: Sequence[Any] = ()
    ) -> tuple[list[Dataset], list[Dataset]]:
        """The matches, and the status of every response."""
        with self.associated(model, ext_neg=ext_neg) as association:
            answers = list(association.send_c_find(identifier, model))
        return [match for _, match in answers if match is not None], [status for status, _ in answers]

    def values(self, identifier: Dataset, keyword: str, **options: Any) -> list[str]:
        """One attribute of every match, sorted; the query has succeeded."""
        matches, statuses = self.find(identifier, **options)
        assert statuses[-1].Status == 0x0000, statuses[-1]
        return sorted(str(match.get(keyword, "")) for match in matches)

    def move(self, identifier: Dataset, to: str, *, model: str = STUDY_ROOT.move, priority: int = 2) -> Any:
        """Every response of a C-MOVE: (status, identifier)."""
        with self.associated(model) as association:
            return list(association.send_c_move(identifier, to, model, priority=priority))

    def get(self, identifier: Dataset, *storage: str, syntaxes: Sequence[str] = (EXPLICIT,)) -> Any:
        """Every response of a C-GET: (status, identifier); what came is in `received`."""
        roles = [build_role(uid, scp_role=True) for uid in storage]
        contexts = [STUDY_ROOT.get, *(build_context(uid, list(syntaxes)) for uid in storage)]
        with self.associated(*contexts, ext_neg=roles) as association:
            return list(association.send_c_get(identifier, STUDY_ROOT.get))


class Workstation:
    """A storage SCP that is moved to: what came, and as what request."""

    def __init__(
        self, *, syntaxes: Sequence[str] = (EXPLICIT, IMPLICIT), classes: Sequence[str] = (CT,), keep: bool = True
    ) -> None:
        self._keep = keep
        self.requests: list[Any] = []
        self.files: list[Dataset] = []
        self.encoded: list[bytes] = []
        self.answer = 0x0000
        self.entity = ApplicationEntity("VIEWER")
        for uid in classes:
            self.entity.add_supported_context(uid, list(syntaxes))

    @contextmanager
    def listening(self) -> Iterator[RemoteSection]:
        """How a node's configuration names it, while it listens."""
        with serving(self.entity, port=0, handlers=[(evt.EVT_C_STORE, self._store)]) as port:
            yield RemoteSection(name="viewer", ae_title="VIEWER", address=HOST, port=port)

    def _store(self, event: Event) -> int:
        if not self._keep:
            return self.answer
        self.requests.append(event.request)
        self.encoded.append(event.request.DataSet.getvalue())
        self.files.append(dcmread(BytesIO(event.encoded_dataset())))
        return self.answer
