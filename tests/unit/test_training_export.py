"""An exported model is the trained one, and its card holds the figures that were measured."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from inference import card as cards
from inference.decision import ScanRule
from inference.models import RADnet, RadnetConfig, build
from inference.preprocess import Preprocessing
from inference.result import ANY, LABELS
from training import certainty, evaluate
from training.dataset import Scan, ScanFacts
from training.errors import LeakageError
from training.export import Description, export, round_as_stored
from training.heads import Heads
from training.reading import Read, read, scan_scores
from training.stages import describe

TINY = RadnetConfig(growth=4, layers=2, stem=6, dropout=0.0, hidden=8, size=32)
DESCRIPTION = Description(
    name="tiny",
    family="radnet",
    version="0",
    architecture=TINY.to_json(),
    preprocessing=Preprocessing.radnet(size=32),
    labels=(ANY,),
    rule=ScanRule(run=3),
    recipe="a test",
    data="noise",
    seeds=(10, 20),
    seed=0,
)


def scan(number: int, labels: np.ndarray | None = None, *, group: str = "easy") -> Scan:
    rng = np.random.default_rng(number)
    found = labels if labels is not None else (rng.random((5, 6)) < 0.4).astype(np.float32)
    return Scan(
        facts=ScanFacts(patient=f"p{number}", group=group, pixel_mm=1.0),
        images=rng.random((len(found), 1, 32, 32)).astype(np.float16),
        masks=np.zeros((len(found), 32, 32), np.uint8),
        labels=found,
    )


def seen(scores: list[float], *, subtype: int | None, number: int, group: str = "easy") -> Read:
    """A scan whose *any* got these scores, all slices positive for one subtype or none."""
    labels = np.zeros((len(scores), 6), np.float32)
    if subtype is not None:
        labels[:, [0, subtype]] = 1
    columns = np.tile(np.array(scores)[:, None], (1, 6))
    return Read(scan=scan(number, labels, group=group), scores=columns)


def test_the_exported_card_loads_and_gives_the_numbers_of_the_network_in_memory(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = RADnet(TINY)
    round_as_stored(model)
    scans = [scan(number) for number in range(6)]
    described = describe(model, scans)
    written = export(
        model, tmp_path / "tiny", DESCRIPTION, training=scans[:2], validation=described[2:4], test=described[4:]
    )
    card, state = cards.load(tmp_path / "tiny")
    assert card == written
    assert card.demonstration
    assert "not for clinical use" in card.intended_use.lower()
    loaded = build(card)
    loaded.load_state_dict(state)
    for before, after in zip(read(model, described), read(loaded, describe(loaded, scans)), strict=True):
        assert np.array_equal(before.scores, after.scores)
    assert card.figures["test"]["all"]["slices"]["cases"] == 10
    assert card.figures["heads"] == {"training": 2, "validation": 2, "test": 2}


def test_the_three_slice_rule_asks_for_three_neighbours() -> None:
    readings = [
        seen([0.9, 0.1, 0.9, 0.1, 0.9], subtype=None, number=1),
        seen([0.1, 0.8, 0.7, 0.9, 0.1], subtype=4, number=2),
    ]
    assert scan_scores(readings, label=0, rule=ScanRule(run=3)) == pytest.approx([0.1, 0.7])
    assert scan_scores(readings, label=0, rule=ScanRule(max=True)) == pytest.approx([0.9, 0.9])


def test_figures_are_given_for_every_group_of_scans() -> None:
    readings = [
        seen([0.2, 0.1, 0.2], subtype=None, number=1),
        seen([0.8, 0.9, 0.8], subtype=4, number=2),
        seen([0.3, 0.3, 0.3], subtype=None, number=3, group="real"),
        seen([0.6, 0.7, 0.6], subtype=3, number=4, group="real"),
    ]
    rule, prior = ScanRule(run=3), np.full(6, 0.5)
    thresholds = dict.fromkeys(LABELS, 0.45)
    groups = evaluate.by_group(readings, labels=LABELS, thresholds=thresholds, rule=rule, prior=prior)
    assert set(groups) == {"all", "easy", "real"}
    any_ = groups["all"]["scans"][ANY]
    assert (any_["sensitivity"]["hits"], any_["sensitivity"]["cases"], any_["specificity"]["hits"]) == (2, 2, 2)
    assert any_["auc"] == 1.0
    assert groups["all"]["slices"]["weighted_log_loss_of_prior"] == pytest.approx(np.log(2))
    assert groups["all"]["slices"]["auc"]["epidural"] is None
    found = groups["all"]["found_by_subtype"]
    assert (found["subdural"]["hits"], found["subdural"]["cases"], found["epidural"]["cases"]) == (1, 1, 0)


def test_figures_are_plain_json_values() -> None:
    readings = [seen([0.2, 0.1, 0.2], subtype=None, number=1), seen([0.8, 0.9, 0.8], subtype=4, number=2)]
    groups = evaluate.by_group(
        readings, labels=(ANY,), thresholds={ANY: 0.5}, rule=ScanRule(run=3), prior=np.full(6, 0.5)
    )
    assert json.loads(json.dumps(groups)) == groups


def test_figures_on_unseen_heads_and_new_operating_points_go_into_the_card(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = RADnet(TINY)
    described = describe(model, [scan(number) for number in range(4)])
    directory = tmp_path / "tiny"
    export(model, directory, DESCRIPTION, training=[scan(9)], validation=described[:2], test=described[2:])
    how = {"work": tmp_path / "heads", "workers": 1}

    small = {"sizes": (64,), "thicknesses_mm": (20.0,)}
    fit_on, unseen = Heads(first=30, count=2, **small), Heads(first=40, count=2, **small)  # type: ignore[arg-type]
    fitted, features = evaluate.judge_on_heads(directory, unseen, fit_on=fit_on, **how)  # type: ignore[arg-type]
    assert fitted.thresholds == {ANY: 0.5}
    assert fitted.figures["validation"]["heads"]["first"] == 30
    assert fitted.figures["unseen"]["all"]["slices"]["cases"] > 2
    assert "test" not in fitted.figures, "figures at another operating point"
    (point,) = fitted.operating_points[ANY]
    assert (point.name, point.sensitivity.cases + point.specificity.cases) == (certainty.UNTUNED, 2)
    assert (fitted.guard, features, fitted.calibrated) == (None, None, False), "two heads tell nothing"
    cards.save(directory, fitted, cards.load(directory)[1], features=features)

    for known in (Heads(first=19, count=1), Heads(first=31, count=3)):
        with pytest.raises(LeakageError):
            evaluate.judge_on_heads(directory, known, **how)  # type: ignore[arg-type]
    with pytest.raises(LeakageError):
        evaluate.judge_on_heads(directory, unseen, fit_on=Heads(first=19, count=1), **how)  # type: ignore[arg-type]
    judged, _ = evaluate.judge_on_heads(directory, unseen, **how)  # type: ignore[arg-type]
    assert judged == replace(fitted, sha256=judged.sha256)
