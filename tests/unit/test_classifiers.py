"""The classifiers tell bleed from no bleed, or subtypes, slice by slice, and leave out blank slices."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from inference.card import ModelCard
from inference.decision import ScanRule
from inference.engine import NoBrain
from inference.models.classifiers import TRUNKS, Classifier, ClassifierConfig
from inference.preprocess import Preprocessing, equalising_quantiles
from inference.result import ANY, LABELS, SUBTYPES
from tests import small_scan

HEAD = small_scan.small_head()
QUANTILES = equalising_quantiles(torch.from_numpy(np.stack([s.hu for s in HEAD])))
BINARY = ModelCard(
    name="ResNet-18",
    family="classifiers",
    version="small",
    architecture={"size": 64},
    preprocessing=Preprocessing.equalised(QUANTILES, size=64),
    labels=(ANY,),
    thresholds={ANY: 0.5},
    rule=ScanRule(max=True),
    demonstration=True,
    intended_use="Tests.",
)
MULTI = replace(
    BINARY,
    architecture={"size": 64, "trunk": "alexnet", "labels": 5},
    labels=SUBTYPES,
    thresholds=dict.fromkeys(SUBTYPES, 0.5),
)


def with_blank_slices() -> list[small_scan.SmallSlice]:
    """The head between two slices of air and one of bone."""
    air = np.full((96, 96), -1000, dtype=np.int16)
    scan = [replace(HEAD[0], hu=air), *HEAD, replace(HEAD[0], hu=air), replace(HEAD[0], hu=air + 2000)]
    return [replace(s, sop_instance_uid=f"1.3.{i}", position=(0.0, 0.0, 5.0 * i)) for i, s in enumerate(scan)]


@pytest.mark.parametrize(
    ("trunk", "labels", "count"),
    [
        ("resnet18", 1, 11_704_896),
        ("resnet50", 5, 25_616_960),
        ("resnet101", 5, 44_609_088),
        ("densenet121", 5, 8_010_112),
        ("alexnet", 5, 2_736_448),
    ],
)
def test_the_networks_have_as_many_parameters_as_with_the_head_of_fast_ai(trunk: str, labels: int, count: int) -> None:
    with torch.device("meta"):
        network = Classifier(ClassifierConfig(trunk=trunk, labels=labels))
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("labels", [1, 5])
def test_each_trunk_describes_slices_and_the_head_labels_them_one_by_one(trunk: str, labels: int) -> None:
    torch.manual_seed(0)
    network = Classifier(ClassifierConfig(trunk=trunk, labels=labels, size=64)).eval()
    scan = torch.rand(1, 3, 3, 64, 64)
    with torch.inference_mode():
        descriptors = network.encode(scan[0])
        logits, maps = network(scan)
        alone = network.decide(network.encode(scan[0, 1:2]))
    assert descriptors.shape == (3, network.descriptor_size)
    assert logits.shape == (1, 3, labels)
    assert maps is None
    scale = max(1.0, float(logits.abs().max()))
    torch.testing.assert_close(alone, logits[0, 1:2], atol=1e-5 * scale, rtol=0)


def test_a_descriptor_holds_the_averages_of_the_last_maps_and_then_their_maxima() -> None:
    network = small_scan.a_network(MULTI)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        maps = network.get_submodule("trunk.features")(images)
        averages, maxima = network.encode(images).chunk(2, dim=1)
    torch.testing.assert_close(averages, maps.mean((2, 3)))
    torch.testing.assert_close(maxima, maps.amax((2, 3)))


def test_bleed_or_not_is_a_softmax_over_two_outputs() -> None:
    network = small_scan.a_network(BINARY)
    assert isinstance(network, Classifier)
    descriptors = torch.rand(4, network.descriptor_size)
    with torch.inference_mode():
        softmax = network.classify(network.head(descriptors)).softmax(1)[:, 1]
        torch.testing.assert_close(network.decide(descriptors)[:, 0].sigmoid(), softmax)


@pytest.mark.parametrize("card", [BINARY, MULTI])
def test_the_engine_reads_a_head_with_stored_weights_as_the_network_itself_does(
    tmp_path: Path, card: ModelCard
) -> None:
    network = small_scan.a_network(card)
    engine = small_scan.stored(tmp_path / "model", card, network)
    small_scan.assert_one_by_one_as_at_once(engine, HEAD)
    reading = small_scan.read(engine, HEAD)
    with torch.inference_mode():
        logits, _ = network(small_scan.images(card, HEAD)[None])
    np.testing.assert_allclose(small_scan.slice_scores(reading), logits[0].sigmoid().numpy(), atol=1e-5)
    assert tuple(finding.label for finding in reading.findings) == card.labels
    assert set(card.labels) <= set(LABELS)


def test_blank_slices_have_no_score_and_do_not_change_the_others(tmp_path: Path) -> None:
    engine = small_scan.stored(tmp_path / "model", BINARY, small_scan.a_network(BINARY))
    engine.warm_up()
    assert engine.encode([])["model"].shape == (0, engine.encode(HEAD)["model"].shape[1])
    scores = small_scan.slice_scores(small_scan.read(engine, with_blank_slices()))[:, 0]
    assert scores[[0, -2, -1]].tolist() == [0, 0, 0]
    expected = small_scan.slice_scores(small_scan.read(engine, HEAD))[:, 0]
    np.testing.assert_allclose(scores[1:-2], expected, atol=1e-5)
    assert expected.min() > 0


def test_with_no_limit_every_slice_is_read(tmp_path: Path) -> None:
    card = replace(BINARY, preprocessing=replace(BINARY.preprocessing, blank_below=0.0))
    engine = small_scan.stored(tmp_path / "model", card, small_scan.a_network(card))
    assert small_scan.slice_scores(small_scan.read(engine, with_blank_slices())).min() > 0


def test_a_scan_of_blank_slices_is_refused_and_not_read_as_negative(tmp_path: Path) -> None:
    engine = small_scan.stored(tmp_path / "model", BINARY, small_scan.a_network(BINARY))
    blank = [s for s in with_blank_slices() if s.hu.std() == 0]
    with pytest.raises(NoBrain, match="none of the 3 slices"):
        small_scan.read(engine, blank)


@pytest.mark.parametrize("card", [BINARY, MULTI])
def test_every_parameter_learns(card: ModelCard) -> None:
    network = small_scan.a_network(card).train()
    logits, _ = network(small_scan.images(card, HEAD)[None])
    small_scan.assert_all_learn(network, logits.square().mean())


def test_an_unknown_trunk_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="resnet18, resnet50, resnet101, densenet121, alexnet"):
        Classifier(ClassifierConfig(trunk="vgg"))
