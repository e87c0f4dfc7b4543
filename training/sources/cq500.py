"""CQ500 (Chilamkurthy et al., Lancet 2018;392:2388): 491 scans, each read by three radiologists; labels of scans only.

::

    ROOT/reads.csv                                                name,Category,R1:ICH,…,R3:MidlineShift
    ROOT/**/CQ500CT310 CQ500CT310/Unknown Study/CT Plain/*.dcm    any folders above that of the patient

A study holds several series. Those that their folder calls contrast or bone are never read; among the others
`inference.series` chooses as it does in the node. One series is known to show a chest.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from inference.facts import InstanceFacts, facts
from inference.series import Criteria, select
from inference.suitability import matches
from training.errors import DataError
from training.sources.folder import Row, cohort, csv_rows, decoded, files_key, header, headers, indexed, zero_or_one
from training.study import CohortFacts, LabelledStudy, Labels, majority, patient_key, with_any

TABLE = "reads.csv"
READERS = ("R1", "R2", "R3")
SUBTYPES = {
    "IPH": "intraparenchymal",
    "IVH": "intraventricular",
    "SAH": "subarachnoid",
    "SDH": "subdural",
    "EDH": "epidural",
}
BLEEDING = "ICH"
NOT_A_HEAD = frozenset({(172, "CT Thin Plain")})
"""Study and folder of a series that is reported to show a chest."""
COLUMNS = ("study", "group", "files", "facts")
_PATIENT = re.compile(r"CQ500[ -]?CT[ -]?(\d+)\b")

log = logging.getLogger(__name__)


def studies(root: Path, *, index: Path) -> Iterator[LabelledStudy]:
    """Every labelled study below `root` that has a series to read; `index` is where the choice is kept.

    Raises
    ------
    DataError
        The table is missing or malformed.
    """
    reads = read_labels(root / TABLE)
    rows = indexed(root, kind="cq500", columns=COLUMNS, rows=partial(_choices, root), index=index)
    for number, series, files, known in rows:
        if int(number) not in reads:
            log.warning("CQ500-CT-%s left out: it is not in %s", number, TABLE)
            continue
        category, votes = reads[int(number)]
        paths = [root / name for name in json.loads(files)]
        yield LabelledStudy(
            source="cq500",
            patient=patient_key(f"CQ500-CT-{number}"),
            study_uid=f"CQ500-CT-{number}",
            series_uid=series,
            group=category,
            key=files_key(paths),
            decode=partial(decoded, paths),
            headers=partial(headers, paths),
            labels=majority(list(votes.values())),
            readers=votes,
            facts=CohortFacts.from_json(json.loads(known)),
        )


def read_labels(path: Path) -> dict[int, tuple[str, Mapping[str, Labels]]]:
    """Study number → category and each reader's labels, columns found by name.

    *Any* is what the reader wrote under ICH, also where that contradicts a subtype (it does in two readings).
    """
    wanted = [f"{reader}:{name}" for reader in READERS for name in (BLEEDING, *SUBTYPES)]
    found: dict[int, tuple[str, Mapping[str, Labels]]] = {}
    for line, row in csv_rows(path, ("name", "Category", *wanted)):
        match = _PATIENT.search(row["name"])
        if match is None:
            raise DataError(f"{path.name}, line {line}, column name: {row['name']!r}, expected CQ500-CT-<number>")
        values = {column: zero_or_one(row[column], path=path, line=line, column=column) for column in wanted}
        votes = {
            reader: with_any(
                {SUBTYPES[name]: values[f"{reader}:{name}"] for name in SUBTYPES}, bleeding=values[f"{reader}:ICH"]
            )
            for reader in READERS
        }
        found[int(match[1])] = row["Category"], votes
    return found


def _choices(root: Path) -> Iterator[Row]:
    """One row for every study: which files of which series are read, in one walk through the folders."""
    for place, folders, _ in os.walk(root):
        folders.sort()
        match = _PATIENT.match(Path(place).name)
        if match is not None:
            folders.clear()  # what lies below belongs to this study
            yield from _chosen(root, Path(place), int(match[1]))


def _chosen(root: Path, study: Path, number: int) -> Iterator[Row]:
    paths: dict[str, Path] = {}
    known: list[InstanceFacts] = []
    for place, folders, files in os.walk(study):
        folders.sort()
        name = Path(place).name
        if (why := _refused(number, name)) and files:
            log.info("CQ500-CT-%d: %r is not read: %s", number, name, why)
            continue
        for file in sorted(files):
            one = _facts(Path(place) / file, name)
            if one is not None:
                paths[one.sop_instance_uid] = Path(place) / file
                known.append(one)
    selection = select(known, Criteria())
    if not selection.stacks:
        reasons = "; ".join(dict.fromkeys(choice.reason for choice in selection.choices)) or "no images"
        log.warning("CQ500-CT-%d left out: %s", number, reasons)
        return
    stack = selection.stacks[0]
    files = [str(paths[uid].relative_to(root)) for uid in stack.sop_instance_uids]
    yield (
        str(number),
        paths[stack.sop_instance_uids[0]].parent.name,
        json.dumps(files),
        json.dumps(cohort(stack).to_json()),
    )


def _refused(number: int, folder: str) -> str:
    """Why a series folder is not even looked at, from its name: the headers of this set say little."""
    criteria = Criteria()
    if (number, folder.removeprefix(f"CQ500CT{number} ")) in NOT_A_HEAD:
        return "reported to show a chest"
    if matches(criteria.sharp_words, folder):
        return "a bone series"
    if matches(criteria.contrast_words, folder) and not matches(criteria.no_contrast_words, folder):
        return "a series with contrast"
    return ""


def _facts(path: Path, folder: str) -> InstanceFacts | None:
    dataset = header(path)
    if dataset is None:
        return None
    known = facts(dataset)
    if not known.sop_instance_uid or not known.has_pixels:
        return None
    return known if known.series_description else replace(known, series_description=folder)
