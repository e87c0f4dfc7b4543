"""What was fetched from other archives: one row per series and source, with what was announced and what came.

A fetched study is prior to what happens now, and is kept without being read: so long as everything that was received
of it came by the fetch. The first instance that anybody else sends makes it a study like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from db import associations, studies
from db.engine import insert_into
from db.schema import fetches, now
from db.states import FetchState, StudyState


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """One series to be fetched from `source`, which has announced so many instances of it."""

    series_uid: str
    source: str
    study_uid: str
    announced: int
    received: int
    state: FetchState
    attempts: int
    error: str | None


def announce(
    tx: sa.Connection,
    *,
    source: str,
    source_ae: str,
    study_uid: str,
    announced: Mapping[str, int],
    prior: bool,
) -> tuple[Fetch, ...]:
    """The series of a study stand as to be fetched; returns those that are still due, a count that has grown again.

    Parameters
    ----------
    announced : mapping of str to int
        The number of instances of each series.
    prior : bool
        The study is to be kept without being read, unless it was here already for another reason.
    """
    study = studies.find(tx, study_uid)
    archived = study is not None and study.state is StudyState.ARCHIVED
    if archived and not prior:
        studies.reopen(tx, study_uid, reason="fetched to be read")
    fresh = {"prior": prior and (study is None or archived), "changed_at": now()}
    for series_uid, count in announced.items():
        fresh["announced"] = count
        insert = insert_into(tx, fetches).values(
            series_uid=series_uid, source=source, study_uid=study_uid, source_ae=source_ae, received=0,
            state=FetchState.DUE, attempts=0, **fresh,
        )  # fmt: skip
        tx.execute(insert.on_conflict_do_update(index_elements=["series_uid", "source"], set_=fresh))
    query = sa.select(fetches).where(fetches.c.study_uid == study_uid, fetches.c.source == source)
    known = [_fetch(row) for row in tx.execute(query.order_by(fetches.c.series_uid)).mappings()]
    return tuple(
        f for f in known if f.series_uid in announced and (f.state is not FetchState.DONE or f.received < f.announced)
    )


def ended(tx: sa.Connection, fetch: Fetch, *, received: int, error: str | None) -> FetchState:
    """The series stands as fetched: done when as many came as were announced, else short, or failed by `error`."""
    complete = received >= fetch.announced
    state = FetchState.DONE if complete else FetchState.FAILED if error else FetchState.SHORT
    query = fetches.update().where(fetches.c.series_uid == fetch.series_uid, fetches.c.source == fetch.source)
    tx.execute(
        query.values(
            state=state, received=received, attempts=fetches.c.attempts + 1, changed_at=now(),
            error=None if complete else error,
        )
    )  # fmt: skip
    return state


def keep_or_read(tx: sa.Connection, study_uid: str) -> bool:
    """A study of which everything came by a fetch is archived; one that was, and had more sent to it, is received anew.

    Returns False, with nothing written, where neither is so.
    """
    # Whoever adds an instance waits for this lock, so none comes between the look and what follows from it.
    study = studies.lock(tx, study_uid)
    if study_uid in only_fetched(tx, [study_uid]):
        return studies.archive(tx, study_uid, reason="fetched from another archive: kept, not analysed")
    if study is None or study.state is not StudyState.ARCHIVED:
        return False
    read_after_all(tx, study_uid)
    return studies.reopen(tx, study_uid, reason="slices of a fetched study came from elsewhere") is not None


def only_fetched(tx: sa.Connection, study_uids: Sequence[str]) -> frozenset[str]:
    """Those of the studies that are prior, and of which nobody but their source has sent anything."""
    query = sa.select(fetches.c.study_uid, fetches.c.source_ae).where(
        fetches.c.study_uid.in_(study_uids), fetches.c.prior
    )
    sources: dict[str, set[str]] = {}
    for row in tx.execute(query.distinct()) if study_uids else ():
        sources.setdefault(row.study_uid, set()).add(row.source_ae)
    return frozenset(uid for uid, titles in sources.items() if _senders(tx, uid) <= titles)


def _senders(tx: sa.Connection, study_uid: str) -> set[str]:
    return {association.calling_ae for association in associations.of_study(tx, study_uid)}


def read_after_all(tx: sa.Connection, study_uid: str) -> None:
    """The study is prior no more."""
    tx.execute(fetches.update().where(fetches.c.study_uid == study_uid).values(prior=False))


def _fetch(row: sa.RowMapping) -> Fetch:
    names = ("series_uid", "source", "study_uid", "announced", "received", "attempts", "error")
    return Fetch(**{name: row[name] for name in names}, state=FetchState(row["state"]))
