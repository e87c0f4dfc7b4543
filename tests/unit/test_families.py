"""Every network has its measures, reads a phantom, learns, and is the same after it was stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from inference.card import ModelCard, load, save
from inference.decision import ScanRule
from inference.models import build
from inference.models.catalogue import PUBLISHED, Published
from inference.preprocess import Preprocessing, equalising_quantiles
from inference.result import ANY, LABELS, SUBTYPES
from inference.threads import one_thread
from tests import small_scan
from training.sources.phantom import EASY, make_study

MEASURES = {
    "Hemonode": (12_373_982, (3, 256), 6),
    "DenseNet-40": (1_015_393, (1, 250), 1),
    "DenseNet-A": (1_016_647, (1, 250), 1),
    "RADnet": (1_608_327, (1, 250), 1),
    "CNN-LSTM, ResNet-50": (40_307_782, (3, 512), 6),
    "CNN-LSTM, SE-ResNeXt-50": (42_310_646, (3, 512), 6),
    "Adjacent slices": (23_533_196, (3, 512), 6),
    "2D ResNet-18": (11_179_590, (3, 256), 6),
    "2D ResNet-50": (23_520_326, (3, 256), 6),
    "3D ResNet-18, whole scan": (32_989_254, (1, 256), 6),
    "3D ResNet-18, five slices": (32_989_254, (1, 256), 6),
    "ResNet-18": (11_704_896, (3, 256), 1),
    "ResNet-50": (25_616_960, (3, 256), 5),
    "ResNet-101": (44_609_088, (3, 256), 5),
    "DenseNet-121": (8_010_112, (3, 256), 5),
    "AlexNet": (2_736_448, (3, 256), 5),
}
"""Parameters, channels and side of the image, outputs: as the papers imply them."""

NETWORKS = [one for one in PUBLISHED if one.family != "metadata_forest"]
SMALLER = {
    "hemonode": {"hidden": 8},
    "resnet_3d": {"size": 32},
    "cnn_lstm": {"hidden": 8},
    "radnet": {"growth": 4, "layers": 4},
}
"""On this side of what would only cost time."""
SIDE = 64


def phantom() -> list[small_scan.SmallSlice]:
    study = make_study(seed=11, spec=replace(EASY, size=96, slices=5), subtypes=("intraparenchymal",))
    return [
        small_scan.SmallSlice(
            sop_instance_uid=f"1.2.{i}",
            hu=hu,
            position=tuple(study.positions[i].tolist()),
            orientation=tuple(study.orientation.tolist()),
            pixel_spacing=(float(study.pixel_spacing[0]), float(study.pixel_spacing[1])),
        )
        for i, hu in enumerate(study.hu)
    ]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These networks are too small for more."""
    with one_thread():
        yield


HEAD = phantom()
QUANTILES = equalising_quantiles(torch.from_numpy(np.stack([piece.hu for piece in HEAD])))


def card_of(published: Published) -> ModelCard:
    """The paper's network on small images of the paper's kind."""
    smaller: Mapping[str, int] = {"size": SIDE, **SMALLER.get(published.family, {})}
    side = smaller["size"]
    preprocessing: Mapping[str, Preprocessing] = {
        "radnet": Preprocessing.radnet(size=side, pixel_mm=4.0),
        "cnn_lstm": Preprocessing.three_windows(size=side),
        "hemonode": Preprocessing.three_windows(size=side),
        "adjacent": Preprocessing.three_windows(size=side),
        "resnet_2d": Preprocessing.soft_windows(size=side),
        "resnet_3d": Preprocessing.full_range(size=side),
        "classifiers": Preprocessing.equalised(QUANTILES, size=side, blank_below=0.0),
    }
    labels = {1: (ANY,), 5: SUBTYPES, 6: LABELS}[MEASURES[published.name][2]]
    return ModelCard(
        name=published.name,
        family=published.family,
        version="small",
        architecture={**published.architecture, **smaller},
        preprocessing=preprocessing[published.family],
        labels=labels,
        thresholds=dict.fromkeys(labels, 0.5),
        rule=ScanRule(max=True),
        demonstration=True,
        intended_use="Tests.",
    )


def by_name(published: Published) -> str:
    return published.name


def test_every_network_is_there() -> None:
    assert {published.name for published in NETWORKS} == set(MEASURES)
    assert {published.family for published in PUBLISHED} >= {"radnet", "metadata_forest"}


@pytest.mark.parametrize("published", NETWORKS, ids=by_name)
def test_it_has_the_measures_that_its_paper_implies(published: Published) -> None:
    facts = published.facts()
    count, (channels, side), outputs = MEASURES[published.name]
    assert (facts["parameters"], facts["input"], facts["outputs"]) == (count, [channels, side, side], outputs)


@pytest.mark.parametrize("published", NETWORKS, ids=by_name)
def test_it_reads_a_phantom_and_after_it_was_stored_gives_the_same_numbers(
    published: Published, tmp_path: Path
) -> None:
    card = card_of(published)
    network = small_scan.a_network(card)
    images = small_scan.images(card, HEAD)[None]
    save(tmp_path / "model", card, network.state_dict())
    read, state = load(tmp_path / "model")
    again = build(read).eval()
    again.load_state_dict(state)
    with torch.inference_mode():
        logits, masks = network(images)
        same, same_masks = again(images)
    slices = len(HEAD) if network.per_slice else 1
    assert logits.shape == (1, slices, len(card.labels))
    assert bool(logits.isfinite().all())
    assert (masks is not None) is network.draws_masks
    torch.testing.assert_close(same, logits, rtol=0, atol=0)
    if masks is not None:
        assert masks.shape == (1, len(HEAD), 3, SIDE, SIDE)
        torch.testing.assert_close(same_masks, masks, rtol=0, atol=0)


@pytest.mark.parametrize("published", NETWORKS, ids=by_name)
def test_every_parameter_of_it_has_a_gradient_on_the_phantom(published: Published) -> None:
    card = card_of(published)
    network = small_scan.a_network(card).train()
    images = small_scan.images(card, HEAD)
    logits, masks = network(torch.stack([images, images.flip(0)]) if network.context is None else images[None])
    loss = logits.square().mean() + (0 if masks is None else masks.square().mean())
    small_scan.assert_all_learn(network, loss)
