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
