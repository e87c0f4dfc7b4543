"""Receivers side by side under DCMTK's storescu: ``python -m benchmarks.receive``.

Every round each receiver gets, in turn, the same slices (512 × 512 CT, half a megabyte, UIDs of their own) over one,
four and eight associations, a hundred in each of them, so that what an association costs does not decide; from a client
that sets TCP_NODELAY, and those that somebody would choose between from one as DCMTK ships it too. Medians over the
rounds. Receivers are measured as if they had been running for long: each gets `--before` images first. Every
measurement follows one that is not counted, and includes the start of the client programs, which is the same for all.

What others have left unwritten in the kernel's memory is flushed before each, so that nobody's flushes wait for another
one's files; and all files stay until the end, because ext4 searches long for a free inode after many were deleted. That
takes 10 GB of disk in every round. `--quick` shows in a minute that everything runs.

Beside them stand two limits: a C program that writes the bytes to files and does nothing else, and the flush floor, one
new file of that size after the other, each flushed (fdatasync) before the next.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from node import config
from tests.receiving import a_slice, part_10
from tests.running_node import free_port, write_config
from tests.tools.orthanc import running_orthanc

START_SECONDS = 60.0
SAMPLE_SECONDS = 0.1
TICKS = os.sysconf("SC_CLK_TCK")
PDU = "131072"
RATIO_TO = "dcmtk"
SHIPPED = ("dcmtk", "orthanc", "hemonode", "two", "unflushed")
"""Those that a client as shipped sends to as well."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement. `cpu` is the receiver's CPU seconds, `memory` the peak of its resident bytes."""

    seconds: float
    images: int
    cpu: float
    memory: int


@dataclass(frozen=True, kw_only=True)
class Case:
    """How images are sent."""

    associations: int
    nodelay: bool

    @property
    def client(self) -> str:
        """In words."""
        return "TCP_NODELAY" if self.nodelay else "as shipped"


@dataclass(frozen=True, kw_only=True)
class Running:
    """A receiver that listens, and the processes it consists of, but for their children."""

    pids: tuple[int, ...]
    port: int
    ae_title: str = "HEMONODE"

    def cpu(self) -> float:
        """CPU seconds of all its processes so far, those that have ended included."""
        return sum(sum(map(int, _stat(pid)[11:15])) for pid in self._processes()) / TICKS

    def memory(self) -> int:
        """Resident bytes of all its processes now."""
        return sum(_resident(pid) for pid in self._processes())

    def _processes(self) -> Iterator[int]:
        for pid in self.pids:
            yield from _family(pid)


BLOCK = bytes(4 * 1024 * 1024)
LONG_BEFORE = Case(associations=4, nodelay=True)


def _stat(pid: int) -> list[str]:
    # proc(5), from the third field on: utime, stime and those of children that were waited for are the 12th to 15th.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["0"] * 50


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _family(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return
    for child in children:
        yield from _family(child)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


# ------------------------------------------------------------------------------------------------------- receivers

Receiver = Callable[[Path], AbstractContextManager[Running]]
"""Starts a receiver that keeps all it has in a folder."""


@contextmanager
def started(
    command: Sequence[str | Path], port: int, folder: Path, *, stdin: int = subprocess.DEVNULL, **environment: str
) -> Iterator[Running]:
    """A receiver that is a program of its own; it ends with the block."""
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, stdin=stdin, stdout=log, stderr=log, env=os.environ | environment)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(port):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, "the receiver does not listen"
            time.sleep(0.05)
        yield Running(pids=(process.pid,), port=port)
    finally:
        process.terminate()
        process.wait(30)


def _dcmtk(*options: str) -> Receiver:
    @contextmanager
    def start(folder: Path) -> Iterator[Running]:
        port = free_port()
        command = ["storescp", "-q", "--fork", "-od", _made(folder / "out"), *options, str(port)]
        with started(command, port, folder, TCP_NODELAY="1") as running:
            yield running

    return start


@contextmanager
def _orthanc(folder: Path) -> Iterator[Running]:
    with running_orthanc(folder / "orthanc") as started:
        pid = next(p for p in _family(os.getpid()) if "Orthanc" in Path(f"/proc/{p}/comm").read_text())
        yield Running(pids=(pid,), port=started.port, ae_title=started.ae_title)


