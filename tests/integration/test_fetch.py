"""Fetching from another archive: both ways, verified by count, resumed, at a pace, in a window; and never flagged."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from db import audit, instances, studies
from db.engine import Database
from db.states import StudyState
from node import assemble, operate, parts
from node.config import ArchiveSection, Settings
from node.errors import ConfigError, PeerUnreachable
from node.fetch import Outcome, Window, Wish, instances_per_second, study_keys
from node.query.archive import STUDY_ROOT
from node.receive.scp import Scp
from tests.archive_node import OWN, Asker, archive_node, keys
from tests.integration.test_archive_find import a_study
from tests.receiving import send
from tests.worklist_node import a_free_port, remote

LATER = dt.timedelta(hours=1)
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@dataclass(frozen=True, kw_only=True)
class Site:
    """This node, which is listening, and the far archive as it knows it."""

    settings: Settings
    database: Database
    node: Scp
    far: Scp

    def fetch(self, *, retrieve: str = "move", stop: threading.Event | None = None, **wish: Any) -> Outcome:
        archive = self.settings.archives[0].model_copy(update={"retrieve": retrieve})
        settings = self.settings.model_copy(update={"archives": (archive,)})
        wanted = wish.pop("keys", {})
        return parts.fetch(
            settings, source="pacs", wish=Wish(keys=wanted, **wish), told=lambda _: None, stop=stop or threading.Event()
        )  # fmt: skip

    def held(self) -> int:
        with self.database.read() as tx:
            return instances.count(tx)

    def tick(self) -> int:
        return assemble.tick(self.database, self.settings, model="triage", memory=assemble.Memory())

    def state(self, study_uid: str) -> StudyState:
        with self.database.read() as tx:
            study = studies.find(tx, study_uid)
        assert study is not None
        return study.state


@pytest.fixture
def site(tmp_path: Path, database_url: str) -> Iterator[Site]:
    """The far archive holds study 1.2.1 with two series of three slices, and 1.2.2 and 1.2.3 with one slice each."""
    far_database = Database(f"sqlite:///{tmp_path / 'far.db'}")
    far_database.upgrade()
    database, own_port = Database(database_url), a_free_port()
    us = remote(own_port, name="us")
    with (
        archive_node(tmp_path / "far", far_database, destinations=[us]) as far,
        archive_node(tmp_path / "data", database, port=own_port) as node,
    ):
        held = (
            *a_study(1, series=2, slices=3, StudyDate="20250101"),
            *a_study(2, StudyDate="20250201"),
            *a_study(3, StudyDate="20250301", Modality="MR"),
        )
        assert set(send(far, *held)) == {0}
        pacs = ArchiveSection(name="pacs", ae_title=OWN, address="127.0.0.1", port=far.port)
        settings = Settings.model_validate(
            {
                "node": {"data": tmp_path / "data", "port": own_port},
                "database": {"url": database_url},
                "receive": {"disk_watermark_mb": 0, "disk_reserve_mb": 0},
                "archives": [pacs.model_dump()],
            }
        )
        yield Site(settings=settings, database=database, node=node, far=far)
    database.close()
    far_database.close()


@pytest.mark.parametrize("retrieve", ["move", "get"])
def test_everything_that_was_announced_is_here_afterwards_and_is_not_fetched_twice(site: Site, retrieve: str) -> None:
    outcome = site.fetch(retrieve=retrieve)
    assert (outcome.studies, outcome.series, outcome.announced, outcome.received) == (3, 4, 8, 8)
    assert (outcome.known, outcome.missing, outcome.stopped, site.held()) == (0, [], False, 8)
    again = site.fetch(retrieve=retrieve)
    assert (again.known, again.received, again.missing) == (8, 8, [])
    with site.database.read() as tx:
        assert all(row.digest and row.association_id for row in instances.of_study(tx, "1.2.1"))


@on_sqlite
def test_only_what_was_wished_for_is_fetched(site: Site) -> None:
    wanted = study_keys(["PatientID=P1"], modalities=["CT"], since="2025-01-15", until="2025-03-31")
    outcome = site.fetch(keys=wanted, modalities=("CT",))
    assert (outcome.studies, site.held()) == (1, 1)
    assert site.state("1.2.2") is StudyState.RECEIVING


@on_sqlite
def test_a_limit_stops_after_so_many_studies_and_the_next_run_goes_on(site: Site) -> None:
    first = site.fetch(limit=1)
    assert (first.stopped, site.held() in (1, 6)) == (True, True)
    second = site.fetch(limit=5)
    assert (second.stopped, second.known, site.held()) == (False, first.received, 8)


@on_sqlite
def test_a_fetch_that_was_stopped_goes_on_where_it_was(site: Site) -> None:
    stop = threading.Event()
    archive = site.settings.archives[0]
    outcome = parts.fetch(
        site.settings, source=archive.name, wish=Wish(keys={"StudyInstanceUID": "1.2.1"}), stop=stop,
        told=lambda _: stop.set(),
    )  # fmt: skip
    assert (outcome.stopped, site.held()) == (True, 3)
    outcome = site.fetch(keys={"StudyInstanceUID": "1.2.1"})
    assert (outcome.known, outcome.received, site.held()) == (3, 6, 6)


@on_sqlite
def test_fewer_than_announced_are_named_and_tried_again(site: Site, tmp_path: Path) -> None:
    with Database(f"sqlite:///{tmp_path / 'far.db'}").read() as tx:
        gone = tmp_path / "far" / "archive" / instances.of_study(tx, "1.2.1")[1].path
    content = gone.read_bytes()
    gone.unlink()
    outcome = site.fetch(keys={"StudyInstanceUID": "1.2.1"})
    (missing,) = outcome.missing
    assert (missing["series_uid"], outcome.received, outcome.announced) == ("1.2.1.1", 5, 6)
    assert missing["reason"] == "2 of 3 instances came: C-MOVE: 1 instances were not sent"
    gone.write_bytes(content)
    assert site.fetch(keys={"StudyInstanceUID": "1.2.1"}).missing == []


@on_sqlite
def test_what_has_grown_since_is_fetched_as_well(site: Site) -> None:
    site.fetch(keys={"StudyInstanceUID": "1.2.2"})
    (more,) = a_study(2, StudyDate="20250201")
    more.SOPInstanceUID = "1.2.2.1.2"
    assert send(site.far, more) == [0]
    outcome = site.fetch(keys={"StudyInstanceUID": "1.2.2"})
    assert (outcome.announced, outcome.received, site.held()) == (2, 2, 2)


@on_sqlite
def test_a_rate_spreads_the_instances_over_time(site: Site) -> None:
    began = time.monotonic()
    site.fetch(keys={"StudyInstanceUID": ["1.2.1"]}, rate=6.0)
    # The second series waits until the three slices of the first are paid for.
    assert time.monotonic() - began >= 0.5


@on_sqlite
def test_outside_its_window_nothing_is_fetched(site: Site) -> None:
    now = dt.datetime.now().astimezone()
    shut = Window(start=(now + LATER).time(), end=(now + 2 * LATER).time())
    stop = threading.Event()
    timer = threading.Timer(0.5, stop.set)
    timer.start()
    outcome = site.fetch(window=shut, stop=stop)
    timer.join()
    assert (outcome.stopped, outcome.studies, site.held()) == (True, 0, 0)


@pytest.mark.parametrize(
    ("window", "at", "seconds"),
    [
        ("22:00-06:00", "23:00", 0),
        ("22:00-06:00", "05:59", 0),
        ("22:00-06:00", "06:00", 16 * 3600),
        ("22:00-06:00", "21:30", 1800),
        ("09:00-17:00", "08:00", 3600),
        ("09:00-17:00", "17:00", 16 * 3600),
    ],
)
def test_a_window_is_open_from_its_beginning_up_to_its_end(window: str, at: str, seconds: float) -> None:
    moment = dt.datetime.fromisoformat(f"2026-01-01T{at}:00+00:00")
    assert Window.parse(window).seconds_until_open(moment) == seconds


@pytest.mark.parametrize("text", ["22-6", "25:00-06:00", "06:00-06:00", ""])
def test_a_window_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="two times of day"):
        Window.parse(text)


def test_a_rate_names_its_time() -> None:
    assert [instances_per_second(text) for text in ("5/s", "120/min", "1800/h")] == [5.0, 2.0, 0.5]
    for text in ("5", "0/s", "five/s"):
        with pytest.raises(ConfigError):
            instances_per_second(text)


@on_sqlite
def test_an_unknown_keyword_or_archive_is_a_usage_error(site: Site) -> None:
    with pytest.raises(ConfigError, match="keyword"):
        study_keys(["PatientId=P1"], modalities=(), since="", until="")
    with pytest.raises(ConfigError, match="there are: pacs"):
        parts.fetch(site.settings, source="other", wish=Wish(keys={}), told=print, stop=threading.Event())


@on_sqlite
def test_an_archive_that_is_down_is_an_error(site: Site) -> None:
    site.far.stop(grace_seconds=0)
    with pytest.raises(PeerUnreachable):
        site.fetch()


@pytest.mark.parametrize("retrieve", ["move", "get"])
def test_a_fetched_study_is_kept_and_not_analysed(site: Site, retrieve: str) -> None:
    site.fetch(retrieve=retrieve)
    assert site.tick() == 3
    assert {site.state(f"1.2.{n}") for n in (1, 2, 3)} == {StudyState.ARCHIVED}
    assert site.tick() == 0, "nothing is pending any more"
    with site.database.read() as tx:
        assert "archived" in {event.event for event in audit.timeline(tx, "1.2.1")}
    # What is fetched is in the archive as anything else.
    asker = Asker(site.node.port)
    assert len(asker.values(keys("STUDY", StudyInstanceUID=""), "StudyInstanceUID", model=STUDY_ROOT.find)) == 3


def test_slices_of_a_fetched_study_from_a_scanner_make_it_a_study_like_any_other(site: Site) -> None:
    site.fetch(keys={"StudyInstanceUID": "1.2.2"})
    site.tick()
    (late,) = a_study(2)
    late.SOPInstanceUID = "1.2.2.1.77"
    assert send(site.node, late, calling="CT1") == [0]
    assert site.tick() == 1
    assert site.state("1.2.2") is StudyState.RECEIVING
    site.tick()
    assert site.state("1.2.2") is StudyState.RECEIVING, "it waits for its verdict"


@on_sqlite
def test_a_study_that_a_scanner_is_sending_is_read_although_the_rest_of_it_is_fetched(site: Site) -> None:
    live = a_study(1, series=2, slices=3)[0]
    assert send(site.node, live, calling="CT1") == [0]
    site.fetch(keys={"StudyInstanceUID": "1.2.1"})
    site.tick()
    assert site.state("1.2.1") is StudyState.RECEIVING


@on_sqlite
def test_an_archived_study_is_read_when_it_is_fetched_to_be_read(site: Site) -> None:
    site.fetch(keys={"StudyInstanceUID": "1.2.2"})
    site.tick()
    site.fetch(keys={"StudyInstanceUID": "1.2.2"}, prior=False)
    site.tick()
    assert site.state("1.2.2") is StudyState.RECEIVING


@on_sqlite
def test_a_fetched_study_is_read_where_that_was_wished_or_is_asked_for_later(site: Site) -> None:
    site.fetch(keys={"StudyInstanceUID": "1.2.3"}, prior=False)
    site.fetch(keys={"StudyInstanceUID": "1.2.2"})
    site.tick()
    assert (site.state("1.2.3"), site.state("1.2.2")) == (StudyState.RECEIVING, StudyState.ARCHIVED)
    with site.database.write() as tx:
        assert operate.requeue(tx, "1.2.2")["revision"] == 2
    site.tick()
    assert site.state("1.2.2") is StudyState.RECEIVING
