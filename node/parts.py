"""Composes the processes of the node: which rooms each of them joins. The only place that knows them all."""

from __future__ import annotations

import gc
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy.exc
from pynetdicom import evt

from db import associations
from db import parts as heartbeats
from db.engine import Database
from db.errors import DatabaseError
from node.config import ArchiveSection, Settings
from node.errors import ConfigError, StartError
from node.fetch import Fetching, Listening, Outcome, Wish
from node.log import log
from node.service import Service
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
    """The receivers, one scheduler, one worker for each device, and DICOMweb where a port is named for it."""
    receivers = [
        PartSpec(name=receive_part(i), arguments=("receive", "--number", str(i)))
        for i in range(settings.receive.processes)
    ]
    workers = [
        PartSpec(name=f"work-{i}", arguments=("work", "--number", str(i))) for i in range(worker_count(settings))
    ]
    return (
        *receivers,
        PartSpec(name="schedule", arguments=("schedule",)),
        *workers,
        *([PartSpec(name="web", arguments=("web",))] if settings.web.port is not None else []),
    )


def receive_part(number: int) -> str:
    """What a receiving process is called among the node's parts; the first as if it were alone."""
    return f"receive-{number}" if number else "receive"


def worker_count(settings: Settings) -> int:
    """The configured number, else one for each NVIDIA device, else one. Asks the system, so that torch stays out."""
    if settings.read.workers is not None:
        return settings.read.workers
    return max(1, _nvidia_devices()) if settings.read.device == "auto" else 1


def _nvidia_devices() -> int:
    return len(list(NVIDIA_DEVICES.iterdir())) if NVIDIA_DEVICES.is_dir() else 0


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


def receive(settings: Settings, *, number: int = 0, stop: threading.Event) -> None:
    """The listening part has run until `stop` was set; associations were drained. Raises ``StartError``."""
    from inference.series import facts
    from node.query import find, retrieve, ups, worklist
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
            find.service(database=database, ae_title=title, maximum_matches=settings.query.maximum_matches),
            retrieve.service(
                database=database,
                archive=settings.archive,
                destinations=settings.query.move_destinations,
                timeout=settings.query.timeout,
            ),
            commitment.service(database=database),
            mpps.service(database=database),
        ),
    ]
    scp = Scp(settings=settings, database=database, services=services, number=number)
    # pynetdicom collects garbage every half minute, and everybody waits: what stays to the end need not be looked at.
    gc.collect()
    gc.freeze()
    scp.start()
    with alive(database, name=receive_part(number), kind="receive", detail=scp.detail(), refresh=scp.detail):
        stop.wait()
        scp.stop(grace_seconds=DRAIN_SECONDS)
    database.close()


def schedule(settings: Settings, *, stop: threading.Event) -> None:
    """The scheduling part has run until `stop` was set. Raises ``StartError``."""
    from node import scheduler
    from node.query import events

    database = open_database(settings)
    events.start(database, subscribers=settings.subscribers, by_web=settings.web.subscribers)
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
    readers.refuse_silent_triggers(settings)
    name = f"work-{number}"
    engine = readers.engine_of(settings, **_share_of(settings, number=number))
    engine.warm_up()
    locations = settings.report.locations
    locator = Locator.load(settings, device=engine.processor.device, masks_only=True) if locations else None
    database = open_database(settings)
    with database.read() as tx:
        before = heartbeats.find(tx, name)
    detail = {
        "device": engine.processor.device,
        "precision": engine.processor.precision,
        "backends": engine.backends,
        "models": list(engine.cards),
    }
    worker = Worker(
        database=database,
        settings=settings,
        reader=readers.reader_of(settings, engine),
        name=f"{name}@{os.uname().nodename}:{os.getpid()}",
        part=name,
        detail=detail,
        locator=locator,
        avoid=before.detail.get("encoding") if before else None,
        workers=worker_count(settings),
    )
    with alive(database, name=name, kind="work", detail=detail):
        log().info("ready", **detail)
        for condition in engine.conditions:
            log().warning("not_as_configured", condition=condition)
        worker.run(stop)
    database.close()


def fetch(
    settings: Settings, *, source: str, wish: Wish, told: Callable[[Outcome], object], stop: threading.Event
) -> Outcome:
    """What was wished for has been fetched from the archive `source`, or the outcome says what was not.

    Raises
    ------
    ConfigError
        No archive of this name is configured.
    DeliveryError
        It could not be asked.
    """
    archive = next((archive for archive in settings.archives if archive.name == source), None)
    if archive is None:
        known = ", ".join(archive.name for archive in settings.archives) or "none"
        raise ConfigError(f"--from {source!r}: no [[archives]] has this name; there are: {known}")
    from inference.series import facts
    from node.receive import store

    database = open_database(settings)
    storing = store.service(settings=settings, database=database, facts=lambda dataset: facts(dataset).to_json())
    try:
        return Fetching(
            database=database,
            archive=archive,
            own_ae_title=settings.node.ae_title,
            timeout=settings.deliver.timeout,
            listening=_taking(settings, database, storing, sender=archive),
            told=told,
            stop=stop,
        ).run(wish)
    finally:
        storing.close()
        database.close()


def _taking(settings: Settings, database: Database, storing: Service, *, sender: ArchiveSection) -> Listening:
    """What stores the instances that `sender` sends in answer to a C-GET, as those of an association that it opened."""
    receiver = f"fetch-{sender.name}"
    handlers = [handler for handler in storing.handlers if handler[0] is evt.EVT_C_STORE]

    @contextmanager
    def listening() -> Iterator[Sequence[tuple[Any, ...]]]:
        key, outcome = uuid.uuid4().hex, associations.ABORTED
        with database.write() as tx:
            associations.opened(
                tx, association_id=key, receiver=receiver, calling_ae=sender.sends_as or sender.ae_title,
                called_ae=settings.node.ae_title, address=sender.address,
            )  # fmt: skip
        try:
            yield [*handlers, (evt.EVT_ESTABLISHED, lambda event: setattr(event.assoc, "name", key))]
            outcome = associations.RELEASED
        finally:
            with database.write() as tx:
                associations.ended(tx, association_id=key, outcome=outcome)

    return listening


def _share_of(settings: Settings, *, number: int) -> dict[str, Any]:
    """Which of several devices this worker uses, or what part of the CPU; nothing where the configuration says so."""
    workers, devices = worker_count(settings), _nvidia_devices()
    if settings.read.device == "auto" and devices:
        return {"device": f"cuda:{number % devices}"} if workers > 1 else {}
    if workers == 1 or settings.read.threads is not None:
        return {}
    from inference.device import usable_threads

    return {"threads": max(1, usable_threads() // workers)}


def web(settings: Settings, *, stop: threading.Event) -> None:
    """The DICOMweb part has run until `stop` was set; requests were drained. Raises ``StartError``."""
    from inference.series import facts
    from node.web.server import WebServer

    if settings.web.port is None:
        raise StartError("[web] port names no port")
    database = open_database(settings)
    server = WebServer(settings=settings, database=database, facts=lambda dataset: facts(dataset).to_json())
    server.start()
    with alive(database, name="web", kind="web", detail={"port": server.port}):
        stop.wait()
        server.stop(grace_seconds=DRAIN_SECONDS)
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
