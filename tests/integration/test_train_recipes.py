"""`hemonode train` with every recipe, from phantoms to a model directory that a node can load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import models as torchvision_models
from typer.testing import CliRunner

from inference import card as cards
from inference.models import build
from training import evaluate
from training.__main__ import app
from training.errors import LeakageError, TrainingError
from training.recipes import RECIPES

HEADS = "phantom:count=6,first=18,presets=easy,sizes=64,thicknesses=16"
DENSE = {"growth": 3, "layers": 2, "stem": 4, "hidden": 4, "size": 32}
RESNET = {"trunk": "resnet18", "size": 32}
KINDS = {"sizes": [32, 48], "batch": 8, "rate": 1e-3}
DEMONSTRATION = {"sizes": [24, 32], "epochs": [1, 1], "batches": [4, 4], "rates": [1e-3, 1e-3]}
DEMONSTRATION |= {"views": 1, "tail_epochs": 2, "tail_batch": 2}
TINY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "hemonode": (RESNET | {"hidden": 4}, {"batch": 4, "views": 1, "tail_epochs": 2, "tail_batch": 2}),
    "radnet": (DENSE, {"slices": 4}),
    "demo_radnet": (DENSE, DEMONSTRATION),
    "demo_cnn_lstm": (RESNET | {"hidden": 4}, DEMONSTRATION),
    "densenet_a": (DENSE, {"slices": 4}),
    "densenet": (DENSE, {"slices": 4}),
    "cnn_lstm": (RESNET | {"hidden": 4}, {"studies": 2, "slices": 4}),
    "adjacent": (RESNET, {"blocks": 2, "folds": 2, "fusion_epochs": 1, "fusion_batch": 8}),
    "resnet_2d": (RESNET, {"batch": 8}),
    "bleeding": (RESNET | {"size": 48}, KINDS | {"rate": 0.0, "finder_steps": 12}),
    "subtypes": (RESNET | {"size": 48}, KINDS),
    "resnet_3d": ({"size": 16, "depth": 8}, {}),
    "resnet_3d_five": ({"size": 16, "depth": 5, "per_slice": True}, {"batch": 4}),
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def train(name: str, out: Path, cache: Path, *more: str, data: str = HEADS) -> str:
    """One epoch of a recipe by its command; returns what the command says."""
    architecture, values = TINY[name]
    line = ["train", name, "--data", data, "--out", str(out), "--cache", str(cache), "--split", "0.5,0.25,0.25"]
    line += ["--architecture", json.dumps(architecture), "--workers", "1", "--threads", "1", "--validate-every", "2"]
    for key, value in ({"epochs": 1} | values).items():
        line += ["--set", f"{key}={json.dumps(value)}"]
    done = CliRunner().invoke(app, [*line, *more], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_every_recipe_is_tried_here() -> None:
    assert set(TINY) == set(RECIPES)


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_goes_from_phantoms_to_a_model_directory(name: str, tmp_path: Path, cache: Path) -> None:
    assert "SHA-256" in train(name, tmp_path, cache)
    card, state = cards.load(tmp_path / "model")
    model = build(card)
    model.load_state_dict(state)
    assert card.family == RECIPES[name].family
    assert card.labels == RECIPES[name].labels
    assert card.provenance.recipe.endswith("from random weights")
    assert card.figures["test"]["all"]["slices"]["cases"] > 0
    assert "validation/loss" in (tmp_path / "log.csv").read_text()


def test_imagenets_weights_are_where_a_training_begins_and_the_card_says_so(tmp_path: Path, cache: Path) -> None:
    torch.manual_seed(7)
    imagenet = torchvision_models.resnet18(weights=None)
    torch.save(imagenet.state_dict(), tmp_path / "resnet18.pth")
    train("resnet_2d", tmp_path / "run", cache, "--start-from", str(tmp_path / "resnet18.pth"), "--set", "rate=1e-9")
    card, state = cards.load(tmp_path / "run" / "model")
    kept = state["trunk.layer4.0.conv1.weight"].float()
    assert torch.allclose(kept, imagenet.layer4[0].conv1.weight, atol=1e-3)
    assert "from resnet18.pth (layout torchvision, SHA-256 " in card.provenance.recipe
    assert card.provenance.recipe.endswith("random weights in classify")
    started = json.loads((tmp_path / "run" / "dataset.json").read_text())["start"]
    assert started.startswith("resnet18.pth")


def test_the_subtypes_may_begin_with_the_trunk_of_bleed_or_not(tmp_path: Path, cache: Path) -> None:
    train("bleeding", tmp_path / "bleeding", cache)
    train(
        "subtypes", tmp_path / "subtypes", cache, "--start-from", str(tmp_path / "bleeding/model/weights.safetensors")
    )  # fmt: skip
    before, after = (cards.load(tmp_path / name / "model") for name in ("bleeding", "subtypes"))
    assert torch.equal(before[1]["trunk.conv1.weight"], after[1]["trunk.conv1.weight"]), "it was frozen"
    assert not torch.equal(before[1]["trunk.bn1.running_mean"], after[1]["trunk.bn1.running_mean"]), "it lives"
    assert before[0].figures["learning_rates_found"].keys() == {"whole"}
    assert (tmp_path / "bleeding" / "finder-whole.png").read_bytes().startswith(b"\x89PNG")
    card = after[0]
    assert card.provenance.recipe.endswith("random weights in classify")
    assert card.bleeding_only
    assert card.intended_use.startswith("Trained on slices that bleed only")
    assert len(card.preprocessing.quantiles) > 10
    assert card.preprocessing.blank_below == 0.02
    slices = card.figures["test"]["all"]["slices"]
    assert slices["cases"] < before[0].figures["test"]["all"]["slices"]["cases"]
    assert "found_by_subtype" not in card.figures["test"]["all"]
    line = ["evaluate", str(tmp_path / "subtypes/model"), "--data", HEADS.replace("first=1", "first=900")]
    judged = CliRunner().invoke(app, [*line, "--cache", str(cache), "--workers", "1"], catch_exceptions=False)
    assert 0 < json.loads(judged.stdout)["all"]["slices"]["cases"] < 6 * 10


def test_weights_of_another_network_are_refused_in_one_line(tmp_path: Path, cache: Path) -> None:
    torch.save(torchvision_models.alexnet(weights=None).features.state_dict(), tmp_path / "other.pth")
    with pytest.raises(TrainingError, match="--start-from: "):
        train("resnet_2d", tmp_path / "run", cache, "--start-from", str(tmp_path / "other.pth"))


def test_whom_the_weights_to_begin_with_were_made_from_is_known_to_the_new_ones_and_may_not_judge_them(
    tmp_path: Path, cache: Path
) -> None:
    train("resnet_2d", tmp_path / "first", cache)
    first = tmp_path / "first" / "model"
    known = evaluate.known_patients(first, cards.read_card(first), refit=True)
    assert known
    begin = ["--start-from", str(first / "weights.safetensors")]
    others = HEADS.replace("count=6,first=18", "count=12,first=900")
    with pytest.raises(LeakageError, match="start-from was made from"):
        train("resnet_2d", tmp_path / "leaking", cache, *begin, "--test", HEADS, data=others)
    train("resnet_2d", tmp_path / "second", cache, *begin, data=others)
    second = tmp_path / "second" / "model"
    assert known < evaluate.known_patients(second, cards.read_card(second), refit=True)
