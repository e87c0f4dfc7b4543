"""One way of reading studies, in a process of its own: the other end of ``benchmarks.inference``.

Reads one request a line from standard input, answers one JSON object a line. A way of its own process, because what
the allocator and the thread pools are told cannot be taken back.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.inference_networks import NETWORKS, card_of
from inference.backends import Costly
from inference.card import ModelCard
from inference.combination import Combination
from inference.decoding import Decoder, Stored
from inference.device import Processor, keep_freed_memory, processors, usable_threads
from inference.engine import Engine, LoadedModel, Rows
from inference.models import ScanModel, build
from inference.neighbours import windows
from inference.place import place_of
from inference.preprocess import prepare
from inference.result import Completeness
from inference.series import Criteria, facts
from inference.study import EncodedCache, StudyReader
from inference.volume import Slice, read_slices

Run = Callable[[Tensor], Tensor]

BATCH = 8
GEMM = 2048
COPIED = 1 << 27
"""Numbers copied to measure the memory: more than any cache holds."""


class Stopwatch:
    """Seconds by stage, the device's own work included."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device.startswith("cuda")
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._wait()
        began = time.perf_counter()
        yield
        self._wait()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began

    def _wait(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()


def loaded(name: str) -> LoadedModel:
    """The network `name` with weights drawn by chance.

    Normalisations as well: fresh ones become biases of nought, which some runtimes leave out, and no trained network
    has any.
    """
    card = card_of(name)
    torch.manual_seed(0)
    network = build(card)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.8, 1.2)
            nn.init.normal_(layer.bias, std=0.1)
    return LoadedModel(name=name, card=card, state=network.state_dict())


class Ours:
    """The engine as a worker has it."""

    def __init__(self, name: str, device: str, batch: int | None, *, backend: str = "auto") -> None:
        keep_freed_memory()
        torch.set_num_threads(usable_threads())
        self._watch = Stopwatch(device)
        self._model = loaded(name)
        ladder = processors(device)[:1]
        self.engine = Engine([self._model], ladder=ladder, chunk=batch, backend=backend, encode=self._run)
        self._costly_decide = self._model.on(Processor(device="cpu", bf16=False)).costly_decide
        self.engine.warm_up()

    def _run(self, network: ScanModel, images: Tensor, _: Processor) -> Tensor:
        with self._watch("network"):
            return network.encode(images)

    def study(self, paths: Sequence[Path]) -> dict[str, Any]:
        """Seconds by stage for one study, a batch of slices at a time; decoding is what had to be waited for."""
        known = {path: facts(_header(path)) for path in set(paths)}  # a worker finds them in the database
        waiting = deque(Stored(facts=known[p], path=p, digest=str(i)) for i, p in enumerate(paths))
        decoder = Decoder(ahead=2 * self.engine.chunk)
        self._watch.seconds.clear()
        rows, places = [], []
        while waiting:
            slices: list[Slice] = []
            with self._watch("decode"):
                while waiting and len(slices) < self.engine.chunk:
                    decoder.begin(waiting)
                    slices += [s for piece in decoder.pieces(waiting.popleft()) for s in piece]
                decoder.begin(waiting)
                slices = _placed(slices, len(places))
            with self._watch("prepare"):
                rows.append(self.engine.encode(slices)[self._model.name])
            places += [place_of(s) for s in slices]
        encoded = {self._model.name: np.concatenate(rows)}
        with self._watch("prepare"):
            encoded = _among(self.engine, encoded)
        with self._watch("decide"):
            self.engine.decide(encoded, places)
        seconds = self._watch.seconds
        seconds["prepare"] -= seconds.get("network", 0.0)
        if self._costly_decide:
            seconds["network"] = seconds.get("network", 0.0) + seconds.pop("decide")
        return {**seconds, "ran_on": f"{self.engine.backends[self._model.name]} {self.engine.processor.precision}"}


