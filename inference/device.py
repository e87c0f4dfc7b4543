"""What the networks run on: the processors of this machine, their precision, their memory, and how they fail."""

from __future__ import annotations

import ctypes
import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from inference.card import ModelError

CGROUP = Path("/sys/fs/cgroup")
TOPOLOGY = Path("/sys/devices/system/cpu")


class DeviceMissing(ModelError):
    """The configured device is not there."""


class DeviceLost(ModelError):
    """Every device failed; there is nothing left to run on."""


@dataclass(frozen=True, kw_only=True)
class Processor:
    """Where the networks run (a torch device by name) and whether their convolutions run in bfloat16."""

    device: str
    bf16: bool

    @property
    def precision(self) -> str:
        """As the report calls it."""
        return "bf16" if self.bf16 else "fp32"


def processors(device: str = "auto", *, precision: str = "auto") -> tuple[Processor, ...]:
    """The processor asked for, then those to fall back on.

    Parameters
    ----------
    device : str
        "auto", "cpu", "cuda" or "cuda:N". "auto" takes the first GPU where there is one.
    precision : str
        "auto" takes bfloat16 where the hardware computes in it; "bf16" and "fp32" insist.

    Raises
    ------
    DeviceMissing
        There is no such device. Nothing falls back silently.
    ValueError
        There is no such precision.
    """
    if precision not in ("auto", "bf16", "fp32"):
        raise ValueError(f"precision is {precision!r}, expected auto, bf16 or fp32")
    cpu = Processor(device="cpu", bf16=precision == "bf16" or (precision == "auto" and cpu_has_bf16()))
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and not present):
        return (cpu,)
    index = _cuda_index(device)
    if index >= present:
        raise DeviceMissing(f"device {device!r} was asked for, and this machine has {present} usable CUDA devices")
    ampere_or_later = torch.cuda.get_device_capability(index) >= (8, 0)
    gpu = Processor(device=f"cuda:{index}", bf16=precision == "bf16" or (precision == "auto" and ampere_or_later))
    return gpu, cpu


def _cuda_index(device: str) -> int:
    kind, _, index = device.partition(":")
    if device in ("auto", "cuda"):
        return 0
    if kind != "cuda" or not index.isdecimal():
        raise DeviceMissing(f"device is {device!r}, expected auto, cpu, cuda or cuda:N")
    return int(index)


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 itself. One that emulates it is slower with it than without."""
    has = torch.cpu.get_capabilities()
    return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def usable_threads(cgroup: Path = CGROUP, topology: Path = TOPOLOGY) -> int:
    """As many threads as this process may have cores: those of its affinity, each once, within its cgroup's quota.

    Two threads on one core share its multipliers; more threads than the quota allows are stopped all together.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_siblings(topology / f"cpu{cpu}" / "topology" / "thread_siblings_list", cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota(cgroup / "cpu.max") or len(cores)))


def _siblings(path: Path, cpu: int) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return str(cpu)


def _quota(path: Path) -> int | None:
    """Whole CPUs that a cgroup (version 2) may use in each period; None without a limit."""
    try:
        quota, period = path.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else math.ceil(int(quota) / int(period))


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory for the next allocation; True where that was possible.

    By default every large activation goes back to the kernel and comes again page by page, which costs up to half the
    time of a network on the CPU. The price is that the process keeps its largest size, so only a process that does
    nothing but inference or training should call this.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # M_… in malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 256 << 20))
    return all(mallopt(name, value) == 1 for name, value in settings)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch might succeed where this error was raised."""
    signs = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in str(error) for sign in signs)


def is_lost(error: BaseException) -> bool:
    """Whether the device itself failed, so that nothing will run on it any more in this process."""
    signs = ("CUDA error", "CUDA driver error", "cuDNN error", "CUBLAS_STATUS", "CUDNN_STATUS")
    return isinstance(error, torch.AcceleratorError) or any(sign in str(error) for sign in signs)
