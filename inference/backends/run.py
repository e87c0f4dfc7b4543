"""What every backend makes of the costly part of a network."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Run = Callable[[Tensor], Tensor]
"""Float32 images (n, …) on the processor's device → float32 features (n, d), each row from its image alone."""
