"""Queries and retrieval over a large archive: ``python -m benchmarks.query --instances 2000000``.

A small and a large archive are filled with rows, and one study of each with files as well. The same queries are then
asked over real associations of both, and the ratio says what two million instances cost. With ``--postgresql`` a
PostgreSQL is made for the time of the benchmark (as root too); ``--url`` names one that is there, and is emptied.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from rich.console import Console
from rich.table import Table

from db import catalog
from db.dicom_json import data_set
from db.engine import Database
from db.schema import instances, metadata, now, studies
from node import log
from tests.archive_node import CT, EXPLICIT, Asker, Workstation, archive_node, keys
from tests.receiving import a_slice, send
from tests.tools.postgresql import running_postgresql, url_of

SMALL = 20_000
SLICES = 100
SERIES = 4
REPEATS = 15
BATCH = 200
LIVE = "1.2.826.0.1.99.1"


def fill(database: Database, *, count: int) -> None:
    """The database holds `count` instances, a hundred in each study."""
    total = count // SLICES
    for start in range(1, total + 1, BATCH):
        with database.write() as tx:
            for number in range(start, min(start + BATCH, total + 1)):
                _study(tx, number)


def _study(tx: sa.Connection, number: int) -> None:
    uid, at = f"1.2.3.{number}", now()
    name = {"vr": "PN", "Value": [{"Alphabetic": f"Name{number}^Given"}]}
    day = f"20{number % 25:02}{number % 12 + 1:02}{number % 28 + 1:02}"
    header = data_set(
        PatientName=name, PatientID=f"P{number // 3}", AccessionNumber=f"A{number}", StudyDate=day, StudyTime="120000"
    )
    tx.execute(
        studies.insert().values(
            study_uid=uid, state="reported", revision=1, first_received_at=at, last_received_at=at, calling_ae="CT1",
            header=header,
        )
    )  # fmt: skip
    catalog.enter_study(tx, study_uid=uid, header=header)
    facts = {"modality": "CT" if number % 5 else "MR", "series_number": 1, "rows": 512, "columns": 512}
    rows = [
        {
            "sop_instance_uid": f"{uid}.{n}", "sop_class_uid": CT, "series_uid": f"{uid}.{n % SERIES}",
            "study_uid": uid, "transfer_syntax_uid": EXPLICIT, "path": f"{uid}/{n}.dcm", "size": 1, "digest": "d",
            "association_id": "a", "received_at": at, "revision": 1, "facts": facts | {"instance_number": n},
        }
        for n in range(SLICES)
    ]  # fmt: skip
    tx.execute(instances.insert(), rows)
    first = tx.execute(sa.select(sa.func.min(instances.c.seq)).where(instances.c.study_uid == uid)).scalar_one()
    catalog.enter_series(
        tx,
        [
            catalog.NewSeries(
                series_uid=f"{uid}.{n}", study_uid=uid, modality=str(facts["modality"]), first_seq=first + n
            )
            for n in range(SERIES)
        ],
    )


QUERIES: dict[str, Callable[[], Any]] = {
    "a study by its UID": lambda: keys("STUDY", StudyInstanceUID="1.2.3.7", NumberOfStudyRelatedInstances=""),
    "a patient's studies": lambda: keys("STUDY", PatientID="P7", StudyInstanceUID="", ModalitiesInStudy=""),
    "an accession number": lambda: keys("STUDY", AccessionNumber="A77", StudyInstanceUID=""),
    "a day, CT only": lambda: keys("STUDY", StudyDate="20070808", ModalitiesInStudy="CT", StudyInstanceUID=""),
    "a name, by wild card": lambda: keys("STUDY", PatientName="name77^*", StudyInstanceUID=""),
    "the series of a study": lambda: keys(
        "SERIES", StudyInstanceUID="1.2.3.7", SeriesInstanceUID="", NumberOfSeriesRelatedInstances=""
    ),
    "the images of a series": lambda: keys(
        "IMAGE", StudyInstanceUID="1.2.3.7", SeriesInstanceUID="1.2.3.7.1", SOPInstanceUID=""
    ),
}


def measure(url: str, folder: Path, *, count: int, slices: int) -> dict[str, float]:
    """Milliseconds for each query, instances per second for a C-MOVE, and the peak of resident memory in MiB."""
    database = Database(url)
    database.upgrade()
    with database.write() as tx:
        for table in reversed(metadata.sorted_tables):
            tx.execute(table.delete())
    fill(database, count=count)
    workstation = Workstation(keep=False)
    with workstation.listening() as viewer, archive_node(folder, database, destinations=[viewer]) as node:
        pixels = os.urandom(2 * 512 * 512)
        for start in range(0, slices, 50):
            some = range(start + 1, min(start + 50, slices) + 1)
            assert set(send(node, *(a_slice(n, Rows=512, Columns=512, PixelData=pixels) for n in some))) == {0}
        asker = Asker(node.port)
        told = {what: _milliseconds(asker, query) for what, query in QUERIES.items()}
        began = time.perf_counter()
        status, _ = asker.move(keys("STUDY", StudyInstanceUID=LIVE), "VIEWER")[-1]
        assert status.Status == 0
        told[f"C-MOVE of {slices} slices, instances/s"] = slices / (time.perf_counter() - began)
    told["peak memory of this process, MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    database.close()
    return told


def _milliseconds(asker: Asker, query: Callable[[], Any]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        _, statuses = asker.find(query())
        times.append(time.perf_counter() - began)
        assert statuses[-1].Status == 0
    return statistics.median(times) * 1000


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=2_000_000)
    parser.add_argument("--slices", type=int, default=500, help="of the study that is moved")
    parser.add_argument("--url", default="", help="a PostgreSQL database, which is emptied")
    parser.add_argument("--postgresql", action="store_true", help="a PostgreSQL of our own")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; the system's temporary one")
    arguments = parser.parse_args()
    log.configure(level="error", part="benchmark")
    results = []
    with ExitStack() as stack:
        url = arguments.url
        if arguments.postgresql:
            url = url_of(stack.enter_context(running_postgresql(fsync=True, within=arguments.folder)), "postgres")
        for count in (min(SMALL, arguments.instances // 10), arguments.instances):
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                own = url or f"sqlite:///{folder}/hemonode.db"
                results.append((count, measure(own, Path(folder) / "data", count=count, slices=arguments.slices)))
    table = Table(
        "query, milliseconds with its association", *(f"{count:,} instances" for count, _ in results), "ratio"
    )
    (_, small), (_, large) = results
    for what in small:
        table.add_row(what, f"{small[what]:.1f}", f"{large[what]:.1f}", f"{large[what] / small[what]:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
