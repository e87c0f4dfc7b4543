"""Whether an instance costs as much in a full archive as in an empty one: ``python -m benchmarks.archive_growth``.

For each size an archive is made, whose index is filled with rows of made-up studies and whose folders lie as theirs
would. Then every archive in turn takes a few slices of 512 × 512, round after round, through the same `Intake` as a
receiver's, with everything flushed as there. With ``--postgresql`` a PostgreSQL is made for the time of the benchmark,
beside the archives (as root too); ``--url`` names one that runs, on which databases may be made.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from rich.console import Console
from rich.table import Table

from db import schema, studies
from db.engine import Database
from db.states import StudyState
from inference.series import facts
from node.receive.archive import Archive
from node.receive.disk import Disk
from node.receive.files import Files
from node.receive.intake import Intake, StoreRequest
from tests.receiving import a_slice, encoded
from tests.tools.postgresql import running_postgresql, url_of

SIZES = (0, 200_000, 2_000_000)
OF_A_STUDY = 500
AT_ONCE = 20_000
SLICES_OF_A_ROUND = 20
MARGIN = 0.2


@dataclass(kw_only=True)
class Contender:
    """An archive with so many instances, and what its new ones took: seconds, CPU seconds, seconds of a look."""

    size: int
    intake: Intake
    database: Database
    taken: list[float] = field(default_factory=list)
    worked: list[float] = field(default_factory=list)
    looked: list[float] = field(default_factory=list)


def fill(database: Database, archive: Path, size: int) -> None:
    """The index holds `size` instances of studies that were reported long ago, and their folders are there."""
    for first in range(0, size, AT_ONCE):
        rows = [_row(number) for number in range(first, min(first + AT_ONCE, size))]
        begun = {row["study_uid"]: row for row in rows}
        with database.write() as tx:
            tx.execute(schema.instances.insert(), rows)
            tx.execute(schema.studies.insert(), [_study(row) for row in begun.values()])
        for row in begun.values():
            (archive / row["path"]).parent.mkdir(parents=True, exist_ok=True)
    if database.engine.dialect.name == "postgresql":
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("VACUUM ANALYZE"))


def _uid(*names: object) -> str:
    digest = hashlib.sha256(":".join(map(str, names)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def _row(number: int) -> dict[str, Any]:
    study, at = _uid("study", number // OF_A_STUDY), schema.now() - dt.timedelta(days=30)
    series, uid, digest = _uid(study), _uid("instance", number), hashlib.sha256(str(number).encode()).hexdigest()
    shelf = hashlib.sha256(study.encode()).hexdigest()[:2]
    return {
        "sop_instance_uid": uid, "sop_class_uid": CTImageStorage, "series_uid": series, "study_uid": study,
        "transfer_syntax_uid": ExplicitVRLittleEndian, "path": f"{shelf}/{study}/{series}/{uid}-{digest[:16]}.dcm",
        "size": 525_000, "digest": digest, "association_id": "filled", "received_at": at, "revision": 1,
        "facts": facts(_slice(study, series, uid)).to_json() if number % OF_A_STUDY == 0 else _FACTS,
    }  # fmt: skip


def _study(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "study_uid": row["study_uid"], "state": StudyState.REPORTED, "revision": 1, "calling_ae": "CT1",
        "first_received_at": row["received_at"], "last_received_at": row["received_at"], "header": {},
    }  # fmt: skip


def _slice(study: str, series: str, uid: str) -> Any:
    return a_slice(1, StudyInstanceUID=study, SeriesInstanceUID=series, SOPInstanceUID=uid)


_FACTS = facts(_slice("1.2", "1.2.3", "1.2.3.4")).to_json()


def requests(size: int, number: int) -> Iterator[StoreRequest]:
    """The slices of one round, of a study of its own."""
    study = _uid("new", size, number)
    for position in range(SLICES_OF_A_ROUND):
        dataset = _slice(study, _uid(study), _uid(study, position))
        dataset.Rows = dataset.Columns = 512
        dataset.PixelData = position.to_bytes(2, "little") * 512 * 512
        yield StoreRequest(
            association_id="benchmark",
            calling_ae="CT1",
            abstract_syntax_uid=CTImageStorage,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            sop_class_uid=CTImageStorage,
            sop_instance_uid=str(dataset.SOPInstanceUID),
            data=BytesIO(encoded(dataset)),
        )


def measure(contender: Contender, number: int) -> None:
    """One round: slices are taken one by one, then the scheduler looks once."""
    for request in list(requests(contender.size, number)):
        began, worked = time.perf_counter(), time.thread_time()
        contender.intake.take(request)
        contender.taken.append(time.perf_counter() - began)
        contender.worked.append(time.thread_time() - worked)
    began = time.perf_counter()
    with contender.database.read() as tx:
        studies.pending(tx)
    contender.looked.append(time.perf_counter() - began)


def open_contender(home: Path, url: str, size: int) -> Contender:
    """An archive of `size` instances, ready to take more."""
    name = f"hemonode_growth_{size}"
    database = Database(_fresh(url, name) if url else f"sqlite:///{home / name}.db")
    database.upgrade()
    archive = Archive(root=home / name, files=Files())
    archive.prepare()
    fill(database, archive.root, size)
    disk = Disk(path=archive.root, watermark=0, reserve=0)
    intake = Intake(archive=archive, database=database, disk=disk, facts=lambda dataset: facts(dataset).to_json())
    return Contender(size=size, intake=intake, database=database)


def _fresh(url: str, name: str) -> str:
    server = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE IF EXISTS {name}"))
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    server.dispose()
    return sa.make_url(url).set(database=name).render_as_string(hide_password=False)


def table(contenders: Sequence[Contender]) -> Table:
    """The medians, and their ratios to the smallest archive's."""
    made = Table(title=f"one instance, {len(contenders[0].taken)} times", box=None, title_justify="left")
    for column in ("instances before", "take ms", "p95", "ratio", "CPU ms", "ratio", "look ms"):
        made.add_column(column, justify="right")
    for contender in contenders:
        taken, worked = statistics.median(contender.taken), statistics.median(contender.worked)
        made.add_row(
            f"{contender.size:,}",
            f"{taken * 1e3:.2f}",
            f"{statistics.quantiles(contender.taken, n=20)[-1] * 1e3:.2f}",
            f"{taken / statistics.median(contenders[0].taken):.2f}",
            f"{worked * 1e3:.2f}",
            f"{worked / statistics.median(contenders[0].worked):.2f}",
            f"{statistics.median(contender.looked) * 1e3:.2f}",
        )
    return made


