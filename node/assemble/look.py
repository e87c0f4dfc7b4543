"""One look at one study: what the database holds of it, weighed, and what was decided written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from db import associations, fetches, instances, jobs, performed_steps, results, studies
from db.associations import Association
from db.engine import Database
from db.instances import Instance
from db.performed_steps import News
from db.studies import Pending
from inference.result import Completeness
from inference.series import InstanceFacts
from node.assemble.evidence import SOURCES, gather
from node.assemble.memory import Moment, Watched
from node.assemble.pacs_count import PacsCounts, pacs_count
from node.assemble.revision import Act, judge, meaning
from node.assemble.verdict import Pronounce, verdict
from node.assemble.view import Arrived, StudyView, view_of
from node.config import Settings
from node.log import log


@dataclass(frozen=True, kw_only=True)
class Look:
    """What every study is looked at with.

    `open_now` are the associations that are open, `news` tells how far the performed procedure steps of a study are.
    `fetched` are the studies of which everything came by a fetch; `counts` has what the PACS tells, where it is asked.
    """

    database: Database
    settings: Settings
    model: str
    at: Moment
    open_now: frozenset[str]
    news: Mapping[str, News]
    fetched: frozenset[str] = frozenset()
    counts: PacsCounts | None = None


def at_receiving(look: Look, study: Pending, watched: Watched) -> bool:
    """A study that is being received has its verdict, where one is due; whether it has one now."""
    if not _is_due(look, study, watched):
        return False
    view = replace(_view(look, study, watched), pacs=look.counts.of(study.study_uid) if look.counts else None)
    watched.view, watched.judged_key, watched.judged_at = view, watched.key, look.at.steady
    answer = verdict(gather(view, look.settings.assemble, look.at.steady, sources=(*SOURCES, pacs_count)))
    if not isinstance(answer, Pronounce):
        watched.until = answer.until
        return False
    watched.view = None  # should the verdict not stand, another slice has come, and everything is looked at anew
    return pronounce(look, study, completeness=answer.completeness, seen=view.seen)


def pronounce(look: Look, study: Pending, *, completeness: Completeness, seen: Sequence[str]) -> bool:
    """The verdict stands, unless another slice came while it was formed; whether it does."""
    with look.database.write() as tx:
        stands = studies.pronounce(
            tx, study_uid=study.study_uid, completeness=completeness.to_json(), seen=seen, model=look.model
        )
    if stands:
        log().info(
            "verdict",
            study_uid=study.study_uid,
            revision=study.revision,
            complete=completeness.complete,
            reason=completeness.reason,
        )
    return stands


def at_fetched(look: Look, study: Pending) -> bool:
    """A study of which everything came by a fetch is kept unread; once anybody else has sent something, it is read."""
    with look.database.write() as tx:
        return fetches.keep_or_read(tx, study.study_uid)


def at_late(look: Look, study: Pending, watched: Watched) -> bool:
    """What came after a study's verdict is dealt with, where that can be done now; whether it was."""
    changed = watched.judged_key != watched.key
    ended = watched.judged_key[:2] != watched.key[:2]  # its state or revision is another than when it was judged
    settle = look.settings.assemble.settle_time
    if not ended and look.at.steady < (watched.judged_at + settle if changed else watched.until):
        return False
    if changed or watched.late is None:
        _judge(look, study, watched)
    watched.judged_key, watched.judged_at = watched.key, look.at.steady
    watched.until = look.at.steady + settle
    return _act(look, study, watched)


def _is_due(look: Look, study: Pending, watched: Watched) -> bool:
    """Whether a look could find more than the last: while slices come one after another only the quiet time can.

    New slices are analysed half-way through the settle time, so that the verdict falls at its end without delay.
    """
    waits, now = look.settings.assemble, look.at.steady
    if _is_all_listed(look, study, watched):
        return True
    if now >= watched.last_at + waits.settle_time / 2:
        told = _has_changed(look, watched.view) or _was_counted(look, watched)
        return watched.judged_key != watched.key or now >= watched.until or told
    own = (peer.quiet_time for peer in look.settings.peers if peer.quiet_time is not None)
    soonest = min(waits.limit, waits.quiet_time, *own)
    return now >= watched.since + soonest and now >= watched.judged_at + waits.settle_time


def _is_all_listed(look: Look, study: Pending, watched: Watched) -> bool:
    """Whether as much has come, in the last moment, as the scanner lists of what it has made."""
    news = look.news.get(study.study_uid)
    if news is None or not news.final or study.uncounted < news.listed:
        return False
    return watched.judged_key != watched.key or _has_changed(look, watched.view)


