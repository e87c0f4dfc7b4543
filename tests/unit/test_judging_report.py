"""A report counts what it says it counts, shows it in one file, and the gate keeps worse weights out."""

import re
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from inference import card as cards
from inference.card import ModelCard
from inference.models import build
from inference.preprocess import Preprocessing
from inference.result import LABELS
from tests.small_models import cnn_lstm_card, radnet_card
from training.cache import VolumeCache
from training.dataset import Scan, ScanFacts, prepare
from training.errors import DataError, TrainingError
from training.judging import page, pictures
from training.judging.cohorts import cohorts, volume_ml
from training.judging.errors import errors
from training.judging.gate import Gate, against, against_the_first
from training.judging.readers import readers
from training.judging.report import report
from training.judging.scans import Judged, by_card, digest, paired
from training.judging.slot import CURRENT, RECORD, Slot
from training.judging.waiting import Site
from training.reading import Read
from training.study import CohortFacts, LabelledStudy, Labels, slice_digests

CARD = cnn_lstm_card(threshold=0.5)
SLICES = 5


def read(number: int, score: float, *, subtype: int | None = None, **facts: object) -> Read:
    """A scan that bleeds in its third slice, or not; every label of that slice gets the score."""
    rng = np.random.default_rng(number)
    labels = np.zeros((SLICES, 6), np.float32)
    masks = np.zeros((SLICES, 8, 8), np.uint8)
    if subtype is not None:
        labels[2, [0, subtype]] = 1
        masks[2, :4, :5] = 1 << (subtype - 1)
    scores = np.full((SLICES, 6), 0.01)
    scores[2] = score
    arrays = {
        "images": rng.random((SLICES, 3, 8, 8)).astype(np.float16),
        "masks": masks,
        "digests": rng.integers(0, 256, (SLICES, 32), np.uint8),
    }
    known: dict[str, object] = {"source": "rsna", "group": "", "positions_mm": tuple(5.0 * n for n in range(SLICES))}
    return Read(
        scan=Scan(
            facts=ScanFacts(patient=f"p{number}", pixel_mm=10.0, study_uid=f"1.2.{number}", **(known | facts)),  # type: ignore[arg-type]
            labels=labels,
            study_labels=labels.max(0),
            opened=partial(dict, arrays),
        ),
        scores=scores,
    )


def whole(right: NDArray[np.bool_], bleeding: int, *, facts: CohortFacts | None = None) -> list[Read]:
    """Scans of which the first `bleeding` bleed, called rightly or not."""
    found = []
    for number, good in enumerate(right):
        bears = number < bleeding
        score = (0.7 if bears == good else 0.3) + 0.001 * number
        cohort = facts or CohortFacts(
            thickness_mm=5.0 if number % 2 else 1.0, manufacturer="GE" if number % 3 else None
        )
        found.append(read(number, score, subtype=1 + number % 5 if bears else None, cohort=cohort))
    return found


def judged(right: NDArray[np.bool_], bleeding: int) -> Judged:
    return by_card(CARD, whole(right, bleeding), "any")


def but(cases: int, *wrong: int) -> NDArray[np.bool_]:
    right = np.ones(cases, bool)
    right[list(wrong)] = False
    return right


def test_the_report_of_known_scans_has_their_counts() -> None:
    found = report(CARD, whole(but(40, 0, 30, 31), 20), sources=["rsna:x"], site=Site(
        prevalence=0.15, per_hour=6, reading_minutes=(5.0, 10.0)))  # fmt: skip
    any_ = found["scans"]["any"]
    assert (any_["sensitivity"]["hits"], any_["sensitivity"]["cases"]) == (19, 20)
    assert (any_["specificity"]["hits"], any_["specificity"]["cases"]) == (18, 20)
    assert any_["sensitivity_at_specificity"]["0.9"]["hits"] == 19
    assert found["rules"]["three slices (Grewal et al.)"]["sensitivity"]["hits"] == 0, "one slice alone bleeds"
    assert found["rules"]["maximum (Nguyen et al., Ngo et al.)"]["sensitivity"]["hits"] == 19
    assert found["slices"]["cases"] == 40 * SLICES
    assert (found["errors"]["missed_scans"], found["errors"]["false_alarms"]) == (1, 2)
    assert found["queue"]["flagged"] == pytest.approx(0.15 * 0.95 + 0.85 * 0.1)
    assert found["readers"] == []


