"""The training loop: any loss of a step, any optimiser, exact resume.

A batch, its augmentation and its dropout depend only on the seed and on the batch's number, so a run that was killed
continues from its last checkpoint as if nothing had happened, and several processes take the steps that one would.
Checkpoints are safetensors: nothing is unpickled.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from inference.result import Json
from training.errors import DivergedError, TrainingError
from training.schedules import Schedule
from training.team import ALONE, Team, device_of

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a report says: how far training is, and what happened since the last report.

    `loss` and `norm` (of the gradient, before clipping) are means over these steps, `share` is the part of the budget
    that is spent, `seconds` all time spent, that of earlier lives of the run included.
    """

    step: int
    share: float
    seconds: float
    loss: float
    norm: float
    rate: float
    judged: bool = True
    """Whether the network may be validated: not while a part of it that decides is still untrained."""


Report = Callable[[Progress], None]


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


@dataclass(frozen=True, kw_only=True)
class Counters(Json):
    """Where a run is: all of it that is neither the network nor the optimiser.

    `loss` and `norm` are sums over the `counted` steps since the last report.
    """

    step: int = 0
    seconds: float = 0.0
    counted: int = 0
    loss: float = 0.0
    norm: float = 0.0

    def after(self, *, loss: float, norm: float, seconds: float) -> Counters:
        """One step further."""
        return Counters(
            step=self.step + 1,
            seconds=seconds,
            counted=self.counted + 1,
            loss=self.loss + loss,
            norm=self.norm + norm,
        )

    def said(self, *, share: float, rate: float) -> Progress:
        """As a report."""
        return Progress(
            step=self.step,
            share=share,
            seconds=self.seconds,
            loss=self.loss / self.counted,
            norm=self.norm / self.counted,
            rate=rate,
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a recipe is carried out, whatever it trains.

    `workers` threads make batches ahead of the network. `pretrained` says that the network's trunk came from a file.
    """

    seed: int
    minutes: float = math.inf
    keep: Keep | None = None
    report: Report | None = None
    report_every: int = 50
    team: Team = ALONE
    workers: int = 2
    pretrained: bool = False

    @property
    def device(self) -> torch.device:
        """Where the network is trained."""
        return device_of(self.team)

    def unjudged(self) -> Run:
        """The same, for a stage after which the network cannot decide yet."""
        report = self.report
        return replace(self, report=report and (lambda now: report(replace(now, judged=False))))


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
    team: Team = ALONE,
    momentum: Schedule | None = None,
    done: int = 0,
) -> int:
    """Train until the budget is spent and return the number of steps; a checkpoint under `keep` is continued.

    Parameters
    ----------
    loss_at : callable
        The loss of one batch; must depend on nothing but the batch's number, the model and torch's random state,
        which is seeded here before each batch.
    clip : float
        Greatest norm of the gradient.
    accumulate : int
        Batches whose gradients are averaged before each step; the processes of `team` share them.
    momentum : callable
        From the share that is done to the first of Adam's two averages, where it changes.
    done : int
        Steps of an earlier training of the same run: reports count on from them.

    Raises
    ------
    DivergedError
        When the loss or the gradient is not finite. Nothing of that step is kept.
    TrainingError
        When the processes cannot share the batches of a step evenly.
    """
    if accumulate % team.size:
        raise TrainingError(f"{team.size} processes cannot share the {accumulate} batches of a step evenly")
    rates = [group["lr"] for group in optimizer.param_groups]
    parameters = [p for p in model.parameters() if p.requires_grad]
    now = resume(keep.path, model, optimizer) if keep and keep.path.exists() else Counters()
    start = time.monotonic() - now.seconds
    while (progress := team.agreed(budget.progress(now.step, time.monotonic() - start))) < 1:
        factor = schedule(progress)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
            if momentum:
                group["betas"] = (momentum(progress), group["betas"][1])
        optimizer.zero_grad(set_to_none=True)
        numbers = range(now.step * accumulate + team.rank, (now.step + 1) * accumulate, team.size)
        total = _descend(loss_at, numbers, parameters, share=1 / accumulate, seed=seed, team=team)
        # One question to a GPU a step, when all of it has been handed over.
        loss, norm = torch.stack([total, nn.utils.clip_grad_norm_(parameters, clip)]).tolist()
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise DivergedError(_diverged(now.step, loss, norm, keep))
        optimizer.step()
        now = now.after(loss=loss, norm=norm, seconds=time.monotonic() - start)
        if report and ((done + now.step) % report_every == 0 or budget.progress(now.step, 0) == 1):
            said = now.said(share=progress, rate=rates[0] * factor)
            report(replace(said, step=done + now.step))
            now = replace(now, counted=0, loss=0.0, norm=0.0)
        if keep and now.step % keep.every == 0:
            _save_together(keep.path, model, optimizer, now, team=team)
    if keep:
        _save_together(keep.path, model, optimizer, now, team=team)
    return now.step


def _descend(
    loss_at: Callable[[int], Tensor],
    numbers: Iterable[int],
    parameters: Sequence[nn.Parameter],
    *,
    share: float,
    seed: int,
    team: Team,
) -> Tensor:
    """The gradients of this step's batches, summed over the team, each times `share`; returns the loss likewise."""
    total = torch.zeros((), device=parameters[0].device)
    for number in numbers:
        torch.manual_seed(seed * 1_000_003 + number)
        loss = loss_at(number) * share
        total += loss.detach()
        torch.autograd.backward(loss)
    if team.size > 1:
        for parameter in parameters:
            if parameter.grad is None:  # the others may have one
                parameter.grad = torch.zeros_like(parameter)
        team.sum_([total, *(p.grad for p in parameters if p.grad is not None)])
    return total


def _diverged(step: int, loss: float, norm: float, keep: Keep | None) -> str:
    said = f"step {step}: the loss is {loss}, the norm of the gradient {norm}; the learning rate may be too high"
    if keep and keep.path.exists():
        said += f". The last good checkpoint is {keep.path}"
    return said


def _save_together(path: Path, model: nn.Module, optimizer: Optimizer, now: Counters, *, team: Team) -> None:
    """As `save`, by one process of the team; running statistics become the mean over all of them."""
    if team.size > 1:
        statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        team.sum_(statistics)
        for buffer in statistics:
            buffer.div_(team.size)
    if team.leads:
        save(path, model, optimizer, now)
    team.wait()


def save(path: Path, model: nn.Module, optimizer: Optimizer, now: Counters) -> None:
    """Write model, optimiser and counters to `path`, whole or not at all (`write_whole`)."""
    tensors = {f"model.{name}": value.detach().contiguous() for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{index}.{name}": value.contiguous()
            for name, value in state.items()
            if isinstance(value, Tensor)
        }
    write_whole(path, tensors, {name: repr(value) for name, value in now.to_json().items()})


def write_whole(path: Path, tensors: dict[str, Tensor], facts: dict[str, str]) -> None:
    """Write `tensors` with `facts` to `path`; what stood there stays until all of it is on the disk.

    Raises
    ------
    TrainingError
        It cannot be written; no part of it is left.
    """
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata=facts)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            partial.unlink()
        raise TrainingError(f"{path} cannot be written: {error}") from error


def resume(path: Path, model: nn.Module, optimizer: Optimizer) -> Counters:
    """Load what `save` wrote and return where it was; another network's file is refused."""
    tensors = load_file(path)
    try:
        model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    except RuntimeError as error:
        raise TrainingError(f"{path} was written by another network: {error}") from error
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            states.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, state in optimizer.state.items():  # a fused step takes numbers in the order in which they lie
        for name, value in state.items():
            if value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter).copy_(value)
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
    return Counters(**{name: json.loads(facts[name]) for name in Counters().to_json()})


def without_decay(modules: Iterable[nn.Module], *, decay: float) -> list[dict[str, object]]:
    """Parameter groups with weight decay on matrices and filters, and none on biases and normalisation."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def autocast(device: torch.device = CPU) -> torch.autocast:
    """Mixed precision in bfloat16 where the device computes in it, and none elsewhere."""
    enabled = torch.cuda.is_bf16_supported() if device.type == "cuda" else _has_bfloat16()
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


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
