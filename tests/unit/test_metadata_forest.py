"""The forest on header metadata gives scikit-learn's numbers from plain arrays, and never sees a pixel."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier

from inference.card import load
from inference.combination import Combination
from inference.engine import Engine
from inference.metadata import ABSENT, FACTS, HeaderModel, header_facts
from inference.models import MetadataForest, build
from inference.preprocess import Preprocessing, prepare
from inference.result import ANY, Completeness, Outcome
from inference.series import Criteria, InstanceFacts, Plane
from inference.study import EncodedCache, StudyReader
from tests.public_sets import Rsna
from tests.small_scan import CPU
from tests.stored import stored as as_stored
from training.errors import DataError, TrainingError
from training.headers import train
from training.recipes.metadata_forest import NAME, ForestRecipe, Slices, as_arrays, grow, judged
from training.run import Asked
from training.sources.named import open_source
from training.sources.phantom import EASY, MAKERS, make_study, write_study


def noise(count: int = 600, *, seed: int = 0) -> Slices:
    """Header facts that tell a little about the labels, among others that tell nothing."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(0, 100, (count, len(FACTS))).astype(np.float32)
    rows[:, 3] = rng.integers(0, 2, count)
    return Slices(facts=rows, bleeds=(rows[:, 10] + rng.normal(0, 80, count)) > 0)


