"""Learning rates of the papers, by their numbers and beside torch's own schedulers."""

import pytest
import torch
from torch import nn

from training.schedules import constant, cosine, one_cycle, one_cycle_momentum, thirds, warmup_cosine


def test_radnets_rate_falls_to_a_tenth_at_epochs_20_and_40_of_60() -> None:
    assert [thirds(epoch / 60) for epoch in (0, 19.99, 20, 39.99, 40, 59.99)] == [1, 1, 0.1, 0.1, 0.01, 0.01]


def test_the_cnn_lstms_rate_rises_for_3_of_30_epochs_and_ends_at_nought() -> None:
    rate = warmup_cosine(0.1)
    assert [rate(epoch / 30) for epoch in (0, 1.5, 3, 16.5, 30)] == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-12)


def test_the_adjacent_slices_rate_is_torchs_cosine() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    peer = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for epoch in range(20):
        assert cosine(epoch / 20) == pytest.approx(peer.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        peer.step()


def test_the_thesis_rate_never_changes() -> None:
    assert {constant(progress / 10) for progress in range(11)} == {1.0}


def test_one_cycle_is_torchs_in_rate_and_momentum() -> None:
    optimizer = torch.optim.AdamW(nn.Linear(1, 1).parameters(), lr=1.0)
    steps = 100
    peer = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=steps + 1, pct_start=26 / 101, div_factor=25, final_div_factor=4000
    )
    rate, momentum = one_cycle(), one_cycle_momentum()
    for step in range(steps + 1):  # torch counts the last step of a phase, not its end
        share = step / steps
        assert rate(share) == pytest.approx(peer.get_last_lr()[0], abs=1e-9), step
        assert momentum(share) == pytest.approx(optimizer.param_groups[0]["betas"][0], abs=1e-9), step
        optimizer.step()
        if step < steps:
            peer.step()
    assert rate(0) == pytest.approx(1 / 25)
    assert rate(0.25) == 1
    assert rate(1) == pytest.approx(1e-5)
    assert (momentum(0), momentum(0.25), momentum(1)) == pytest.approx((0.95, 0.85, 0.95))
