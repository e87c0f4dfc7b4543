"""Where a model looked: trained masks and Grad-CAM come out right, on the slices' own pixels."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from inference.attention import INSIDE, Kind, Looking, ScanMaps, SliceMap, extents_mm
from inference.card import ModelCard, save
from inference.decision import ScanRule
from inference.image_place import ImagePlace
from inference.models import ScanModel
from inference.models.radnet import RADnet
from inference.place import SlicePlace
from inference.preprocess import Preprocessing
from inference.result import ANY, LABELS, SUBTYPES
from tests import small_scan
from tests.small_models import radnet_card
from training.sources.phantom import EASY, make_study

HEAD = small_scan.small_head()
EQUALISED = Preprocessing.equalised((-1000.0, 0.0, 20.0, 40.0, 80.0, 1000.0), size=64)


def a_card(family: str, preprocessing: Preprocessing, labels: tuple[str, ...], /, **architecture: Any) -> ModelCard:
    return ModelCard(
        name=family,
        family=family,
        version="small",
        architecture={"size": preprocessing.size, **architecture},
        preprocessing=preprocessing,
        labels=labels,
        thresholds=dict.fromkeys(labels, 0.5),
        rule=ScanRule(max=True),
        demonstration=True,
        intended_use="Tests.",
    )


RADNET = replace(radnet_card(threshold=0.5), preprocessing=Preprocessing.radnet(size=66, pixel_mm=3.0))
RADNET = replace(RADNET, architecture={**RADNET.architecture, "size": 66})
DENSENET = replace(RADNET, architecture={**RADNET.architecture, "attention": False, "recurrent": False})
RESNET_2D = a_card("resnet_2d", Preprocessing.soft_windows(size=64), LABELS)
BY_GRAD_CAM = {
    "DenseNet-40": DENSENET,
    "CNN-LSTM": a_card("cnn_lstm", Preprocessing.three_windows(size=64), LABELS, trunk="resnet18", hidden=8),
    "SE-ResNeXt": a_card("cnn_lstm", Preprocessing.three_windows(size=64), LABELS, hidden=8),
    "adjacent": a_card("adjacent", Preprocessing.three_windows(size=64), LABELS, trunk="resnet18"),
    "2D": RESNET_2D,
    "binary": a_card("classifiers", EQUALISED, (ANY,)),
    "DenseNet-121": a_card("classifiers", EQUALISED, SUBTYPES, trunk="densenet121", labels=5),
    "AlexNet": a_card("classifiers", EQUALISED, SUBTYPES, trunk="alexnet", labels=5),
    "3D": a_card("resnet_3d", Preprocessing.full_range(size=32), LABELS, depth=12),
    "3D, longer than deep": a_card("resnet_3d", Preprocessing.full_range(size=32), LABELS, depth=6),
    "five slices": a_card("resnet_3d", Preprocessing.full_range(size=32), LABELS, depth=5, per_slice=True),
}


def looking(card: ModelCard) -> tuple[Looking, ScanModel]:
    network = small_scan.a_network(card, seed=1)
    return Looking(card, network), network


def test_a_radnet_shows_the_masks_that_its_network_draws() -> None:
    look, network = looking(RADNET)
    maps = look.look(HEAD)
    assert isinstance(network, RADnet)
    with torch.inference_mode():
        expected = network.attend(small_scan.images(RADNET, HEAD)).numpy()
    assert (maps.kind, maps.label, len(maps.slices)) == (Kind.MASK, ANY, len(HEAD))
    np.testing.assert_allclose([piece.values for piece in maps.slices], expected, atol=1e-3)
    assert [piece.place.position_mm for piece in maps.slices] == [s.position[2] for s in HEAD]
    assert maps.slices[0].each().shape == (3, 96, 96)
    np.testing.assert_allclose(maps.slices[0].on_slice(), maps.slices[0].each().mean(0), atol=1e-3)


@pytest.mark.parametrize("card", BY_GRAD_CAM.values(), ids=BY_GRAD_CAM.keys())
def test_every_other_network_shows_what_raised_its_score_in_every_slice(card: ModelCard) -> None:
    look, _network = looking(card)
    maps = look.look(HEAD)
    seen = np.stack([piece.on_slice() for piece in maps.slices])
    assert seen.shape == (len(HEAD), 96, 96)
    assert maps.kind is Kind.GRAD_CAM
    assert maps.label == ANY if ANY in card.labels else maps.label in SUBTYPES
    assert seen.min() >= 0
    assert max(float(piece.values.max()) for piece in maps.slices) == pytest.approx(1, abs=1e-3)
    assert maps.volume() is None


def test_grad_cam_is_the_sum_of_the_last_maps_each_weighed_by_its_slope() -> None:
    """Of a network whose maps are averaged and labelled, the slopes are the label's weights."""
    look, network = looking(RESNET_2D)
    kept: list[Tensor] = []
    with (
        torch.no_grad(),
        network.get_submodule("trunk.layer4").register_forward_hook(lambda *given: kept.append(given[2])),
    ):
        network.encode(small_scan.images(RESNET_2D, HEAD))
    weights = network.get_parameter("classify.weight")[LABELS.index("subdural")]
    expected = (weights[:, None, None] * kept[0]).sum(1).relu()
    found = np.concatenate([piece.values for piece in look.look(HEAD, label="subdural").slices])
    np.testing.assert_allclose(found, (expected / expected.max()).numpy(), atol=2e-3)


