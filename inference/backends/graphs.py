"""CUDA graphs: the few hundred kernels of a network are launched as one, which a GPU would otherwise wait for."""

from __future__ import annotations

import torch
from torch import Tensor

from inference.backends.failure import BackendFailed
from inference.backends.run import Run
from inference.device import is_lost, is_out_of_memory

ROUNDS_BEFORE = 3
"""Runs before the recording: cuDNN chooses its kernels and allocates its workspaces in them."""


class Graph:
    """Runs images of one shape: recorded with the first ones, replayed for all that follow.

    Raises ``BackendFailed`` when the recording fails; running out of memory passes through, a smaller batch may help.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._graph: torch.cuda.CUDAGraph | None = None
        self._images = torch.empty(0)
        self._features = torch.empty(0)

    def __call__(self, images: Tensor) -> Tensor:
        """Features (n, d) of images (n, …), n as in the first call."""
        if self._graph is None:
            self._record(images)
        self._images.copy_(images)
        if self._graph is not None:
            self._graph.replay()
        # A copy: the next replay writes over its own result.
        return self._features.clone()

    def _record(self, images: Tensor) -> None:
        self._images = images.clone()
        graph = torch.cuda.CUDAGraph()
        try:
            aside = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream(images.device))
            with torch.cuda.stream(aside):
                for _ in range(ROUNDS_BEFORE):
                    self._run(self._images)
            torch.cuda.current_stream(images.device).wait_stream(aside)
            with torch.cuda.graph(graph):
                self._features = self._run(self._images)
        except RuntimeError as error:
            if is_out_of_memory(error) or is_lost(error):
                raise
            raise BackendFailed(f"CUDA graphs: {_first_line(error)}") from error
        self._graph = graph


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