def test_a_model_that_does_not_tell_any_has_no_queue_and_no_cohorts() -> None:
    card = replace(CARD, labels=LABELS[1:], thresholds=dict.fromkeys(LABELS[1:], 0.5))
    scans = [replace(one, scores=one.scores[:, 1:]) for one in whole(but(20, 0), 10)]
    assert "cohorts" not in report(card, scans, sources=["x"])
    with pytest.raises(DataError, match="does not tell 'any'"):
        report(card, scans, sources=["x"], site=Site(prevalence=0.2, per_hour=6, reading_minutes=(5.0,)))


def test_cohorts_are_counted_by_what_the_files_say() -> None:
    tables = cohorts(judged(but(40, 0, 30, 31), 20))
    rows = {name: {row.name: row for row in table} for name, table in tables.items()}
    assert (rows["subtype"]["intraparenchymal alone"].sensitivity.hits, rows["subtype"]["subdural"].scans) == (3, 4)
    assert rows["subtype"]["several subtypes"].scans == 0
    assert {name: row.scans for name, row in rows["thickness"].items()} == {"under 1.5 mm": 20, "5 mm and more": 20}
    assert list(rows["manufacturer"]) == ["GE", "not known"]
    assert list(rows["kernel"]) == list(rows["age"]) == ["not known"]
    assert {name: row.scans for name, row in rows["volume"].items()} == {"5 to 30 mL": 20}, "of those that bleed"
    assert volume_ml(read(0, 0.5, subtype=1).scan) == pytest.approx(20 * 100 * 5 / 1000)
    for table in tables.values():
        assert all(row.sensitivity.low <= (row.sensitivity.value or 0) <= row.sensitivity.high for row in table[:1])


def voted(name: str, hits: int, bleeding: int, alarms: int, clean: int) -> dict[int, Labels]:
    votes = [1.0] * hits + [0.0] * (bleeding - hits) + [1.0] * alarms + [0.0] * (clean - alarms)
    places = [*range(bleeding), *range(44, 44 + clean)]
    return {place: (vote, None, None, None, None, None) for place, vote in zip(places, votes, strict=True)}


def test_the_readers_of_radnets_second_table_come_out_as_printed() -> None:
    """Grewal et al. 2018, table 2; the third radiologist read 38 of the 44 that bleed."""
    said = {"1": voted("1", 36, 44, 6, 33), "2": voted("2", 39, 44, 6, 33), "3": voted("3", 33, 38, 7, 33)}
    scans = whole(but(77, *range(39, 44), *range(44, 53)), 44)
    with_readers = [
        replace(one, scan=replace(one.scan, facts=replace(one.scan.facts, readers={
            name: votes[place] for name, votes in said.items() if place in votes})))
        for place, one in enumerate(scans)
    ]  # fmt: skip
    printed = {
        "1": (81.82, 81.82, 85.71, 83.72),
        "2": (85.71, 88.64, 86.67, 87.64),
        "3": (83.10, 86.84, 82.5, 84.62),
        "model": (81.82, 88.64, 81.25, 84.78),
    }
    rows = {row.name: row for row in readers(by_card(CARD, with_readers, "any"))}
    assert list(rows) == list(printed)
    for name, expected in printed.items():
        row = rows[name]
        found = (row.accuracy.value, row.recall.value, row.precision.value, row.f1)
        assert [100 * (value or 0) for value in found] == pytest.approx(expected, abs=0.006)
    assert (rows["3"].scans, rows["model"].scans) == (71, 77)
    assert rows["1"].against_model is not None
    assert rows["1"].against_model.p > 0.5


def test_the_worst_errors_come_first_and_point_to_where_it_bleeds() -> None:
    found = errors(judged(but(20, 1, 4, 12, 15), 10), column=0)
    assert [one.study_uid for one in found.missed] == ["1.2.1", "1.2.4"]
    assert [one.study_uid for one in found.alarms] == ["1.2.15", "1.2.12"]
    assert {one.slice for one in found.missed} == {2}
    assert found.missed[0].subtypes == ("intraventricular",)
    assert {one.study_uid for one in found.slices} == {"1.2.1", "1.2.4", "1.2.12", "1.2.15"}


