"""The archive's index: one row per stored instance, and the objects that were set aside."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from db import audit, catalog
from db.engine import INSERT, insert_into
from db.schema import Utc, instances, now, set_aside, studies
from db.states import SetAsideKind, StudyState

MOST_AT_ONCE = 500
"""UIDs in one statement; databases limit its parameters."""


@dataclass(frozen=True, kw_only=True)
class NewInstance:
    """An instance whose file is already written. `path` is relative to the archive; `digest` is SHA-256 in hex.

    `facts` is `inference.series.InstanceFacts` as JSON; `header` is the patient and study level of the data set in the
    DICOM JSON Model (PS3.18 F), which becomes the study's when the study is new.
    """

    sop_instance_uid: str
    sop_class_uid: str
    series_uid: str
    study_uid: str
    transfer_syntax_uid: str
    path: str
    size: int
    digest: str
    association_id: str
    calling_ae: str
    facts: dict[str, Any]
    header: dict[str, Any]
    received_at: dt.datetime = field(default_factory=now)


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A stored instance. `revision` is the study revision whose verdict first counted it, None before that."""

    seq: int
    sop_instance_uid: str
    sop_class_uid: str
    series_uid: str
    study_uid: str
    transfer_syntax_uid: str
    path: str
    size: int
    digest: str
    association_id: str
    received_at: dt.datetime
    revision: int | None
    facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """An object that was received but does not stand in the archive, and why. `status` is what the sender was told."""

    id: int
    kind: SetAsideKind
    status: int
    reason: str
    sop_class_uid: str | None
    sop_instance_uid: str | None
    path: str
    size: int
    digest: str
    association_id: str
    calling_ae: str
    at: dt.datetime


def add(tx: sa.Connection, new: NewInstance) -> Instance | None:
    """The instance stands in the archive, and its study stands as received from.

    Returns
    -------
    Instance or None
        None when the row was added; the row that was there before when the SOP Instance UID is known already, in
        which case nothing was changed and the caller compares digests.
    """
    return add_all(tx, [new])[0]


def add_all(tx: sa.Connection, news: Sequence[NewInstance]) -> tuple[Instance | None, ...]:
    """As `add`, for several at once, in two or three statements; of those with one UID the first is the instance."""
    firsts = {new.sop_instance_uid: new for new in reversed(news)}
    # In the order of their UIDs: two receivers that add the same instances then wait for each other in one order.
    rows = [_row(firsts[uid]) for uid in sorted(firsts)]
    added = {row.sop_instance_uid: row.seq for row in tx.execute(_ADD[tx.dialect.name], rows)}
    if added:
        _received(tx, [firsts[uid] for uid in sorted(added)])
        catalog.enter_series(tx, [_series(firsts[uid], added[uid]) for uid in sorted(added, key=added.__getitem__)])
    outcomes: list[Instance | None] = []
    for new in news:
        is_added = new.sop_instance_uid in added and firsts[new.sop_instance_uid] is new
        outcomes.append(None if is_added else find(tx, new.sop_instance_uid))
    return tuple(outcomes)


_ADD = {
    name: insert(instances)
    .on_conflict_do_nothing(index_elements=["sop_instance_uid"])
    .returning(instances.c.sop_instance_uid, instances.c.seq)
    for name, insert in INSERT.items()
}
"""Made once: making a statement takes longer than running it."""
_LATER = sa.bindparam("at_", type_=Utc())
_TOUCH = (
    studies.update()
    .where(studies.c.study_uid == sa.bindparam("uid"))
    .values(last_received_at=sa.case((studies.c.last_received_at < _LATER, _LATER), else_=studies.c.last_received_at))
    .returning(studies.c.study_uid)
)
_COLUMNS = (
    "sop_instance_uid", "sop_class_uid", "series_uid", "study_uid", "transfer_syntax_uid", "path", "size", "digest",
    "association_id", "facts", "received_at",
)  # fmt: skip


