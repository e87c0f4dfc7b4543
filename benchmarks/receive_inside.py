"""Where a receiver's time and memory go: ``python -m benchmarks.receive_inside``.

Four small tables beside those of `benchmarks.receive`: the reactors with nothing behind them, what is done with one
image (thread time), what an association costs, and the memory of a process that 64 associations use at once, each of
which sends slices of a study of 2000.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from pynetdicom import evt

from benchmarks import receive as outside
from db import instances
from db.engine import Database
from db.instances import NewInstance
from inference.series import facts
from node import log
from node.config import Settings
from node.receive import store
from node.receive.archive import NewFile
from node.receive.dataset import describe
from node.receive.files import Files
from node.receive.journal import Entry, Journal
from node.receive.scp import Scp
from node.receive.uids import NATIVE
from node.service import Service
from tests.receiving import data_set_of, settings_of
from tests.running_node import free_port

CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"
MOST_ASSOCIATIONS = 64
STUDY_SLICES = 2000


# ------------------------------------------------------------------------------------------------ the reactors alone


def nothing_behind(settings: Settings) -> None:
    """Answers every C-STORE with success and keeps nothing, until standard input ends."""
    log.configure(level="error", part="benchmark")
    storing = Service(
        contexts=((store.VERIFICATION, NATIVE), (CT, NATIVE)),
        handlers=((evt.EVT_C_STORE, lambda _: 0x0000, []),),
        take=lambda _: (0x0000, ""),
    )
    database = Database(settings.database_url)
    database.upgrade()
    scp = Scp(settings=settings, database=database, services=[storing])
    scp.start()
    sys.stdin.read()
    scp.stop(grace_seconds=0)


def bare(reactor: str) -> outside.Receiver:
    """A receiver that keeps nothing, with this reactor."""

    @contextmanager
    def start(folder: Path) -> Iterator[outside.Running]:
        port, (read, write) = free_port(), os.pipe()
        command = [sys.executable, "-m", "benchmarks.receive_inside", "--listen", reactor, str(port), str(folder)]
        with outside.started(command, port, folder, stdin=read) as running:
            yield running
        os.close(read)
        os.close(write)

    return start


def reactors(home: Path, slice_: Path, *, images: int) -> Iterator[str]:
    """Images per second and CPU of both reactors, with nothing behind them."""
    yield "| reactor | associations | images/s | CPU ms/image |"
    yield "|---|---|---|---|"
    for reactor in ("event", "library"):
        with bare(reactor)(_made(home / reactor)) as running:
            for associations in (1, 4, 8):
                case = outside.Case(associations=associations, nodelay=True)
                cell = outside.measure(running, slice_, case, images=images // associations)
                cpu = 1000 * cell.cpu / cell.images
                yield f"| {reactor} | {associations} | {cell.images / cell.seconds:.0f} | {cpu:.2f} |"


# --------------------------------------------------------------------------------------------------------- one image


def _least_tenth(what: Callable[[int], object], *, times: int = 200) -> float:
    """Thread time of a call in milliseconds, which one call in ten stays below: others disturb the rest."""
    taken = []
    for number in range(times):
        began = time.thread_time()
        what(number)
        taken.append(time.thread_time() - began)
    return 1000 * sorted(taken)[times // 10]


def one_image(home: Path, slice_: Path) -> Iterator[str]:
    """Thread time of what is done with an image."""
    data = data_set_of(slice_.read_bytes())
    described = describe(BytesIO(data), transfer_syntax_uid=EXPLICIT, facts=lambda d: facts(d).to_json())
    files, database = Files(), Database(f"sqlite:///{_made(home / 'image') / 'hemonode.db'}")
    database.upgrade()
    journal = Journal(folder=_made(home / "image" / "journal"), files=files)

    def new(*numbers: int) -> NewInstance:
        uid = ".".join(map(str, (described.sop_instance_uid, *numbers)))
        return NewInstance(
            sop_instance_uid=uid, sop_class_uid=CT, series_uid=described.series_uid, study_uid=described.study_uid,
            transfer_syntax_uid=EXPLICIT, path=uid, size=len(data), digest="0" * 64, association_id="a",
            calling_ae="CT1", facts=described.facts, header=described.header,
        )  # fmt: skip

    content = NewFile(
        data=memoryview(data), digest="", transfer_syntax_uid=EXPLICIT, sop_class_uid=CT, sop_instance_uid="1",
        source_ae="CT1",
    ).parts  # fmt: skip

    def write(number: int) -> None:
        files.write(home / "image" / f"{number}.part", content)
        files.place(home / "image" / f"{number}.part", home / "image" / f"{number}.dcm")

    def append(number: int) -> None:
        journal.append([Entry(instance=new(0, number), content=content)])
        journal.settle()
        if journal.full() is not None:
            journal.free()

    def row(size: int) -> Callable[[int], None]:
        def add(number: int) -> None:
            with database.write(durable=False) as tx:
                instances.add_all(tx, [new(size, number, i) for i in range(size)])

        return add

    def read(_: int) -> None:
        describe(BytesIO(data), transfer_syntax_uid=EXPLICIT, facts=lambda d: facts(d).to_json())

    yield "| what | ms |"
    yield "|---|---|"
    yield f"| SHA-256 | {_least_tenth(lambda _: hashlib.sha256(data).digest()):.2f} |"
    yield f"| header, patient and facts | {_least_tenth(read):.2f} |"
    yield f"| the file: into the kernel's memory, name, rename | {_least_tenth(write):.2f} |"
    _least_tenth(append)  # the segments are there
    yield f"| the journal: the same bytes, and their flush | {_least_tenth(append):.2f} |"
    yield f"| the row, alone | {_least_tenth(row(1)):.2f} |"
    yield f"| the row, in a group of four | {_least_tenth(row(4)) / 4:.2f} |"
    journal.close()
    database.close()


# ------------------------------------------------------------------------------------------- associations and memory


def associations(home: Path, slice_: Path) -> Iterator[str]:
    """CPU of opening and closing an association, with all the storage classes that storescu proposes."""
    case, many, few = outside.Case(associations=1, nodelay=True), 200, 40
    with outside.RECEIVERS["hemonode"][1](_made(home / "associations")) as running:
        cell = outside.measure(running, slice_, case, images=many)
        before = running.cpu()
        for _ in range(few):
            outside.send(running, slice_, case, images=1)
        one = (running.cpu() - before) / few
    image = (cell.cpu - one) / (many - 1)
    yield f"An association: {1000 * (one - image):.1f} ms of CPU, beside {1000 * image:.2f} ms for each image."


def memory(home: Path, slice_: Path, *, slices: int) -> Iterator[str]:
    """Resident memory while 64 associations send, each the first `slices` of a study."""
    case = outside.Case(associations=MOST_ASSOCIATIONS, nodelay=True)
    with outside.RECEIVERS["hemonode"][1](_made(home / "memory")) as running:
        before, sampled, finished = running.memory(), [], threading.Event()

        def sample() -> None:
            while not finished.wait(outside.SAMPLE_SECONDS):
                sampled.append(running.memory())

        thread = threading.Thread(target=sample)
        thread.start()
        outside.send(running, slice_, case, images=slices)
        finished.set()
        thread.join()
    quarters = [max(sampled[i * len(sampled) // 4 : (i + 1) * len(sampled) // 4]) / 1e6 for i in range(4)]
    yield f"Resident memory under {MOST_ASSOCIATIONS} associations, {slices} of {STUDY_SLICES} slices each, in MB:"
    yield ""
    yield "| before | first quarter | second | third | last | for an association |"
    yield "|---|---|---|---|---|---|"
    shown = " | ".join(f"{value:.0f}" for value in (before / 1e6, *quarters))
    yield f"| {shown} | {(max(quarters) - before / 1e6) / MOST_ASSOCIATIONS:.2f} |"


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


PARTS: dict[str, Callable[[Path, Path, argparse.Namespace], Iterator[str]]] = {
    "reactors": lambda home, slice_, options: reactors(home, slice_, images=options.images),
    "image": lambda home, slice_, _: one_image(home, slice_),
    "associations": lambda home, slice_, _: associations(home, slice_),
    "memory": lambda home, slice_, options: memory(home, slice_, slices=options.slices),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.receive_inside", description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--images", type=int, default=800, help="for each row of the reactors")
    parser.add_argument("--slices", type=int, default=100, help="that each of the 64 associations sends")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; the system's temporary one")
    parser.add_argument("--listen", nargs=3, metavar=("REACTOR", "PORT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.listen:
        reactor, port, folder = options.listen
        settings = settings_of(Path(folder), reactor=reactor)
        node = settings.node.model_copy(update={"port": int(port)})
        nothing_behind(settings.model_copy(update={"node": node}))
        return
    with tempfile.TemporaryDirectory(prefix="hemonode-bench-", dir=options.folder) as home:
        slice_ = Path(home) / "slice.dcm"
        outside.write_slice(slice_)
        for part in options.parts:
            print(f"\n{part}\n", *PARTS[part](Path(home), slice_, options), sep="\n", flush=True)


if __name__ == "__main__":
    main()