@contextmanager
def _pynetdicom(folder: Path) -> Iterator[Running]:
    port = free_port()
    options = ["-q", "-od", _made(folder / "out"), "--max-pdu", PDU, str(port)]
    with started([sys.executable, "-m", "pynetdicom", "storescp", *options], port, folder) as running:
        yield running


@contextmanager
def _sink(folder: Path) -> Iterator[Running]:
    port = free_port()
    program = folder / "sink"
    subprocess.run(["gcc", "-O2", "-o", program, Path(__file__).with_name("receive_sink.c")], check=True)
    with started([program, str(port), _made(folder / "out")], port, folder) as running:
        yield running


def _hemonode(**receive: object) -> Receiver:
    @contextmanager
    def start(folder: Path) -> Iterator[Running]:
        limits = {"disk_watermark_mb": 0, "disk_reserve_mb": 0, "maximum_associations_per_ae": 64}
        path = write_config(folder / "node", changes={"receive": limits | receive}, defaults={})
        port = config.load(path).node.port
        command = [sys.executable, "-m", "node.cli", "receive", "--config", path, "--number"]
        with ExitStack() as stack:
            pids = []
            for number in range(config.load(path).receive.processes):
                pids += stack.enter_context(started([*command, str(number)], port, folder)).pids
                while (folder / "log").read_text().count("event=listening") <= number:  # the port answers for the first
                    time.sleep(0.05)
            yield Running(pids=tuple(pids), port=port)

    return start


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


RECEIVERS: dict[str, tuple[str, Receiver]] = {
    "dcmtk": ("DCMTK storescp --fork: no flush, no index", _dcmtk()),
    "dcmtk-large": ("DCMTK, PDUs of 128 KiB as the others", _dcmtk("-pdu", PDU)),
    "orthanc": ("Orthanc, defaults", _orthanc),
    "pynetdicom": ("pynetdicom's storescp: no flush, no index", _pynetdicom),
    "hemonode": ("Hemonode: flushed and indexed", _hemonode()),
    "two": ("Hemonode: two processes", _hemonode(processes=2)),
    "small": ("Hemonode, PDUs of 32 KiB", _hemonode(maximum_pdu_size=32768)),
    "library": ("Hemonode, pynetdicom's own reactor", _hemonode(reactor="library")),
    "unflushed": ("Hemonode, flushing off", _hemonode(flush=False)),
    "sink": ("C socket sink: the limit", _sink),
}


# --------------------------------------------------------------------------------------------------------- measures


def write_slice(path: Path) -> int:
    """A CT slice of 512 × 512 with noise for pixels, as a file; returns its bytes."""
    dataset = a_slice(1, SeriesNumber=1, PatientName="Bench^Mark")
    dataset.Rows = dataset.Columns = 512
    dataset.PixelData = np.random.default_rng(1).integers(0, 4096, 512 * 512, dtype="<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    return path.write_bytes(part_10(dataset))


def send(to: Running, slice_: Path, case: Case, *, images: int) -> float:
    """Seconds until every association has sent so many images, each of them an instance of its own."""
    invent = ["--repeat", str(images), "+IS", "1", "+IR", str(images)]
    command = ["storescu", "-q", "-aec", to.ae_title, *invent, "127.0.0.1", str(to.port), str(slice_)]
    environment = {name: value for name, value in os.environ.items() if name != "TCP_NODELAY"}
    if case.nodelay:
        environment["TCP_NODELAY"] = "1"
    start = time.perf_counter()
    senders = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(case.associations)
    ]
    codes = [sender.wait() for sender in senders]
    assert codes == [0] * case.associations, f"storescu ended with {codes}"
    return time.perf_counter() - start


