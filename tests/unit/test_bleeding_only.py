"""A model that knows only slices that bleed says which kind, and never whether."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from inference.card import ModelCard, save
from inference.combination import Combination, combine
from inference.decoding import Stored
from inference.engine import Engine
from inference.place import place_of
from inference.reading import UNHEARD, where_bleeding
from inference.result import ANY, SUBTYPES, Completeness, Finding, ModelReading, Outcome, SliceReading
from inference.series import Criteria
from inference.study import EncodedCache, StudyReader
from node.config import ModelSection, NodeSection, ReadSection, Settings
from node.errors import StartError
from node.parts import work
from node.reading import refuse_silent_triggers
from tests import small_scan
from tests.stored import stored
from tests.unit.test_classifiers import BINARY, HEAD, MULTI
from training.sources.phantom import EASY, MAKERS, make_study, write_study

KINDS = replace(MULTI, bleeding_only=True)
PLACES = [place_of(piece) for piece in HEAD]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> ModelReading:
    """What the network says of the whole head, asked alone."""
    engine = small_scan.stored(tmp_path_factory.mktemp("kinds") / "model", KINDS, small_scan.a_network(KINDS))
    return small_scan.read(engine, HEAD)


def finder(scores: list[float], *, threshold: float = 0.5) -> ModelReading:
    """Another model's reading of *any*."""
    slices = tuple(
        SliceReading(sop_instance_uid=place.sop_instance_uid, position_mm=place.position_mm, scores={ANY: score})
        for place, score in zip(PLACES, scores, strict=True)
    )
    found = Finding(label=ANY, present=max(scores) >= threshold, score=max(scores), threshold=threshold)
    return ModelReading(
        name="finder",
        family="radnet",
        version="1",
        digest="",
        demonstration=True,
        rule="",
        findings=(found,),
        slices=slices,
    )


def scores(*bleeding: int) -> list[float]:
    return [0.9 if index in bleeding else 0.1 for index in range(len(PLACES))]


def test_it_is_heard_about_the_slices_in_which_another_model_finds_bleeding_alone(kinds: ModelReading) -> None:
    heard = where_bleeding(KINDS, kinds, [finder(scores(1, 2))], PLACES)
    assert heard.slices == kinds.slices[1:3]
    for index, finding in enumerate(heard.findings):
        own = [piece.scores[SUBTYPES[index]] for piece in kinds.slices[1:3]]
        assert finding.score == pytest.approx(max(own))
    assert set(heard.key_slices) <= {place.sop_instance_uid for place in PLACES[1:3]}
    assert f"2 of {len(PLACES)} slices" in heard.warnings[-1]


def test_where_nobody_finds_bleeding_it_says_nothing(kinds: ModelReading) -> None:
    for others in ([], [finder(scores())], [replace(finder(scores(1)), findings=(), slices=())], [kinds]):
        heard = where_bleeding(KINDS, kinds, others, PLACES)
        assert (heard.findings, heard.slices, heard.key_slices) == ((), (), ())
        assert heard.warnings[-1].startswith(UNHEARD)


@pytest.mark.parametrize(
    "how", [Combination(), Combination(any_of={"model": "epidural"}), Combination(any_of={"model": ANY})]
)
def test_alone_it_calls_no_study_positive_or_negative(kinds: ModelReading, how: Combination) -> None:
    alone = where_bleeding(KINDS, kinds, [], PLACES)
    assert combine([alone], how)[0] is Outcome.NOT_ANALYSED
    assert any(finding.present for finding in kinds.findings), "what it would say of a head of which nobody knows"


def test_beside_a_model_that_decides_it_changes_no_outcome(kinds: ModelReading) -> None:
    decides = Combination(any_of={"finder": ANY})
    for other, outcome in ((finder(scores(1)), Outcome.POSITIVE), (finder(scores()), Outcome.NEGATIVE)):
        assert combine([where_bleeding(KINDS, kinds, [other], PLACES), other], decides)[0] is outcome


def test_a_card_of_such_a_model_cannot_tell_any() -> None:
    with pytest.raises(ValueError, match="knows only slices that bleed cannot tell 'any'"):
        replace(BINARY, bleeding_only=True)
    assert ModelCard.from_json(KINDS.to_json()) == KINDS


def test_a_node_does_not_start_where_it_alone_would_have_to_clear_studies(tmp_path: Path) -> None:
    save(tmp_path / "kinds", KINDS, small_scan.a_network(KINDS).state_dict())

    def settings(*, trigger: bool) -> Settings:
        kinds = ModelSection(weights=str(tmp_path / "kinds"), trigger=trigger)
        models = {"radnet": ModelSection(weights="demo-radnet"), "kinds": kinds}
        return Settings(node=NodeSection(data=tmp_path), read=ReadSection(models=models))

    refuse_silent_triggers(settings(trigger=False))
    with pytest.raises(StartError, match=r"\[read.models.kinds\] has trigger = true.* nothing of \"any\""):
        work(settings(trigger=True), number=1, stop=Event())


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> list[Stored]:
    """A head as a scanner would send it."""
    head = make_study(seed=5, spec=replace(EASY, size=128, slices=16), subtypes=("intraparenchymal",))
    files = write_study(head, tmp_path_factory.mktemp("study"), maker=MAKERS["ge"])
    return stored(files)


@pytest.mark.parametrize(
    ("threshold", "outcome"), [(0.0, Outcome.POSITIVE), (1.0, Outcome.NEGATIVE), (None, Outcome.NOT_ANALYSED)]
)
def test_of_a_study_it_says_what_the_other_models_reading_allows(
    threshold: float | None, outcome: Outcome, study: list[Stored], tmp_path: Path
) -> None:
    cards = {"kinds": KINDS}
    if threshold is not None:
        cards["any"] = replace(BINARY, thresholds={ANY: threshold})
    for name, card in cards.items():
        small_scan.stored(tmp_path / name, card, small_scan.a_network(card))
    engine = Engine.load({name: tmp_path / name for name in cards}, device="cpu", precision="fp32", threads=1)
    deciding = Combination(any_of={"any" if "any" in cards else "kinds": ANY})
    reader = StudyReader(engine, criteria=Criteria(), combination=deciding, cache=EncodedCache(limit=2**24))
    complete = Completeness(complete=True, reason="a test")
    result = reader.read(study_uid="1.2", revision=1, instances=study, completeness=complete)
    assert result.readings, result.reason
    assert result.outcome is outcome, result.reason
    kinds = next(reading for reading in result.readings if reading.name == "kinds")
    assert bool(kinds.findings) == (outcome is Outcome.POSITIVE)
    assert len(kinds.slices) == (16 if outcome is Outcome.POSITIVE else 0)
