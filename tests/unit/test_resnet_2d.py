"""The 2D ResNet labels every slice by itself."""

from pathlib import Path

import numpy as np
import pytest
import torch

from inference.card import ModelCard
from inference.decision import ScanRule
from inference.models.resnet_2d import Resnet2d, Resnet2dConfig
from inference.preprocess import Preprocessing
from inference.result import LABELS
from tests import small_scan

CARD = ModelCard(
    name="2D ResNet-18",
    family="resnet_2d",
    version="small",
    architecture={"size": 64},
    preprocessing=Preprocessing.soft_windows(size=64),
    labels=LABELS,
    thresholds=dict.fromkeys(LABELS, 0.5),
    rule=ScanRule(max=True),
    demonstration=True,
    intended_use="Tests.",
)


@pytest.mark.parametrize(
    ("trunk", "count", "features"), [("resnet18", 11_179_590, 512), ("resnet50", 23_520_326, 2048)]
)
def test_the_networks_have_as_many_parameters_as_the_thesis_implies(trunk: str, count: int, features: int) -> None:
    with torch.device("meta"):
        network = Resnet2d(Resnet2dConfig(trunk=trunk))
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    assert network.descriptor_size == features


@pytest.mark.parametrize("trunk", ["resnet18", "resnet50"])
def test_a_slice_has_six_logits_that_its_neighbours_do_not_change(trunk: str) -> None:
    torch.manual_seed(0)
    network = Resnet2d(Resnet2dConfig(trunk=trunk, size=64)).eval()
    scan = torch.rand(1, 3, 3, 64, 64)
    with torch.inference_mode():
        logits, maps = network(scan)
        alone = network.decide(network.encode(scan[0, 1:2]))
    assert logits.shape == (1, 3, 6)
    assert maps is None
    torch.testing.assert_close(alone, logits[0, 1:2], atol=1e-5, rtol=0)
    assert network.context == 0


def test_the_engine_reads_a_head_with_stored_weights_as_the_network_itself_does(tmp_path: Path) -> None:
    head, network = small_scan.small_head(), small_scan.a_network(CARD)
    engine = small_scan.stored(tmp_path / "model", CARD, network)
    small_scan.assert_one_by_one_as_at_once(engine, head)
    reading = small_scan.read(engine, head)
    with torch.inference_mode():
        logits, _ = network(small_scan.images(CARD, head)[None])
    np.testing.assert_allclose(small_scan.slice_scores(reading), logits[0].sigmoid().numpy(), atol=1e-5)
    assert [finding.label for finding in reading.findings] == list(LABELS)


def test_every_parameter_learns() -> None:
    network = small_scan.a_network(CARD).train()
    logits, _ = network(small_scan.images(CARD, small_scan.small_head(4))[None])
    small_scan.assert_all_learn(network, logits.square().mean())


def test_half_of_the_features_are_dropped_in_training_only() -> None:
    network = small_scan.a_network(CARD)
    descriptors = torch.ones(1, network.descriptor_size)
    with torch.no_grad():
        assert torch.equal(network.decide(descriptors), network.decide(descriptors))
        network.train()
        assert not torch.equal(network.decide(descriptors), network.decide(descriptors))
    (dropout,) = (module for module in network.modules() if isinstance(module, torch.nn.Dropout))
    assert dropout.p == 0.5


def test_an_unknown_trunk_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="resnet18, resnet50"):
        Resnet2d(Resnet2dConfig(trunk="vgg"))
