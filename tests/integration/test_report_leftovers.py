"""Reports that a killed process left half-written."""

from __future__ import annotations

import os
import time
from pathlib import Path

from db.engine import Database
from node.config import Settings
from node.report.filing import LEFTOVER_SECONDS, UNFINISHED, file_report


def test_half_written_reports_of_killed_processes_go_and_those_being_written_stay(
    database: Database, tmp_path: Path
) -> None:
    folder = tmp_path / "archive" / "reports" / UNFINISHED
    folder.mkdir(parents=True)
    for name, age in (("left", LEFTOVER_SECONDS + 60), ("writing", 1.0)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    file_report(database, archive=tmp_path / "archive", settings=Settings(), version="1")
    assert [path.name for path in folder.iterdir()] == ["writing"]
