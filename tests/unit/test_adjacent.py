"""Adjacent slices refine what a ResNet says of the one in their middle."""

from pathlib import Path

import numpy as np
import pytest
import torch

from inference.card import ModelCard
from inference.decision import ScanRule
from inference.models.adjacent import Adjacent, AdjacentConfig
from inference.preprocess import Preprocessing
from inference.result import LABELS
from tests import small_scan

CARD = ModelCard(
    name="Adjacent slices",
    family="adjacent",
    version="small",
    architecture={"trunk": "resnet18", "size": 64},
    preprocessing=Preprocessing.three_windows(size=64),
    labels=LABELS,
    thresholds=dict.fromkeys(LABELS, 0.5),
    rule=ScanRule(max=True),
    demonstration=True,
    intended_use="Tests.",
)


def parameters(*modules: torch.nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_the_two_stages_have_as_many_parameters_as_the_paper_implies() -> None:
    with torch.device("meta"):
        network = Adjacent(AdjacentConfig())
    assert parameters(network.trunk, network.describe) == 23_520_326
    assert parameters(network.fuse, network.classify) == 12_870
    assert parameters(network) == 23_533_196


def test_a_resnet_50_gives_six_probabilities_for_a_slice_and_six_logits_for_each_of_a_scan() -> None:
    torch.manual_seed(0)
    network = Adjacent(AdjacentConfig(size=64)).eval()
    scan = torch.rand(1, 3, 3, 64, 64)
    with torch.inference_mode():
        descriptors = network.encode(scan[0])
        logits, maps = network(scan)
        torch.testing.assert_close(network.decide(descriptors), logits[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(network.describe_logits(scan[0]).sigmoid(), descriptors)
    assert descriptors.shape == (3, 6)
    assert logits.shape == (1, 3, 6)
    assert maps is None


def test_a_slice_changes_what_is_said_of_three_neighbours_on_either_side_and_of_no_others() -> None:
    network = small_scan.a_network(CARD)
    descriptors = torch.rand(11, 6)
    changed = descriptors.clone()
    changed[5] = 1 - changed[5]
    with torch.no_grad():
        moved = (network.decide(descriptors) != network.decide(changed)).any(1)
    assert moved.nonzero().flatten().tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert network.context == 3


def test_beyond_its_ends_a_scan_goes_on_as_its_last_slices() -> None:
    network = small_scan.a_network(CARD)
    descriptors = torch.rand(4, 6)
    longer = torch.cat([descriptors[:1]] * 3 + [descriptors] + [descriptors[-1:]] * 3)
    with torch.no_grad():
        torch.testing.assert_close(network.decide(descriptors), network.decide(longer)[3:-3])


@pytest.mark.parametrize("slices", [1, 2, 7])
def test_scans_of_any_length_and_several_at_once_are_decided(slices: int) -> None:
    network = small_scan.a_network(CARD)
    scans = torch.rand(2, slices, 6)
    with torch.no_grad():
        together = network.decide(scans)
        torch.testing.assert_close(together[1], network.decide(scans[1]), atol=1e-5, rtol=0)
    assert together.shape == (2, slices, 6)


def test_the_engine_reads_a_head_with_stored_weights_as_the_network_itself_does(tmp_path: Path) -> None:
    head, network = small_scan.small_head(), small_scan.a_network(CARD)
    engine = small_scan.stored(tmp_path / "model", CARD, network)
    small_scan.assert_one_by_one_as_at_once(engine, head)
    reading = small_scan.read(engine, head)
    with torch.inference_mode():
        logits, _ = network(small_scan.images(CARD, head)[None])
    np.testing.assert_allclose(small_scan.slice_scores(reading), logits[0].sigmoid().numpy(), atol=1e-5)


def test_every_parameter_of_both_stages_learns_from_the_refined_logits() -> None:
    network = small_scan.a_network(CARD).train()
    logits, _ = network(small_scan.images(CARD, small_scan.small_head(8))[None])
    small_scan.assert_all_learn(network, logits.square().mean())


def test_an_unknown_trunk_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="resnet18, resnet50"):
        Adjacent(AdjacentConfig(trunk="vgg"))
