"""Processes that train one network together, as `torchrun` starts them; one alone is a team as well.

Every process takes its part of a step's batches, and the gradients are summed before the step: what a step does depends
on its batches alone, not on how many processes shared them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Team:
    """Which of how many processes this is."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Every tensor holds the sum over all processes; one message for all of one type and device."""
        if self.size == 1:
            return
        kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        for alike in kinds.values():
            flat = torch.cat([tensor.flatten() for tensor in alike])
            dist.all_reduce(flat)
            for tensor, part in zip(alike, torch.split(flat, [t.numel() for t in alike]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def agreed(self, value: float) -> float:
        """The first process's `value`, in every process."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=device_of(self))
        dist.broadcast(shared, 0)
        return float(shared)

    def wait(self) -> None:
        """Every process has come here."""
        if self.size > 1:
            dist.barrier()


ALONE = Team()


def device_of(team: Team) -> torch.device:
    """The device on which this process trains: a CUDA device of its own where there is one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", team.rank)) % torch.cuda.device_count())


@contextmanager
def joined() -> Iterator[Team]:
    """The team that `torchrun` started, or this process alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    team = Team(rank=int(os.environ["RANK"]), size=size)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if torch.cuda.is_available():
        torch.cuda.set_device(device_of(team))
    try:
        yield team
    finally:
        dist.destroy_process_group()
