"""A model is a card and weights that prove they belong together."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from inference.calibration import Calibration
from inference.card import (
    CARD_FILE,
    FEATURES_FILE,
    WEIGHTS_FILE,
    CardInvalid,
    CardMismatch,
    ModelCard,
    Provenance,
    WeightsMissing,
    load,
    load_watch,
    read_card,
    save,
)
from inference.decision import ScanRule
from inference.models import ScanModel, build
from inference.novelty import Features, Guard
from inference.preprocess import Preprocessing


def a_card(**changes: Any) -> ModelCard:
    card = ModelCard(
        name="RADnet",
        family="radnet",
        version="1",
        architecture={"growth": 2, "layers": 2, "stem": 4, "hidden": 3, "size": 32},
        preprocessing=Preprocessing.radnet(size=32),
        labels=("any",),
        thresholds={"any": 0.5},
        rule=ScanRule(run=3),
        calibration=Calibration(temperature={"any": 1.3}),
        demonstration=True,
        intended_use="Tests.",
        provenance=Provenance(recipe="radnet", data="random", seed=7, commit="abc", date="2026-01-01T00:00:00Z"),
        figures={"auc": 0.5, "epochs": 0},
    )
    return replace(card, **changes)


RATE = {"hits": 9, "cases": 10, "value": 0.9, "low": 0.6, "high": 0.98}
POINT = {"name": "balanced", "threshold": 0.5, "sensitivity": RATE, "specificity": RATE, "on": "ten scans"}


def a_model(card: ModelCard) -> ScanModel:
    torch.manual_seed(0)
    return build(card)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    card = a_card()
    save(tmp_path / "radnet", card, a_model(card).state_dict())
    return tmp_path / "radnet"


def edit(directory: Path, **changes: Any) -> None:
    path = directory / CARD_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_card_and_weights_come_back_as_they_were_saved(saved: Path) -> None:
    card, state = load(saved)
    expected = a_model(card).state_dict()
    assert replace(card, sha256="") == a_card()
    assert card == read_card(saved)
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name])


def test_the_rule_is_stored_as_the_one_thing_it_says(saved: Path) -> None:
    assert json.loads((saved / CARD_FILE).read_text())["rule"] == {"run": 3}


def test_half_precision_storage_comes_back_as_float32_and_keeps_vectors_exact(tmp_path: Path) -> None:
    card = a_card()
    model = a_model(card)
    model.get_buffer("norm.running_var").fill_(1e6)
    save(tmp_path / "full", card, model.state_dict())
    save(tmp_path / "half", card, model.state_dict(), half=True)
    _, state = load(tmp_path / "half")
    assert (tmp_path / "half" / WEIGHTS_FILE).stat().st_size < (tmp_path / "full" / WEIGHTS_FILE).stat().st_size
    assert state["norm.running_var"].eq(1e6).all()
    for name, tensor in model.state_dict().items():
        assert state[name].dtype == tensor.dtype
        torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=1e-4)


def test_saving_again_replaces_the_model_and_leaves_nothing_beside_it(saved: Path) -> None:
    card = a_card(version="2")
    save(saved, card, a_model(card).state_dict())
    assert load(saved)[0].version == "2"
    assert [path.name for path in saved.parent.iterdir()] == ["radnet"]
    assert sorted(path.name for path in saved.iterdir()) == [CARD_FILE, WEIGHTS_FILE]


def test_a_model_that_does_not_fit_its_card_is_not_saved_and_the_old_one_stays(saved: Path) -> None:
    wrong = a_card(architecture=a_card().architecture | {"growth": 3})
    with pytest.raises(CardMismatch, match="shape"):
        save(saved, wrong, a_model(a_card()).state_dict())
    assert load(saved)[0].version == "1"


def test_one_changed_byte_in_the_weights_is_refused(saved: Path) -> None:
    path = saved / WEIGHTS_FILE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CardMismatch, match=rf"{WEIGHTS_FILE}.*SHA-256.*expects"):
        load(saved)


def test_a_pickle_under_the_name_of_the_weights_is_refused_unread(saved: Path) -> None:
    torch.save({"a": torch.zeros(1)}, saved / WEIGHTS_FILE)
    edit(saved, sha256=hashlib.sha256((saved / WEIGHTS_FILE).read_bytes()).hexdigest())
    with pytest.raises(CardMismatch, match="not a safetensors file"):
        load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("classify.bias"), r"classify\.bias missing"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra not part"),
    ],
)
def test_missing_and_unexpected_tensors_are_named(
    saved: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    state = safetensors.torch.load((saved / WEIGHTS_FILE).read_bytes())
    change(state)
    data = safetensors.torch.save(state)
    (saved / WEIGHTS_FILE).write_bytes(data)
    edit(saved, sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(CardMismatch, match=message):
        load(saved)


def test_weights_of_another_architecture_are_refused_with_both_shapes(saved: Path) -> None:
    edit(saved, architecture=a_card().architecture | {"hidden": 4})
    with pytest.raises(CardMismatch, match=r"has shape .* expects"):
        load(saved)


def test_as_many_labels_as_outputs_are_needed(saved: Path) -> None:
    edit(saved, labels=["any", "subdural"], thresholds={"any": 0.5, "subdural": 0.5})
    with pytest.raises(CardMismatch, match="1 outputs, the card names 2 labels"):
        load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "this version reads format 1"),
        ({"colour": "red"}, "colour"),
        ({"family": "unet"}, "known are radnet, cnn_lstm"),
        ({"labels": ["bleed"]}, "expected some of any"),
        ({"labels": 3}, "card.json"),
        ({"thresholds": {}}, "thresholds are given for"),
        ({"thresholds": {"any": 50}}, "between 0 and 1"),
        ({"rule": {"run": 3, "max": True}}, "exactly one"),
        ({"rule": {"run": 0}}, "at least one slice"),
        ({"calibration": {"temperature": {"any": 0}}}, "positive"),
        ({"calibration": {"temperature": {"subdural": 2}}}, "calibration names labels"),
        ({"calibration": {"isotonic": {"any": {"scores": [0.2], "probabilities": ["x"]}}}}, "numbers between 0 and 1"),
        ({"calibrated": True}, "no calibration of scans for"),
        ({"operating_points": {"subdural": []}}, "operating points names labels"),
        ({"operating_points": {"any": [POINT | {"threshold": 0.4}]}}, "none of its operating points"),
        ({"operating_points": {"any": [POINT | {"threshold": 1.4}]}}, "between 0 and 1"),
        ({"operating_points": {"any": [POINT | {"on": ""}]}}, "on which scans"),
        ({"operating_points": {"any": [POINT | {"specificity": RATE | {"value": 0.3}}]}}, "is not 9 of 10"),
        ({"operating_points": {"any": [POINT | {"specificity": RATE | {"low": 0.95}}]}}, "no interval"),
        ({"guard": {"ranges": {}, "input_limit": 1.0, "data": "", "scans": 3}}, "ranges that rise"),
        ({"architecture": {"depth": 40}}, "depth"),
        ({"architecture": {"growth": -3}}, "no radnet network"),
        ({"preprocessing": Preprocessing.radnet(size=64).to_json()}, r"1 × 64² images, the network takes 1 × 32²"),
    ],
)
def test_a_card_that_cannot_be_meant_is_refused_by_name(saved: Path, changes: dict[str, Any], message: str) -> None:
    edit(saved, **changes)
    with pytest.raises(CardInvalid, match=message):
        load(saved)


def test_a_card_that_is_not_json_is_refused(saved: Path) -> None:
    (saved / CARD_FILE).write_text("RADnet")
    with pytest.raises(CardInvalid, match=r"card\.json"):
        load(saved)


@pytest.mark.parametrize("missing", [CARD_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(saved: Path, missing: str) -> None:
    (saved / missing).unlink()
    with pytest.raises(WeightsMissing, match=missing):
        load(saved)


def test_the_operating_point_in_force_is_the_one_whose_threshold_is_set(saved: Path) -> None:
    edit(saved, operating_points={"any": [POINT | {"name": "other", "threshold": 0.2}, POINT]})
    card = load(saved)[0]
    point = card.operating_point("any")
    assert point is not None
    assert point.name == "balanced"
    said = card.certainty_in_words()["operating points"]
    assert "any, balanced, 0.5: sensitivity 0.90 [0.60-0.98] (9 of 10), specificity 0.90" in said
    assert said.count("(in force)") == 1


GUARD = Guard(ranges={"noise": (2.0, 7.0)}, input_limit=0.5, feature_limit=3.0, data="ten scans", scans=10)
# The descriptor of this RADnet has 16 values.
FEATURES = Features(mean=np.zeros(16), axes=np.eye(2, 16), variances=np.array([2.0, 1.0]), rest=np.array([0.5]))


@pytest.fixture
def guarded(tmp_path: Path) -> Path:
    card = a_card(guard=GUARD)
    save(tmp_path / "guarded", card, a_model(card).state_dict(), features=FEATURES)
    return tmp_path / "guarded"


def test_a_guard_comes_back_with_the_features_that_belong_to_it(guarded: Path) -> None:
    card, _ = load(guarded)
    watch = load_watch(guarded, card)
    assert watch is not None
    assert watch.features is not None
    assert watch.features.distance(np.ones(16)) == pytest.approx(FEATURES.distance(np.ones(16)))
    assert card.guard == replace(GUARD, features_sha256=hashlib.sha256(FEATURES.to_bytes()).hexdigest())


def test_features_that_are_missing_changed_or_of_another_network_are_refused(guarded: Path) -> None:
    card, _ = load(guarded)
    path = guarded / FEATURES_FILE
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(CardMismatch, match="SHA-256"):
        load_watch(guarded, card)
    path.unlink()
    with pytest.raises(WeightsMissing, match="the guard"):
        load_watch(guarded, card)
    other = Features(mean=np.zeros(5), axes=np.eye(2, 5), variances=np.ones(2), rest=np.ones(1))
    save(guarded, card, a_model(card).state_dict(), features=other)
    with pytest.raises(CardMismatch, match="for 5 features, this radnet has 16"):
        load_watch(guarded, read_card(guarded))


def test_a_guard_is_never_saved_without_its_features_nor_features_without_a_guard(tmp_path: Path) -> None:
    for card, features in ((a_card(guard=GUARD), None), (a_card(), FEATURES)):
        with pytest.raises(CardMismatch, match="do not belong together"):
            save(tmp_path / "model", card, a_model(card).state_dict(), features=features)


def test_a_model_without_a_guard_has_none_and_says_so(saved: Path) -> None:
    card, _ = load(saved)
    assert load_watch(saved, card) is None
    assert card.certainty_in_words()["out of distribution"].startswith("no guard")


def test_lists_of_numbers_stand_in_one_line_of_the_card(guarded: Path) -> None:
    assert '"noise": [ 2.0, 7.0 ]' in (guarded / CARD_FILE).read_text()
