"""OpenVINO on the CPU: the network is traced, converted in memory and compiled for this processor.

Nothing is kept on disk: a compiled model in a file would be code that no card's digest vouches for.
"""

from __future__ import annotations

import copy
import importlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inference.backends.eager import folded
from inference.backends.failure import BackendFailed
from inference.backends.parting import parted
from inference.backends.rounding import in_wide_halves, widened, with_sums_kept

TRACED_SIDE = 64
"""Rows and columns of the image with which a network is traced: no network here computes otherwise on larger ones."""

FINITE = torch.finfo(torch.float32).max

TELEMETRY = "openvino_telemetry"


class OpenVino:
    """`part` on images (n, \\*shape), for any n.

    Raises ``BackendFailed`` when OpenVINO is not there, cannot convert the network, or fails while running it.
    """

    def __init__(self, part: nn.Module, *, shape: Sequence[int], bf16: bool) -> None:
        self._bf16 = bf16
        if bf16:
            part = parted(widened(with_sums_kept(folded(copy.deepcopy(part).eval()))))
            shape = (2 * shape[0], *shape[1:])
        try:
            self._request = _compiled(part, shape=tuple(shape), bf16=bf16).create_infer_request()
        except (ImportError, RuntimeError) as error:
            raise BackendFailed(f"openvino: {_first_line(error)}") from error

    def __call__(self, images: Tensor) -> Tensor:
        """Features (n, d) of images (n, …)."""
        images = images.float()
        try:
            (features,) = self._request.infer([self._as_taken(images)], share_inputs=True).values()
        except RuntimeError as error:
            raise BackendFailed(f"openvino: {_first_line(error)}") from error
        return torch.from_numpy(np.asarray(features, dtype=np.float32))

    def _as_taken(self, images: Tensor) -> NDArray[np.float32]:
        """The images as the compiled network takes them; float32 also in halves, which OpenVINO reorders faster."""
        images = images.contiguous()
        return (in_wide_halves(images) if self._bf16 else images).numpy()


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
    if bf16:
        _keep_biases(model)
    return core.compile_model(model, "CPU", settings)


def _keep_biases(model: Any) -> None:
    """Biases of convolutions are added in float32, in the same step as before; changes `model` itself.

    OpenVINO rounds a bias to bfloat16, and takes an addition of constants right behind a convolution for its bias. It
    is moved behind the addition of a shortcut where one follows: OpenVINO still does both within the convolution.
    Elsewhere a bound beyond any number keeps the two apart; with a shortcut it would not take that in any more.
    """
    ops = importlib.import_module("openvino.opset13")
    for convolution in model.get_ordered_ops():
        if convolution.get_type_name() not in ("Convolution", "GroupConvolution"):
            continue
        sums = convolution.output(0)
        added = _only_addition(sums)
        if added is None or added.constant is None:
            continue
        shortcut = _only_addition(added.result)
        if shortcut is None:
            added.operand.replace_source_output(ops.clamp(sums, -FINITE, FINITE).output(0))
            continue
        readers = list(shortcut.result.get_target_inputs())
        shortcut.operand.replace_source_output(sums)
        late = ops.add(shortcut.result, added.constant)
        for reader in readers:
            reader.replace_source_output(late.output(0))
    model.validate_nodes_and_infer_types()


class _Addition(NamedTuple):
    """An addition: the input in question, the other one if it is constant, and the sum; OpenVINO's objects."""

    operand: Any
    constant: Any | None
    result: Any


def _only_addition(value: Any) -> _Addition | None:
    """The addition to which `value` goes, if it goes nowhere else."""
    readers = list(value.get_target_inputs())
    if len(readers) != 1 or readers[0].get_node().get_type_name() != "Add":
        return None
    (operand,) = readers
    node = operand.get_node()
    other = node.input_value(1 - operand.get_index())
    constant = other if other.get_node().get_type_name() == "Constant" else None
    return _Addition(operand, constant, node.output(0))


def _without_telemetry() -> Any:
    """The package, which sends statistics of its use to its makers where it finds the module that does so.

    A node in a hospital calls nobody. Without the module OpenVINO takes a stub of its own.
    """
    sys.modules.setdefault(TELEMETRY, None)  # type: ignore[arg-type]  # the import system's way to say "not there"
    return importlib.import_module("openvino")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
