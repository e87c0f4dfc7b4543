"""Several receiving processes on one port: who gets what, limits of all together, each one's own past."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from db import associations, parts, schema
from db.engine import Database
from node import config
from node.config import Settings
from node.errors import StartError
from node.parts import open_database, part_specs
from node.receive import store
from node.receive.roll import receiver_name
from node.receive.scp import Scp
from node.steady import rejection_of
from node.supervisor import Supervisor
from tests.receiving import a_slice, facts, rejection, requested, send, settings_of, stored, wait_until
from tests.running_node import free_port, write_config


def shared(data: Path, *, processes: int = 2, **receive: Any) -> Settings:
    settings = settings_of(data, processes=processes, **receive)
    return settings.model_copy(update={"node": settings.node.model_copy(update={"port": free_port()})})


def receiver(settings: Settings, database: Database, number: int) -> Scp:
    services = [store.service(settings=settings, database=database, facts=facts)]
    return Scp(settings=settings, database=database, services=services, number=number)


@pytest.fixture
def running() -> Iterator[ExitStack]:
    with ExitStack() as running:
        yield running


def started(running: ExitStack, settings: Settings, url: str, number: int) -> Scp:
    """A receiver with a database connection of its own, as another process would have."""
    database = Database(url)
    running.callback(database.close)
    scp = receiver(settings, database, number)
    scp.start()
    running.callback(scp.stop, grace_seconds=0)
    return scp


def test_all_of_them_get_associations_and_store(tmp_path: Path, database: Database, running: ExitStack) -> None:
    settings = shared(tmp_path / "data")
    scps = [started(running, settings, database.url, number) for number in range(2)]
    opened = [requested(scps[0]) for _ in range(24)]
    counts = [scp.detail()["associations"] for scp in scps]
    assert sum(counts) == 24
    assert min(counts) > 0  # the system chose one of two 24 times
    for association in opened:
        association.release()
    for number in range(1, 5):
        assert send(scps[0], a_slice(number)) == [0x0000]
    assert len(stored(database)) == 4


def test_their_limits_are_those_of_all_together(tmp_path: Path, either_database: Database, running: ExitStack) -> None:
    settings = shared(tmp_path / "data", maximum_associations=6, maximum_associations_per_ae=4)
    scps = [started(running, settings, either_database.url, number) for number in range(2)]
    together = threading.Barrier(16)
    asked: list[Any] = []

    def ask(calling: str) -> None:
        together.wait()
        asked.append(requested(scps[0], calling=calling))

    threads = [threading.Thread(target=ask, args=(f"CT{number % 2}",)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    accepted = [str(association.requestor.ae_title) for association in asked if association.is_established]
    assert len(accepted) == 6
    assert max(accepted.count("CT0"), accepted.count("CT1")) <= 4
    assert {rejection(association) for association in asked if rejection_of(association)} == {(2, 3, 2)}
    for association in asked:
        if association.is_established:
            association.release()
    wait_until(lambda: sum(scp.detail()["associations"] for scp in scps) == 0)
    requested(scps[0]).release()


def test_each_declares_its_own_associations_lost_and_the_first_those_of_numbers_that_are_gone(
    tmp_path: Path, database: Database, running: ExitStack
) -> None:
    settings = shared(tmp_path / "data")
    with database.write() as tx:
        for number in (0, 1, 2):
            associations.opened(
                tx, association_id=str(number), receiver=receiver_name(settings, number=number), calling_ae="CT1",
                called_ae="HEMONODE", address="192.0.2.7",
            )  # fmt: skip

    def lost() -> set[str]:
        with database.read() as tx:
            query = sa.select(schema.associations.c.association_id).where(schema.associations.c.outcome == "lost")
            return set(tx.execute(query).scalars())

    started(running, settings, database.url, 1)
    assert lost() == {"1"}
    started(running, settings, database.url, 0)
    assert lost() == {"0", "1", "2"}


def test_no_number_is_taken_twice_and_none_that_is_not_there(
    tmp_path: Path, database: Database, running: ExitStack
) -> None:
    settings = shared(tmp_path / "data")
    first = started(running, settings, database.url, 0)
    with pytest.raises(StartError, match="held by another receiving process"):
        receiver(settings, database, 0).start()
    with pytest.raises(StartError, match="no receiving process 2"):
        receiver(settings, database, 2)
    first.stop(grace_seconds=0)
    started(running, settings, database.url, 0)


def test_who_does_not_share_finds_the_port_in_use(tmp_path: Path, database: Database, running: ExitStack) -> None:
    settings = shared(tmp_path / "data")
    started(running, settings, database.url, 0)
    alone = settings.model_copy(update={"receive": settings.receive.model_copy(update={"processes": 1})})
    with pytest.raises(StartError, match="is in use"):
        receiver(alone, database, 0).start()


def test_serve_starts_as_many_as_are_configured(tmp_path: Path) -> None:
    specs = part_specs(shared(tmp_path, processes=3))
    assert [(spec.name, spec.arguments) for spec in specs if spec.arguments[0] == "receive"] == [
        ("receive", ("receive", "--number", "0")),
        ("receive-1", ("receive", "--number", "1")),
        ("receive-2", ("receive", "--number", "2")),
    ]


def test_all_of_them_are_watched_restarted_and_drained(tmp_path: Path) -> None:
    settings = config.load(
        write_config(tmp_path, changes={"receive": {"processes": 2, "disk_watermark_mb": 0, "disk_reserve_mb": 0}})
    )
    specs = [spec for spec in part_specs(settings) if spec.arguments[0] == "receive"]
    database = open_database(settings)
    stop = threading.Event()
    supervisor = Supervisor(specs, config=tmp_path / "node.toml", grace=30)
    running = threading.Thread(target=supervisor.run, args=(stop,))
    running.start()

    def alive() -> dict[str, int]:
        with database.read() as tx:
            return {part.name: part.pid for part in parts.all_parts(tx)}

    wait_until(lambda: set(alive()) == {"receive", "receive-1"})
    killed = alive()["receive-1"]
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: alive()["receive-1"] != killed)
    port = SimpleNamespace(port=settings.node.port)
    open_still = [requested(port) for _ in range(8)]
    stop.set()
    for association in open_still:
        assert association.send_c_echo().Status == 0x0000
        association.release()
    running.join()
    assert alive() == {}
    with database.read() as tx:
        assert set(tx.execute(sa.select(schema.associations.c.outcome)).scalars()) == {"released"}
    database.close()
