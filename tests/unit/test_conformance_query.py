"""The conformance statement says of Query/Retrieve what the program does."""

from __future__ import annotations

import re
from pathlib import Path

from db.engine import Database
from node.query import find, retrieve
from node.query.archive import ATTRIBUTES, PATIENT_ROOT, STUDY_ROOT

STATEMENT = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")


def test_every_attribute_of_every_level_is_listed_and_no_other() -> None:
    rows = dict(re.findall(r"^\| (PATIENT|STUDY|SERIES|IMAGE) \| (.*) \|$", STATEMENT, flags=re.MULTILINE))
    assert {level: tuple(row.split(", ")) for level, row in rows.items()} == ATTRIBUTES


def test_every_sop_class_is_listed(database: Database, tmp_path: Path) -> None:
    services = (
        find.service(database=database, ae_title="HEMONODE", maximum_matches=1),
        retrieve.service(database=database, archive=tmp_path, destinations=(), timeout=1),
    )
    offered = {uid for service in services for uid, _ in service.contexts}
    listed = {f"{model.find[:-1]}{number}" for model in (PATIENT_ROOT, STUDY_ROOT) for number in (1, 2, 3)}
    assert offered == listed
    for model in (PATIENT_ROOT, STUDY_ROOT):
        assert f"| {model.find}, .2, .3 | implicit and explicit VR little endian |" in STATEMENT
