"""`hemonode weights import`, as a command."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from typer.testing import CliRunner

from inference.card import load
from inference.models import FAMILIES
from inference.models.resnet_3d import MedicalResNet18
from inference.preprocess import Preprocessing
from inference.result import SUBTYPES
from node.cli import app
from node.errors import ConfigError
from training.sources.phantom import EASY, MAKERS, make_study, write_study


def hemonode(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "node.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_published_weights_become_a_model_directory(tmp_path: Path) -> None:
    source, out = tmp_path / "resnet18.safetensors", tmp_path / "model"
    safetensors.torch.save_file(torchvision.models.resnet18(weights=None).state_dict(), source)
    architecture = json.dumps({"trunk": "resnet18", "hidden": 8, "size": 64})
    done = hemonode(
        "weights", "import", str(source), str(out), "--family", "cnn_lstm", "--architecture", architecture, "--json"
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["layout"] == "torchvision"
    assert facts["untrained"] == ["classify", "recurrent"]
    assert load(out)[0].sha256 == facts["sha256"]


def test_weights_of_another_network_are_refused_in_one_line(tmp_path: Path) -> None:
    source = tmp_path / "resnet18.safetensors"
    safetensors.torch.save_file(torchvision.models.resnet18(weights=None).state_dict(), source)
    done = hemonode("weights", "import", str(source), str(tmp_path / "model"), "--family", "radnet")
    assert done.returncode == 2
    assert "not part of this network" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "model").exists()


def imported(source: Path, out: Path, family: str, architecture: dict[str, Any], *options: str) -> dict[str, Any]:
    """What the command says of an import, run within this process."""
    arguments = ["weights", "import", str(source), str(out), "--family", family, "--json", *options]
    done = CliRunner().invoke(app, [*arguments, "--architecture", json.dumps(architecture)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_a_classifier_is_equalised_by_the_slices_of_a_folder(tmp_path: Path) -> None:
    study = make_study(seed=2, spec=replace(EASY, size=64, slices=6))
    write_study(study, tmp_path / "slices", maker=MAKERS["siemens"])
    torch.save(torchvision.models.densenet121(weights=None).state_dict(), tmp_path / "densenet121.pth")
    architecture = {"trunk": "densenet121", "labels": 5, "size": 64}
    facts = imported(
        tmp_path / "densenet121.pth", tmp_path / "model", "classifiers", architecture,
        "--quantiles-of", str(tmp_path / "slices"), "--name", "Subtypes",
    )  # fmt: skip
    card = load(tmp_path / "model")[0]
    assert (facts["layout"], facts["untrained"]) == ("torchvision", ["classify", "head"])
    assert (card.name, card.labels, card.preprocessing.size) == ("Subtypes", SUBTYPES, 64)
    # Fewer than asked for, because half of a slice is air of one value.
    assert -1100 < card.preprocessing.quantiles[0] < card.preprocessing.quantiles[-1] < 3100
    assert len(card.preprocessing.quantiles) > 20


def test_a_classifier_may_be_told_its_preprocessing_and_labels(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    wanted = Preprocessing.equalised((-1000.0, 0.0, 80.0), size=64)
    options = ("--preprocessing", json.dumps(wanted.to_json()), "--labels", "any, subdural")
    imported(tmp_path / "resnet18.pth", tmp_path / "model", "classifiers", {"labels": 2, "size": 64}, *options)
    card = load(tmp_path / "model")[0]
    assert (card.preprocessing, card.labels) == (wanted, ("any", "subdural"))


def test_a_medicalnet_file_fills_the_trunk_of_the_3d_network(tmp_path: Path) -> None:
    published = {f"module.{name}": tensor for name, tensor in MedicalResNet18().state_dict().items()}
    torch.save({"state_dict": published}, tmp_path / "resnet_18_23dataset.pth")
    facts = imported(
        tmp_path / "resnet_18_23dataset.pth",
        tmp_path / "model",
        "resnet_3d",
        {"size": 32, "depth": 5, "per_slice": True},
    )
    assert (facts["layout"], facts["untrained"]) == ("medicalnet", ["classify"])


def test_a_training_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    architecture = {"growth": 2, "layers": 2, "stem": 4, "hidden": 3, "size": 32}
    weights = FAMILIES["radnet"](architecture).state_dict()
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "last.pt")
    facts = imported(tmp_path / "last.pt", tmp_path / "model", "radnet", architecture)
    assert (facts["layout"], facts["untrained"]) == ("own", [])
    assert torch.equal(load(tmp_path / "model")[1]["stem.weight"], weights["stem.weight"])


@pytest.mark.parametrize("text", ["[1]", "{", '{"colour": 1}'])
def test_preprocessing_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ConfigError, match="--preprocessing"):
        imported(tmp_path / "resnet18.pth", tmp_path / "m", "classifiers", {"size": 64}, "--preprocessing", text)


def test_models_lists_networks_and_every_installed_weights() -> None:
    done = CliRunner().invoke(app, ["models", "--json"], catch_exceptions=False)
    facts = json.loads(done.stdout)
    assert {network["family"] for network in facts["networks"]} == set(FAMILIES)
    assert {model["name"] for model in facts["configured"]} == {"radnet", "cnn-lstm"}
    assert all({"thresholds", "labels", "provenance", "figures", "sha256"} <= set(m) for m in facts["configured"])
    assert facts["packaged"] == [], "both packaged models are configured"
    told = CliRunner().invoke(app, ["models"], catch_exceptions=False).stdout
    assert "SE-ResNeXt-50" in told
    assert "NOT FOR CLINICAL USE" in told