def _has_changed(look: Look, view: StudyView | None) -> bool:
    """Whether more is known of a study than its slices: an association has ended, or a performed procedure step has."""
    return _has_ended(look, view) or _has_news(look, view)


def _has_news(look: Look, view: StudyView | None) -> bool:
    news = look.news.get(view.study_uid) if view else None
    known = max((step.updated_at for step in view.steps), default=None) if view else None
    return news is not None and news.at != known


def _has_ended(look: Look, view: StudyView | None) -> bool:
    """Whether an association has ended that was open when the study was last looked at."""
    known = view.associations if view else ()
    return any(a.ended_at is None and a.association_id not in look.open_now for a in known)


def _was_counted(look: Look, watched: Watched) -> bool:
    """Whether the PACS has told something since the study was last looked at."""
    told = look.counts.of(watched.view.study_uid) if look.counts and watched.view else None
    return told is not None and told.at > watched.judged_at


def _view(look: Look, study: Pending, watched: Watched) -> StudyView:
    """The study as it stands; its slices are analysed anew only when there are new ones."""
    view = watched.view if watched.judged_key == watched.key else None
    if view is not None and not _has_changed(look, view):
        return view
    with look.database.read() as tx:
        brought = associations.of_study(tx, study.study_uid)
        steps = performed_steps.of_study(tx, study.study_uid) if study.study_uid in look.news else ()
        stored = instances.of_study(tx, study.study_uid) if view is None else ()
    if view is not None:
        return replace(view, associations=brought, steps=steps)
    return view_of(
        study_uid=study.study_uid,
        revision=study.revision,
        arrived=[_arrived(row, look, watched) for row in stored],
        associations=brought,
        steps=steps,
        criteria=look.settings.select,
        quiet_time=_quiet_time(look, study, brought),
    )


def _arrived(row: Instance, look: Look, watched: Watched) -> Arrived:
    return Arrived(
        sop_instance_uid=row.sop_instance_uid,
        association_id=row.association_id,
        revision=row.revision,
        at=watched.came_at(seq=row.seq, received_at=row.received_at, at=look.at),
        facts=InstanceFacts.from_json(row.facts),
    )


def _quiet_time(look: Look, study: Pending, brought: Sequence[Association]) -> float:
    """The longest quiet time of the study's sources; each has its own or the default."""
    titles = {a.calling_ae for a in brought} or {study.calling_ae}
    own = {p.ae_title: p.quiet_time for p in look.settings.peers if p.quiet_time is not None}
    return max(own.get(title, look.settings.assemble.quiet_time) for title in titles)


def _judge(look: Look, study: Pending, watched: Watched) -> None:
    with look.database.read() as tx:
        came = instances.unconsidered(tx, study.study_uid)
        late = [InstanceFacts.from_json(row.facts) for row in came]
        # Every report that this node files in its own archive comes by here; it is not held against a whole study.
        stored = instances.of_study(tx, study.study_uid) if any(facts.has_pixels for facts in late) else ()
        result = results.find(tx, study_uid=study.study_uid, revision=study.revision)
    choices = result.payload.get("series", ()) if result else ()
    watched.late = judge(
        before=[InstanceFacts.from_json(row.facts) for row in stored if row.revision is not None],
        late=late,
        read=[choice["series_uid"] for choice in choices if choice["chosen"]],
        criteria=look.settings.select,
    )
    watched.late_uids = tuple(row.sop_instance_uid for row in came)


def _act(look: Look, study: Pending, watched: Watched) -> bool:
    late, uid = watched.late, study.study_uid
    if late is None:
        return False
    with look.database.read() as tx:
        job = next((job for job in jobs.of_study(tx, uid) if job.revision == study.revision), None)
    act = meaning(state=study.state, job=job.state if job else None, late=late)
    quiet_at = watched.last_at + look.settings.assemble.quiet_time
    if act is Act.WAIT:
        return False
    if act is Act.NOTE and look.at.steady < quiet_at:
        watched.until = quiet_at  # a series that arrives after the result is noted once, not slice by slice
        return False
    with look.database.write() as tx:
        if act is Act.RECALL:
            done = studies.recall(tx, uid, reason=late.reason)
        elif act is Act.REOPEN:
            done = studies.reopen(tx, uid, reason=late.reason) is not None
        else:
            done = studies.note_late(tx, study_uid=uid, seen=watched.late_uids, reason=late.reason)
    if done:
        log().info(f"late_{act.value}", study_uid=uid, revision=study.revision, reason=late.reason)
    return done
