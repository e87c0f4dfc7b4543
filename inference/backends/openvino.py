"""OpenVINO on the CPU: the network is traced, converted in memory and compiled for this processor.

Nothing is kept on disk: a compiled model in a file would be code that no card's digest vouches for.
"""

from __future__ import annotations

import copy
import importlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inference.backends.eager import folded
from inference.backends.failure import BackendFailed
from inference.backends.rounding import BiasApart, in_halves, widened, with_each_bias

TRACED_SIDE = 64
"""Rows and columns of the image with which a network is traced: no network here computes otherwise on larger ones."""


TELEMETRY = "openvino_telemetry"


class OpenVino:
    """`part` on images (n, \\*shape), for any n.

    Raises ``BackendFailed`` when OpenVINO is not there, cannot convert the network, or fails while running it.
    """

    def __init__(self, part: nn.Module, *, shape: Sequence[int], bf16: bool) -> None:
        self._bf16 = bf16
        if bf16:
            part = widened(with_each_bias(folded(copy.deepcopy(part).eval()), BiasApart))
            shape = (2 * shape[0], *shape[1:])
        try:
            self._request = _compiled(part, shape=tuple(shape), bf16=bf16).create_infer_request()
        except (ImportError, RuntimeError) as error:
            raise BackendFailed(f"openvino: {_first_line(error)}") from error

    def __call__(self, images: Tensor) -> Tensor:
        """Features (n, d) of images (n, …)."""
        images = images.float()
        if self._bf16:
            images = in_halves(images, dtype=torch.float32, memory_format=torch.contiguous_format)
        pixels = images.contiguous().numpy()
        try:
            (features,) = self._request.infer([pixels], share_inputs=True).values()
        except RuntimeError as error:
            raise BackendFailed(f"openvino: {_first_line(error)}") from error
        return torch.from_numpy(np.asarray(features, dtype=np.float32))


def _compiled(part: nn.Module, *, shape: tuple[int, ...], bf16: bool) -> Any:
    openvino = _without_telemetry()
    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    example = torch.zeros(1, *shape[:-2], TRACED_SIDE, TRACED_SIDE)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the tracer's own deprecation, and remarks on Python values in the networks
        traced = torch.jit.trace(part.eval(), example, check_trace=False)  # type: ignore[no-untyped-call]
        model = openvino.convert_model(traced, example_input=example, input=[-1, *shape])
    return core.compile_model(model, "CPU", settings)


def _without_telemetry() -> Any:
    """The package, which sends statistics of its use to its makers where it finds the module that does so.

    A node in a hospital calls nobody. Without the module OpenVINO takes a stub of its own.
    """
    sys.modules.setdefault(TELEMETRY, None)  # type: ignore[arg-type]  # the import system's way to say "not there"
    return importlib.import_module("openvino")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