class Plain:
    """What one writes without us: the same decoding and preparation, eight slices at a time, then a runtime."""

    def __init__(self, name: str, device: str, make: Callable[[nn.Module, ScanModel, str], Run]) -> None:
        model = loaded(name)
        self._card: ModelCard = model.card
        self._device = device
        self._watch = Stopwatch(device)
        self._network = build(model.card).eval().requires_grad_(False)
        self._network.load_state_dict(model.state)
        self._network.to(device)
        part = self._network.get_submodule("trunk") if self._network.costly_decide else Costly(self._network)
        self._run = make(part, self._network, device)
        if self._network.costly_decide:
            del self._network._modules["trunk"]
            self._network.trunk = self._by_eight

    def _by_eight(self, volumes: Tensor) -> Tensor:
        return torch.cat([self._run(piece) for piece in volumes.split(BATCH)])

    def study(self, paths: Sequence[Path]) -> dict[str, Any]:
        """Seconds by stage for one study."""
        self._watch.seconds.clear()
        network, rows, seen = self._network, [], []
        with torch.inference_mode():
            for start in range(0, len(paths), BATCH):
                with self._watch("decode"):
                    slices = [s for path in paths[start : start + BATCH] for s in read_slices(path)]
                with self._watch("prepare"):
                    pixels = torch.from_numpy(np.stack([s.hu for s in slices])).to(self._device)
                    images = prepare(
                        pixels,
                        pixel_spacing=[s.pixel_spacing for s in slices],
                        preprocessing=self._card.preprocessing,
                    )
                if network.reach:
                    seen.append(images)
                    continue
                with self._watch("network"):
                    rows.append(network.encode(images) if network.costly_decide else self._run(images))
            with self._watch("network"):
                rows += [self._run(few) for few in (network.among(torch.cat(seen)).split(BATCH) if seen else ())]
            with self._watch("network" if network.costly_decide else "decide"):
                self._decide(torch.cat(rows))
        return dict(self._watch.seconds)

    def _decide(self, rows: Tensor) -> None:
        network = self._network
        if not network.costly_decide or network.context is None:
            network.decide(rows.float() if not network.costly_decide else rows)
            return
        for start in range(0, len(rows), 32):
            network.decide(rows[max(0, start - network.context) : start + 32 + network.context])


def newcomer(part: nn.Module, network: ScanModel, device: str) -> Run:
    """Torch in float32 as its tutorials have it."""
    return part


def autocast(part: nn.Module, network: ScanModel, device: str) -> Run:
    """Torch's mixed precision, channels last."""
    part.to(memory_format=network.memory_format)

    def run(images: Tensor) -> Tensor:
        with torch.autocast(device.split(":")[0], dtype=torch.bfloat16):
            features: Tensor = part(images.contiguous(memory_format=network.memory_format))
        return features.float()

    return run


def onnxruntime(part: nn.Module, network: ScanModel, device: str) -> Run:
    """ONNX Runtime in float32; it has no bfloat16 on the CPU."""
    import onnxruntime as ort

    provider = "CUDAExecutionProvider" if device.startswith("cuda") else "CPUExecutionProvider"
    if provider not in ort.get_available_providers():
        raise RuntimeError(f"ONNX Runtime here has no {provider}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = usable_threads()
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "network.onnx")
        example = torch.zeros(1, *network.costly_shape, device=device)
        torch.onnx.export(
            part, (example,), file, input_names=["x"], dynamic_axes={"x": {0: "n"}}, opset_version=18, dynamo=False
        )
        session = ort.InferenceSession(file, options, providers=[provider])
    return lambda images: torch.from_numpy(session.run(None, {"x": images.float().cpu().numpy()})[0]).to(device)


def openvino(part: nn.Module, network: ScanModel, device: str) -> Run:
    """OpenVINO as its documentation has it, in the precision that it chooses."""
    if device != "cpu":
        raise RuntimeError("OpenVINO runs on the CPU only")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # benchmarks call nobody either
    import openvino as ov

    shape = network.costly_shape
    model = ov.convert_model(part, example_input=torch.zeros(1, *shape), input=[-1, *shape])
    compiled = ov.compile_model(model, "CPU")
    return lambda images: torch.from_numpy(next(iter(compiled(images.float().contiguous().numpy()).values())))


CONTENDERS: dict[str, Callable[[str, str, int | None], Ours | Plain]] = {
    "newcomer fp32": lambda name, device, _: Plain(name, device, newcomer),
    "eager bf16": lambda name, device, _: Plain(name, device, autocast),
    "onnxruntime": lambda name, device, _: Plain(name, device, onnxruntime),
    "openvino": lambda name, device, _: Plain(name, device, openvino),
    "ours with torch": partial(Ours, backend="torch"),
    "ours": Ours,
}


