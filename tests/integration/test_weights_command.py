"""`hemonode weights import`, as a command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import safetensors.torch
import torchvision

from inference.card import load


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
