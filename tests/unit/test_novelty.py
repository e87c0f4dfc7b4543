"""A scan unlike those of training is called so, and one like them is not; scikit-learn is the second opinion."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from sklearn.covariance import LedoitWolf

from inference.card import save
from inference.combination import Combination
from inference.decoding import Stored
from inference.engine import Engine
from inference.headcheck import check_head
from inference.models import FAMILIES
from inference.novelty import Features, Guard, measure, pooled
from inference.result import Completeness, Novelty, Outcome
from inference.series import Criteria
from inference.study import EncodedCache, StudyReader, thumbnail
from inference.volume import Slice
from node.reading import PACKAGED
from tests.small_models import radnet_card
from tests.stored import stored
from training import novelty
from training.dataset import Scan, ScanFacts
from training.described import Described
from training.errors import DataError
from training.heads import Heads, studies
from training.measures import slices_of
from training.sources.phantom import EASY, MAKERS, make_study, write_study

DEMONSTRATIONS = ("demo-radnet", "demo-cnn-lstm")


def head(seed: int) -> tuple[Slice, ...]:
    """A phantom head of the kind on which the demonstration weights were trained."""
    (study,) = studies(Heads(first=seed, count=1))
    return slices_of(study.decode())


def measures(slices: Iterable[Slice]) -> dict[str, float]:
    thumbnails = [thumbnail(piece) for piece in slices]
    return measure(thumbnails, check_head(thumbnails))


@pytest.fixture(scope="module")
def heads() -> list[tuple[Slice, ...]]:
    return [head(seed) for seed in range(70_000, 70_003)]


@pytest.fixture(scope="module", params=DEMONSTRATIONS)
def engine(request: pytest.FixtureRequest) -> Engine:
    return Engine.load({"model": PACKAGED / request.param}, device="cpu")


def judged(engine: Engine, slices: tuple[Slice, ...]) -> Novelty:
    return engine.watches["model"].judge(measures(slices), engine.encode(slices)["model"], blank_marked=False)


def test_heads_like_those_of_training_pass_the_demonstration_guards(
    heads: list[tuple[Slice, ...]], engine: Engine
) -> None:
    """Each card says how many of a hundred such heads its guard took for unlike; of three, two would be too many."""
    over = engine.watches["model"].guard.over
    assert over is not None
    assert over.cases >= 100
    assert over.high < 0.12
    assert sum(judged(engine, slices).unlike for slices in heads) <= 1


def changed(slices: Iterable[Slice], change: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> tuple[Slice, ...]:
    return tuple(
        replace(piece, hu=np.clip(change(piece.hu.astype(np.float64)), -1024, 3000).astype(np.int16))
        for piece in slices
    )


def chest_like(hu: NDArray[np.float64]) -> NDArray[np.float64]:
    """Soft tissue around two lungs, without a skull."""
    rows, columns = np.mgrid[: hu.shape[0], : hu.shape[1]] / hu.shape[0] - 0.5
    body = np.where(np.hypot(rows / 0.35, columns / 0.48) < 1, 50.0, -1000.0)
    for side in (-0.2, 0.2):
        body[np.hypot(rows / 0.25, (columns - side) / 0.13) < 1] = -850
    return body + np.random.default_rng(0).normal(0, 8, hu.shape)


STRANGE: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "noisy": lambda hu: hu + np.random.default_rng(1).normal(0, 40, hu.shape),
    "inverted": lambda hu: 40 - hu,
    "a chest": chest_like,
    "a sharp kernel": lambda hu: hu + 5 * (hu - gaussian_filter(hu, 1.0)),
    "off by the intercept": lambda hu: hu + 60,
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_no_head_of_training_looked_like_is_caught(heads: list[tuple[Slice, ...]], name: str) -> None:
    engine = Engine.load({"model": PACKAGED / "demo-cnn-lstm"}, device="cpu")
    said = judged(engine, changed(heads[0], STRANGE[name]))
    assert said.unlike
    assert said.sentence


def test_thin_slices_are_caught_by_their_distance(heads: list[tuple[Slice, ...]]) -> None:
    watch = Engine.load({"model": PACKAGED / "demo-radnet"}, device="cpu").watches["model"]
    x, y, z = heads[0][0].position
    thin = [replace(heads[0][10], position=(x, y, z + 0.4 * i), thickness=0.4) for i in range(300)]
    assert any("distance of slices" in said for said in watch.guard.furthest(measures(thin)))


def test_a_real_head_is_unlike_the_phantoms_of_the_demonstration(head_ct: Path) -> None:
    engine = Engine.load({name: PACKAGED / name for name in DEMONSTRATIONS}, device="cpu")
    reader = StudyReader(
        engine,
        criteria=Criteria(),
        combination=Combination(abstain=True),
        cache=EncodedCache(limit=2**24),
    )
    exam = stored(sorted(head_ct.glob("*.dcm")))
    result = reader.read(study_uid="1.2", revision=1, instances=exam, completeness=WHOLE)
    assert [reading.unlike for reading in result.readings] == [True, True]
    assert result.outcome is not Outcome.NEGATIVE


# The statistics.


def described(rows: NDArray[np.float64], *, noise: float = 4.0) -> list[Described]:
    """A scan of three slices for each row, all with that descriptor."""
    rng = np.random.default_rng(5)
    return [
        Described(
            scan=Scan(
                facts=ScanFacts(patient=str(i), group="", pixel_mm=1.0, measures={"noise": noise + rng.random()}),
                labels=np.zeros((3, 6), np.float32),
                study_labels=np.zeros(6, np.float32),
                opened=dict,
            ),
            descriptors=torch.from_numpy(np.tile(row, (3, 1))).float(),
        )
        for i, row in enumerate(rows)
    ]


def test_the_feature_distance_is_scikit_learns_mahalanobis_distance_of_the_shrunk_covariance() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 12)) @ rng.normal(size=(12, 12))
    asked = rng.normal(size=(20, 12)) * 5
    fitted = novelty.fit_features(rows)
    theirs = np.sqrt(LedoitWolf().fit(rows).mahalanobis(asked))
    np.testing.assert_allclose([fitted.distance(row) for row in asked], theirs, rtol=1e-8)


def test_features_wider_than_the_axes_kept_come_near_it_and_survive_their_file() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(80, 200)) * np.linspace(5, 0.2, 200)
    fitted = novelty.fit_features(rows)
    assert fitted.axes.shape == (novelty.AXES, 200)
    again = Features.from_bytes(fitted.to_bytes())
    theirs = np.sqrt(LedoitWolf().fit(rows).mahalanobis(rows))
    ours = [again.distance(row) for row in rows]
    assert np.corrcoef(ours, theirs)[0, 1] > 0.9


def test_scans_held_out_exceed_the_limits_as_rarely_as_is_stated() -> None:
    rng = np.random.default_rng(1)
    watch = novelty.fit(described(rng.normal(size=(400, 8))), features=True, data="400 scans")
    tried = novelty.tried(watch, described(rng.normal(size=(1000, 8))))
    assert tried.guard.over is not None
    assert tried.guard.over.value is not None
    assert 0 < tried.guard.over.value < 0.04, "one in a hundred for each of two distances"
    far = novelty.tried(watch, described(rng.normal(size=(20, 8)) + 4))
    assert far.guard.over is not None
    assert far.guard.over.hits == 20
    loud = novelty.tried(watch, described(rng.normal(size=(20, 8)), noise=30))
    assert loud.guard.over is not None
    assert loud.guard.over.hits == 20


def test_a_guard_needs_scans_that_were_measured() -> None:
    scans = described(np.eye(12))
    with pytest.raises(DataError, match="at least 10"):
        novelty.fit(scans[:9], features=True, data="nine")
    unmeasured = [replace(s, scan=replace(s.scan, facts=replace(s.scan.facts, measures={}))) for s in scans]
    with pytest.raises(DataError, match="with measures"):
        novelty.fit(unmeasured, features=True, data="none")


def test_blank_slices_do_not_count_in_the_mean_of_the_descriptors() -> None:
    rows = np.array([[1.0, 2.0, 1.0], [9.0, 9.0, 0.0], [3.0, 4.0, 1.0]])
    assert pooled(rows, blank_marked=True).tolist() == [2.0, 3.0]
    assert pooled(rows[:, :2], blank_marked=False).tolist() == pytest.approx([13 / 3, 5.0])


def test_only_the_family_whose_descriptors_are_images_has_no_feature_distance() -> None:
    sees_no_pixel = {"metadata_forest"}
    with torch.device("meta"):
        without = {name for name, make in FAMILIES.items() if name not in sees_no_pixel and not make({}).describes}
    assert without == {"resnet_3d"}


def test_a_feature_distance_that_is_no_number_is_no_proof_of_likeness() -> None:
    watch = novelty.fit(described(np.random.default_rng(1).normal(size=(30, 4))), features=True, data="30 scans")
    said = watch.judge({"noise": 4.5}, np.full((3, 4), np.nan), blank_marked=False)
    assert said.unlike


# The files.

GUARD = Guard(ranges={"noise": (2.0, 7.0)}, input_limit=0.5, data="30 scans", scans=30)
FEATURES = Features(mean=np.zeros(4), axes=np.eye(2, 4), variances=np.array([2.0, 1.0]), rest=np.array([0.5]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranges": {}}, "ranges that rise"),
        ({"ranges": {"noise": [7.0, 2.0]}}, "ranges that rise"),
        ({"ranges": {"colour": [1.0, 2.0]}}, "no measure"),
        ({"input_limit": 0.0}, "positive"),
        ({"feature_limit": float("inf")}, "positive"),
    ],
)
def test_a_guard_that_cannot_be_meant_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guard.from_json(GUARD.to_json() | changes)


def test_statistics_that_are_no_covariance_are_refused() -> None:
    for broken in ({"rest": np.zeros(1)}, {"variances": np.array([1.0, np.nan])}, {"axes": np.eye(3, 4)}):
        with pytest.raises(ValueError, match="descriptors"):
            replace(FEATURES, **broken)
    with pytest.raises(ValueError, match="no features"):
        Features.from_bytes(b"nothing")


# From the files through the reader.

WHOLE = Completeness(complete=True, reason="whole")


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> list[Stored]:
    study = make_study(seed=3, spec=replace(EASY, size=128, slices=20), subtypes=())
    return stored(sorted(write_study(study, tmp_path_factory.mktemp("exam"), maker=MAKERS["ge"], series=("axial",))))


def outcome(exam: list[Stored], folder: Path, *, threshold: float, usual: bool, abstain: bool) -> tuple[Outcome, bool]:
    """What comes of the study with a small model, and whether the result says that the scan is unlike."""
    card = replace(
        radnet_card(threshold=threshold), guard=GUARD if usual else replace(GUARD, ranges={"noise": (90, 99)})
    )
    card = replace(card, guard=replace(card.guard, ranges={"noise": (0.0, 50.0)})) if usual and card.guard else card
    torch.manual_seed(0)
    network = FAMILIES[card.family](card.architecture)
    save(folder / "small", card, network.state_dict())
    reader = StudyReader(
        Engine.load({"small": folder / "small"}, device="cpu", precision="fp32"),
        criteria=Criteria(),
        combination=Combination(abstain=abstain),
        cache=EncodedCache(limit=2**24),
    )
    result = reader.read(study_uid="1.2", revision=1, instances=exam, completeness=WHOLE)
    (reading,) = result.readings
    assert reading.novelty is not None
    assert bool(reading.warnings) is reading.unlike
    return result.outcome, result.out_of_distribution


@pytest.mark.parametrize(
    ("threshold", "usual", "abstain", "expected"),
    [
        (1.0, True, True, Outcome.NEGATIVE),
        (1.0, False, False, Outcome.NEGATIVE),
        (1.0, False, True, Outcome.NOT_ANALYSED),
        (0.0, False, True, Outcome.POSITIVE),
        (0.0, False, False, Outcome.POSITIVE),
    ],
)
def test_a_strange_study_is_never_negative_where_models_abstain_and_a_positive_one_stays(
    exam: list[Stored], tmp_path: Path, threshold: float, usual: bool, abstain: bool, expected: Outcome
) -> None:
    said = outcome(exam, tmp_path, threshold=threshold, usual=usual, abstain=abstain)
    assert said == (expected, not usual)