def ceilings(device: str) -> dict[str, float]:
    """What the device reaches at best: FLOP/s of a large product in either precision, bytes/s of a large copy."""
    keep_freed_memory()
    torch.set_num_threads(usable_threads())
    found = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        matrix = torch.ones(GEMM, GEMM, dtype=dtype, device=device)
        found[name] = 2 * GEMM**3 / _best(partial(torch.mm, matrix, matrix, out=torch.empty_like(matrix)), device)
    numbers = torch.ones(COPIED, dtype=torch.uint8, device=device)
    copy = torch.empty_like(numbers)
    found["bytes"] = 2 * COPIED / _best(lambda: copy.copy_(numbers), device)
    return found


def _best(work: Callable[[], Any], device: str, *, times: int = 12) -> float:
    watch = Stopwatch(device)
    for number in range(times):
        with watch(str(number)):
            work()
    return min(watch.seconds.values())


def _among(engine: Engine, rows: dict[str, Rows]) -> dict[str, Rows]:
    """Descriptors of one scan given from feet to head, whatever its models see of a slice's neighbours."""
    among = {name: engine.encode_among(name, list(windows(rows[name], reach))) for name, reach in engine.reach.items()}
    return rows | among


def _placed(slices: Sequence[Slice], first: int) -> list[Slice]:
    """One above the other, 5 mm apart: a long study repeats the files of a short one."""
    return [replace(s, position=(0.0, 0.0, 5.0 * (first + i))) for i, s in enumerate(slices)]


def throughput(name: str, device: str, batch: int | None, *, paths: Sequence[Path], seconds: float) -> dict[str, float]:
    """Studies per second from decoded slices, and from files, of a reader that always has the next study waiting."""
    engine = Ours(name, device, batch).engine
    slices = _placed([s for path in paths for s in read_slices(path)], 0)
    places = [place_of(s) for s in slices]
    together = max(1, -(-engine.chunk // len(slices)))
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        rows = engine.encode(slices * together)[name]
        for i in range(together):
            engine.decide(_among(engine, {name: rows[i * len(slices) : (i + 1) * len(slices)]}), places)
        count += together
    from_slices = count / (time.perf_counter() - began)
    return {"slices": from_slices, "files": _from_files(engine, paths, seconds=seconds)}


def _from_files(engine: Engine, paths: Sequence[Path], *, seconds: float) -> float:
    reader = StudyReader(
        engine, criteria=Criteria(min_slices=2), combination=Combination(), cache=EncodedCache(limit=2**28)
    )
    known = [facts(read) for read in map(_header, paths)]

    def study(number: int) -> list[Stored]:
        return [Stored(facts=f, path=p, digest=f"{number} {p}") for f, p in zip(known, paths, strict=True)]

    count, began = 0, time.perf_counter()
    whole = Completeness(complete=True, reason="benchmark")
    while time.perf_counter() - began < seconds:
        result = reader.read(
            study_uid="1.2", revision=1, instances=study(count), completeness=whole, following=study(count + 1)
        )
        if not result.readings:
            raise RuntimeError(result.reason)
        count += 1
    return count / (time.perf_counter() - began)


def _header(path: Path) -> Any:
    from pydicom import dcmread

    return dcmread(path, stop_before_pixels=True)


def _peak_mb(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    """Answers requests until its input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("contender", choices=[*CONTENDERS, "ceilings"])
    parser.add_argument("--network", choices=NETWORKS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr  # exporters chat
    said = partial(print, file=answers, flush=True)
    if arguments.contender == "ceilings":
        said(json.dumps(ceilings(arguments.device)))
        return
    made: Ours | Plain | None = None
    for line in sys.stdin:
        request = json.loads(line)
        paths = [Path(p) for p in request["paths"]]
        try:
            if request["what"] == "throughput":
                answer: dict[str, Any] = throughput(
                    arguments.network, arguments.device, arguments.batch, paths=paths, seconds=request["seconds"]
                )
            else:
                if made is None:
                    made = CONTENDERS[arguments.contender](arguments.network, arguments.device, arguments.batch)
                    made.study(paths[:BATCH])
                answer = made.study(paths) | {"peak_mb": _peak_mb(arguments.device)}
        except (RuntimeError, ImportError) as error:
            answer = {"failed": str(error).splitlines()[0]}
        said(json.dumps(answer))


if __name__ == "__main__":
    main()
