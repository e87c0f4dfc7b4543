"""How fast every network reads a study, beside other runtimes and the hardware: ``python -m benchmarks.inference``.

Each contender is a process of its own, and they take turns, so that what disturbs one round disturbs all. Printed are
medians in Markdown. ``--throughput N`` measures studies per second of N processes instead.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.inference_contender import BATCH, CONTENDERS
from benchmarks.inference_networks import NETWORKS, roofline_seconds
from inference.device import usable_threads
from training.sources.phantom import EASY, MAKERS, make_study, write_study

STAGES = ("decode", "prepare", "network", "decide")
OURS, OURS_WITH_TORCH = "ours", "ours with torch"
NEWCOMER = "newcomer fp32"
LONG = 300
"""Slices of a thin-slice study; only we read one, the others take so much longer per slice as with forty."""


class Contender:
    """A process that reads studies one way."""

    def __init__(self, name: str, network: str, *, device: str, batch: int | None) -> None:
        command = [sys.executable, "-m", "benchmarks.inference_contender", name, "--network", network]
        command += ["--device", device, *(["--batch", str(batch)] if batch else [])]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, request: Mapping[str, Any]) -> None:
        """The request is on its way."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """What came back; {"failed": reason} where the contender cannot do it, or is no more."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found: dict[str, Any] = json.loads(line) if line else {"failed": f"died with {self._process.wait()}"}
        return found

    def close(self) -> None:
        """The process has ended."""
        self._process.communicate()


def study_of(folder: Path, *, slices: int) -> list[str]:
    """Files of a head with a bleed, 512² pixels; forty of them, again and again where more are asked for."""
    spec = replace(EASY, size=512, slices=min(slices, 40))
    study = make_study(seed=1, spec=spec, subtypes=("intraparenchymal",))
    paths = [str(path) for path in write_study(study, folder, maker=MAKERS["ge"], series=("axial",))]
    return [paths[i % len(paths)] for i in range(slices)]


def measured(
    network: str, names: Sequence[str], *, paths: Sequence[str], rounds: int, device: str, batch: int | None
) -> dict[str, dict[str, Any]]:
    """Medians of every contender's rounds; they take turns."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with ExitStack() as stack:
        contenders = {}
        for name in names:
            contenders[name] = Contender(name, network, device=device, batch=batch)
            stack.callback(contenders[name].close)
        for number in range(rounds):
            for name, contender in contenders.items():
                if number and "failed" in answers[name][-1]:
                    continue
                contender.ask({"what": "study", "paths": list(paths)})
                answers[name].append(contender.answer())
    return {name: _median(given) for name, given in answers.items()}


def _median(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        key: statistics.median(a[key] for a in answers) if isinstance(value, float) else value
        for key, value in answers[-1].items()
    }


def whole(answer: Mapping[str, Any]) -> float:
    """Seconds of all stages; infinite where there was none."""
    return sum(answer.get(stage, 0.0) for stage in STAGES) if "failed" not in answer else float("inf")


def rows_of(network: str, found: Mapping[str, Mapping[str, Any]], *, roofline: float) -> list[str]:
    """The network's rows of the three tables: by contender, by stage, and what could not be measured."""
    ours = found[OURS]
    seconds = {name: whole(answer) for name, answer in found.items()}
    others = {name: value for name, value in seconds.items() if name not in (OURS, OURS_WITH_TORCH)}
    best = min(others.values(), default=float("inf"))
    cells = [f"{1000 * seconds[name]:.0f}" if seconds[name] < float("inf") else "–" for name in found]
    compared = [
        f"{best / seconds[OURS]:.2f}" if best < float("inf") else "–",
        f"{seconds[NEWCOMER] / seconds[OURS]:.1f}" if seconds.get(NEWCOMER, float("inf")) < float("inf") else "–",
        f"{ours.get('network', 0.0) / roofline:.1f}",
    ]
    stages = [f"{1000 * ours.get(stage, 0.0):.0f}" for stage in STAGES]
    return [network, *cells, *compared, *stages, f"{ours.get('peak_mb', 0.0):.0f}", str(ours.get("ran_on", "–"))]


