"""The 3D ResNet sees whole scans or five adjacent slices."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inference.card import CardInvalid, ModelCard, save
from inference.decision import ScanRule
from inference.models.resnet_3d import MedicalResNet18, Resnet3d, Resnet3dConfig
from inference.preprocess import Preprocessing
from inference.result import LABELS
from tests import small_scan

WHOLE = ModelCard(
    name="3D ResNet-18",
    family="resnet_3d",
    version="small",
    architecture={"size": 32, "depth": 12},
    preprocessing=Preprocessing.full_range(size=32),
    labels=LABELS,
    thresholds=dict.fromkeys(LABELS, 0.0),
    rule=ScanRule(max=True),
    demonstration=True,
    intended_use="Tests.",
)
FIVE = replace(WHOLE, architecture={"size": 32, "depth": 5, "per_slice": True})
AIR = -0.25


def small(**changes: Any) -> Resnet3d:
    torch.manual_seed(0)
    return Resnet3d(Resnet3dConfig.from_json({"size": 32, "depth": 12} | changes)).eval()


def a_scan(slices: int) -> torch.Tensor:
    """Descriptors"""
    return (torch.rand(slices, 32 * 32, generator=torch.Generator().manual_seed(1)) - 0.25).half()


@pytest.mark.parametrize("config", [Resnet3dConfig(), Resnet3dConfig(depth=5, per_slice=True)])
def test_the_network_has_as_many_parameters_as_its_authors_say(config: Resnet3dConfig) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in Resnet3d(config).parameters()) == 32_989_254


def test_the_trunk_has_the_names_of_its_published_weights_and_shortcuts_without_weights() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in MedicalResNet18().state_dict().items()}
    assert shapes["conv1.weight"] == (64, 1, 7, 7, 7)
    assert shapes["layer1.0.bn1.running_mean"] == (64,)
    assert shapes["layer3.0.conv1.weight"] == (256, 128, 3, 3, 3)
    assert shapes["layer4.1.conv2.weight"] == (512, 512, 3, 3, 3)
    assert not [name for name in shapes if "downsample" in name]
    assert len([name for name in shapes if not name.endswith("num_batches_tracked")]) == 85


@pytest.mark.parametrize(
    ("volume", "maps"), [((60, 256, 256), (8, 32, 32)), ((5, 256, 256), (1, 32, 32)), ((12, 32, 32), (2, 4, 4))]
)
def test_stages_three_and_four_keep_their_resolution(volume: tuple[int, ...], maps: tuple[int, ...]) -> None:
    with torch.device("meta"):
        assert MedicalResNet18().maps(torch.empty(1, 1, *volume)).shape == (1, 512, *maps)


@pytest.mark.parametrize("detach", [False, True])
def test_a_shortcut_takes_every_other_voxel_and_adds_noughts_for_new_maps(detach: bool) -> None:
    block = MedicalResNet18(detach_shortcut=detach).layer2[0].eval()  # type: ignore[index, union-attr]
    torch.nn.init.zeros_(block.conv2.weight)
    maps = torch.rand(1, 64, 4, 4, 4, requires_grad=True)
    out = block(maps)
    assert torch.equal(out[:, :64], maps[:, :, ::2, ::2, ::2])
    assert not out[:, 64:].any()
    out.sum().backward()
    assert maps.grad is not None
    assert bool(maps.grad.any()) is not detach


def test_a_whole_scan_has_one_set_of_logits_and_five_slices_have_theirs() -> None:
    scan = a_scan(7)
    whole, five = small(), small(depth=5, per_slice=True)
    with torch.inference_mode():
        assert whole.decide(scan).shape == (1, 6)
        assert five.decide(scan).shape == (7, 6)
        logits, maps = five(torch.rand(2, 3, 1, 32, 32))
        assert whole(torch.rand(2, 3, 1, 32, 32))[0].shape == (2, 1, 6)
    assert logits.shape == (2, 3, 6)
    assert maps is None
    assert (whole.per_slice, whole.context, five.per_slice, five.context) == (False, None, True, 2)


def test_a_short_scan_goes_on_as_air_above_the_head() -> None:
    network = small()
    scan, air = a_scan(7), torch.full((5, 32 * 32), AIR).half()
    with torch.inference_mode():
        torch.testing.assert_close(network.decide(scan), network.decide(torch.cat([scan, air])))
        assert not torch.allclose(network.decide(scan), network.decide(torch.cat([air, scan])))


def test_a_long_scan_is_averaged_to_thicker_slices() -> None:
    network = small()
    scan = a_scan(12)
    with torch.inference_mode():
        expected = network.decide(scan)
        torch.testing.assert_close(network.decide(scan.repeat_interleave(3, 0)), expected, atol=1e-4, rtol=0)
        assert network.decide(a_scan(31)).shape == (1, 6)


def test_the_first_and_last_slices_of_five_have_air_for_neighbours() -> None:
    network = small(depth=5, per_slice=True)
    scan, air = a_scan(3), torch.full((2, 32 * 32), AIR).half()
    with torch.inference_mode():
        expected = network.decide(torch.cat([air, scan, air]))[2:-2]
        torch.testing.assert_close(network.decide(scan), expected, atol=1e-5, rtol=0)


def test_a_slice_changes_what_is_said_of_two_neighbours_on_either_side_and_of_no_others() -> None:
    network = small(depth=5, per_slice=True)
    scan = a_scan(9)
    changed = scan.clone()
    changed[4] = AIR
    with torch.inference_mode():
        moved = (network.decide(scan) - network.decide(changed)).abs().amax(1) > 1e-5
    assert moved.nonzero().flatten().tolist() == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("chunk", [2, 3, 64])
def test_the_engine_decides_five_slices_in_stretches_with_the_numbers_of_one_pass(tmp_path: Path, chunk: int) -> None:
    head, network = small_scan.small_head(), small_scan.a_network(FIVE)
    engine = small_scan.stored(tmp_path / "model", FIVE, network, chunk=chunk)
    small_scan.assert_one_by_one_as_at_once(engine, head)
    assert engine.encode(head)["model"].dtype == engine.encode([])["model"].dtype == np.float16
    reading = small_scan.read(engine, head)
    with torch.inference_mode():
        logits, _ = network(small_scan.images(FIVE, head)[None])
    np.testing.assert_allclose(small_scan.slice_scores(reading), logits[0].sigmoid().numpy(), atol=1e-5)


def test_the_engine_says_of_a_whole_scan_what_it_is_and_nothing_of_its_slices(tmp_path: Path) -> None:
    head, network = small_scan.small_head(), small_scan.a_network(WHOLE)
    engine = small_scan.stored(tmp_path / "model", WHOLE, network)
    reading = small_scan.read(engine, head)
    with torch.inference_mode():
        logits, _ = network(small_scan.images(WHOLE, head)[None])
    scores = [finding.score for finding in reading.findings]
    np.testing.assert_allclose(scores, logits[0, 0].sigmoid().numpy(), atol=1e-5)
    assert all(finding.present for finding in reading.findings)
    assert (reading.slices, reading.key_slices) == ((), ())
    assert reading.rule.startswith("the scan as a whole 0.")
    assert reading.rule.endswith("at or above 0.00")


@pytest.mark.parametrize("card", [WHOLE, FIVE])
def test_in_bfloat16_the_scores_stay_within_two_hundredths(tmp_path: Path, card: ModelCard) -> None:
    head, network = small_scan.small_head(), small_scan.a_network(card)
    full, half = (small_scan.stored(tmp_path / str(bf16), card, network, bf16=bf16) for bf16 in (False, True))
    half.warm_up()
    scores = [[finding.score for finding in small_scan.read(engine, head).findings] for engine in (full, half)]
    assert scores[0] != scores[1]
    np.testing.assert_allclose(scores[1], scores[0], atol=0.02, rtol=0)


@pytest.mark.parametrize("card", [WHOLE, FIVE])
def test_every_parameter_learns(card: ModelCard) -> None:
    network = small_scan.a_network(card).train()
    images = small_scan.images(card, small_scan.small_head(4))
    logits, _ = network(torch.stack([images, images.flip(0)]))
    small_scan.assert_all_learn(network, logits.square().mean())


@pytest.mark.parametrize("depth", [5, 7])
def test_shallow_volumes_have_the_gradient_that_double_precision_has(depth: int) -> None:
    """Double precision takes another path through torch, so that this compares two ways of computing it."""
    gradients = []
    for kind in (torch.float32, torch.float64):
        torch.manual_seed(0)
        trunk = MedicalResNet18().eval().to(kind)
        volumes = torch.rand(4, 1, depth, 32, 32).to(kind)
        trunk(volumes).square().mean().backward()
        assert trunk.conv1.weight.grad is not None
        gradients.append(trunk.conv1.weight.grad.double())
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-3 * float(gradients[1].abs().max()), rtol=0)


def test_a_whole_scan_takes_no_rule_over_slices(tmp_path: Path) -> None:
    with pytest.raises(CardInvalid, match="no rule but max"):
        save(tmp_path / "model", replace(WHOLE, rule=ScanRule(run=3)), small().state_dict())


def test_slices_cannot_be_left_out_between_neighbours(tmp_path: Path) -> None:
    leaving_out = replace(FIVE, preprocessing=replace(FIVE.preprocessing, blank_below=0.02))
    with pytest.raises(CardInvalid, match="none can be left out"):
        save(tmp_path / "model", leaving_out, small(depth=5, per_slice=True).state_dict())


def test_neighbours_on_both_sides_need_a_middle() -> None:
    with pytest.raises(ValueError, match="no middle"):
        Resnet3d(Resnet3dConfig(depth=4, per_slice=True))
