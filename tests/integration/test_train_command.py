"""`hemonode train` from phantoms to a model directory: killed and resumed, by two processes, and judged afterwards."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from inference import card as cards
from inference.card import ModelCard
from inference.result import ANY
from training import run as running
from training.__main__ import app
from training.errors import DataError, LeakageError, TrainingError
from training.loop import Budget, fit
from training.run import Asked
from training.schedules import thirds
from training.team import Team

ROOT = Path(__file__).parents[2]
HEADS = "phantom:count=8,first=1,presets=easy,sizes=64,thicknesses=16"
NETWORK = {"growth": 3, "layers": 2, "stem": 4, "dropout": 0.1, "hidden": 4, "size": 32}
VALUES = {"epochs": 8, "slices": 4, "accumulate": 2}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[Path, ModelCard]:
    """A run by one process that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    card = running.train(asked(out, cache))
    assert card is not None
    return out, card


def asked(out: Path, cache: Path) -> Asked:
    return Asked(
        recipe="radnet",
        data=(HEADS,),
        out=out,
        cache=cache,
        cache_gb=1,
        workers=1,
        shares=(0.6, 0.2, 0.2),
        values=VALUES,
        architecture=NETWORK,
        checkpoint_every=3,
        validate_every=4,
    )


def command(out: Path, cache: Path, *more: str) -> list[str]:
    values = [argument for name, value in VALUES.items() for argument in ("--set", f"{name}={value}")]
    return [
        *("train", "radnet", "--data", HEADS, "--out", str(out), "--cache", str(cache), "--split", "0.6,0.2,0.2"),
        *(
            "--architecture",
            json.dumps(NETWORK),
            "--checkpoint-every",
            "3",
            "--validate-every",
            "4",
            "--threads",
            "1",
            "--workers",
            "1",
        ),
        *values,
        *more,
    ]


def weights(out: Path, name: str = "checkpoint") -> dict[str, torch.Tensor]:
    return {k: v for k, v in load_file(out / f"{name}.safetensors").items() if not k.startswith("optimizer.")}


def figures(out: Path) -> list[str]:
    """The table of the run without its times."""
    return [line for line in (out / "log.csv").read_text().splitlines() if ",seconds," not in line]


def step_of(path: Path) -> int:
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as file:
        return int(file.metadata()["step"])


def test_a_run_that_was_killed_ends_as_one_that_was_not_bit_for_bit(
    tmp_path: Path, cache: Path, whole: tuple[Path, ModelCard]
) -> None:
    killed = tmp_path / "killed"
    undisturbed, card = whole
    process = subprocess.Popen([sys.executable, "-m", "node.cli", *command(killed, cache)], cwd=ROOT)
    deadline = time.monotonic() + 120
    while step_of(killed / "checkpoint.safetensors") < 3 and process.poll() is None:
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL, "it was over before it was killed"
    assert not (killed / "model").exists()
    again = running.train(asked(killed, cache))
    assert again is not None
    assert again.sha256 == card.sha256
    for name in ("checkpoint", "best"):
        first, second = weights(undisturbed, name), weights(killed, name)
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert figures(killed) == figures(undisturbed)
    assert again.provenance.data.endswith(card.provenance.data.rpartition(" ")[2])


