"""The PACS is asked while a study waits, and its answer decides; a PACS that is down decides nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pynetdicom.presentation import build_context

from db import studies
from db.engine import Database
from db.states import StudyState
from db.studies import Study
from node import assemble
from node.assemble import Memory, PacsCounts
from node.config import ArchiveSection, Settings
from node.receive.scp import Scp
from tests.archive_node import CT, EXPLICIT, OWN, archive_node
from tests.receiving import associated, wait_until
from tests.scanner import Exam, Exams


@dataclass(frozen=True, kw_only=True)
class Two:
    """This node and the PACS, which both receive; and what asks and what looks."""

    near: Scp
    pacs: Scp
    database: Database
    settings: Settings
    counts: PacsCounts
    memory: Memory

    def look(self) -> Study:
        assemble.tick(self.database, self.settings, model="triage", memory=self.memory, counts=self.counts)
        with self.database.read() as tx:
            (study,) = studies.latest(tx, limit=1)
        return study


@pytest.fixture
def two(tmp_path: Path, database: Database) -> Iterator[Two]:
    far = Database(f"sqlite:///{tmp_path / 'far.db'}")
    far.upgrade()
    with archive_node(tmp_path / "far", far) as pacs, archive_node(tmp_path / "near", database) as near:
        section = ArchiveSection(name="pacs", ae_title=OWN, address="127.0.0.1", port=pacs.port)
        waits = {"settle_time": 0.1, "quiet_time": 600, "count_from": "pacs", "count_every": 0.05}
        settings = Settings.model_validate({"assemble": waits, "archives": [section.model_dump()]})
        yield Two(
            near=near, pacs=pacs, database=database, settings=settings, memory=Memory(),
            counts=PacsCounts(database=database, settings=settings, archive=section),
        )  # fmt: skip
    far.close()


def send(to: Scp, exam: Exam) -> None:
    with associated(to, build_context(CT, EXPLICIT)) as association:
        for path in exam.files:
            assert association.send_c_store(path).Status == 0


def test_a_study_waits_for_what_the_pacs_holds_of_it_and_no_longer(two: Two, tmp_path: Path) -> None:
    exam = Exams(root=tmp_path / "exams").new("axial")
    send(two.pacs, exam)
    with associated(two.near, build_context(CT, EXPLICIT)) as association:  # and stays open: nobody says it is over
        for path in exam.files[:-1]:
            assert association.send_c_store(path).Status == 0
        wait_until(lambda: two.counts.ask() and two.counts.of(exam.study_uid))
        for _ in range(3):
            wait_until(two.counts.ask)
            assert two.look().state is StudyState.RECEIVING
        assert association.send_c_store(exam.files[-1]).Status == 0
        study = wait_until(lambda: two.counts.ask() is not None and (s := two.look()).completeness and s)
    assert study.completeness["complete"]
    assert "pacs holds no more than" in study.completeness["reason"]


def test_a_pacs_that_does_not_answer_neither_holds_nor_hurries_a_study(two: Two, tmp_path: Path) -> None:
    exam = Exams(root=tmp_path / "exams").new("axial")
    two.pacs.stop(grace_seconds=0)
    send(two.near, exam)
    wait_until(two.counts.ask)
    assert two.counts.of(exam.study_uid) is None
    study = wait_until(lambda: (s := two.look()).completeness and s)
    assert (study.completeness["complete"], "pacs" in study.completeness["reason"]) == (True, False)
