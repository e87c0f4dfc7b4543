"""The catalogue: an index serves every query, and archives of an earlier version are entered in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from db import catalog, holdings, instances
from db.dicom_json import data_set
from db.engine import MIGRATIONS, Database
from db.holdings import Selection
from db.instances import NewInstance
from db.schema import catalog_series, catalog_studies, metadata

CT = "1.2.840.10008.5.1.4.1.1.2"


def a_header(number: int) -> dict[str, Any]:
    name = {"vr": "PN", "Value": [{"Alphabetic": f"Name{number}^X", "Ideographic": "山田"}]}
    return data_set(
        PatientName=name, PatientID=f"P{number} ", AccessionNumber=f"A{number}", StudyID="S", StudyDate="2026.01.02"
    )


def fill(database: Database, *, studies: int, slices: int) -> None:
    with database.write() as tx:
        for number in range(studies):
            for n in range(slices):
                new = NewInstance(
                    sop_instance_uid=f"1.2.{number}.{n}",
                    sop_class_uid=CT,
                    series_uid=f"1.2.{number}.{n % 2}",
                    study_uid=f"1.2.{number}",
                    transfer_syntax_uid="1.2.840.10008.1.2.1",
                    path=f"{number}/{n}",
                    size=1,
                    digest="d",
                    association_id="a",
                    calling_ae="CT1",
                    facts={"modality": "CT", "series_number": n % 2},
                    header=a_header(number),
                )
                instances.add(tx, new)


QUERIES: list[tuple[str, Callable[[sa.Connection], object]]] = [
    ("StudyInstanceUID", lambda tx: catalog.candidates(tx, data_set(StudyInstanceUID=["1.2.3", "1.2.4"]))),
    ("PatientID", lambda tx: catalog.candidates(tx, data_set(PatientID="P3"))),
    ("PatientID begins with", lambda tx: catalog.candidates(tx, data_set(PatientID="P3*"))),
    ("AccessionNumber", lambda tx: catalog.candidates(tx, data_set(AccessionNumber="A3"))),
    ("StudyDate", lambda tx: catalog.candidates(tx, data_set(StudyDate="20260102"))),
    ("StudyDate range", lambda tx: catalog.candidates(tx, data_set(StudyDate="20260101-20260103"))),
    ("SeriesInstanceUID", lambda tx: catalog.candidates(tx, data_set(SeriesInstanceUID="1.2.3.1"))),
    ("SOPInstanceUID", lambda tx: catalog.candidates(tx, data_set(SOPInstanceUID="1.2.3.1"))),
    ("studies", lambda tx: holdings.studies_of(tx, ["1.2.3", "1.2.4"], counted=True)),
    ("series", lambda tx: holdings.series_of(tx, ["1.2.3"], counted=True)),
    ("page", lambda tx: holdings.page(tx, Selection(study_uids=("1.2.3",)), after_seq=0, limit=500)),
    ("page of a series", lambda tx: holdings.page(
        tx, Selection(study_uids=("1.2.3",), series_uids=("1.2.3.1",)), after_seq=5, limit=500)),
    ("page of a patient", lambda tx: holdings.page(tx, Selection(patient_id="P3"), after_seq=5, limit=500)),
    ("page of images", lambda tx: holdings.page(tx, Selection(sop_instance_uids=("1.2.3.1",)), after_seq=0, limit=9)),
    ("kinds", lambda tx: holdings.kinds(tx, Selection(study_uids=("1.2.3",)))),
    ("count of a series", lambda tx: holdings.count_of_series(tx, "1.2.3.1")),
]  # fmt: skip


def test_an_index_serves_every_query(either_database: Database) -> None:
    fill(either_database, studies=40, slices=10)
    scanned = {}
    for what, query in QUERIES:
        plans = plans_of(either_database, query)
        bad = [
            line
            for line in plans
            if ("SCAN " in line or "Seq Scan" in line or "PRIMARY KEY (rowid>" in line) and "SUBQ" not in line
        ]
        if bad or not plans:
            scanned[what] = bad
    assert scanned == {}


def plans_of(database: Database, query: Callable[[sa.Connection], object]) -> list[str]:
    """How the database goes about each statement of `query`, line by line."""
    statements: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        statements.append((statement, parameters))

    with database.read() as tx:
        if tx.dialect.name == "postgresql":  # which would rather read a table this small as a whole
            tx.execute(sa.text("SET LOCAL enable_seqscan = off"))
        sa.event.listen(tx, "before_cursor_execute", note)
        query(tx)
        sa.event.remove(tx, "before_cursor_execute", note)
        explain = "EXPLAIN " if tx.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN "
        return [str(row[-1]) for s, p in statements for row in tx.exec_driver_sql(explain + s, p)]


def test_an_archive_of_an_earlier_version_is_entered_when_it_is_opened(fresh_database_url: str) -> None:
    database = Database(fresh_database_url)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.engine.begin() as tx:
        config.attributes["connection"] = tx
        command.upgrade(config, "0001")
        for number, header in ((1, a_header(1)), (2, {})):
            study = {"uid": f"1.2.{number}", "header": json.dumps(header)}
            tx.execute(
                sa.text("INSERT INTO studies VALUES (:uid, 'reported', 1, 0, 0, 'CT1', :header, NULL, NULL)"), study
            )
            for n, facts in enumerate(({"modality": "CT"}, {"modality": "SR"}, {})):
                tx.execute(
                    sa.text(
                        "INSERT INTO instances (sop_instance_uid, sop_class_uid, series_uid, study_uid,"
                        " transfer_syntax_uid, path, size, digest, association_id, received_at, facts)"
                        " VALUES (:sop, 'c', :series, :uid, 't', 'p', 1, 'd', 'a', 0, :facts)"
                    ),
                    {
                        "sop": f"{number}.{n}",
                        "series": f"{number}.{n % 2}",
                        "uid": f"1.2.{number}",
                        "facts": json.dumps(facts),
                    },
                )
    database.upgrade()
    with database.read() as tx:
        rows = tx.execute(sa.select(catalog_studies).order_by("study_uid")).mappings().all()
        series = tx.execute(sa.select(catalog_series).order_by("series_uid")).mappings().all()
        assert catalog.candidates(tx, data_set(PatientID="P1", StudyDate="20260102")) == ["1.2.1"]
    with database.write() as tx:
        catalog.enter_study(tx, study_uid="1.2.9", header=a_header(1))
    with database.read() as tx:
        now = tx.execute(sa.select(catalog_studies).where(catalog_studies.c.study_uid == "1.2.9")).mappings().one()
    assert dict(rows[0]) == {**now, "study_uid": "1.2.1"}, "as it would be entered today"
    assert (rows[1]["patient_id"], rows[1]["study_date"]) == ("", None)
    assert [(s["series_uid"], s["modality"], s["first_seq"]) for s in series[:2]] == [
        ("1.0", "CT", 1),
        ("1.1", "SR", 2),
    ]
    database.close()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_an_instance_brings_is_entered_in_its_own_transaction(either_database: Database) -> None:
    with pytest.raises(RuntimeError):
        die_after_one(either_database)
    with either_database.read() as tx:
        assert all(tx.execute(sa.select(sa.func.count()).select_from(t)).scalar() == 0 for t in metadata.sorted_tables)


def die_after_one(database: Database) -> None:
    new = NewInstance(
        sop_instance_uid="1.1", sop_class_uid=CT, series_uid="1", study_uid="1.2", transfer_syntax_uid="t", path="p",
        size=1, digest="d", association_id="a", calling_ae="CT1", facts={}, header=a_header(1),
    )  # fmt: skip
    with database.write() as tx:
        instances.add(tx, new)
        raise RuntimeError("the process dies")