def _row(new: NewInstance) -> dict[str, Any]:
    return {name: getattr(new, name) for name in _COLUMNS}


def _series(new: NewInstance, seq: int) -> catalog.NewSeries:
    modality = new.facts.get("modality")
    return catalog.NewSeries(series_uid=new.series_uid, study_uid=new.study_uid, modality=modality, first_seq=seq)


def _received(tx: sa.Connection, news: Sequence[NewInstance]) -> None:
    """Their studies were last received from when the last of them came; a study that is new stands as received from."""
    at = max(new.received_at for new in news)
    firsts = {new.study_uid: new for new in reversed(news)}
    unknown = set(firsts) - _touch(tx, firsts, at)
    begun = {uid for uid in sorted(unknown) if _begun(tx, firsts[uid])}
    if unknown - begun:  # begun by another receiver at the same moment
        _touch(tx, unknown - begun, at)


def _touch(tx: sa.Connection, study_uids: Collection[str], at: dt.datetime) -> set[str]:
    # One by one: a list of them would be written into the statement anew each time, and a group has few.
    return {uid for uid in sorted(study_uids) if tx.execute(_TOUCH, {"uid": uid, "at_": at}).first() is not None}


def _begun(tx: sa.Connection, new: NewInstance) -> bool:
    insert = insert_into(tx, studies).values(
        study_uid=new.study_uid,
        state=StudyState.RECEIVING,
        revision=1,
        first_received_at=new.received_at,
        last_received_at=new.received_at,
        calling_ae=new.calling_ae,
        header=new.header,
    )
    insert = insert.on_conflict_do_nothing(index_elements=["study_uid"]).returning(studies.c.study_uid)
    if tx.execute(insert).first() is None:
        return False
    catalog.enter_study(tx, study_uid=new.study_uid, header=new.header)
    audit.record(tx, "first_instance", study_uid=new.study_uid, calling_ae=new.calling_ae)
    return True


def find(tx: sa.Connection, sop_instance_uid: str) -> Instance | None:
    """The stored instance of this SOP Instance UID, or None."""
    row = tx.execute(sa.select(instances).where(instances.c.sop_instance_uid == sop_instance_uid)).mappings().first()
    return Instance(**dict(row)) if row else None


def among(tx: sa.Connection, sop_instance_uids: Sequence[str]) -> dict[str, Instance]:
    """Those of the instances that the archive holds, by SOP Instance UID."""
    found: dict[str, Instance] = {}
    for start in range(0, len(sop_instance_uids), MOST_AT_ONCE):
        some = sop_instance_uids[start : start + MOST_AT_ONCE]
        query = sa.select(instances).where(instances.c.sop_instance_uid.in_(some))
        found |= {row["sop_instance_uid"]: Instance(**dict(row)) for row in tx.execute(query).mappings()}
    return found


def conflicts_among(tx: sa.Connection, sop_instance_uids: Sequence[str], *, calling_ae: str) -> frozenset[str]:
    """Those of the instances under whose UIDs `calling_ae` sent another object, which was kept aside."""
    found: set[str] = set()
    row = set_aside.c
    for start in range(0, len(sop_instance_uids), MOST_AT_ONCE):
        some = row.sop_instance_uid.in_(sop_instance_uids[start : start + MOST_AT_ONCE])
        query = sa.select(row.sop_instance_uid).where(some, row.kind == SetAsideKind.CONFLICT)
        found |= set(tx.execute(query.where(row.calling_ae == calling_ae)).scalars())
    return frozenset(found)


def of_study(
    tx: sa.Connection, study_uid: str, *, up_to_revision: int | None = None, after_seq: int | None = None
) -> tuple[Instance, ...]:
    """The instances of a study in the order received.

    Parameters
    ----------
    up_to_revision : int, optional
        Only those counted by the verdict of this revision or an earlier one.
    after_seq : int, optional
        Only those with a greater `seq`.
    """
    query = sa.select(instances).where(instances.c.study_uid == study_uid).order_by(instances.c.seq)
    if up_to_revision is not None:
        query = query.where(instances.c.revision <= up_to_revision)
    if after_seq is not None:
        query = query.where(instances.c.seq > after_seq)
    return tuple(Instance(**dict(row)) for row in tx.execute(query).mappings())


