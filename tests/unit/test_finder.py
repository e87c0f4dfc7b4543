"""The learning-rate finder knows a valley whose steepness is known, leaves the network alone, and survives a kill."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training import finder
from training.batches import Ahead, Batch
from training.course import Course
from training.finder import Curve, Search, find_rate
from training.loop import Keep, Run
from training.schedules import constant

pytestmark = pytest.mark.usefixtures("one_thread")

SEARCH = Search(name="valley", otherwise=0.125)
COURSE = Course(epochs=1, slices=1, schedule=constant, mixed=False)


class Valley(nn.Module):
    """The loss ½ · steepness · w²: plain gradient descent comes down fastest at the rate 1 / steepness."""

    def __init__(self, steepness: float) -> None:
        super().__init__()
        self.steepness = steepness
        self.w = nn.Parameter(torch.full((4,), 0.01))

    def loss(self, _: Batch, __: torch.Generator) -> Tensor:
        return 0.5 * self.steepness * self.w.square().sum()


def nothing(_: int) -> Batch:
    return Batch(**{name: torch.empty(0) for name in ("images", "masks", "labels", "outlined")})


def found(
    model: Valley, *, run: Run | None = None, loss: Callable[[nn.Module], Callable[..., Tensor]] | None = None
) -> float:
    return find_rate(
        SEARCH,
        COURSE,
        model,
        lambda network, rate: torch.optim.SGD(network.parameters(), lr=rate),
        loss or (lambda network: network.loss),
        lambda: Ahead(nothing, workers=1),
        run=run or Run(seed=0, workers=1),
    )


@pytest.mark.parametrize("steepness", [0.5, 5.0, 500.0])
def test_the_rate_of_a_valley_is_where_it_falls_and_below_where_it_explodes(steepness: float) -> None:
    assert 0.01 / steepness < found(Valley(steepness)) < 2 / steepness


def test_where_the_loss_nowhere_falls_the_rate_is_the_one_for_that_case() -> None:
    rates = tuple(np.geomspace(1e-7, 10, 100).tolist())
    assert Curve(rates=rates, losses=(1.0,) * 100).steepest() is None
    assert Curve(rates=rates, losses=tuple(np.linspace(1, 2, 100).tolist())).steepest() is None
    assert Curve(rates=rates[:8], losses=(2.0, 1.0) * 4).steepest() is None
    assert found(Valley(0.0)) == 0.125


def test_the_steepest_fall_of_a_drawn_curve_is_found_within_its_width() -> None:
    rates = np.geomspace(1e-7, 10, 300)
    losses = 1 / (1 + np.exp(4 * np.log10(rates / 1e-3))) + rates  # falls around 10⁻³
    losses += 0.2 * np.random.default_rng(0).standard_normal(300)
    rate = Curve(rates=tuple(rates.tolist()), losses=tuple(losses.tolist())).steepest()
    assert rate is not None
    assert 2e-4 < rate < 5e-3


def test_the_network_is_left_as_it_was_and_the_search_ends_when_the_loss_explodes(tmp_path: Path) -> None:
    model = Valley(500.0)
    rate = found(model, run=Run(seed=0, workers=1, keep=Keep(path=tmp_path / "checkpoint.safetensors")))
    assert torch.equal(model.w.detach(), torch.full((4,), 0.01))
    assert model.w.grad is None
    curve = finder.read(tmp_path / "finder-valley.csv")
    assert 20 < len(curve.rates) < SEARCH.steps
    assert curve.rates[0] == pytest.approx(1e-7)
    assert finder.found(tmp_path) == {"valley": rate}
    assert (tmp_path / "finder-valley.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.partial"))


def test_a_search_that_was_killed_finds_what_one_that_was_not_finds_and_a_finished_one_is_not_made_again(
    tmp_path: Path,
) -> None:
    run = Run(seed=3, workers=1, keep=Keep(path=tmp_path / "checkpoint.safetensors"))

    def noisy(network: nn.Module, *, last: float = np.inf) -> Callable[[Batch, torch.Generator], Tensor]:
        assert isinstance(network, Valley)

        def loss(batch: Batch, generator: torch.Generator) -> Tensor:
            nonlocal last
            last -= 1
            if last < 0:
                raise KeyboardInterrupt
            return network.loss(batch, generator) * (1 + 0.1 * torch.rand((), generator=generator))

        return loss

    whole = found(Valley(5.0), loss=noisy, run=Run(seed=3, workers=1))
    with pytest.raises(KeyboardInterrupt):
        found(Valley(5.0), loss=partial(noisy, last=50), run=run)
    assert not (tmp_path / "finder-valley.csv").exists()
    assert found(Valley(5.0), loss=noisy, run=run) == whole
    assert found(Valley(5.0), loss=partial(noisy, last=0), run=run) == whole
