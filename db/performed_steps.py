"""Modality Performed Procedure Steps: what a scanner says it is doing, has done, and made (PS3.4 annex F)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from db import audit
from db.dicom_json import Attributes, first, items, tag_of
from db.engine import insert_into
from db.schema import instances, now, performed_step_studies, performed_steps, studies
from db.states import PerformedState, StudyState

MPPS = "1.2.840.10008.3.1.2.3.3"
"""Modality Performed Procedure Step SOP Class (PS3.4 F.7)."""

_SERIES, _SERIES_UID = tag_of("PerformedSeriesSequence"), tag_of("SeriesInstanceUID")
_LISTS = (tag_of("ReferencedImageSequence"), tag_of("ReferencedNonImageCompositeSOPInstanceSequence"))
_INSTANCE_UID = tag_of("ReferencedSOPInstanceUID")
_STATUS = tag_of("PerformedProcedureStepStatus")


@dataclass(frozen=True, kw_only=True)
class PerformedStep:
    """One performed procedure step. `dataset` is all of it in the DICOM JSON Model; it never goes to a log."""

    uid: str
    state: PerformedState
    ae_title: str
    dataset: Attributes
    created_at: dt.datetime
    updated_at: dt.datetime

    @property
    def series(self) -> dict[str, frozenset[str]]:
        """What it lists: SOP Instance UIDs by Series Instance UID."""
        return _listed(self.dataset)


@dataclass(frozen=True, kw_only=True)
class News:
    """How far the steps of one study are: when one last changed, and how many instances they list together.

    `final` says that none is in progress.
    """

    at: dt.datetime
    listed: int
    final: bool


def create(tx: sa.Connection, *, uid: str, ae_title: str, dataset: Attributes) -> bool:
    """The step is in progress and known to its studies; False, with nothing written, where it is known already."""
    at = now()
    values = {"uid": uid, "state": PerformedState.IN_PROGRESS, "ae_title": ae_title, "dataset": dataset}
    query = insert_into(tx, performed_steps).values(listed=_count(dataset), created_at=at, updated_at=at, **values)
    if tx.execute(query.on_conflict_do_nothing().returning(performed_steps.c.uid)).first() is None:
        return False
    for study_uid in _studies(dataset):
        link = insert_into(tx, performed_step_studies).values(study_uid=study_uid, step_uid=uid)
        tx.execute(link.on_conflict_do_nothing())
        audit.record(tx, "step_in_progress", study_uid=study_uid, step_uid=uid, ae_title=ae_title)
    return True


def find(tx: sa.Connection, uid: str) -> PerformedStep | None:
    """The step, or None."""
    row = tx.execute(sa.select(performed_steps).where(performed_steps.c.uid == uid)).mappings().first()
    return _step(row) if row else None


def hold(tx: sa.Connection, uid: str) -> PerformedStep | None:
    """The step, or None; until the transaction ends nobody else changes it."""
    query = sa.select(performed_steps.c.uid).where(performed_steps.c.uid == uid).with_for_update()
    return find(tx, uid) if tx.execute(query).first() else None


def update(tx: sa.Connection, step: PerformedStep, *, changes: Attributes) -> None:
    """The step stands as changed. When it has ended, the timelines of its studies say how much of its list is here."""
    dataset = {**step.dataset, **changes}
    state = PerformedState(str(first(dataset, _STATUS)))
    values = {"state": state, "dataset": dataset, "listed": _count(dataset), "updated_at": now()}
    tx.execute(performed_steps.update().where(performed_steps.c.uid == step.uid).values(**values))
    if state is PerformedState.IN_PROGRESS:
        return
    for study_uid in _studies(dataset):
        _tell_end(tx, study_uid=study_uid, step_uid=step.uid, state=state, dataset=dataset)


def _tell_end(tx: sa.Connection, *, study_uid: str, step_uid: str, state: PerformedState, dataset: Attributes) -> None:
    here = set(tx.execute(sa.select(instances.c.sop_instance_uid).where(instances.c.study_uid == study_uid)).scalars())
    listed = set().union(*_listed(dataset).values())
    study = tx.execute(sa.select(studies.c.state).where(studies.c.study_uid == study_uid)).scalar()
    audit.record(
        tx, f"step_{state.lower()}", study_uid=study_uid, step_uid=step_uid, instances=len(listed),
        not_here=len(listed - here), after_verdict=study not in (None, StudyState.RECEIVING),
    )  # fmt: skip


def of_study(tx: sa.Connection, study_uid: str) -> tuple[PerformedStep, ...]:
    """The steps in which a study was made, oldest first."""
    query = (
        sa.select(performed_steps)
        .join(performed_step_studies, performed_step_studies.c.step_uid == performed_steps.c.uid)
        .where(performed_step_studies.c.study_uid == study_uid)
        .order_by(performed_steps.c.created_at, performed_steps.c.uid)
    )
    return tuple(_step(row) for row in tx.execute(query).mappings())


def news(tx: sa.Connection, study_uids: Collection[str]) -> Mapping[str, News]:
    """How far the steps are of those of the studies that have any."""
    if not study_uids:
        return {}
    step, link = performed_steps.c, performed_step_studies.c
    running = sa.case((step.state == PerformedState.IN_PROGRESS, 1), else_=0)
    query = (
        sa.select(link.study_uid, sa.func.max(step.updated_at), sa.func.sum(step.listed), sa.func.sum(running))
        .join(performed_steps, step.uid == link.step_uid)
        .where(link.study_uid.in_(study_uids))
        .group_by(link.study_uid)
    )
    return {
        str(uid): News(at=at, listed=int(listed), final=not running)
        for uid, at, listed, running in tx.execute(query)
    }  # fmt: skip


def forget(tx: sa.Connection, *, before: dt.datetime) -> None:
    """Steps that last changed before this time leave."""
    old = sa.select(performed_steps.c.uid).where(performed_steps.c.updated_at < before)
    tx.execute(performed_step_studies.delete().where(performed_step_studies.c.step_uid.in_(old)))
    tx.execute(performed_steps.delete().where(performed_steps.c.updated_at < before))


def _studies(dataset: Attributes) -> tuple[str, ...]:
    scheduled = items(dataset, tag_of("ScheduledStepAttributesSequence"))
    uids = (first(item, tag_of("StudyInstanceUID")) for item in scheduled)
    return tuple(dict.fromkeys(str(uid) for uid in uids if uid))


def _listed(dataset: Attributes) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for series in items(dataset, _SERIES):
        uids = (first(item, _INSTANCE_UID) for tag in _LISTS for item in items(series, tag))
        series_uid = str(first(series, _SERIES_UID) or "")
        found[series_uid] = found.get(series_uid, frozenset()) | {str(uid) for uid in uids if uid}
    return found


def _count(dataset: Attributes) -> int:
    return len(frozenset().union(*_listed(dataset).values()))


def _step(row: sa.RowMapping) -> PerformedStep:
    values = {name: row[name] for name in ("uid", "ae_title", "dataset", "created_at", "updated_at")}
    return PerformedStep(state=PerformedState(row["state"]), **values)
