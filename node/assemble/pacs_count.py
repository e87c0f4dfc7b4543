"""What the PACS says of completeness: its number of instances of each series, asked by C-FIND while a study waits."""

from __future__ import annotations

import threading
import time

from db import studies
from db.engine import Database
from db.states import StudyState
from db.studies import Pending
from node import asking
from node.asking import FIND
from node.assemble.piece import Evidence, Kind, Says
from node.assemble.view import Candidate, PacsCount, Role, StudyView
from node.config import ArchiveSection, AssembleSection, Settings
from node.errors import DeliveryError
from node.log import log
from node.scu import associate


class PacsCounts:
    """What the PACS has told of the studies that are waiting. Asked by a tick of its own, so that no look waits for it.

    Parameters
    ----------
    database : Database
        Where studies wait.
    settings : Settings
        Names the PACS ([assemble] count_from) and the pauses.
    """

    def __init__(self, *, database: Database, settings: Settings, archive: ArchiveSection) -> None:
        self._database = database
        self._settings = settings
        self._archive = archive
        self._lock = threading.Lock()
        self._told: dict[str, PacsCount] = {}
        self._failing = False

    def of(self, study_uid: str) -> PacsCount | None:
        """What it last told of a study."""
        with self._lock:
            return self._told.get(study_uid)

    def ask(self) -> int:
        """The PACS was asked about every waiting study whose time has come; returns how many."""
        with self._database.read() as tx:
            waiting = [study for study in studies.pending(tx) if study.state is StudyState.RECEIVING]
        with self._lock:
            self._told = {s.study_uid: self._told[s.study_uid] for s in waiting if s.study_uid in self._told}
        due = [study.study_uid for study in waiting if self._is_due(study)]
        if due:
            self._ask(due)
        return len(due)

    def _is_due(self, study: Pending) -> bool:
        told = self.of(study.study_uid)
        return told is None or time.monotonic() >= told.at + self._settings.assemble.count_every

    def _ask(self, study_uids: list[str]) -> None:
        settings = self._settings
        try:
            with associate(
                self._archive, own_ae_title=settings.node.ae_title, contexts=[FIND], timeout=settings.deliver.timeout
            ) as association:
                for uid in study_uids:
                    found = asking.series_of(association, uid)
                    self._keep(uid, {s.series_uid: s.instances for s in found if s.instances is not None})
            self._failing = False
        except DeliveryError as error:
            if not self._failing:
                log().warning("pacs_not_counted", pacs=self._archive.name, error=str(error))
            self._failing = True

    def _keep(self, study_uid: str, series: dict[str, int]) -> None:
        with self._lock:
            before = self._told.get(study_uid)
            stable = before is not None and before.series == series
            self._told[study_uid] = PacsCount(
                name=self._archive.name, at=time.monotonic(), series=series, stable=stable
            )


def pacs_count(study: StudyView, _settings: AssembleSection, _now: float) -> tuple[Evidence, ...]:
    """Whether as much is here of the series to be read as the PACS holds, and holds twice in a row.

    Fewer in the PACS say nothing: the same slices may still be on their way to it.
    """
    told = study.pacs
    chosen = [c for c in study.with_role(Role.CHOSEN) if told and told.series.get(c.series_uid)]
    if told is None or not chosen:
        return ()
    missing = tuple(_short(c, told, study) for c in chosen if _held(study, c) < told.series[c.series_uid])
    if missing:
        return (Evidence(kind=Kind.PACS, says=Says.INCOMPLETE, sentence="; ".join(missing), missing=missing),)
    if not told.stable or any(_held(study, c) > told.series[c.series_uid] for c in chosen):
        return (Evidence(kind=Kind.PACS, says=Says.NOTHING, sentence=f"{told.name} may still be receiving"),)
    named = " and ".join(f"{told.series[c.series_uid]} instances of {c.name}" for c in chosen)
    return (Evidence(kind=Kind.PACS, says=Says.COMPLETE, sentence=f"{told.name} holds no more than {named}"),)


def _short(candidate: Candidate, told: PacsCount, study: StudyView) -> str:
    uid = candidate.series_uid
    return f"{candidate.name}: {_held(study, candidate)} of {told.series[uid]} instances that {told.name} holds"


def _held(study: StudyView, candidate: Candidate) -> int:
    return len(study.held.get(candidate.series_uid, ()))
