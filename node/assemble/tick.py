"""One pass over every study that is being received, or of which something came late; none can stop another."""

from __future__ import annotations

import sqlalchemy as sa

from db import associations, audit, fetches, instances, performed_steps, studies
from db.engine import Database
from db.states import StudyState
from db.studies import Pending
from inference.result import Completeness
from node.assemble.look import Look, at_fetched, at_late, at_receiving, pronounce
from node.assemble.memory import Memory, Moment, Watched
from node.assemble.pacs_count import PacsCounts
from node.config import Settings
from node.log import log


def tick(
    database: Database,
    settings: Settings,
    *,
    model: str,
    memory: Memory,
    at: Moment | None = None,
    counts: PacsCounts | None = None,
) -> int:
    """Every study that needs a look has had it; returns how many verdicts, recalls, revisions and notes there were.

    Parameters
    ----------
    model : str
        What reads the studies, the key of their jobs.
    memory : Memory
        The same one at every call of this process. It saves work and measures durations on the monotonic clock.
    at : Moment, optional
        The present, where it is not the real one.
    counts : PacsCounts, optional
        What the PACS has told, where it is asked.

    Raises
    ------
    sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError
        The database cannot be reached. Every other failure is one study's own: recorded, and tried again.
    """
    at = at or Moment.now()
    with database.read() as tx:
        pending = studies.pending(tx)
        open_now = frozenset(a.association_id for a in associations.open_now(tx))
        fetched = fetches.only_fetched(tx, [study.study_uid for study in pending if study.prior])
        receiving = [study.study_uid for study in pending if study.state is StudyState.RECEIVING]
        news = performed_steps.news(tx, receiving)
    memory.notice(pending, at)
    look = Look(
        database=database, settings=settings, model=model, at=at, open_now=open_now, news=news, fetched=fetched,
        counts=counts,
    )  # fmt: skip
    return sum(_at_study(look, study, memory.of(study.study_uid)) for study in pending)


def _at_study(look: Look, study: Pending, watched: Watched) -> bool:
    if look.at.steady < watched.retry_at:
        return False
    try:
        decided = _decided(look, study, watched)
    except (sa.exc.OperationalError, sa.exc.InterfaceError):
        raise
    except Exception as error:  # noqa: BLE001 one study's boundary: the others go on, and it is tried again
        return _failed(look, study, watched, error)
    watched.succeeded()
    return decided


def _decided(look: Look, study: Pending, watched: Watched) -> bool:
    if study.study_uid in look.fetched or study.state is StudyState.ARCHIVED:
        return at_fetched(look, study)
    if study.state is not StudyState.RECEIVING:
        return at_late(look, study, watched)
    if look.at.steady >= watched.failing_since + look.settings.assemble.limit:
        return _read_as_it_is(look, study, watched)
    return at_receiving(look, study, watched)


def _read_as_it_is(look: Look, study: Pending, watched: Watched) -> bool:
    """A study whose evidence has failed to form for as long as any may wait is read without."""
    with look.database.read() as tx:
        seen = [instance.sop_instance_uid for instance in instances.unconsidered(tx, study.study_uid)]
    reason = f"read as it is: whether it is complete could not be judged ({watched.failure})"
    return pronounce(look, study, completeness=Completeness(complete=False, reason=reason), seen=seen)


def _failed(look: Look, study: Pending, watched: Watched, error: Exception) -> bool:
    told = f"{type(error).__name__}: {error}"
    log().error("assembly_failed", study_uid=study.study_uid, error=told, exc_info=watched.failures == 0)
    if watched.failures == 0:
        with look.database.write() as tx:
            audit.record(tx, "assembly_failed", study_uid=study.study_uid, revision=study.revision, error=told)
    watched.failed(told, look.at)
    return False