def throughput(network: str, *, paths: Sequence[str], processes: int, device: str, batch: int | None) -> str:
    """One row: studies per second of all processes together."""
    with ExitStack() as stack:
        readers = [Contender(OURS, network, device=device, batch=batch) for _ in range(processes)]
        for reader in readers:
            stack.callback(reader.close)
            reader.ask({"what": "throughput", "paths": list(paths), "seconds": 10.0})
        answers = [reader.answer() for reader in readers]
    failed = [a["failed"] for a in answers if "failed" in a]
    if failed:
        return f"| {network} | {failed[0]} | |"
    return f"| {network} | {sum(a['slices'] for a in answers):.1f} | {sum(a['files'] for a in answers):.1f} |"


def machine() -> str:
    """Processor, threads, system and versions."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    gpu = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return f"{model}, {usable_threads()} threads{gpu}; torch {torch.__version__}, Python {platform.python_version()}"


def ceilings(device: str) -> dict[str, float]:
    """FLOP/s and bytes/s that this device reaches, measured now."""
    command = [sys.executable, "-m", "benchmarks.inference_contender", "ceilings", "--device", device]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="*", default=[], help="networks whose name begins so; all without it")
    parser.add_argument("--contenders", nargs="*", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slices", type=int, default=40)
    parser.add_argument("--long", action="store_true", help=f"also a study of {LONG} slices, read by us alone")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--batch", type=int, help="slices that we encode together; as the engine chooses without it")
    parser.add_argument("--throughput", type=int, metavar="N", help="studies per second of N processes instead")
    parser.add_argument("--quick", action="store_true", help="one round of eight slices: does it run at all?")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.slices = 1, BATCH
    if OURS not in arguments.contenders:
        parser.error("without ours there is nothing to compare")
    networks = [n for n in NETWORKS if not arguments.families or n.startswith(tuple(arguments.families))]
    print(f"`python -m benchmarks.inference {' '.join(sys.argv[1:])}`, {dt.datetime.now(dt.UTC):%Y-%m-%d}.")
    print(f"{machine()}.\n")
    with tempfile.TemporaryDirectory() as folder:
        paths = study_of(Path(folder), slices=arguments.slices)
        if arguments.throughput:
            print("| studies per second | from decoded slices | from DICOM files |\n|---|---|---|")
            for network in networks:
                row = throughput(
                    network,
                    paths=paths,
                    processes=arguments.throughput,
                    device=arguments.device,
                    batch=arguments.batch,
                )
                print(row, flush=True)
            return
        compare(networks, paths, arguments)


def compare(networks: Sequence[str], paths: Sequence[str], arguments: argparse.Namespace) -> None:
    """The table by network, a row as soon as it is known."""
    top = ceilings(arguments.device)
    print(
        f"Ceilings, measured just before: {top['bf16'] / 1e9:.0f} GFLOP/s in bf16, {top['fp32'] / 1e9:.0f} in fp32, "
        f"{top['bytes'] / 1e9:.0f} GB/s. Milliseconds for a study of {arguments.slices} slices of 512², "
        f"medians of {arguments.rounds}.\n"
    )
    header = ["network", *arguments.contenders, "best other ÷ ours", "newcomer ÷ ours", "network ÷ roofline"]
    header += [f"ours: {stage}" for stage in STAGES] + ["peak MB", "runs on"]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    failures = []
    for network in networks:
        found = measured(
            network,
            arguments.contenders,
            paths=paths,
            rounds=arguments.rounds,
            device=arguments.device,
            batch=arguments.batch,
        )
        print(_row(network, found, top, slices=len(paths)), flush=True)
        failures += [f"{network}, {name}: {a['failed']}" for name, a in found.items() if "failed" in a]
        if arguments.long:
            again = [paths[i % len(paths)] for i in range(LONG)]
            long = measured(network, [OURS], paths=again, rounds=1, device=arguments.device, batch=arguments.batch)
            blank: dict[str, dict[str, Any]] = {name: {"failed": ""} for name in arguments.contenders}
            print(_row(f"{network}, {LONG} slices", blank | long, top, slices=LONG), flush=True)
    print("\n" + "\n".join(failures))


def _row(title: str, found: Mapping[str, Mapping[str, Any]], top: Mapping[str, float], *, slices: int) -> str:
    bf16 = "bf16" in str(found[OURS].get("ran_on"))
    roofline = roofline_seconds(
        title.split(",")[0],
        slices=slices,
        batch=BATCH,
        flops=top["bf16" if bf16 else "fp32"],
        bandwidth=top["bytes"],
        width=2 if bf16 else 4,
    )
    return f"| {' | '.join(rows_of(title, found, roofline=roofline))} |"


if __name__ == "__main__":
    main()
