"""The training loop: any loss of a step, any optimiser, exact resume.

A step's batch, its augmentation and its dropout depend only on the seed and on the step's number, so a run that was
killed continues from its last checkpoint as if nothing had happened. Checkpoints are safetensors: nothing is unpickled.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from training.errors import DivergedError, TrainingError
from training.schedules import Schedule

Report = Callable[[int, float, float], None]
"""Receives the step, the mean loss since the last report, and the share of the budget that is spent."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long to train: a number of steps, and at most some minutes of wall clock.

    The schedule follows whichever is nearer its end. Only runs that the steps end can be repeated exactly.
    """

    steps: int
    minutes: float = math.inf

    def progress(self, step: int, seconds: float) -> float:
        """Share of the budget that is spent after `step` steps in `seconds`, 0..1."""
        return min(1.0, max(step / self.steps, seconds / 60 / self.minutes))


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Where the checkpoint lies and how many steps lie between two."""

    path: Path
    every: int = 200


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    loss_at: Callable[[int], Tensor],
    *,
    budget: Budget,
    schedule: Schedule,
    seed: int,
    clip: float = 1.0,
    accumulate: int = 1,
    keep: Keep | None = None,
    report: Report | None = None,
    report_every: int = 50,
) -> int:
    """Train until the budget is spent and return the number of steps; a checkpoint under `keep` is continued.

    Parameters
    ----------
    loss_at : callable
        The loss of one batch; must depend on nothing but the batch's number, the model and torch's random state,
        which is seeded here before each step.
    clip : float
        Greatest norm of the gradient.
    accumulate : int
        Batches whose gradients are averaged before each step.

    Raises
    ------
    DivergedError
        When the loss is not finite.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    step, spent = resume(keep.path, model, optimizer) if keep and keep.path.exists() else (0, 0.0)
    start, total, counted = time.monotonic() - spent, 0.0, 0
    while (progress := budget.progress(step, time.monotonic() - start)) < 1:
        torch.manual_seed(seed * 1_000_003 + step)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(progress)
        optimizer.zero_grad(set_to_none=True)
        for part in range(accumulate):
            total += _descend(loss_at, step * accumulate + part, share=1 / accumulate)
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        step, counted = step + 1, counted + 1
        if report and step % report_every == 0:
            report(step, total / counted, progress)
            total, counted = 0.0, 0
        if keep and step % keep.every == 0:
            save(keep.path, model, optimizer, step=step, seconds=time.monotonic() - start)
    if keep:
        save(keep.path, model, optimizer, step=step, seconds=time.monotonic() - start)
    return step


def _descend(loss_at: Callable[[int], Tensor], number: int, *, share: float) -> float:
    """Add `share` of the gradient of batch `number`, and return that share of its loss."""
    loss = loss_at(number) * share
    value = float(loss.detach())
    if not math.isfinite(value):
        raise DivergedError(f"the loss of batch {number} is {value}")
    torch.autograd.backward(loss)
    return value


def save(path: Path, model: nn.Module, optimizer: Optimizer, *, step: int, seconds: float) -> None:
    """Write model, optimiser and counters to `path`, whole or not at all."""
    tensors = {f"model.{name}": value.detach().contiguous() for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{index}.{name}": value.contiguous()
            for name, value in state.items()
            if isinstance(value, Tensor)
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"step": str(step), "seconds": repr(seconds)})
    os.replace(partial, path)


def resume(path: Path, model: nn.Module, optimizer: Optimizer) -> tuple[int, float]:
    """Load what `save` wrote and return the step and the seconds spent; another network's file is refused."""
    tensors = load_weights(path, model)
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            states.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
    return int(facts["step"]), float(facts["seconds"])


def load_weights(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """Load the network from what `save` wrote and return all of the file; another network's file is refused."""
    tensors = load_file(path)
    try:
        model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    except RuntimeError as error:
        raise TrainingError(f"{path} was written by another network: {error}") from error
    return tensors


def without_decay(modules: Iterable[nn.Module], *, decay: float) -> list[dict[str, object]]:
    """Parameter groups with weight decay on matrices and filters, and none on biases and normalisation."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def autocast() -> torch.autocast:
    """Mixed precision in bfloat16 where the processor computes in it, and none elsewhere."""
    return torch.autocast("cpu", torch.bfloat16, enabled=_has_bfloat16())


@cache
def _has_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def keep_memory() -> None:
    """Let glibc keep freed memory, so that large activations do not fault their pages in again at every step.

    Does nothing where the C library is not glibc. The values: no mmap for large blocks (M_MMAP_MAX 0), never trim
    (M_TRIM_THRESHOLD), 256 MiB of slack at the top of the heap (M_TOP_PAD); see mallopt(3).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL("libc.so.6")
    library.mallopt(-4, 0)
    library.mallopt(-1, 2**31 - 1)
    library.mallopt(-2, 256 << 20)
