"""The loop learns, stops where it is told, and continues after a kill as if nothing had happened."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from inference.models import CnnLstm, CnnLstmConfig, RADnet, RadnetConfig
from tests.square_scans import square_scans
from training.batches import Sampler, Sampling
from training.errors import DivergedError, TrainingError
from training.loop import Budget, Keep, Run, fit, without_decay
from training.recipes import cnn_lstm, radnet
from training.recipes.cnn_lstm import CnnLstmRecipe
from training.recipes.radnet import RadnetRecipe
from training.schedules import warmup_cosine

pytestmark = pytest.mark.usefixtures("one_thread")


TINY = RadnetConfig(growth=4, layers=2, stem=6, dropout=0.0, hidden=8, size=32)


def tiny(seed: int = 0) -> RADnet:
    torch.manual_seed(seed)
    return RADnet(TINY)


def line(noise: float = 0.0) -> tuple[nn.Linear, torch.optim.AdamW, Callable[[int], Tensor]]:
    """A linear network that learns y = 2x, from batches that depend on their number alone."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(without_decay([model], decay=0.01), lr=0.05)

    def loss_at(number: int) -> Tensor:
        x = torch.rand(8, 1, generator=torch.Generator().manual_seed(number))
        return ((model(x) - 2 * x + noise * torch.randn(8, 1)) ** 2).mean()

    return model, optimizer, loss_at


def test_a_run_that_was_killed_ends_with_the_same_weights(tmp_path: Path) -> None:
    def run(keep: Keep | None, steps: int) -> Tensor:
        model, optimizer, loss_at = line(noise=0.1)
        fit(model, optimizer, loss_at, budget=Budget(steps=steps), schedule=lambda _: 1.0, seed=3, keep=keep)
        return torch.cat([model.weight.detach().flatten(), model.bias.detach()])

    whole = run(None, 40)
    keep = Keep(path=tmp_path / "run.safetensors", every=10)
    run(keep, 17)
    assert not torch.equal(run(None, 17), whole)
    assert torch.equal(run(keep, 40), whole)


def test_a_spent_budget_trains_no_further(tmp_path: Path) -> None:
    model, optimizer, loss_at = line()
    keep = Keep(path=tmp_path / "run.safetensors")
    assert fit(model, optimizer, loss_at, budget=Budget(steps=5), schedule=lambda _: 1.0, seed=0, keep=keep) == 5
    before = model.weight.detach().clone()
    assert fit(model, optimizer, loss_at, budget=Budget(steps=5), schedule=lambda _: 1.0, seed=0, keep=keep) == 5
    assert torch.equal(before, model.weight)


def test_minutes_end_a_run_too() -> None:
    model, optimizer, loss_at = line()
    budget = Budget(steps=10**9, minutes=0.002)
    assert 0 < fit(model, optimizer, loss_at, budget=budget, schedule=warmup_cosine(0.1), seed=0) < 10**9


def test_averaged_gradients_of_two_batches_are_the_gradient_of_both(tmp_path: Path) -> None:
    together, optimizer, loss_at = line()
    fit(
        together,
        optimizer,
        lambda step: (loss_at(2 * step) + loss_at(2 * step + 1)) / 2,
        budget=Budget(steps=5),
        schedule=lambda _: 1.0,
        seed=0,
    )
    apart, optimizer, loss_at = line()
    fit(apart, optimizer, loss_at, budget=Budget(steps=5), schedule=lambda _: 1.0, seed=0, accumulate=2)
    assert torch.allclose(together.weight, apart.weight, atol=1e-6)


def test_the_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    model, optimizer, loss_at = line()
    keep = Keep(path=tmp_path / "run.safetensors")
    fit(model, optimizer, loss_at, budget=Budget(steps=1), schedule=lambda _: 1.0, seed=0, keep=keep)
    other = nn.Linear(2, 2)
    with pytest.raises(TrainingError, match="another network"):
        fit(
            other,
            torch.optim.AdamW(other.parameters()),
            loss_at,
            budget=Budget(steps=2),
            schedule=lambda _: 1.0,
            seed=0,
            keep=keep,
        )


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    model, optimizer, loss_at = line()
    with pytest.raises(DivergedError, match="step 0: the loss is nan"):
        fit(
            model,
            optimizer,
            lambda n: loss_at(n) * float("nan"),
            budget=Budget(steps=2),
            schedule=lambda _: 1.0,
            seed=0,
        )


def test_radnet_learns_a_few_scans_by_the_papers_recipe(tmp_path: Path) -> None:
    model, losses = tiny(), []
    recipe = RadnetRecipe(epochs=8, slices=6, rate=0.05)
    steps = radnet.train(
        model, square_scans(), recipe=recipe, run=Run(seed=0, report=lambda now: losses.append(now.loss))
    )
    assert steps == 32
    batch = Sampler(square_scans(), Sampling(runs=4, slices=6, side=32, outlines=True)).batch(
        torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        assert float(radnet.loss(model, batch, recipe)) < 0.8 * float(radnet.loss(tiny().train(), batch, recipe))


def test_an_ablation_without_attention_has_no_segmentation_loss() -> None:
    plain = RADnet(RadnetConfig.from_json(TINY.to_json() | {"attention": False}))
    batch = Sampler(square_scans(), Sampling(runs=2, slices=6, side=32, outlines=True)).batch(
        torch.Generator().manual_seed(0)
    )
    recipe = RadnetRecipe(attention_weight=1e6)
    assert float(radnet.loss(plain, batch, recipe).detach()) < 10 < float(radnet.loss(tiny(), batch, recipe).detach())


def test_the_cnn_lstm_takes_steps_by_the_papers_recipe() -> None:
    torch.manual_seed(0)
    model = CnnLstm(CnnLstmConfig(trunk="resnet18", hidden=4, size=32))
    before = model.trunk.conv1.weight.detach().clone()  # type: ignore[union-attr, operator]
    recipe = CnnLstmRecipe(epochs=1, studies=2, slices=3, accumulate=2)
    assert cnn_lstm.train(model, square_scans(channels=3), recipe=recipe, run=Run(seed=0)) == 2
    assert not torch.equal(before, model.trunk.conv1.weight)  # type: ignore[arg-type]