def main() -> int:
    """Run the benchmark; returns 0 when the cost is flat within the margin."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.archive_growth", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="instances in each archive beforehand")
    parser.add_argument("--rounds", type=int, default=50, help=f"of {SLICES_OF_A_ROUND} slices for each archive")
    parser.add_argument("--url", default="", help="of a PostgreSQL database; SQLite when left out")
    parser.add_argument("--postgresql", action="store_true", help="a PostgreSQL of our own")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; the system's temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name, ExitStack() as open_ones:
        url = arguments.url
        if arguments.postgresql:
            url = url_of(open_ones.enter_context(running_postgresql(fsync=True, within=arguments.folder)), "postgres")
        contenders = []
        for size in arguments.sizes:
            contenders.append(open_contender(Path(name), url, size))
            print(f"{size:,} instances are there", file=sys.stderr, flush=True)
        for contender in contenders:
            open_ones.callback(contender.database.close)
            open_ones.callback(contender.intake.close)
            measure(contender, -1)  # warms up
            contender.taken, contender.worked, contender.looked = [], [], []
        for number in range(arguments.rounds):
            for contender in contenders:
                measure(contender, number)
        Console(width=100).print(table(contenders))
    first = statistics.median(contenders[0].taken)
    return int(any(abs(statistics.median(c.taken) / first - 1) > MARGIN for c in contenders))


if __name__ == "__main__":
    sys.exit(main())