@pytest.mark.parametrize(("room", "what"), [(30_000, "checkpoint.safetensors"), (5_000, "the cache")])
def test_what_the_disk_has_no_room_for_ends_the_run_in_one_line_and_the_same_command_goes_on(
    tmp_path: Path, cache: Path, whole: tuple[Path, ModelCard], room: int, what: str
) -> None:
    """The largest file that the system lets the run write stands for the room that is left."""
    used = cache if what != "the cache" else tmp_path / "cache"
    limited = f"import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, resource.RLIM_INFINITY)); "
    limited += "runpy.run_module('training', run_name='__main__', alter_sys=True)"
    full = subprocess.run(
        [sys.executable, "-c", limited, *command(tmp_path / "out", used)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert full.returncode == 1, full.stderr[-2000:]
    (line,) = [line for line in full.stderr.splitlines() if line.startswith("hemonode: ")]
    assert what in line
    assert "cannot be written: " in line
    assert "Traceback" not in full.stderr
    assert not list(tmp_path.rglob("*.partial"))
    again = running.train(asked(tmp_path / "out", used))
    assert again is not None
    assert again.sha256 == whole[1].sha256


def test_two_processes_take_the_steps_of_one(tmp_path: Path, cache: Path, whole: tuple[Path, ModelCard]) -> None:
    together, (alone, _) = tmp_path / "together", whole
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "training",
    ]
    done = subprocess.run(
        [*torchrun, *command(together, cache)], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = weights(alone), weights(together)
    learnt = [name for name in first if "running" not in name and "num_batches" not in name]
    start = {f"model.{name}": value for name, value in untrained().items()}
    for name in learnt:
        torch.testing.assert_close(second[name], first[name], atol=2e-3, rtol=2e-2)
    assert max(float((first[name] - start[name]).abs().max()) for name in learnt) > 0.05, "nothing was learnt"
    assert cards.load(together / "model")[0].provenance.seed == 0
    assert done.stdout.count("SHA-256") == 1, "one process speaks"


def untrained() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    recipe = running.RECIPES["radnet"]
    return running.FAMILIES[recipe.family](recipe.architecture | NETWORK).state_dict()


def test_batches_that_processes_cannot_share_are_refused() -> None:
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(TrainingError, match="2 processes cannot share the 3 batches of a step evenly"):
        fit(
            model,
            optimizer,
            lambda _: model(torch.ones(1)).sum(),
            budget=Budget(steps=1),
            schedule=thirds,
            seed=0,
            accumulate=3,
            team=Team(size=2),
        )


def test_a_model_is_judged_on_others_patients_only_and_its_card_says_what_it_was_made_from(
    tmp_path: Path, cache: Path, whole: tuple[Path, ModelCard]
) -> None:
    model, card = tmp_path / "model", whole[1]
    shutil.copytree(whole[0] / "model", model)
    assert card.demonstration
    assert card.provenance.recipe.startswith("hemonode train radnet: ")
    assert set(card.figures) >= {"scans", "prior", "validation", "test", "calibration", "warnings"}
    sides = json.loads((model / "dataset.json").read_text())["sides"]
    assert sum(map(len, sides.values())) == 8
    fresh, other = HEADS.replace("first=1", "first=900"), HEADS.replace("first=1", "first=950").replace("=8", "=12")
    shared = ["evaluate", str(model), "--cache", str(cache), "--workers", "1"]

    line = [sys.executable, "-m", "node.cli", *shared, "--data", HEADS]
    known = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert known.returncode == 1
    assert "patients stand both in the making of radnet" in known.stderr
    judged = CliRunner().invoke(app, [*shared, "--data", fresh, "--fit", other, "--write"])
    assert json.loads(judged.stdout)["all"]["slices"]["cases"] > 8
    written, _ = cards.load(model)
    assert written.figures["unseen"]["data"] == {"sources": [fresh], "studies": 8}
    assert written.figures["validation"]["data"]["studies"] == 12
    assert written.guard is not None
    assert written.guard.over is not None
    assert written.guard.over.cases == 8
    assert cards.load_watch(model, written) is not None
    assert (model / "dataset.json").exists()
    again = CliRunner().invoke(app, [*shared, "--data", other])
    assert isinstance(again.exception, LeakageError), "it was fitted on them"
    dealt = CliRunner().invoke(app, [*shared, "--data", other, "--fit-share", "0.5"])
    assert 0 < json.loads(dealt.stdout)["data"]["studies"] < 12


def test_a_short_training_on_phantoms_beats_the_prior_on_heads_it_has_not_seen(tmp_path: Path) -> None:
    small = replace(
        asked(tmp_path / "run", tmp_path / "cache"),
        data=("phantom:count=70,first=300,presets=easy,sizes=128,thicknesses=8",),
        shares=(0.6, 0.15, 0.25),
        values={"epochs": 20, "slices": 12, "positive": 0.35, "rate": 0.05},
        architecture={"growth": 8, "layers": 4, "stem": 16, "dropout": 0.0, "hidden": 16, "size": 64},
        checkpoint_every=200,
        validate_every=80,
    )
    card = running.train(small)
    assert card is not None
    slices = card.figures["test"]["all"]["slices"]
    assert slices["cases"] > 400
    assert slices["weighted_log_loss"] < slices["weighted_log_loss_of_prior"]
    assert slices["auc"][ANY] > 0.6, "three standard errors above chance"
    assert card.guard is not None


def test_what_cannot_be_trained_is_refused_in_one_line(tmp_path: Path, cache: Path) -> None:
    good = asked(tmp_path / "run", cache)
    for wrong, said in (
        (replace(good, recipe="gpt"), "no recipe 'gpt'"),
        (replace(good, values={"speed": 1}), "--set: no speed"),
        (replace(good, values={"epochs": "many"}), "--set epochs: 'many'"),
        (replace(good, values={"epochs": 1.5}), "--set epochs: 1.5"),
        (replace(good, values={"epochs": [1]}), r"--set epochs: \[1\]"),
        (replace(good, recipe="bleeding", architecture={}, values={"sizes": 64}), "--set sizes: 64"),
        (replace(good, recipe="bleeding", architecture={}, values={"sizes": []}), r"--set sizes: \[\]"),
        (replace(good, recipe="bleeding", architecture={}, values={"sizes": [64, 1.5]}), r"--set sizes: \[64, 1.5\]"),
        (replace(good, architecture={"growth": "big"}), "--architecture"),
    ):
        with pytest.raises(TrainingError, match=said):
            running.train(wrong)
    with pytest.raises(LeakageError, match="both in training and in test"):
        running.train(replace(good, test=(HEADS,)))
    running.same_data(tmp_path / "run" / "dataset.json", b"other studies")
    with pytest.raises(DataError, match="begun with other studies"):
        running.train(good)