def test_a_prepared_scan_brings_its_readers_and_the_volume_that_pictures_show(tmp_path: Path) -> None:
    hu = np.full((3, 64, 64), -1000, np.int16)
    hu[:, 20:40, 20:40] = 80  # the upper end of the brain window
    decoded = {
        "hu": hu,
        "spacing": np.array([1.0, 1.0]),
        "positions": np.array([0.0, 5.0, 10.0]),
        "uids": np.array(["a", "b", "c"]),
        "digests": slice_digests(hu),
    }
    votes: dict[str, Labels] = {"R1": (1.0, *[None] * 5), "R2": (0.0,) * 6}
    study = LabelledStudy(
        source="cq500", patient="p", study_uid="CQ1", key="ab" * 32, decode=partial(dict, decoded), readers=votes
    )
    scan = prepare(study, cache=VolumeCache(tmp_path), preprocessing=Preprocessing.radnet(size=64))
    assert scan.facts.readers == votes
    middle = pictures._planes(scan, 1)[1]
    assert (middle.shape, middle.min(), middle.max()) == ((64, 64), 0, 1)


class Tags(HTMLParser):
    """What a page loads, and whether its tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_file_with_its_pictures_and_asks_nobody_for_anything(tmp_path: Path) -> None:
    scans = whole(but(40, 0, 30), 20)
    named = replace(CARD, name="<script>alert(1)</script>")
    site = Site(prevalence=0.2, per_hour=6, reading_minutes=(5.0,))
    found = report(named, scans, sources=["rsna:x"], other=(CARD, scans), site=site)
    path = page.write(tmp_path / "report", found, [one.scan for one in scans])
    text = path.read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert len(tags.loaded) == 6, "ROC, reliability, waits and three contact sheets"
    assert all(source.startswith("data:image/png;base64,iVBORw0KGgo") for source in tags.loaded)
    assert "<script>" not in text
    assert not re.search(r"@import|url\(|http-equiv", text)
    assert "patient-" not in text
    assert (tmp_path / "report" / "report.json").stat().st_size > 1000


def test_a_page_of_scans_that_tell_little_says_so(tmp_path: Path) -> None:
    """One label, one class, no labelled slices, nobody's votes: dashes, and no error."""
    unsaid = np.full((SLICES, 6), np.nan, np.float32)
    scans = whole(np.ones(4, bool), 4)
    only = [replace(one, scan=replace(one.scan, labels=unsaid), scores=one.scores[:, :1]) for one in scans]
    found = report(radnet_card(threshold=0.0), only, sources=["x"])
    assert found["scans"]["any"]["auc_delong"] is None
    text = page.html(found, [one.scan for one in only])
    assert "No slice of these studies is labelled in full" in text
    assert "–" in text


def test_a_test_set_has_one_digest_in_any_order_and_another_when_a_label_changes() -> None:
    scans = [one.scan for one in whole(np.ones(6, bool), 3)]
    assert digest(scans) == digest(scans[::-1])
    changed = replace(scans[0], study_labels=np.zeros(6, np.float32))
    assert digest([changed, *scans[1:]]) != digest(scans)


def test_models_are_compared_on_the_scans_that_both_read() -> None:
    first, second = judged(but(40, 0), 20), judged(but(40, 30), 20)
    left, right = paired(first.of(np.arange(40) < 35), second.of(np.arange(40)[::-1] < 38))
    assert [one.scan.facts.study_uid for one in left.readings] == [one.scan.facts.study_uid for one in right.readings]
    assert len(left.scores) == 33


def spoken(before: NDArray[np.bool_], after: NDArray[np.bool_], gate: Gate | None = None, **new: object) -> list[str]:
    bleeding = len(before) // 2
    pair = judged(before, bleeding), judged(after, bleeding)
    return against((CARD, replace(CARD, **new)), *pair, gate or Gate())  # type: ignore[arg-type]


def test_better_weights_pass_and_equal_or_worse_ones_do_not() -> None:
    old = but(400, *range(0, 40, 2), *range(200, 240, 2))
    assert spoken(old, but(400, 0, 200)) == []
    assert spoken(old, old) == ["it is better in none of AUC, sensitivity and specificity"]
    worse = spoken(old, but(400, *range(60), 200))
    assert any(reason.startswith("sensitivity may be lower by") for reason in worse)
    few = spoken(but(20, 0), but(20))
    assert any("may be lower" in reason for reason in few), "so few scans cannot show that it is no worse"


