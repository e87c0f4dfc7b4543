"""A far side that records: a reading worklist (UPS SCP) and a PACS (Storage SCP) in a thread of its own."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from socketserver import BaseServer
from typing import Any

from pydicom import Dataset, dcmread
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.events import Event

from node.config import RemoteSection

HOST = "127.0.0.1"
PUSH, WATCH, PULL = (f"1.2.840.10008.5.1.4.34.6.{number}" for number in range(1, 4))
COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
VERIFICATION = "1.2.840.10008.1.1"

SUCCESS = 0x0000
DUPLICATE = 0x0111  # PS3.7 C.5.7
NO_LONGER_UPDATED = 0xC300  # PS3.4 table CC.2.6-2
UNKNOWN = 0xC307
REFUSED = 0xA700


@dataclass(frozen=True, kw_only=True)
class Heard:
    """One request as it came: when (monotonic seconds), what, about which instance, and what was answered."""

    at: float
    what: str
    uid: str
    status: int
    dataset: Dataset


@dataclass(kw_only=True)
class FarSide:
    """An application entity that keeps what it is sent.

    `refusing` makes it refuse every report. `witness` is called with the name of each request ("N-CREATE", "C-STORE")
    that has taken effect here, before it is answered.
    """

    ae_title: str = "FAR"
    port: int = 0
    refusing: bool = False
    heard: list[Heard] = field(default_factory=list)
    items: dict[str, Dataset] = field(default_factory=dict)
    reports: dict[str, Dataset] = field(default_factory=dict)
    contents: dict[str, set[str]] = field(default_factory=dict)
    witness: Callable[[str], object] = str
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def remote(self, name: str) -> RemoteSection:
        """How a node's configuration names it."""
        return RemoteSection(name=name, ae_title=self.ae_title, address=HOST, port=self.port)

    def heard_of(self, study_uid: str, *, what: str = "") -> list[Heard]:
        """The requests about one study, in the order in which they came."""
        with self._lock:
            items = {uid for uid, item in self.items.items() if _study_of(item) == study_uid}
            found = [h for h in self.heard if h.uid in items or _study_of(h.dataset) == study_uid]
        return [h for h in found if not what or h.what == what]

    def items_of(self, study_uid: str) -> list[Dataset]:
        """The study's work items as they stand."""
        with self._lock:
            return [item for item in self.items.values() if _study_of(item) == study_uid]

    def reports_of(self, study_uid: str) -> list[Dataset]:
        """The study's reports, each SOP Instance UID once, in the order in which they came."""
        with self._lock:
            return [report for report in self.reports.values() if _study_of(report) == study_uid]

    @contextmanager
    def listening(self) -> Iterator[FarSide]:
        """It answers on its port until the block ends; on the same one when it comes back."""
        server = self._entity().make_server((HOST, self.port), evt_handlers=self._handlers())
        self.port = int(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            BaseServer.shutdown(server)  # pynetdicom's own knows only servers it started itself
            server.server_close()
            thread.join(timeout=10)

    def _entity(self) -> ApplicationEntity:
        entity = ApplicationEntity(self.ae_title)
        for syntax in (VERIFICATION, PUSH, WATCH, PULL, COMPREHENSIVE_3D_SR, SEGMENTATION):
            entity.add_supported_context(syntax)
        return entity

    def _handlers(self) -> list[Any]:
        return [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_N_CREATE, self._create),
            (evt.EVT_N_SET, self._set),
            (evt.EVT_N_GET, self._get),
        ]

    def _hear(self, at: float, what: str, uid: str, status: int, dataset: Dataset | None = None) -> int:
        self.heard.append(Heard(at=at, what=what, uid=uid, status=status, dataset=dataset or Dataset()))
        self.witness(what)
        return status

    def _store(self, event: Event) -> int:
        at = time.monotonic()
        request: Any = event.request
        report = dcmread(BytesIO(event.encoded_dataset()))
        uid = str(report.SOPInstanceUID)
        with self._lock:
            if self.refusing:
                return self._hear(at, "C-STORE", uid, REFUSED, report)
            self.contents.setdefault(uid, set()).add(hashlib.sha256(request.DataSet.getvalue()).hexdigest())
            self.reports.setdefault(uid, report)
            return self._hear(at, "C-STORE", uid, SUCCESS, report)

    def _create(self, event: Event) -> tuple[int, Dataset | None]:
        at = time.monotonic()
        request: Any = event.request
        uid, item = str(request.AffectedSOPInstanceUID), event.attribute_list
        with self._lock:
            status = DUPLICATE if uid in self.items else SUCCESS
            self.items.setdefault(uid, item)
            return self._hear(at, "N-CREATE", uid, status, item), None

    def _set(self, event: Event) -> tuple[int, Dataset | None]:
        at = time.monotonic()
        request: Any = event.request
        uid, changes = str(request.RequestedSOPInstanceUID), event.modification_list
        with self._lock:
            item = self.items.get(uid)
            if item is None:
                return self._hear(at, "N-SET", uid, UNKNOWN, changes), None
            if item.ProcedureStepState in ("COMPLETED", "CANCELED"):
                return self._hear(at, "N-SET", uid, NO_LONGER_UPDATED, changes), None
            item.update(changes)
            return self._hear(at, "N-SET", uid, SUCCESS, changes), None

    def _get(self, event: Event) -> tuple[int, Dataset | None]:
        at = time.monotonic()
        request: Any = event.request
        uid = str(request.RequestedSOPInstanceUID)
        with self._lock:
            item = self.items.get(uid)
            if item is None:
                return self._hear(at, "N-GET", uid, UNKNOWN), None
            shown = Dataset()
            for tag in event.attribute_identifiers:
                if tag in item:
                    shown.add(item[tag])
            return self._hear(at, "N-GET", uid, SUCCESS), shown


def _study_of(dataset: Dataset) -> str:
    return str(dataset.get("StudyInstanceUID", ""))
