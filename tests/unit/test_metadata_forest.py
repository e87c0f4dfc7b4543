"""The forest on header metadata gives scikit-learn's numbers from plain arrays, and never sees a pixel."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom import dcmread
from sklearn.ensemble import RandomForestClassifier

from inference.card import load
from inference.combination import Combination
from inference.decoding import Stored
from inference.engine import Engine
from inference.metadata import ABSENT, FACTS, HeaderModel, header_facts
from inference.models import build
from inference.preprocess import Preprocessing, prepare
from inference.result import ANY, Completeness, Outcome
from inference.series import Criteria, InstanceFacts, Plane, facts
from inference.study import EncodedCache, StudyReader
from tests.small_scan import CPU
from training.errors import DataError
from training.recipes.metadata_forest import Slices, export, grow, judged, main
from training.sources.phantom import EASY, MAKERS, make_study, write_study


def noise(count: int = 600, *, seed: int = 0) -> Slices:
    """Header facts that tell a little about the labels, among others that tell nothing."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(0, 100, (count, len(FACTS))).astype(np.float32)
    rows[:, 3] = rng.integers(0, 2, count)
    return Slices(facts=rows, bleeds=(rows[:, 10] + rng.normal(0, 80, count)) > 0)


@pytest.fixture(scope="module")
def forest() -> RandomForestClassifier:
    return grow(noise(), trees=25, seed=1)


@pytest.fixture(scope="module")
def stored(forest: RandomForestClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "forest"
    export(directory, forest, figures={}, data="noise")
    return directory


def test_stored_and_loaded_it_has_the_probabilities_of_scikit_learn(
    forest: RandomForestClassifier, stored: Path
) -> None:
    card, state = load(stored)
    network = build(card)
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
    assert sorted(path.name for path in stored.iterdir()) == ["card.json", "weights.safetensors"]
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
    instances = [
        Stored(facts=facts(dcmread(path, stop_before_pixels=True)), path=path, digest=path.name) for path in files
    ]
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


def test_on_phantoms_whose_headers_know_nothing_it_is_no_better_than_chance(tmp_path: Path) -> None:
    main(["--out", str(tmp_path / "forest"), "--heads", "8", "--trees", "20"])
    card, _state = load(tmp_path / "forest")
    accuracy = card.figures["headers_only"]["accuracy"]
    assert accuracy["low"] < 0.75, "half of the slices bleed, and z alone tells little"
    assert accuracy["cases"] > 20


def test_a_forest_needs_both_kinds_of_slices() -> None:
    slices = noise(20)
    with pytest.raises(DataError, match="with a bleed and without"):
        Slices(facts=slices.facts, bleeds=np.ones(20, bool)).balanced(np.random.default_rng(0))
    balanced = slices.balanced(np.random.default_rng(0))
    assert balanced.bleeds.mean() == 0.5
    assert judged(grow(balanced, trees=3, seed=0), balanced)["auc"]