def test_a_group_that_falls_beyond_its_limit_keeps_weights_out() -> None:
    """Everywhere better but on slices under 1.5 mm, the even scans."""
    old = but(400, *range(1, 80, 2), *range(201, 280, 2))
    new = but(400, *range(0, 24, 2))
    assert spoken(old, new, Gate(margin=0.05, limit=0.2)) == []
    (reason,) = spoken(old, new, Gate(margin=0.05, limit=0.2, limits={"thickness": 0.1}))
    assert reason == "thickness under 1.5 mm: sensitivity falls by 0.120, the limit is 0.1"


def test_labels_lost_and_demonstration_weights_keep_out() -> None:
    old = but(400, *range(0, 40, 2))
    smaller = {"labels": LABELS[:5], "thresholds": dict.fromkeys(LABELS[:5], 0.5)}
    assert spoken(old, but(400), **smaller) == ["it no longer tells epidural"]
    pair = judged(old, 200), judged(but(400), 200)
    assert against((replace(CARD, demonstration=False), CARD), *pair, Gate()) == [
        "it is for demonstration only, the one in use is not"
    ]


def test_the_first_weights_must_tell_bleeding_from_none() -> None:
    assert against_the_first(judged(but(40, 0, 1), 20)) == []
    assert "no better than chance" in against_the_first(judged(np.arange(40) % 2 == 0, 20))[0]
    assert "too few" in against_the_first(judged(np.ones(3, bool), 3))[0]


def model(folder: Path, *, threshold: float) -> tuple[Path, ModelCard]:
    card = radnet_card(threshold=threshold)
    return folder, cards.save(folder, card, build(card).state_dict())


def test_promotion_swaps_the_model_in_use_and_rollback_swaps_it_back(tmp_path: Path) -> None:
    slot = Slot(tmp_path / "radnet")
    first, first_card = model(tmp_path / "a", threshold=0.25)
    second, second_card = model(tmp_path / "b", threshold=0.75)
    said = {"test_set": "d" * 64, "override": "", "gains": {}}
    with pytest.raises(TrainingError, match="nothing was in use"):
        slot.rollback()
    slot.promote(first, against=(), **said)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="not promoted: it is worse; and ugly"):
        slot.promote(second, against=("it is worse", "and ugly"), **said)  # type: ignore[arg-type]
    assert cards.load(tmp_path / "radnet" / CURRENT)[0] == first_card
    slot.promote(second, against=("it is worse",), **said | {"override": "the old one fails on 1 mm"})  # type: ignore[arg-type]
    assert cards.load(tmp_path / "radnet" / CURRENT)[0] == second_card
    with pytest.raises(TrainingError, match="in use already"):
        slot.promote(second, against=(), **said)  # type: ignore[arg-type]
    back = slot.rollback()
    assert cards.load(tmp_path / "radnet" / CURRENT)[0] == first_card
    with pytest.raises(TrainingError, match="nothing was in use before"):
        slot.rollback()
    lines = slot.record()
    assert [line.action for line in lines] == ["promoted", "promoted", "rolled back"]
    assert (lines[1].override, lines[1].against) == ("the old one fails on 1 mm", ("it is worse",))
    assert lines[1].by
    assert (back.model, back.previous) == (lines[0].model, lines[1].model)
    assert slot.test_set == "d" * 64


def test_a_line_that_a_crash_cut_off_is_written_over(tmp_path: Path) -> None:
    slot = Slot(tmp_path / "radnet")
    first, _ = model(tmp_path / "a", threshold=0.25)
    second, _ = model(tmp_path / "b", threshold=0.75)
    said = {"test_set": "d", "against": (), "override": "", "gains": {}}
    slot.promote(first, **said)  # type: ignore[arg-type]
    path = tmp_path / "radnet" / RECORD
    path.write_text(path.read_text() + '{"at": "2026')
    assert len(slot.record()) == 1
    slot.promote(second, **said)  # type: ignore[arg-type]
    assert [line.action for line in slot.record()] == ["promoted", "promoted"]
