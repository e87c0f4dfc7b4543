"""A study read from its files by a model that looks at neighbours, however its slices arrive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from inference.card import save
from inference.combination import Combination
from inference.decoding import Stored
from inference.device import Processor
from inference.engine import Engine, LoadedModel, encode_images
from inference.models import ScanModel
from inference.result import Completeness, Outcome, StudyResult
from inference.series import Criteria, select
from inference.study import EncodedCache, StudyReader
from tests.every_family import EVERY, network_of
from tests.stored import stored
from training.sources.phantom import EASY, MAKERS, make_study, write_study

pytestmark = pytest.mark.usefixtures("one_thread")

WHOLE = Completeness(complete=True, reason="whole")
CPU = Processor(device="cpu", bf16=False)
NAMES = ("hemonode", "cnn-lstm")
SLICES = 20


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> list[Stored]:
    study = make_study(seed=3, spec=replace(EASY, size=128, slices=SLICES), subtypes=("intraparenchymal",))
    paths = write_study(study, tmp_path_factory.mktemp("exam"), maker=MAKERS["ge"], series=("localizer", "axial"))
    return stored(paths)


class Reading:
    """A reader that counts what it encodes between neighbours."""

    def __init__(self, *, cache_bytes: int = 2**24) -> None:
        self.encoded = 0
        models = [LoadedModel(name=name, card=EVERY[name], state=network_of(name).state_dict()) for name in NAMES]
        engine = Engine(models, ladder=[CPU], chunk=4, encode=self._encode)
        cache = EncodedCache(limit=cache_bytes)
        self.reader = StudyReader(engine, criteria=Criteria(), combination=Combination(), cache=cache)

    def _encode(self, network: ScanModel, images: torch.Tensor, processor: Processor) -> torch.Tensor:
        self.encoded += len(images) if network.reach else 0
        return encode_images(network, images, processor)

    def arrive(self, exam: Sequence[Stored]) -> None:
        for count in range(1, len(exam) + 1):
            while self.reader.encode_arrivals(exam[:count], limit=4):
                pass

    def read(self, exam: Sequence[Stored]) -> StudyResult:
        return self.reader.read(study_uid="1.2", revision=1, instances=exam, completeness=WHOLE)


def scores(result: StudyResult) -> dict[str, list[float]]:
    return {r.name: [s for piece in r.slices for s in piece.scores.values()] for r in result.readings}


def assert_same(found: StudyResult, expected: StudyResult) -> None:
    assert scores(found).keys() == scores(expected).keys() == set(NAMES)
    for name, values in scores(found).items():
        np.testing.assert_allclose(values, scores(expected)[name], atol=1e-5, rtol=0)


def in_order(exam: Sequence[Stored]) -> list[Stored]:
    (stack,) = select([instance.facts for instance in exam], Criteria()).stacks
    by_uid = {instance.facts.sop_instance_uid: instance for instance in exam}
    return [by_uid[uid] for uid in stack.sop_instance_uids]


@pytest.fixture(scope="module")
def at_once(exam: list[Stored]) -> StudyResult:
    reading = Reading()
    result = reading.read(exam)
    assert result.outcome in (Outcome.POSITIVE, Outcome.NEGATIVE)
    assert reading.encoded == SLICES, "each slice once"
    return result


def test_slices_that_arrive_in_order_are_encoded_once_and_all_but_the_ends_early(
    exam: list[Stored], at_once: StudyResult
) -> None:
    reading = Reading()
    reading.arrive(in_order(exam))
    assert reading.encoded == SLICES - 2
    assert_same(reading.read(exam), at_once)
    assert reading.encoded == SLICES


def test_slices_that_arrive_in_any_order_have_the_same_numbers(exam: list[Stored], at_once: StudyResult) -> None:
    shuffled = [exam[i] for i in np.random.default_rng(0).permutation(len(exam))]
    reading = Reading()
    reading.arrive(shuffled)
    assert_same(reading.read(shuffled), at_once)


def test_a_cache_smaller_than_the_study_changes_nothing(exam: list[Stored], at_once: StudyResult) -> None:
    assert_same(Reading(cache_bytes=1).read(exam), at_once)


def test_around_an_image_that_cannot_be_decoded_those_beside_it_are_neighbours(
    exam: list[Stored], tmp_path: Path
) -> None:
    victim = in_order(exam)[SLICES // 2]
    damaged = tmp_path / "damaged.dcm"
    damaged.write_bytes(victim.path.read_bytes()[:-5000])
    broken = [replace(i, path=damaged, digest="damaged") if i is victim else i for i in exam]
    result = Reading().read(broken)
    assert "cannot be decoded" in result.warnings[0]
    assert_same(result, Reading().read([i for i in exam if i is not victim]))


def test_a_study_that_filled_up_the_batch_before_has_the_same_numbers(
    exam: list[Stored], at_once: StudyResult, tmp_path: Path
) -> None:
    other = make_study(seed=4, spec=replace(EASY, size=128, slices=SLICES - 1), subtypes=("subdural",))
    first = stored(write_study(other, tmp_path / "other", maker=MAKERS["ge"], series=("axial",)))
    reading = Reading()
    following = reading.reader.to_encode(exam)
    reading.reader.read(study_uid="1.3", revision=1, instances=first, completeness=WHOLE, following=following)
    assert len(reading.reader.to_encode(exam)) < len(following)
    assert_same(reading.read(exam), at_once)
    assert reading.encoded == 2 * SLICES - 1


def test_the_model_is_read_from_its_directory_like_every_other(exam: list[Stored], tmp_path: Path) -> None:
    save(tmp_path / "own", EVERY["hemonode"], network_of("hemonode").state_dict())
    engine = Engine.load({"own": tmp_path / "own"}, device="cpu", precision="fp32")
    engine.warm_up()
    cache = EncodedCache(limit=2**24)
    reader = StudyReader(engine, criteria=Criteria(), combination=Combination(), cache=cache)
    result = reader.read(study_uid="1.2", revision=1, instances=exam, completeness=WHOLE)
    assert len(result.readings[0].slices) == SLICES
    assert engine.conditions == ()
