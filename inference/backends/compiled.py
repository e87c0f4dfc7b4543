"""torch.compile: fuses what lies between the convolutions, for minutes of compilation and a C++ compiler at hand."""

from __future__ import annotations

import torch
from torch import Tensor

from inference.backends.failure import BackendFailed
from inference.backends.run import Run
from inference.device import is_lost, is_out_of_memory


def compiled(run: Run) -> Run:
    """`run`, compiled with the first images of each shape. It raises ``BackendFailed`` where that is not possible."""
    inner = torch.compile(run, dynamic=False)

    def guarded(images: Tensor) -> Tensor:
        try:
            features: Tensor = inner(images)
        except RuntimeError as error:
            if is_out_of_memory(error) or is_lost(error):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BackendFailed(f"torch.compile: {reason}") from error
        return features

    return guarded