@pytest.fixture(scope="module")
def forest() -> RandomForestClassifier:
    return grow(noise(), recipe=ForestRecipe(trees=25), seed=1)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A forest of phantom heads, as `hemonode train` writes it."""
    folder = tmp_path_factory.mktemp("forest")
    train(asked(folder, count=12))
    return folder / "model"


def asked(folder: Path, *, count: int, **changes: Any) -> Asked:
    return Asked(
        recipe=NAME,
        data=(f"phantom:count={count},first=70000,presets=easy,sizes=512,thicknesses=5",),
        out=folder,
        cache=folder / "cache",
        cache_gb=1,
        **({"values": {"trees": 20}} | changes),
    )


def test_as_arrays_it_has_the_probabilities_of_scikit_learn(forest: RandomForestClassifier) -> None:
    config, state = as_arrays(forest)
    network = MetadataForest(config)
    network.load_state_dict(state)
    unseen = noise(300, seed=2).facts
    # Also at the very limits, where one rounding would send a slice the other way.
    limits = np.concatenate([tree.tree_.threshold for tree in forest.estimators_]).astype(np.float32)
    rows = np.concatenate([unseen, np.repeat(limits[:500, None], len(FACTS), axis=1)])
    expected = forest.predict_proba(rows)[:, 1]
    found = network.decide(torch.from_numpy(rows)).sigmoid()[:, 0].numpy()
    np.testing.assert_allclose(found, expected.clip(1e-6, 1 - 1e-6), atol=2e-6)
    assert len(np.unique(expected)) > 100


def test_its_directory_holds_numbers_and_a_card_and_nothing_that_runs(stored: Path) -> None:
    assert sorted(path.name for path in stored.iterdir()) == ["card.json", "dataset.json", "weights.safetensors"]
    card = json.loads((stored / "card.json").read_text())
    assert card["preprocessing"]["header"] == list(FACTS)
    assert card["demonstration"]


def test_it_has_no_use_for_images(stored: Path) -> None:
    card, _state = load(stored)
    with pytest.raises(ValueError, match="reads no images"):
        build(card).encode(torch.zeros(1, len(FACTS), 1, 1))
    with pytest.raises(ValueError, match="no image to prepare"):
        prepare(torch.zeros(1, 8, 8, dtype=torch.int16), pixel_spacing=[(1, 1)], preprocessing=card.preprocessing)
    with pytest.raises(ValueError, match="neither windows nor quantiles"):
        replace(card.preprocessing, windows=Preprocessing.radnet().windows)


def test_what_a_header_does_not_say_is_absent() -> None:
    known = InstanceFacts(rows=512, positions=((1.0, 2.0, 3.0),), orientations=(None,))
    row = dict(zip(FACTS, header_facts([Plane(facts=known)], list(FACTS))[0], strict=True))
    assert (row["rows"], row["position_z"]) == (512, 3)
    assert {row["columns"], row["spacing_rows"], row["orientation_5"]} == {ABSENT}


def test_a_study_is_read_by_its_headers_alone(stored: Path, tmp_path: Path) -> None:
    study = make_study(seed=5, spec=replace(EASY, size=128, slices=16), subtypes=("intraparenchymal",))
    files = write_study(study, tmp_path, maker=MAKERS["ge"])
    instances = as_stored(files)
    model = HeaderModel.load("forest", stored)
    reader = StudyReader(
        Engine([], ladder=[CPU]),
        criteria=Criteria(),
        combination=Combination(any_of={"forest": ANY}),
        cache=EncodedCache(limit=2**20),
        headers=[model],
    )
    result = reader.read(
        study_uid="1.2",
        revision=1,
        instances=instances,
        completeness=Completeness(complete=True, reason="a test"),
    )
    assert result.readings, result.reason
    (reading,) = result.readings
    planes = sorted((Plane(facts=i.facts) for i in instances), key=lambda p: (p.facts.positions[0] or (0, 0, 0))[2])
    logits = model.network.decide(torch.from_numpy(header_facts(planes, list(FACTS))))
    np.testing.assert_allclose(
        [piece.scores[ANY] for piece in reading.slices], logits.sigmoid()[:, 0].numpy(), atol=1e-5
    )
    assert result.outcome in (Outcome.POSITIVE, Outcome.NEGATIVE)
    assert "not one pixel" in reading.warnings[0]


def test_on_phantoms_whose_headers_know_nothing_it_is_no_better_than_chance(stored: Path) -> None:
    card, _state = load(stored)
    accuracy = card.figures["headers_only"]["accuracy"]
    assert accuracy["low"] < 0.75, "half of the slices bleed, and z alone tells little"
    assert accuracy["cases"] > 5


def test_where_headers_give_the_labels_away_it_finds_them(tmp_path: Path) -> None:
    challenge = Rsna(tmp_path / "rsna")
    for number in range(24):
        kinds, rows = (("subdural",), 48) if number % 2 else ((), 64)
        for place in range(2):
            name, patient = f"ID_{number:08x}{place}", f"ID_{number:08x}"
            challenge.add(name, patient=patient, study=f"{patient}s", z=5.0 * place, positive=kinds, rows=rows)
    card = train(
        Asked(
            recipe=NAME,
            data=(f"rsna:{challenge.finish()}",),
            out=tmp_path / "out",
            cache=tmp_path / "cache",
            cache_gb=1,
            shares=(0.5, 0.0, 0.5),
            values={"trees": 20, "least_leaf": 1},
        )
    )
    assert not card.demonstration
    assert card.figures["headers_only"]["auc"] == 1


def test_headers_name_their_slices_as_the_volume_does(tmp_path: Path) -> None:
    (head,) = open_source("phantom:count=1,first=70000,presets=easy,sizes=64,thicknesses=10", index=tmp_path)
    assert head.headers is not None
    headers, volume = head.headers(), head.decode()
    np.testing.assert_array_equal(headers["labels"], volume["labels"])
    z = headers["header"][:, list(FACTS).index("position_z")]
    assert (np.diff(z) > 0).all()


def test_what_means_nothing_to_a_forest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no --architecture"):
        train(asked(tmp_path, count=1, architecture={"size": 64}))
    with pytest.raises(TrainingError, match="no epochs"):
        train(asked(tmp_path, count=1, values={"epochs": 3}))


def test_a_forest_needs_both_kinds_of_slices() -> None:
    slices = noise(20)
    with pytest.raises(DataError, match="with a bleed and without"):
        Slices(facts=slices.facts, bleeds=np.ones(20, bool)).balanced(np.random.default_rng(0))
    balanced = slices.balanced(np.random.default_rng(0))
    assert balanced.bleeds.mean() == 0.5
    assert judged(grow(balanced, recipe=ForestRecipe(trees=3), seed=0), balanced)["auc"]
