"""`hemonode fetch` from Orthanc, killed on the way and given again; and Orthanc's count as evidence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from db import instances
from db.engine import Database
from tests.archive_node import archive_node
from tests.receiving import a_slice, part_10, wait_until
from tests.running_node import ROOT
from tests.tools.orthanc import Orthanc
from tests.worklist_node import a_free_port

pytestmark = pytest.mark.peer

SERIES, SLICES = 3, 8


@pytest.fixture
def pacs(orthanc: Orthanc) -> Orthanc:
    """Orthanc with one study of three series."""
    for series in range(SERIES):
        for n in range(SLICES):
            image = a_slice(
                n, SeriesInstanceUID=f"1.2.826.0.1.99.1.{series}", SOPInstanceUID=f"1.2.826.0.1.99.{series}.{n}"
            )
            orthanc.upload(part_10(image))
    return orthanc


@pytest.fixture
def home(tmp_path: Path, pacs: Orthanc) -> Iterator[Path]:
    """A folder with the node.toml of a node that is listening, and that Orthanc knows."""
    port = a_free_port()
    (tmp_path / "node.toml").write_text(
        f"""
[node]
port = {port}
data = "data"
[receive]
disk_watermark_mb = 0
disk_reserve_mb = 0
[[archives]]
name = "pacs"
ae_title = "{pacs.ae_title}"
address = "127.0.0.1"
port = {pacs.port}
[[archives]]
name = "getting"
ae_title = "{pacs.ae_title}"
address = "127.0.0.1"
port = {pacs.port}
retrieve = "get"
"""
    )
    (tmp_path / "data").mkdir()
    database = Database(f"sqlite:///{tmp_path / 'data' / 'hemonode.db'}")
    database.upgrade()
    with archive_node(tmp_path / "data", database, port=port):
        pacs.knows(name="hemonode", ae_title="HEMONODE", port=port)
        yield tmp_path
    database.close()


def begun(home: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "node.cli", "fetch", "--config", str(home / "node.toml"), *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def held(home: Path) -> int:
    database = Database(f"sqlite:///{home / 'data' / 'hemonode.db'}")
    with database.read() as tx:
        count = instances.count(tx)
    database.close()
    return count


def test_a_fetch_that_is_killed_goes_on_when_it_is_given_again(home: Path) -> None:
    # After the first series it waits for longer than the test: 8 slices at one a minute.
    first = begun(home, "--from", "pacs", "--rate", "1/min")
    wait_until(lambda: held(home) == SLICES)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    second = begun(
        home, "--json", "--from", "pacs", "--query", "PatientID=P1", "--modality", "CT", "--since", "2025-12-31"
    )
    said, log = second.communicate(timeout=60)
    assert second.returncode == 0, log
    facts = json.loads(said)
    assert (facts["announced"], facts["received"], facts["missing"]) == (SERIES * SLICES, SERIES * SLICES, [])
    assert facts["known"] == SLICES, "what had come before the kill is not fetched again"
    assert held(home) == SERIES * SLICES
    assert "Doe" not in log


def test_a_study_is_got_from_orthanc_over_one_association_for_each_series(home: Path) -> None:
    run = begun(home, "--from", "getting")
    said, log = run.communicate(timeout=60)
    assert run.returncode == 0, log
    assert said.startswith(
        f"{SERIES * SLICES} of {SERIES * SLICES} instances are here, of {SERIES} series in 1 studies"
    )
    assert held(home) == SERIES * SLICES
