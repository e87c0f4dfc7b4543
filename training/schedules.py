"""Learning-rate schedules as pure functions: progress in 0..1 → factor on the initial rate."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]
"""From the share of the training that is done, 0..1, to the factor on the initial learning rate."""


def thirds(progress: float) -> float:
    """One tenth after the first third, one hundredth after the second (Grewal et al. 2018, section 2.2.3)."""
    return 1.0 if progress < 1 / 3 else 0.1 if progress < 2 / 3 else 0.01


def warmup_cosine(warmup: float) -> Schedule:
    """Linear up over the first share `warmup`, then half a cosine to zero (Nguyen et al. 2020, section 3.1)."""

    def factor(progress: float) -> float:
        if progress < warmup:
            return progress / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))

    return factor


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0 (Ngo et al., section II-A)."""
    return warmup_cosine(0.0)(progress)


def constant(_: float) -> float:
    """The initial rate throughout (Vultur 2021, section 4.3)."""
    return 1.0


def one_cycle(*, start: float = 0.25, division: float = 25.0, final: float = 1e5) -> Schedule:
    """From 1/`division` up to 1 over the first share `start`, then down to 1/`final`, both as half a cosine.

    Smith 2018, which Khandelwal and Ganguli follow (section III-D i); the values are fast.ai's.
    """
    return _there_and_back(1 / division, 1.0, 1 / final, start=start)


def one_cycle_momentum(*, start: float = 0.25, most: float = 0.95, least: float = 0.85) -> Schedule:
    """The momentum beside `one_cycle`: least where the rate is greatest (Smith 2018)."""
    return _there_and_back(most, least, most, start=start)


def ramp(lowest: float) -> Schedule:
    """From `lowest` up to 1, in equal factors: the learning-rate finder's (Smith 2018)."""
    return lambda progress: lowest ** (1 - progress)


def _there_and_back(first: float, middle: float, last: float, *, start: float) -> Schedule:
    def value(progress: float) -> float:
        if progress < start:
            return _eased(first, middle, progress / start)
        return _eased(middle, last, min(1.0, (progress - start) / (1 - start)))

    return value


def _eased(first: float, last: float, share: float) -> float:
    return last + (first - last) / 2 * (1 + math.cos(math.pi * share))
