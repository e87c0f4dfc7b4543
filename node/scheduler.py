"""The ticks of APScheduler: assemble, reap, conclude, flag, report, deliver, notify. They remember nothing."""

from __future__ import annotations

import datetime as dt
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sqlalchemy.exc
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from db import commitments, jobs, performed_steps, results, worklist
from db.deliveries import Delivery
from db.engine import Database
from db.errors import UnknownStudy
from db.schema import now
from db.states import DeliveryKind
from inference.result import StudyResult
from node import __version__, assemble
from node.conclude import conclude_parked, flag_for
from node.config import ARCHIVE, DestinationSection, RemoteSection, Settings
from node.deliver.availability import announce
from node.deliver.commitment import Reports, ask, report_due, report_to_strangers, settle
from node.deliver.outbox import Act, Receipt, deliver_due
from node.deliver.store import ReportFor, file_in_archive, store_report
from node.flag import channels
from node.flag.flag import Channel
from node.log import log
from node.query import events
from node.receive.held import check_due
from node.report.filing import file_report
from node.report.identifiers import segmentation_path

MODEL = "triage"
"""The key of the jobs: all configured models together read a study."""

REAP_SECONDS = 1.0
FORGET_SECONDS = 3600.0
WORKLIST_KEPT = dt.timedelta(days=30)
"""How long an entry that was read or cancelled stays on the worklist."""


@dataclass(frozen=True, kw_only=True)
class Tick:
    """Something done again and again: never twice at once, never caught up on when late."""

    name: str
    seconds: float
    act: Callable[[], object]


def ticks(database: Database, settings: Settings, *, stop: threading.Event) -> tuple[Tick, ...]:
    """Everything the schedule process does, one tick for each thing that may have to wait for a far side."""
    memory, node, deliver = assemble.Memory(), settings.node, settings.deliver
    owner = f"{os.uname().nodename}:{os.getpid()}"
    report_for = file_report(database, archive=settings.archive, settings=settings, version=__version__)

    def delivery(kind: DeliveryKind, destination: str, act: Act) -> Tick:
        said = f"{kind}:{destination}"
        one = partial(
            deliver_due, database, kind=kind, destination=destination, act=act, policy=deliver,
            owner=f"{owner}:{said}", stop=stop,
        )  # fmt: skip
        return Tick(name=said, seconds=deliver.tick, act=one)

    def notification(subscriber: RemoteSection) -> Tick:
        one = partial(
            events.send_due, database, subscriber=subscriber, own_ae_title=node.ae_title,
            owner=f"{owner}:{subscriber.name}", deliver=deliver,
        )  # fmt: skip
        return Tick(name=f"notify:{subscriber.name}", seconds=deliver.tick, act=one)

    def stored(kind: DeliveryKind, path_for: ReportFor) -> tuple[Tick, ...]:
        """In the archive and at every destination."""
        store = partial(store_report, own_ae_title=node.ae_title, timeout=deliver.timeout, report_for=path_for)
        return (
            delivery(kind, ARCHIVE, file_in_archive(report_for=path_for)),
            *(delivery(kind, remote.name, store(remote=remote)) for remote in deliver.destinations),
        )

    def segmentation_for(study_uid: str, revision: int) -> Path:
        return segmentation_path(settings.archive, study_uid=study_uid, revision=revision)

    def promise(remote: DestinationSection) -> tuple[Tick, ...]:
        act = ask(
            database, remote=remote, own_ae_title=node.ae_title, timeout=deliver.timeout, commitment=settings.commitment
        )
        settling = partial(settle, database, remote=remote, policy=deliver, commitment=settings.commitment)
        return (
            delivery(DeliveryKind.COMMITMENT, remote.name, act),
            Tick(name=f"settle:{remote.name}", seconds=settings.commitment.tick, act=settling),
        )

    def availability(remote: RemoteSection) -> Tick:
        act = announce(
            database, remote=remote, own_ae_title=node.ae_title, retrieve_ae_title=settings.retrieve_ae_title,
            timeout=deliver.timeout,
        )  # fmt: skip
        return delivery(DeliveryKind.AVAILABILITY, remote.name, act)

    pacs = next((archive for archive in settings.archives if archive.name == settings.assemble.count_from), None)
    counts = assemble.PacsCounts(database=database, settings=settings, archive=pacs) if pacs else None
    assembling = partial(assemble.tick, database, settings, model=MODEL, memory=memory, counts=counts)
    return (
        Tick(name="assemble", seconds=settings.assemble.tick, act=assembling),
        Tick(name="reap", seconds=REAP_SECONDS, act=partial(reap, database, settings)),
        Tick(name="forget", seconds=FORGET_SECONDS, act=partial(forget, database)),
        *(delivery(DeliveryKind.FLAG, channel.name, flagging(database, channel)) for channel in channels(settings)),
        *stored(DeliveryKind.SR, report_for),
        # Off, nothing that marks an image leaves, not even what was made while it was on.
        *(stored(DeliveryKind.SEG, segmentation_for) if settings.report.locations else ()),
        *(notification(subscriber) for subscriber in settings.subscribers),
        *_commitments(database, settings, owner=owner, stop=stop),
        *(tick for remote in deliver.destinations if remote.commitment for tick in promise(remote)),
        *(availability(remote) for remote in deliver.availability),
        *((Tick(name="count", seconds=settings.assemble.tick, act=counts.ask),) if counts else ()),
    )


