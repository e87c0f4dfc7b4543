"""`hemonode evaluate --out`, `models promote` and `models rollback`, as they are typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inference import card as cards
from inference.models import build
from tests.small_models import radnet_card, small_models
from training.__main__ import app
from training.errors import TrainingError

ROOT = Path(__file__).parents[2]
HEADS = "phantom:count=24,first=500,presets=easy,sizes=64,thicknesses=20"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def told(cache: Path, *arguments: str) -> str:
    line = [*arguments, "--data", HEADS, "--cache", str(cache), "--workers", "1"]
    return CliRunner().invoke(app, line, catch_exceptions=False).stdout


def test_a_report_is_written_and_the_card_updated(tmp_path: Path, cache: Path) -> None:
    models = small_models(tmp_path / "models", threshold=0.5)
    model, other = models["cnn-lstm"], models["radnet"]
    before = cards.load(model)[0]
    times = tmp_path / "times.csv"
    times.write_text("minutes\n4\n9\n")
    out = tmp_path / "report"
    queue = ["--queue", "--prevalence", "0.1", "--per-hour", "5", "--reading-times", str(times)]
    assert told(cache, "evaluate", str(model), "--out", str(out), "--compare", str(other), *queue).endswith(
        "report.html\n"
    )
    found = json.loads((out / "report.json").read_text())
    assert found["data"]["studies"] == 24
    assert found["queue"]["site"]["mean_reading_minutes"] == pytest.approx(6.5, abs=0.1)
    assert list(found["comparison"]["labels"]) == ["any"]
    assert {row["name"] for row in found["cohorts"]["thickness"]} == {"5 mm and more"}
    assert sum(row["scans"] for row in found["cohorts"]["volume"]) == found["scans"]["any"]["sensitivity"]["cases"]
    assert (out / "report.html").read_text().count("data:image/png;base64,") >= 4
    after = cards.load(model)[0]
    assert after.sha256 == before.sha256
    assert after.figures["unseen"]["data"]["studies"] == 24
    told(cache, "evaluate", str(other), "--out", str(out), "--no-write")
    assert "unseen" not in cards.load(other)[0].figures


def test_weights_that_are_not_better_stay_out_unless_somebody_says_why(tmp_path: Path, cache: Path) -> None:
    slot = tmp_path / "weights" / "radnet"
    candidates = []
    for name, threshold in (("a", 0.25), ("b", 0.75)):
        card = radnet_card(threshold=threshold)
        cards.save(tmp_path / name, card, build(card).state_dict())
        candidates.append(tmp_path / name)
    promote = ["models", "promote", str(candidates[0]), str(slot)]
    with pytest.raises(TrainingError, match="not promoted"):
        told(cache, *promote)
    assert not (slot / "current").exists()
    said = told(cache, *promote, "--override", "a rehearsal")
    assert "overridden: " in said
    first = cards.load(slot / "current")[0]
    with pytest.raises(TrainingError, match=r"may be lower by .* the margin is 0\.02"):
        told(cache, "models", "promote", str(candidates[1]), str(slot), "--margin", "0.02", "--limit", "thickness=0.01")
    told(cache, "models", "promote", str(candidates[1]), str(slot), "--override", "a rehearsal")
    assert cards.load(slot / "current")[0] != first
    line = [sys.executable, "-m", "node.cli", "models", "rollback", str(slot)]
    back = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (back.returncode, back.stderr) == (0, "")
    assert cards.load(slot / "current")[0] == first
    again = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 1
    assert "nothing was in use before" in again.stderr
    entries = [json.loads(line) for line in (slot / "promotions.jsonl").read_text().splitlines()]
    assert [entry["action"] for entry in entries] == ["promoted", "promoted", "rolled back"]
    assert {entry["override"] for entry in entries[:2]} == {"a rehearsal"}
    assert all(entry["against"] for entry in entries[:2])


def test_limits_of_unknown_dimensions_are_refused(tmp_path: Path, cache: Path) -> None:
    for wrong, said in (("colour=0.1", "no 'colour'"), ("thickness=much", r"expected 0\.1")):
        with pytest.raises(TrainingError, match=said):
            told(cache, "models", "promote", str(tmp_path), str(tmp_path), "--limit", wrong)
