"""A data set of the archive, frozen: which studies in which revision, which slices with which digests, which labels.

What is not in the list is not trained on, and what changes afterwards does not change it: slices that come later,
readers who change their mind. Freezing again under another name gives the next version.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from db import instances, labels, studies
from db.engine import Database
from db.instances import Instance
from db.labels import Label
from db.states import LabelSource
from inference.facts import InstanceFacts
from inference.result import ANY, LABELS, SUBTYPES, Json
from inference.series import Criteria, Stack, select
from training.errors import DataError
from training.sources.folder import cohort
from training.study import Labels, majority, patient_key, with_any

FORMAT = 1
PATIENT_ID = "00100020"


@dataclass(frozen=True, kw_only=True)
class Query(Json):
    """Which studies. Days are YYYY-MM-DD in UTC; `scanner` is a regular expression; `labels` the best source first."""

    since: str = ""
    until: str = ""
    scanner: str = ""
    modality: str = "CT"
    labels: tuple[str, ...] = tuple(LabelSource)


def freeze(url: str, *, archive: Path, name: str, query: Query, criteria: Criteria) -> dict[str, Any]:
    """The frozen list of what `query` finds, with the digest of its own content under ``sha256``.

    The series of each study is the one that the node would read by these `criteria`, its slices in the same order.

    Parameters
    ----------
    url : str
        The node's database.

    Raises
    ------
    DataError
        A day, a source of labels or the database is not what it should be, or nothing is found.
    """
    since, until = _day(query.since), _day(query.until)
    if wrong := [source for source in query.labels if source not in set(LabelSource)]:
        raise DataError(f"no labels come from {', '.join(wrong)}; they come from {', '.join(LabelSource)}")
    if not url:
        raise DataError("which database? `hemonode dataset freeze` says so from node.toml")
    database, found, left_out = Database(url), [], Counter[str]()
    try:
        with database.read() as tx:
            for uid in labels.labelled_studies(tx, since=since, until=until):
                entry = _entry(tx, uid, query, criteria)
                if isinstance(entry, str):
                    left_out[entry] += 1
                else:
                    found.append(entry)
    except sa.exc.SQLAlchemyError as error:
        raise DataError(f"the database cannot be read: {type(error).__name__}") from error
    finally:
        database.close()
    if not found:
        raise DataError(f"no labelled study is as asked for; left out: {dict(left_out) or 'none'}")
    content = {
        "format": FORMAT,
        "name": name,
        "frozen_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "query": query.to_json(),
        "archive": str(archive.resolve()),
        "left_out": dict(left_out),
        "studies": found,
    }
    return content | {"sha256": digest_of(content)}


def write(frozen: Mapping[str, Any], path: Path) -> Path:
    """The list stands in `path`. One that stands there is never replaced: `DataError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump(frozen, file, indent=1, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as error:
        raise DataError(f"{path} exists; a frozen data set is not changed: choose another name") from error
    return path


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a frozen list without its own digest."""
    plain = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _day(text: str) -> dt.datetime | None:
    if not text:
        return None
    try:
        return dt.datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=dt.UTC)
    except ValueError as error:
        raise DataError(f"{text!r} is no day; expected YYYY-MM-DD") from error


def _entry(tx: sa.Connection, uid: str, query: Query, criteria: Criteria) -> dict[str, Any] | str:
    """The study in the list, or why it is left out."""
    study = studies.find(tx, uid)
    if study is None or study.verdict_at is None:
        return "not complete yet"
    given = [label for label in labels.of_study(tx, uid) if label.source in query.labels]
    if not given:
        return "no label from the sources asked for"
    stored = {i.sop_instance_uid: i for i in instances.of_study(tx, uid, up_to_revision=study.revision)}
    stacks = select([InstanceFacts.from_json(i.facts) for i in stored.values()], criteria).stacks
    if not stacks:
        return "no series to read"
    stack = stacks[0]
    if stack.head.modality != query.modality:
        return f"modality {stack.head.modality}"
    scanner = " ".join(filter(None, (stack.head.manufacturer, stack.head.model_name, stack.head.station_name)))
    if query.scanner and not re.search(query.scanner, scanner, re.IGNORECASE):
        return "another scanner"
    votes = _by_place(given, query.labels)
    patient = str(next(iter(study.header.get(PATIENT_ID, {}).get("Value", ())), "") or uid)
    return {
        "study_uid": uid,
        "revision": study.revision,
        "patient": patient_key(patient),
        "series_uid": stack.head.series_uid,
        "facts": cohort(stack).to_json(),
        "labels": majority(list(votes[_WHOLE].values())) if _WHOLE in votes else None,
        "readers": {reader: list(vote) for reader, vote in votes.get(_WHOLE, {}).items()},
        "slices": _slices(stack, stored, votes),
    }


_Place = tuple[str, str, int]
_WHOLE: _Place = ("", "", 0)


def _by_place(given: Sequence[Label], sources: Sequence[str]) -> dict[_Place, dict[str, Labels]]:
    """Each place (series, image, frame) → what each reader says, from the best source that speaks of this place."""
    said: dict[_Place, dict[str, dict[str, dict[str, float]]]] = defaultdict(lambda: defaultdict(dict))
    for one in given:
        place = (one.series_uid if not one.sop_instance_uid else "", one.sop_instance_uid, one.frame)
        said[place][one.source].setdefault(one.reader, {})[one.label] = float(one.value)
    return {
        place: {
            reader: with_any({name: values.get(name) for name in SUBTYPES}, bleeding=values.get(ANY))
            for reader, values in by_source[next(source for source in sources if source in by_source)].items()
        }
        for place, by_source in said.items()
    }


def _slices(
    stack: Stack, stored: Mapping[str, Instance], votes: Mapping[_Place, dict[str, Labels]]
) -> list[dict[str, Any]]:
    found = []
    for plane in stack.in_order:
        uid, frame = plane.facts.sop_instance_uid, plane.frame or 0
        here = votes.get(("", uid, frame)) or votes.get((stack.head.series_uid, "", 0)) or {}
        labels_here = majority(list(here.values())) if here else None
        found.append(
            {
                "uid": uid,
                "frame": frame,
                "path": stored[uid].path,
                "digest": stored[uid].digest,
                "labels": None if labels_here is None else dict(zip(LABELS, labels_here, strict=True)),
            }
        )
    return found
