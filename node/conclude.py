"""What follows from a result, in one transaction: the result, the worklist entry, and every delivery that is due."""

from __future__ import annotations

import sqlalchemy as sa

from db import audit, instances, results, studies, worklist
from db.deliveries import NewDelivery
from db.errors import UnknownStudy
from db.jobs import Job
from db.schema import now
from db.states import DeliveryKind
from inference.result import Completeness, Outcome, StudyResult
from node.config import ARCHIVE, Settings
from node.flag.flag import Flag, Reference, flag_of
from node.flag.workitem import reading


def conclude(tx: sa.Connection, job: Job, result: StudyResult, settings: Settings, *, segmented: bool = False) -> None:
    """The result stands with everything that follows from it. Raises ``LeaseLost``, and then nothing stands.

    `segmented` says that a segmentation was filed, which then goes where the report goes.
    """
    follow = _follow(settings, segmented=segmented)
    results.record(tx, job, outcome=result.outcome, payload=result.to_json(), follow=follow)
    _raise_on_own_worklist(tx, result, settings)


def conclude_parked(tx: sa.Connection, job: Job, settings: Settings) -> StudyResult:
    """A study whose job was parked ends as *not analysed*, with the last error as the reason."""
    study = studies.find(tx, job.study_uid)
    if study is None:
        raise UnknownStudy(job.study_uid)
    result = StudyResult(
        study_uid=job.study_uid,
        revision=job.revision,
        outcome=Outcome.NOT_ANALYSED,
        reason=f"not analysed: reading failed {job.attempts} times ({_last_line(job.error)})",
        completeness=Completeness.from_json(study.completeness or {"complete": False, "reason": "unknown"}),
    )
    results.record_parked(tx, job, payload=result.to_json(), follow=_follow(settings))
    _raise_on_own_worklist(tx, result, settings)
    return result


def flag_for(tx: sa.Connection, result: StudyResult) -> Flag:
    """The flag of a stored result, with what the archive knows of its study. Raises ``UnknownStudy``."""
    study = studies.find(tx, result.study_uid)
    if study is None:
        raise UnknownStudy(result.study_uid)
    references = [
        Reference(series_uid=i.series_uid, sop_class_uid=i.sop_class_uid, sop_instance_uid=i.sop_instance_uid)
        for i in instances.of_study(tx, result.study_uid, up_to_revision=result.revision)
    ]
    return flag_of(result, header=study.header, instances=references)


def _last_line(error: str | None) -> str:
    lines = (error or "").strip().splitlines()
    return lines[-1] if lines else "no reason given"


def _follow(settings: Settings, *, segmented: bool = False) -> list[NewDelivery]:
    flags = [NewDelivery(kind=DeliveryKind.FLAG, destination=remote.name) for remote in settings.flag.ups]
    reports = [ARCHIVE, *(remote.name for remote in settings.deliver.destinations)]
    committing = [remote.name for remote in settings.deliver.destinations if remote.commitment]
    told = [remote.name for remote in settings.deliver.availability]
    return [
        *flags,
        *(NewDelivery(kind=DeliveryKind.SR, destination=name) for name in reports),
        *(NewDelivery(kind=DeliveryKind.SEG, destination=name) for name in reports if segmented),
        *(NewDelivery(kind=DeliveryKind.COMMITMENT, destination=name) for name in committing),
        *(NewDelivery(kind=DeliveryKind.AVAILABILITY, destination=name) for name in told),
    ]


def _raise_on_own_worklist(tx: sa.Connection, result: StudyResult, settings: Settings) -> None:
    flag = flag_for(tx, result)
    asked = reading(
        flag, ae_title=settings.node.ae_title, at=now(), retrieve_ae_title=settings.retrieve_ae_title
    )  # fmt: skip
    worklist.put_reading(tx, asked)
    audit.record(
        tx, "flag", study_uid=result.study_uid, revision=result.revision, priority=flag.priority, label=flag.label
    )
