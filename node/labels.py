"""Labels from a table: every row is checked before any counts, and every error names its line and column."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from db import labels, studies
from db.labels import Given, NewLabel
from db.states import LabelSource
from inference.result import LABELS
from node.errors import HemonodeError

REQUIRED = "study_uid"
PLACES = ("series_uid", "sop_instance_uid", "frame", "reader")
LONG = ("label", "value")
MOST_ERRORS = 20
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


class LabelsRefused(HemonodeError):
    """A table of labels was not taken; the message names lines and columns."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a table says."""

    labels: tuple[NewLabel, ...]
    rows: int


def read(path: Path, *, reader: str, source: LabelSource) -> Table:
    """The labels in the table `path`.

    Columns are found by name, in any order: ``study_uid``; where a row speaks of less than the study ``series_uid``,
    ``sop_instance_uid`` and ``frame``; ``reader`` (by default `reader`); and either one column for each label, where an
    empty cell says nothing, or ``label`` and ``value``. Values are 0 and 1.

    Raises
    ------
    LabelsRefused
        There is anything else in it. Nothing of such a table is to be used.
    """
    errors: list[str] = []
    found: dict[tuple[str, str, str, int, str, str], tuple[int, NewLabel]] = {}
    rows = 0
    for line, row in _rows(path):
        rows += 1
        for column, label in _labels(row, reader=reader, source=source):
            if isinstance(label, str):
                errors.append(f"line {line}, column {column}: {label}")
                continue
            which = (
                label.study_uid,
                label.series_uid,
                label.sop_instance_uid,
                label.frame,
                label.label,
                label.reader,
            )
            before, old = found.setdefault(which, (line, label))
            if old.value != label.value:
                errors.append(f"line {line}, column {column}: contradicts line {before}")
    if errors:
        raise LabelsRefused(_all(path, errors))
    return Table(labels=tuple(label for _, label in found.values()), rows=rows)


def import_table(tx: sa.Connection, path: Path, table: Table) -> Given:
    """Every label of the table stands, a second time without effect; `LabelsRefused` where a study is not known."""
    uids = dict.fromkeys(label.study_uid for label in table.labels)
    unknown = [uid for uid in uids if studies.find(tx, uid) is None]
    if unknown:
        errors = [f"column {REQUIRED}: no study {uid} in this node" for uid in unknown]
        raise LabelsRefused(_all(path, errors))
    return labels.give(tx, table.labels)


def _all(path: Path, errors: list[str]) -> str:
    more = [f"… and {len(errors) - MOST_ERRORS} more"] if len(errors) > MOST_ERRORS else []
    return f"{path}: nothing was imported\n" + "\n".join([*errors[:MOST_ERRORS], *more])


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, restkey="", restval="")
            names = [name.strip() for name in table.fieldnames or ()]
            _check_columns(path, names)
            table.fieldnames = names
            for row in table:
                if "" in row:
                    raise LabelsRefused(f"{path}: line {table.line_num} has more cells than the header")
                yield table.line_num, {name: value.strip() for name, value in row.items()}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelsRefused(f"{path} is no table: {error}") from error


def _check_columns(path: Path, names: list[str]) -> None:
    wide = [name for name in names if name in LABELS]
    allowed = {REQUIRED, *PLACES, *(LONG if not wide else LABELS)}
    if REQUIRED not in names:
        raise LabelsRefused(f"{path}: no column {REQUIRED}")
    if unknown := [name for name in names if name not in allowed]:
        raise LabelsRefused(f"{path}: column {unknown[0]} is not known; there are {', '.join(sorted(allowed))}")
    if len(set(names)) < len(names):
        raise LabelsRefused(f"{path}: a column stands there twice")
    if not wide and not set(LONG) <= set(names):
        raise LabelsRefused(f"{path}: expected the columns {' and '.join(LONG)}, or some of {', '.join(LABELS)}")


def _labels(row: Mapping[str, str], *, reader: str, source: LabelSource) -> Iterator[tuple[str, NewLabel | str]]:
    """Column and label, or column and what is wrong with it."""
    wrong = False
    for column in (REQUIRED, "series_uid", "sop_instance_uid"):
        value = row.get(column, "")
        if (value or column == REQUIRED) and (len(value) > 64 or not _UID.fullmatch(value)):
            wrong = True
            yield column, f"{value!r} is no UID"
    frame = row.get("frame", "") or "0"
    if not frame.isdigit() or (int(frame) and not row.get("sop_instance_uid")):
        wrong = True
        yield "frame", f"{frame!r}, expected a frame of the image in sop_instance_uid, counted from 1"
    who = row.get("reader", "") or reader
    if len(who) > 64:
        wrong = True
        yield "reader", "more than 64 characters"
    for column, label, value in _cells(row):
        if label not in LABELS:
            yield column, f"{label!r}, expected one of {', '.join(LABELS)}"
        elif value not in {"0", "1"}:
            yield "value" if column == "label" else column, f"{value!r}, expected 0 or 1"
        elif not wrong:
            yield (
                column,
                NewLabel(
                    study_uid=row[REQUIRED],
                    series_uid=row.get("series_uid", ""),
                    sop_instance_uid=row.get("sop_instance_uid", ""),
                    frame=int(frame),
                    label=label,
                    value=int(value),
                    reader=who,
                    source=source,
                ),
            )


def _cells(row: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Column, label and value of each label in a row; empty cells of a wide table say nothing."""
    if "label" in row:
        yield "label", row["label"], row["value"]
    for name in LABELS:
        if row.get(name):
            yield name, name, row[name]
