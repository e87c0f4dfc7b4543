"""How the costly part of a network runs: with torch as it is, in CUDA graphs, compiled, or with OpenVINO.

The costly part is what sees the pixels: `ScanModel.encode`, or the trunk of a network that decides from images
(`ScanModel.costly_decide`). What follows it costs nothing beside it and stays with torch in full precision.
"""

from __future__ import annotations

import copy
import importlib.util

import torch
from torch import Tensor, nn

from inference.backends.compiled import compiled
from inference.backends.eager import eager
from inference.backends.failure import BackendFailed, BackendMissing
from inference.backends.graphs import Graph
from inference.backends.pieces import InPieces
from inference.backends.run import Run
from inference.device import Processor
from inference.models import ScanModel

BACKENDS = ("auto", "torch", "compile", "openvino")

OPENVINO_GAIN = {
    "radnet": 1.05,
    "cnn_lstm": 1.2,
    "hemonode": 1.3,
    "adjacent": 1.2,
    "resnet_2d": 1.15,
    "resnet_3d": 1.1,
    "classifiers": 1.15,
}
"""How many times faster than torch OpenVINO runs a family on the CPU, at least: docs/results/inference.md."""

AT_ONCE, SMALLEST_PASS = 2, 4
"""Images for each thread of a CPU in one pass through a network, and at least for all: what more of them leave on the
way no longer lies in its caches."""

SMALLEST_GRAPH = 8
"""Slices: a GPU takes as long for one."""


class Costly(nn.Module):
    """A network's `encode` as a module of its own: images (n, channels, size, size) → descriptors (n, d)."""

    def __init__(self, network: ScanModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Descriptors of the images."""
        return self.network.encode(images)


def chosen(backend: str, *, family: str, processor: Processor) -> str:
    """The backend that `backend` means for a family on a processor: any but "auto".

    Raises
    ------
    BackendMissing
        OpenVINO was asked for by name, and is not installed or does not run on this processor.
    ValueError
        There is no such backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}, expected one of {', '.join(BACKENDS)}")
    on_cpu = processor.device == "cpu"
    if backend == "openvino" and not on_cpu:
        raise BackendMissing(f"the backend openvino runs on the CPU only, the device is {processor.device}")
    if backend == "openvino" and not openvino_installed():
        raise BackendMissing(
            "the backend openvino was asked for and is not installed (pip install 'hemonode[openvino]')"
        )
    if backend != "auto":
        return backend
    return "openvino" if on_cpu and openvino_installed() and OPENVINO_GAIN.get(family, 0) > 1 else "torch"


def openvino_installed() -> bool:
    """Whether OpenVINO can be imported; it is not, so that nothing is loaded that is not used."""
    return importlib.util.find_spec("openvino") is not None


def accelerated(network: ScanModel, *, backend: str, processor: Processor, batch: int) -> ScanModel:
    """A twin of the network with the same numbers, whose costly part runs with `backend`; the network is left alone.

    Parameters
    ----------
    backend : str
        As `chosen` gives it; or "eager": torch as it is, without CUDA graphs.
    batch : int
        The most slices that are encoded together.

    Raises
    ------
    BackendFailed
        The backend cannot run this network here.
    """
    part = network.get_submodule("trunk") if network.costly_decide else Costly(network)
    twin = copy.copy(network)
    twin._modules = dict(network._modules)
    if network.costly_decide:
        del twin._modules["trunk"]
    run = _run(part, network, backend=backend, processor=processor, batch=batch)
    setattr(twin, "trunk" if network.costly_decide else "encode", run)
    return twin


def _run(part: nn.Module, network: ScanModel, *, backend: str, processor: Processor, batch: int) -> Run:
    if processor.device == "cpu":
        batch = min(batch, max(AT_ONCE * torch.get_num_threads(), SMALLEST_PASS))
    if backend == "openvino":
        from inference.backends.openvino import OpenVino

        made: Run = OpenVino(part, shape=network.costly_shape, bf16=processor.bf16)
        return InPieces(lambda: made, largest=batch)
    to_be_compiled = backend == "compile"
    run = eager(part, bf16=processor.bf16, memory_format=network.memory_format, to_be_compiled=to_be_compiled)
    if to_be_compiled:
        run = compiled(run)
    if backend != "eager" and torch.device(processor.device).type == "cuda":
        smallest = 1 if network.costly_decide else min(SMALLEST_GRAPH, batch)
        return InPieces(lambda: Graph(run), largest=batch, smallest=smallest)
    return InPieces(lambda: run, largest=batch, smallest=1 if backend == "compile" else None)


__all__ = [
    "BACKENDS",
    "OPENVINO_GAIN",
    "BackendFailed",
    "BackendMissing",
    "Costly",
    "Run",
    "accelerated",
    "chosen",
    "openvino_installed",
]