def unconsidered(tx: sa.Connection, study_uid: str) -> tuple[Instance, ...]:
    """The instances of a study that no verdict has counted yet."""
    query = sa.select(instances).where(instances.c.study_uid == study_uid, instances.c.revision.is_(None))
    return tuple(Instance(**dict(row)) for row in tx.execute(query.order_by(instances.c.seq)).mappings())


def consider(tx: sa.Connection, *, study_uid: str, revision: int) -> int:
    """Every instance not yet counted now belongs to `revision`; returns how many."""
    query = instances.update().where(instances.c.study_uid == study_uid, instances.c.revision.is_(None))
    return int(tx.execute(query.values(revision=revision)).rowcount)


def keep_aside(
    tx: sa.Connection,
    *,
    kind: SetAsideKind,
    status: int,
    reason: str,
    path: str,
    size: int,
    digest: str,
    association_id: str,
    calling_ae: str,
    sop_class_uid: str | None = None,
    sop_instance_uid: str | None = None,
) -> None:
    """The object stands among those set aside, with its reason."""
    tx.execute(
        set_aside.insert().values(
            kind=kind, status=status, reason=reason, path=path, size=size, digest=digest, at=now(),
            association_id=association_id, calling_ae=calling_ae, sop_class_uid=sop_class_uid,
            sop_instance_uid=sop_instance_uid,
        )
    )  # fmt: skip


def all_set_aside(tx: sa.Connection, *, limit: int = 100) -> tuple[SetAside, ...]:
    """The objects set aside, newest first."""
    query = sa.select(set_aside).order_by(set_aside.c.id.desc()).limit(limit)
    return tuple(_set_aside(row) for row in tx.execute(query).mappings())


def count_set_aside(tx: sa.Connection) -> int:
    """How many objects are set aside."""
    return int(tx.execute(sa.select(sa.func.count()).select_from(set_aside)).scalar_one())


def set_aside_digest_known(tx: sa.Connection, *, sop_instance_uid: str | None, digest: str) -> bool:
    """Whether this very object was set aside before, so that a sender's retries do not pile up.

    Until the transaction ends nobody else gets an answer for this digest, so two at once do not both hear no.
    `sop_instance_uid` is None for an object that came without a UID worth keeping.
    """
    if tx.dialect.name == "postgresql":  # SQLite has one writer at a time
        tx.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(digest))))
    query = sa.select(set_aside.c.id).where(
        set_aside.c.sop_instance_uid == sop_instance_uid, set_aside.c.digest == digest
    )
    return tx.execute(query.limit(1)).first() is not None


def count(tx: sa.Connection, *, study_uid: str | None = None) -> int:
    """How many instances the archive holds, of one study or of all."""
    query = sa.select(sa.func.count()).select_from(instances)
    if study_uid is not None:
        query = query.where(instances.c.study_uid == study_uid)
    return int(tx.execute(query).scalar_one())


def set_aside_of_study(tx: sa.Connection, study_uid: str) -> tuple[SetAside, ...]:
    """The objects set aside under the SOP Instance UIDs of a study, newest first."""
    known = sa.select(instances.c.sop_instance_uid).where(instances.c.study_uid == study_uid)
    query = sa.select(set_aside).where(set_aside.c.sop_instance_uid.in_(known)).order_by(set_aside.c.id.desc())
    return tuple(_set_aside(row) for row in tx.execute(query).mappings())


def _set_aside(row: sa.RowMapping) -> SetAside:
    return SetAside(**{**row, "kind": SetAsideKind(row["kind"])})
