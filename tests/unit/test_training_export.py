"""An exported model is the trained one, and its card holds the figures that were measured."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from inference import card as cards
from inference.card import ModelCard
from inference.decision import ScanRule
from inference.models import RADnet, RadnetConfig, build
from inference.novelty import Features
from inference.preprocess import Preprocessing
from inference.result import ANY, LABELS
from tests.small_models import radnet_card
from training import certainty, evaluate
from training.cache import VolumeCache
from training.dataset import Scan, ScanFacts, prepare_all
from training.described import Described, describe
from training.errors import LeakageError
from training.evaluate import Studies
from training.export import INTENDED_USE, Description, export, rewrite, round_as_stored
from training.heads import Heads, studies
from training.reading import Read, read, scan_scores

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
    seed=0,
    demonstration=True,
    intended_use=INTENDED_USE,
    figures={"begun_from": [f"phantom-{seed}" for seed in range(10, 20)]},
)


def scan(number: int, labels: np.ndarray | None = None, *, group: str = "easy") -> Scan:
    rng = np.random.default_rng(number)
    found = labels if labels is not None else (rng.random((5, 6)) < 0.4).astype(np.float32)
    return Scan(
        facts=ScanFacts(patient=f"p{number}", group=group, pixel_mm=1.0),
        labels=found,
        study_labels=found.max(0),
        opened=partial(dict, images=rng.random((len(found), 1, 32, 32)).astype(np.float16)),
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
    assert card.figures["scans"] == {"training": 2, "validation": 2, "test": 2}


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

    def some(first: int, count: int = 2) -> Studies:
        population = Heads(first=first, count=count, sizes=(64,), thicknesses_mm=(20.0,))
        cache = VolumeCache(tmp_path / "cache")
        found = prepare_all(list(studies(population)), cache=cache, preprocessing=DESCRIPTION.preprocessing)
        return Studies(scans=found, sources=[f"phantom:first={first}"])

    def judged(unseen: Studies, fit_on: Studies | None = None) -> tuple[ModelCard, Features | None]:
        found = evaluate.judge(directory, unseen, fit_on=fit_on, device=torch.device("cpu"))
        return found.card, found.features

    fitted, features = judged(some(40), some(30))
    assert fitted.thresholds == {ANY: 0.5}
    assert fitted.figures["validation"]["data"] == {"sources": ["phantom:first=30"], "studies": 2}
    assert fitted.figures["unseen"]["all"]["slices"]["cases"] > 2
    assert "test" not in fitted.figures, "figures at another operating point"
    (point,) = fitted.operating_points[ANY]
    assert (point.name, point.sensitivity.cases + point.specificity.cases) == (certainty.UNTUNED, 2)
    assert (fitted.guard, features, fitted.calibrated) == (None, None, False), "two heads tell nothing"
    rewrite(directory, fitted, features=features)

    for unseen, fit_on in ((some(19, 1), None), (some(31, 3), None), (some(40), some(19, 1)), (some(41), some(40))):
        with pytest.raises(LeakageError):
            judged(unseen, fit_on)
    again, _ = judged(some(40))
    assert again == replace(fitted, sha256=again.sha256)


def test_a_share_of_the_patients_is_fitted_on_and_the_others_judge() -> None:
    scans = [scan(number) for number in (*range(20), *range(20))]
    fit_on, unseen = Studies(scans=scans, sources=["archive:spring.json"]).dealt(0.4)
    assert len(fit_on.scans) + len(unseen.scans) == 40
    assert 0 < len(fit_on.patients) < len(unseen.patients)
    assert not fit_on.patients & unseen.patients


def partly(number: int, *, bleeds: bool | None, slices_known: bool) -> Described:
    """A scan of three slices of which somebody said, or not, whether it and each of its slices bleeds."""
    labels = np.full((3, 6), np.nan, np.float32)
    if slices_known:
        labels[:] = float(bool(bleeds))
    known = np.nan if bleeds is None else float(bleeds)
    one = replace(scan(number, labels), study_labels=np.full(6, known, np.float32))
    return Described(scan=one, descriptors=torch.randn(3, RADnet(TINY).descriptor_size))


def test_what_nobody_labelled_is_neither_fitted_nor_measured() -> None:
    torch.manual_seed(0)
    model = RADnet(TINY).eval()
    how = {"labels": (ANY,), "rule": DESCRIPTION.rule, "data": "a site"}
    whole = [partly(n, bleeds=n % 2 == 0, slices_known=True) for n in range(20)]
    silent = [partly(n, bleeds=None, slices_known=False) for n in range(20, 30)]
    of_scans = [partly(n, bleeds=n % 2 == 0, slices_known=n % 2 == 1) for n in range(30, 50)]
    fitted = certainty.fit(model, whole + silent, **how)  # type: ignore[arg-type]
    assert fitted == certainty.fit(model, whole, **how)  # type: ignore[arg-type]
    assert fitted.calibration.scan[ANY].scans == 20
    only_scans = certainty.fit(model, of_scans, **how)  # type: ignore[arg-type]
    assert not only_scans.calibration.temperature, "of the slices only those of clean scans are known"
    assert set(only_scans.points[ANY]) == {certainty.BALANCED}

    card = radnet_card(threshold=0.5)
    put = certainty.put(card, fitted, model, silent, on="nobody")
    assert put.figures["calibration"] == {"slices": {}, "scans": {}}
    assert put.operating_points[ANY][0].sensitivity.cases == 0
    assert not put.calibrated
    assert not certainty.put(card, fitted, model, [], on="nothing").calibrated


@pytest.mark.parametrize(
    ("name", "heads"), [("demo-radnet", range(30000, 30200)), ("demo-cnn-lstm", range(30000, 30300))]
)
def test_the_demonstration_weights_know_the_heads_that_they_were_made_from_and_tuned_on(
    name: str, heads: range
) -> None:
    directory = Path(__file__).parents[2] / "inference/weights" / name
    card = cards.read_card(directory)
    known = evaluate.known_patients(directory, card, refit=False)
    assert card.provenance.recipe.endswith("from random weights")
    made_from = known - {f"phantom-{seed}" for seed in range(20250, 20380)}
    assert made_from < {f"phantom-{seed}" for seed in heads}
    assert len(made_from) > 0.8 * len(heads)
    assert {"phantom-20250", "phantom-20379"} <= known
    assert evaluate.known_patients(directory, card, refit=True) == made_from