def memory_at_hand(folder: Path, size: int) -> None:
    """The kernel has that many bytes of memory free that were in use a moment ago.

    What a virtual machine has not used for some time its host may have taken back, and to get a page again costs more
    than to write it. Whoever is measured first would otherwise be faster than those who come when such memory is used
    up.
    """
    scratch = folder / "scratch"
    with scratch.open("wb", buffering=0) as file:
        for _ in range(-(-size // len(BLOCK))):
            file.write(BLOCK)
    scratch.unlink()


def measure(running: Running, slice_: Path, case: Case, *, images: int) -> Cell:
    """The time of `images` images in each association, after one in each that nobody counts."""
    send(running, slice_, case, images=1)
    os.sync()
    memory_at_hand(slice_.parent, 2 * images * case.associations * slice_.stat().st_size)
    cpu, finished, memory = running.cpu(), threading.Event(), [running.memory()]

    def sample() -> None:
        while not finished.wait(SAMPLE_SECONDS):
            memory.append(running.memory())

    thread = threading.Thread(target=sample)
    thread.start()
    seconds = send(running, slice_, case, images=images)
    used = running.cpu() - cpu
    finished.set()
    thread.join()
    return Cell(seconds=seconds, images=images * case.associations, cpu=used, memory=max(memory))


def flush_floor(folder: Path, size: int, *, images: int) -> float:
    """Images per second when each is one new file, written and flushed before the next."""
    _made(folder)
    os.sync()
    content = os.urandom(size)
    start = time.perf_counter()
    for number in range(images):
        with open(folder / str(number), "wb", buffering=0) as file:
            file.write(content)
            os.fdatasync(file.fileno())
    return images / (time.perf_counter() - start)


# ------------------------------------------------------------------------------------------------------------ report


def rows(cells: dict[tuple[str, Case], list[Cell]], case: Case, size: int) -> Iterator[str]:
    """The table of one case, in Markdown."""
    rates = {
        name: statistics.median(cell.images / cell.seconds for cell in found)
        for (name, of), found in cells.items()
        if of == case
    }
    yield "| receiver | images/s | MB/s | CPU s/GB | CPU ms/image | peak RSS, MB | ratio to DCMTK |"
    yield "|---|---|---|---|---|---|---|"
    for name, rate in rates.items():
        found = cells[name, case]
        cpu = statistics.median(cell.cpu / cell.images for cell in found)
        memory = max(cell.memory for cell in found) / 1e6
        ratio = f"{rate / rates[RATIO_TO]:.2f}" if RATIO_TO in rates else ""
        yield (
            f"| {RECEIVERS[name][0]} | {rate:.0f} | {rate * size / 1e6:.0f} | {cpu / size * 1e9:.2f} "
            f"| {1000 * cpu:.2f} | {memory:.0f} | {ratio} |"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.receive", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--associations", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--images", type=int, default=100, help="in each association")
    parser.add_argument("--before", type=int, default=100, help="in each of four associations first, not counted")
    parser.add_argument("--receivers", nargs="+", choices=RECEIVERS, default=list(RECEIVERS))
    parser.add_argument("--clients", nargs="+", choices=["nodelay", "shipped"], default=["nodelay", "shipped"])
    parser.add_argument("--quick", action="store_true", help="one round of 4 images in each association")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; the system's temporary one")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.images, options.before = 1, 4, 4
    cases = [Case(associations=n, nodelay=c == "nodelay") for c in options.clients for n in options.associations]
    cells: dict[tuple[str, Case], list[Cell]] = defaultdict(list)
    floors: list[float] = []
    with tempfile.TemporaryDirectory(prefix="hemonode-bench-", dir=options.folder) as home:
        slice_ = Path(home) / "slice.dcm"
        size = write_slice(slice_)
        for number in range(options.rounds):
            place = _made(Path(home) / str(number))
            floors.append(flush_floor(place / "floor", size, images=2 * options.images))
            for name in options.receivers:
                with RECEIVERS[name][1](_made(place / name)) as running:
                    send(running, slice_, LONG_BEFORE, images=options.before)
                    for case in cases:
                        if case.nodelay or name in SHIPPED:
                            cells[name, case].append(measure(running, slice_, case, images=options.images))
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    print(f"Flush floor: {statistics.median(floors):.0f} images/s ({size / 1e6:.2f} MB each, new file, fdatasync)")
    for case in cases:
        print(f"\n### {case.associations} association(s), client {case.client}\n")
        print(*rows(cells, case, size), sep="\n")


if __name__ == "__main__":
    main()
