"""Fetches priors, or everything, from another archive: series by series, at a pace, in a window, verified by count.

Where it stands is in the database: a fetch that is killed goes on when the same command is given again. What it asks
again is only what the far archive holds; a series of which as much came as was announced is not retrieved twice.
"""

from __future__ import annotations

import datetime as dt
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from pydicom.datadict import tag_for_keyword
from pynetdicom.association import Association
from pynetdicom.presentation import StoragePresentationContexts

from db import fetches, holdings
from db.engine import Database
from db.fetches import Fetch
from db.states import FetchState
from node import asking
from node.asking import FIND, GET, MOVE
from node.config import ArchiveSection
from node.errors import ConfigError, DeliveryError, PeerUnreachable
from node.log import log
from node.scu import associate

UNREACHABLE_IN_A_ROW = 3
"""So many studies failing because nobody answers end the fetch: the far archive is down."""

_RATE = re.compile(r"(\d+(?:\.\d+)?)/(s|min|h)")
_SECONDS = {"s": 1, "min": 60, "h": 3600}
_WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")

Listening = Callable[[], AbstractContextManager[Sequence[tuple[Any, ...]]]]
"""Opens what takes the instances of a C-GET: handlers for an association, for as long as it lasts."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """Hours of the day in local time; `end` before `start` reaches over midnight."""

    start: dt.time
    end: dt.time

    @classmethod
    def parse(cls, text: str) -> Window:
        """``22:00-06:00``. Raises ``ConfigError`` for anything else."""
        found = _WINDOW.fullmatch(text)
        parts = [int(part) for part in found.groups()] if found else []
        if not parts or parts[:2] == parts[2:]:
            raise ConfigError(f"--between {text!r}: expected two times of day, such as 22:00-06:00")
        return cls(start=dt.time(parts[0], parts[1]), end=dt.time(parts[2], parts[3]))

    def seconds_until_open(self, at: dt.datetime) -> float:
        """0 inside the window, else how long it stays shut."""
        clock = at.time()
        inside = self.start <= clock < self.end if self.start < self.end else not self.end <= clock < self.start
        if inside:
            return 0.0
        opens = at.replace(hour=self.start.hour, minute=self.start.minute, second=0, microsecond=0)
        return (opens - at).total_seconds() % dt.timedelta(days=1).total_seconds()


def instances_per_second(text: str) -> float:
    """``5/s``, ``100/min`` or ``1000/h`` as a number. Raises ``ConfigError`` for anything else."""
    found = _RATE.fullmatch(text)
    if found is None or not float(found[1]):
        raise ConfigError(f"--rate {text!r}: expected instances per time, such as 5/s, 100/min or 1000/h")
    return float(found[1]) / _SECONDS[found[2]]


def study_keys(pairs: Iterable[str], *, modalities: Sequence[str], since: str, until: str) -> dict[str, str]:
    """The study-level keys of a query: KEYWORD=VALUE each, the modalities, and days as 2026-01-31.

    Raises
    ------
    ConfigError
        Something of it is not what it should be.
    """
    keys = {}
    for pair in pairs:
        keyword, equals, value = pair.partition("=")
        if not equals or tag_for_keyword(keyword) is None:
            raise ConfigError(f"--query {keyword!r}: expected KEYWORD=VALUE with a keyword of the data dictionary")
        keys[keyword] = value
    if since or until:
        keys["StudyDate"] = f"{_day(since)}-{_day(until)}"
    if modalities:
        keys["ModalitiesInStudy"] = "\\".join(modalities)
    return keys


def _day(text: str) -> str:
    try:
        return dt.date.fromisoformat(text).strftime("%Y%m%d") if text else ""
    except ValueError as error:
        raise ConfigError(f"{text!r}: expected a day such as 2026-01-31") from error


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What to fetch: study-level `keys` by keyword, only these modalities (all when empty).

    `limit` is the number of studies of which something is retrieved this time. `rate` is in instances per second.
    `prior` studies are kept without being read.
    """

    keys: Mapping[str, str]
    modalities: tuple[str, ...] = ()
    limit: int | None = None
    rate: float | None = None
    window: Window | None = None
    prior: bool = True


@dataclass(kw_only=True)
class Outcome:
    """How a fetch went: what was announced, what is now here of it, and what is not, each with its reason."""

    studies: int = 0
    series: int = 0
    announced: int = 0
    received: int = 0
    known: int = 0
    missing: list[dict[str, Any]] = field(default_factory=list)
    stopped: bool = False


