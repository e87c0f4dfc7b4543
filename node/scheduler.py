"""The ticks of APScheduler: assemble, reap, conclude, flag, report, deliver, notify. They remember nothing."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy.exc
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from db import jobs
from db.engine import Database
from node.conclude import conclude_parked
from node.config import Settings
from node.log import log

REAP_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Tick:
    """Something done again and again: never twice at once, never caught up on when late."""

    name: str
    seconds: float
    act: Callable[[], object]


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