def _commitments(database: Database, settings: Settings, *, owner: str, stop: threading.Event) -> tuple[Tick, ...]:
    """What is asked of this node is checked, and each of those who asked is told, without waiting for another."""
    reports = Reports(
        database=database, peers=settings.peers, own_ae_title=settings.node.ae_title, policy=settings.deliver, stop=stop
    )  # fmt: skip
    known = frozenset(peer.ae_title for peer in settings.peers if peer.port is not None)
    acts: dict[str, Callable[[], object]] = {
        "check": partial(check_due, database, settings, owner=f"{owner}:check", stop=stop),
        "report": partial(report_to_strangers, reports, known=known, owner=f"{owner}:report"),
    }
    for title in sorted(known):
        acts[f"report:{title}"] = partial(report_due, reports, ae_title=title, owner=f"{owner}:report:{title}")
    return tuple(Tick(name=name, seconds=settings.commitment.tick, act=act) for name, act in acts.items())


def flagging(database: Database, channel: Channel) -> Act:
    """The delivery of a flag through `channel`: what the stored result says is what the far worklist shows."""

    def act(due: Delivery) -> Receipt:
        with database.read() as tx:
            result = results.find(tx, study_uid=due.study_uid, revision=due.revision)
            if result is None:
                raise UnknownStudy(f"no result of revision {due.revision} of study {due.study_uid}")
            flag = flag_for(tx, StudyResult.from_json(result.payload))
        receipt = channel.send(flag)
        return Receipt(detail=receipt.detail, confirmed=receipt.confirmed)

    return act


def run(ticks: tuple[Tick, ...], *, stop: threading.Event) -> None:
    """Every tick has been done at its pace until `stop` was set; those running then were finished."""
    # A tick that waits for a far side holds one thread; with one for each, none delays another.
    pool = ThreadPoolExecutor(max_workers=len(ticks))
    scheduler = BackgroundScheduler(executors={"default": pool}, timezone=dt.UTC)
    for tick in ticks:
        scheduler.add_job(
            _guarded(tick),
            "interval",
            seconds=tick.seconds,
            id=tick.name,
            coalesce=True,
            max_instances=1,
            misfire_grace_time=None,
        )
    scheduler.start()
    stop.wait()
    scheduler.shutdown(wait=True)


def _guarded(tick: Tick) -> Callable[[], None]:
    def act() -> None:
        try:
            tick.act()
        except sqlalchemy.exc.SQLAlchemyError as error:
            log().error("database_failed", tick=tick.name, error=str(error).splitlines()[0])
        except Exception:  # noqa: BLE001 the tick's boundary: the next tick tries again
            log().exception("tick_failed", tick=tick.name)

    return act


def forget(database: Database) -> None:
    """Worklist entries, commitments and performed procedure steps that ended long ago have left."""
    before = now() - WORKLIST_KEPT
    with database.write() as tx:
        worklist.forget(tx, before=before)
        commitments.forget(tx, before=before)
        performed_steps.forget(tx, before=before)


def reap(database: Database, settings: Settings) -> None:
    """Jobs of dead workers wait again or are parked, and every parked study has its statement."""
    with database.read() as tx:
        if not jobs.needs_reaping(tx):
            return
    with database.write() as tx:
        for job in jobs.reap(tx, attempts=settings.read.attempts):
            log().warning("lease_expired", study_uid=job.study_uid, worker=job.owner, attempt=job.attempts)
    with database.write() as tx:
        for job in jobs.parked_unspoken(tx):
            result = conclude_parked(tx, job, settings)
            log().error("study_parked", study_uid=job.study_uid, reason=result.reason)
