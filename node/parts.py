"""Composes the processes of the node: which rooms each of them joins. The only place that knows them all."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy.exc

from db import parts as heartbeats
from db.engine import Database
from db.errors import DatabaseError
from node.config import Settings
from node.errors import StartError
from node.log import log
from node.supervisor import PartSpec, Supervisor

DRAIN_SECONDS = 20.0
BEAT_SECONDS = 2.0
NVIDIA_DEVICES = Path("/proc/driver/nvidia/gpus")


def serve(settings: Settings, *, config: Path, stop: threading.Event) -> None:
    """All parts have run on this machine until `stop` was set. Raises ``StartError``."""
    database = open_database(settings)
    database.close()
    Supervisor(part_specs(settings), config=config, grace=DRAIN_SECONDS + 5).run(stop)


def part_specs(settings: Settings) -> tuple[PartSpec, ...]:
    """One receiver, one scheduler, and one worker for each device."""
    workers = [
        PartSpec(name=f"work-{i}", arguments=("work", "--number", str(i))) for i in range(worker_count(settings))
    ]
    return (
        PartSpec(name="receive", arguments=("receive",)),
        PartSpec(name="schedule", arguments=("schedule",)),
        *workers,
    )


def worker_count(settings: Settings) -> int:
    """The configured number, else one for each NVIDIA device, else one. Asks the system, so that torch stays out."""
    if settings.read.workers is not None:
        return settings.read.workers
    found = len(list(NVIDIA_DEVICES.iterdir())) if NVIDIA_DEVICES.is_dir() else 0
    return max(1, found) if settings.read.device == "auto" else 1


def open_database(settings: Settings) -> Database:
    """The database, with its schema brought to this version. Raises ``StartError`` when it cannot be had."""
    try:
        settings.node.data.mkdir(parents=True, exist_ok=True)
        database = Database(settings.database_url)
        database.upgrade()
    except (sqlalchemy.exc.SQLAlchemyError, DatabaseError, OSError, ImportError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise StartError(f"database {_without_password(settings.database_url)}: {reason}") from error
    return database


def _without_password(url: str) -> str:
    return str(sqlalchemy.make_url(url)) if "://" in url else url


@contextmanager
def alive(
    database: Database,
    *,
    name: str,
    kind: str,
    detail: dict[str, Any],
    refresh: Callable[[], dict[str, Any]] | None = None,
) -> Iterator[None]:
    """While the block runs, this process stands among the node's parts and its heartbeat is fresh.

    `detail` is what it says of itself at the start, `refresh` (where given) with every heartbeat.
    """
    finished = threading.Event()
    with database.write() as tx:
        heartbeats.started(tx, name=name, kind=kind, pid=os.getpid(), detail=detail)

    def beat() -> None:
        while not finished.wait(BEAT_SECONDS):
            try:
                with database.write() as tx:
                    heartbeats.beat(tx, name=name, pid=os.getpid(), detail=refresh() if refresh else None)
            except sqlalchemy.exc.SQLAlchemyError as error:
                log().warning("heartbeat_failed", error=str(error))

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join(timeout=5)
        with database.write() as tx:
            heartbeats.stopped(tx, name=name, pid=os.getpid())


def receive(settings: Settings, *, stop: threading.Event) -> None:
    """The listening part has run until `stop` was set; associations were drained. Raises ``StartError``."""
    from inference.series import facts
    from node.query import ups, worklist
    from node.query.together import together
    from node.receive import commitment, mpps, store
    from node.receive.scp import Scp

    database = open_database(settings)
    title = settings.node.ae_title
    subscribers = [subscriber.ae_title for subscriber in settings.subscribers]
    services = [
        store.service(settings=settings, database=database, facts=lambda dataset: facts(dataset).to_json()),
        together(
            ups.service(database=database, subscribers=subscribers),
            worklist.service(database=database, ae_title=title),
            commitment.service(database=database),
            mpps.service(database=database),
        ),
    ]
    scp = Scp(settings=settings, database=database, services=services)
    scp.start()
    with alive(database, name="receive", kind="receive", detail=scp.detail(), refresh=scp.detail):
        stop.wait()
        scp.stop(grace_seconds=DRAIN_SECONDS)
    database.close()


def schedule(settings: Settings, *, stop: threading.Event) -> None:
    """The scheduling part has run until `stop` was set. Raises ``StartError``."""
    from node import scheduler
    from node.query import events

    database = open_database(settings)
    events.start(database, subscribers=settings.subscribers)
    with alive(database, name="schedule", kind="schedule", detail={}):
        scheduler.run(scheduler.ticks(database, settings, stop=stop), stop=stop)
        events.stop(database, subscribers=settings.subscribers)
    database.close()


def work(settings: Settings, *, number: int, stop: threading.Event) -> None:
    """One worker has run until `stop` was set. Raises ``StartError`` when a model or the device cannot be had."""
    from inference.device import keep_freed_memory
    from node import reading as readers
    from node.locate import Locator
    from node.worker import Worker

    keep_freed_memory()
    name = f"work-{number}"
    several = settings.read.device == "auto" and worker_count(settings) > 1 and NVIDIA_DEVICES.is_dir()
    engine = readers.engine_of(settings, device=f"cuda:{number}" if several else None)
    engine.warm_up()
    locations = settings.report.locations
    locator = Locator.load(settings, device=engine.processor.device, masks_only=True) if locations else None
    database = open_database(settings)
    with database.read() as tx:
        before = heartbeats.find(tx, name)
    detail = {"device": engine.processor.device, "precision": engine.processor.precision, "models": list(engine.cards)}
    worker = Worker(
        database=database,
        settings=settings,
        reader=readers.reader_of(settings, engine),
        name=f"{name}@{os.uname().nodename}:{os.getpid()}",
        part=name,
        detail=detail,
        locator=locator,
        avoid=before.detail.get("encoding") if before else None,
    )
    with alive(database, name=name, kind="work", detail=detail):
        log().info("ready", **detail)
        worker.run(stop)
    database.close()


@contextmanager
def reading(settings: Settings) -> Iterator[sqlalchemy.Connection]:
    """A view of the node's database for a command. Raises ``StartError`` when there is none yet."""
    if not settings.database.url and not (settings.node.data / "hemonode.db").exists():
        raise StartError(f"no database in {settings.node.data}: this node has not been started yet")
    database = open_database(settings)
    try:
        with database.read() as tx:
            yield tx
    finally:
        database.close()