def test_through_an_lstm_grad_cam_follows_the_score_of_the_whole_scan() -> None:
    """And leaves the network as it was."""
    card = BY_GRAD_CAM["CNN-LSTM"]
    look, network = looking(card)
    before = [p.clone() for p in network.parameters()]
    maps = look.look(HEAD)
    assert sum(float(piece.values.max()) > 0 for piece in maps.slices) > 1
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())


def test_slices_left_out_as_blank_have_nothing_to_show() -> None:
    air = replace(HEAD[0], hu=np.full((96, 96), -1000, dtype=np.int16), position=(0.0, 0.0, -5.0))
    card = BY_GRAD_CAM["binary"]
    look, _network = looking(card)
    maps = look.look([air, *HEAD])
    assert not maps.slices[0].on_slice().any()
    alone = look.look(HEAD)
    np.testing.assert_allclose(maps.slices[3].on_slice(), alone.slices[2].on_slice(), atol=2e-3)


def test_masks_that_were_never_trained_are_no_masks() -> None:
    look, _network = looking(replace(RADNET, figures={"untrained": ["classify", "masks"]}))
    assert look.kind is Kind.GRAD_CAM
    assert look.look(HEAD).volume() is None


def test_a_stored_model_looks_as_it_did(tmp_path: Path) -> None:
    look, network = looking(RADNET)
    save(tmp_path / "model", RADNET, network.state_dict())
    again = Looking.load(tmp_path / "model")
    np.testing.assert_array_equal(again.look(HEAD).slices[4].values, look.look(HEAD).slices[4].values)


def outlined(values: Mapping[float, float], *, thickness: float | None = 5.0) -> ScanMaps:
    """Slices by position, of 10² pixels of 2 × 3 mm, that a mask fills with one value."""
    return ScanMaps(
        kind=Kind.MASK,
        label=ANY,
        slices=tuple(
            SliceMap(
                place=SlicePlace(sop_instance_uid=f"1.{i}", position_mm=position, thickness_mm=thickness),
                pixel_spacing=(2.0, 3.0),
                values=np.full((3, 10, 10), value, np.float16),
                image=ImagePlace(shape=(10, 10), corner=(0, 0), extent=(10, 10)),
            )
            for i, (position, value) in enumerate(values.items())
        ),
    )


def test_the_volume_is_that_of_the_outlined_pixels_with_a_stricter_and_a_laxer_one_for_its_range() -> None:
    volume = outlined({0: 0.0, 5: 0.9, 10: 0.6, 15: 0.4, 20: 0.2}).volume()
    assert volume is not None
    assert (volume.low_ml, volume.ml, volume.high_ml) == pytest.approx((3.0, 6.0, 9.0))


@pytest.mark.parametrize(
    ("positions", "thickness", "extents"),
    [
        ([0, 5, 10], 5.0, [5, 5, 5]),
        ([0, 2.5, 5, 10, 15], None, [3.125, 2.5, 3.75, 5, 4.375]),
        ([0, 1, 2, 3], 2.0, [1.5, 1, 1, 1.5]),  # overlapping slices are not counted twice
        ([0, 5, 20, 25], 5.0, [5, 5, 5, 5]),  # nor is what nobody saw
        ([7], 4.0, [4]),
    ],
)
def test_a_slice_stands_for_the_head_half_way_to_its_neighbours(
    positions: list[float], thickness: float | None, extents: list[float]
) -> None:
    places = [SlicePlace(sop_instance_uid="1", position_mm=p, thickness_mm=thickness) for p in positions]
    assert extents_mm(places) == pytest.approx(extents)


def test_the_demonstration_radnet_looks_at_the_bleed_of_a_head_it_has_never_seen() -> None:
    study = make_study(seed=60_003, spec=replace(EASY, size=128, slices=14), subtypes=("intraparenchymal",))
    slices = [
        small_scan.SmallSlice(
            sop_instance_uid=f"1.2.{i}",
            hu=hu,
            position=tuple(study.positions[i].tolist()),
            orientation=tuple(study.orientation.tolist()),
            pixel_spacing=(float(study.pixel_spacing[0]), float(study.pixel_spacing[1])),
            thickness=float(study.thickness[i]),
        )
        for i, hu in enumerate(study.hu)
    ]
    maps = Looking.load(Path("inference/weights/demo-radnet")).look(slices)
    seen = np.stack([piece.on_slice() for piece in maps.slices])
    truth = study.masks.any(0)
    inside = float(seen[truth].sum() / seen.sum())
    assert inside > 20 * float(truth.mean()), "the mass of the masks lies in the bleed, far beyond chance"
    marked = seen >= INSIDE
    assert 2 * np.count_nonzero(marked & truth) / (np.count_nonzero(marked) + np.count_nonzero(truth)) > 0.5