class Fetching:
    """One fetch from one archive.

    Parameters
    ----------
    database : Database
        Where it is recorded, and where what was received is counted.
    archive : ArchiveSection
        The far archive.
    own_ae_title : str
        This node's, to which the far archive sends.
    timeout : float
        Seconds for connecting and for each answer.
    listening : callable
        What takes the instances of a C-GET.
    told : callable
        Called with the outcome so far after every series.
    stop : threading.Event
        Ends the fetch after the series in progress.
    """

    def __init__(
        self,
        *,
        database: Database,
        archive: ArchiveSection,
        own_ae_title: str,
        timeout: float,
        listening: Listening,
        told: Callable[[Outcome], object],
        stop: threading.Event,
    ) -> None:
        self._database = database
        self._archive = archive
        self._own_ae_title = own_ae_title
        self._timeout = timeout
        self._listening = listening
        self._told = told
        self._stop = stop
        self._next_at = time.monotonic()

    def run(self, wish: Wish) -> Outcome:
        """Everything that was wished for is here, or the outcome says what is not and why.

        Raises
        ------
        PeerUnreachable, PeerRefused
            The far archive could not be asked at all, or is down.
        """
        outcome, silent, retrieved = Outcome(), 0, 0
        for study_uid in self._studies(wish):
            if retrieved == wish.limit or not self._may_go_on(wish):
                outcome.stopped = True
                break
            outcome.studies += 1
            try:
                retrieved += self._study(study_uid, wish, outcome)
                silent = 0
            except DeliveryError as error:
                silent += isinstance(error, PeerUnreachable)
                outcome.missing.append({"study_uid": study_uid, "series_uid": None, "reason": str(error)})
                log().warning("fetch_failed", study_uid=study_uid, source=self._archive.name, error=str(error))
                if silent == UNREACHABLE_IN_A_ROW:
                    raise
        return outcome

    def _studies(self, wish: Wish) -> list[str]:
        with self._associated([FIND]) as association:
            found = asking.find(association, "STUDY", {"StudyInstanceUID": "", **wish.keys})
            uids = dict.fromkeys(str(match.get("StudyInstanceUID", "")) for match in found)
        return [uid for uid in uids if uid]

    def _study(self, study_uid: str, wish: Wish, outcome: Outcome) -> bool:
        """What is due of a study has been retrieved; whether anything was."""
        with self._associated([FIND]) as association:
            announced = {
                series.series_uid: asking.count_images(association, study_uid=study_uid, series_uid=series.series_uid)
                if series.instances is None
                else series.instances
                for series in asking.series_of(association, study_uid)
                if not wish.modalities or series.modality in wish.modalities
            }
        outcome.series += len(announced)
        outcome.announced += sum(announced.values())
        with self._database.write() as tx:
            announcement = fetches.announce(
                tx,
                source=self._archive.name,
                source_ae=self._archive.sends_as or self._archive.ae_title,
                study_uid=study_uid,
                announced=announced,
                prior=wish.prior,
            )
            due = [fetch for fetch in announcement if not _is_here(tx, fetch)]
        done = sum(announced.values()) - sum(fetch.announced for fetch in due)
        outcome.known += done
        outcome.received += done
        for fetch in due:
            if not self._may_go_on(wish):
                outcome.stopped = True
                break
            self._series(fetch, outcome)
            self._next_at = max(time.monotonic(), self._next_at) + (fetch.announced / wish.rate if wish.rate else 0.0)
            self._told(outcome)
        return bool(due)

    def _series(self, fetch: Fetch, outcome: Outcome) -> None:
        error = None
        try:
            self._retrieve(fetch)
        except DeliveryError as failure:
            error = str(failure)
        with self._database.write() as tx:
            received = holdings.count_of_series(tx, fetch.series_uid)
            state = fetches.ended(tx, fetch, received=received, error=error)
        outcome.received += min(received, fetch.announced)
        if state is not FetchState.DONE:
            reason = f"{received} of {fetch.announced} instances came{': ' + error if error else ''}"
            outcome.missing.append({"study_uid": fetch.study_uid, "series_uid": fetch.series_uid, "reason": reason})
            log().warning("series_not_fetched", series_uid=fetch.series_uid, source=fetch.source, reason=reason)

    def _retrieve(self, fetch: Fetch) -> None:
        if self._archive.retrieve == "move":
            with self._associated([MOVE]) as association:
                asking.retrieve(
                    association, study_uid=fetch.study_uid, series_uid=fetch.series_uid, move_to=self._own_ae_title
                )
            return
        storage = [str(context.abstract_syntax) for context in StoragePresentationContexts]
        with (
            self._listening() as handlers,
            self._associated([GET, *storage], scp_roles=storage, handlers=handlers) as association,
        ):
            asking.retrieve(association, study_uid=fetch.study_uid, series_uid=fetch.series_uid, move_to=None)

    def _associated(
        self,
        contexts: Sequence[str],
        *,
        scp_roles: Sequence[str] = (),
        handlers: Sequence[tuple[Any, ...]] = (),
    ) -> AbstractContextManager[Association]:
        return associate(
            self._archive, own_ae_title=self._own_ae_title, contexts=contexts, timeout=self._timeout,
            scp_roles=scp_roles, handlers=handlers,
        )  # fmt: skip

    def _may_go_on(self, wish: Wish) -> bool:
        """Waits for the window and the pace; False when the fetch shall stop."""
        shut = wish.window.seconds_until_open(dt.datetime.now().astimezone()) if wish.window else 0.0
        if shut:
            log().info("fetch_waits", source=self._archive.name, seconds=round(shut))
        return not self._stop.wait(max(shut, self._next_at - time.monotonic(), 0.0))


def _is_here(tx: sa.Connection, fetch: Fetch) -> bool:
    """Whether as much of a series is here as was announced, however it came; then it is done."""
    received = holdings.count_of_series(tx, fetch.series_uid)
    return received >= fetch.announced and fetches.ended(tx, fetch, received=received, error=None) is FetchState.DONE
